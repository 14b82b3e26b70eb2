"""DupMAE's bag-of-words loss."""

from __future__ import annotations

import pytest
import torch
from conftest import features_of

from retromae_hf import DataCollatorForRetroMAE, RetroMAEConfig, RetroMAEForPreTraining
from retromae_hf.model import losses
from retromae_hf.model.losses import bag_of_words, bag_of_words_loss


def test_a_bag_by_hand():
    labels = torch.tensor([[-100, 3, 1, 3, -100], [-100, -100, -100, -100, -100]])
    assert bag_of_words(labels, 4).tolist() == [
        [0, pytest.approx(1 / 3), 0, pytest.approx(1 / 3)],  # N counts the repeated token twice
        [0, 0, 0, 0],
    ]


@pytest.fixture(params=[1, 7, 1000])  # tokens a chunk: less than a passage, passages by ones, all at once
def problem(request, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_ROWS", request.param)
    features, weight, bias = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 6, 8), (30, 8), (30,))
    )
    lengths = torch.tensor([6, 1, 4, 6, 0])
    real = torch.arange(6) < lengths[:, None]
    labels = torch.randint(30, (5, 6)).masked_fill(~real, -100)
    return features, weight, bias, real, labels


def plainly(features, weight, bias, real, labels):
    logits = (features @ weight.T + bias).masked_fill(~real[..., None], -1e30)
    bags = bag_of_words(labels, len(weight), torch.float64)
    return -(bags * logits.amax(1).log_softmax(1)).sum(1).mean()


def test_value_and_gradients_are_those_of_the_formula(problem):
    *inputs, real, labels = problem
    loss, plain = bag_of_words_loss(*inputs, real, labels), plainly(*inputs, real, labels)
    assert torch.allclose(loss, plain, rtol=0, atol=1e-14)
    for ours, theirs in zip(torch.autograd.grad(3 * loss, inputs), torch.autograd.grad(3 * plain, inputs), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-14)


def test_without_gradients_and_without_bias(problem):
    features, weight, bias, real, labels = problem
    with torch.no_grad():
        loss = bag_of_words_loss(features, weight, None, real, labels)
    assert torch.allclose(loss, plainly(features, weight, 0 * bias, real, labels))


def test_bfloat16_autocast_stays_within_its_rounding(problem):
    *inputs, real, labels = problem
    inputs = [tensor.detach().float().requires_grad_() for tensor in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        loss = bag_of_words_loss(*inputs, real, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plainly(*inputs, real, labels).item(), rel=2e-2)
    loss.backward()
    assert all(tensor.grad.dtype == torch.float32 and tensor.grad.isfinite().all() for tensor in inputs)


def test_it_trains_with_the_model(model, tokenizer, texts):
    model.config.bow_loss_weight = 0.1
    batch = DataCollatorForRetroMAE.from_config(tokenizer, model.config)(features_of(tokenizer, texts[:8]))
    output = model(**batch)
    expected = output.mlm_loss + output.decoder_loss + 0.1 * output.bow_loss
    assert torch.allclose(output.loss, expected)
    assert 0 < output.bow_loss < 10


@pytest.mark.parametrize("decoding", ["none", "basic", "condenser", "enhanced"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_bag_of_a_sentence_embedding_is_that_of_a_slow_twin(encoder_config, tokenizer, texts, decoding, pooling):
    options = {"bow_source": "sentence", "bow_loss_weight": 0.7, "decoding": decoding, "pooling": pooling}
    model = RetroMAEForPreTraining(RetroMAEConfig(encoder_config=encoder_config, **options)).double().train()
    batch = DataCollatorForRetroMAE.from_config(tokenizer, model.config)(features_of(tokenizer, texts[:8]))
    # The passages as they were before masking.
    passages = tokenizer(texts[:8], truncation=True, max_length=32)["input_ids"]
    output = model(**batch)
    states = model.encoder.base_model(batch["input_ids"], batch.get("attention_mask")).last_hidden_state
    total = 0.0
    for row, passage in zip(states, passages, strict=True):
        sentence = row[0] if pooling == "cls" else row[: len(passage)].mean(0)
        probabilities = model.encoder.cls(sentence[None, None])[0, 0].softmax(0)
        ordinary = [token for token in passage if token not in tokenizer.all_special_ids]
        total -= sum(probabilities[token].log() / len(ordinary) for token in set(ordinary))
    assert torch.allclose(output.bow_loss, total / len(passages), rtol=0, atol=1e-12)
    parts = [part for part in (output.mlm_loss, output.decoder_loss) if part is not None]
    assert len(parts) == (1 if decoding == "none" else 2)
    assert torch.allclose(output.loss, sum(parts) + 0.7 * output.bow_loss)
    plain = torch.autograd.grad(total / len(passages), list(model.encoder.parameters()), allow_unused=True)
    model.bow_loss_weight = torch.tensor(1.0)
    model.config.mlm_loss_weight = 0.0
    ours = torch.autograd.grad(model(**batch).loss, list(model.encoder.parameters()), allow_unused=True)
    if decoding == "none":
        for one, other in zip(ours, plain, strict=True):
            assert (one is None and other is None) or torch.allclose(one, other, rtol=0, atol=1e-10)


def test_a_batch_without_the_bag_is_told(encoder_config, tokenizer, texts):
    config = RetroMAEConfig(encoder_config=encoder_config, decoding="none", bow_source="sentence", bow_loss_weight=1)
    collator = DataCollatorForRetroMAE(tokenizer, decoding="none")
    with pytest.warns(UserWarning, match="bow_source='sentence' and its batches no bow_labels"):
        RetroMAEForPreTraining(config).train()(**collator(features_of(tokenizer, texts[:2])))
