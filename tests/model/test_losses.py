"""The losses without logits are the plain ones: cross-entropies of rows, and bags of words."""

from __future__ import annotations

import pytest
import torch
from conftest import features_of
from torch.nn.functional import cross_entropy, linear

from retromae_hf import DataCollatorForRetroMAE, RetroMAEConfig, RetroMAEForPreTraining
from retromae_hf.model import losses
from retromae_hf.model.losses import (
    bag_of_words,
    bag_of_words_loss,
    grouped_cross_entropy,
    linear_cross_entropy,
    linear_into,
    token_accuracy,
)


def random_inputs(*shape):
    """Features of 8 numbers, the weight and the bias of 37 words, in float64."""
    return [torch.randn(one, dtype=torch.float64, requires_grad=True) for one in ((*shape, 8), (37, 8), (37,))]


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_ROWS", 16)  # several chunks, the last one short
    return *random_inputs(50), torch.randint(37, (50,))


@pytest.fixture(params=["rows", 1, 7, 1000])  # tokens a chunk: less than a passage, passages by ones, all at once
def problem(request, monkeypatch):
    """A loss and its plain twin, as functions of features, weight and bias, and these three."""
    if request.param == "rows":
        *inputs, labels = request.getfixturevalue("rows")
        ours, plain = linear_cross_entropy, lambda *inputs: cross_entropy(linear(*inputs), labels)
        return lambda *inputs: ours(*inputs, labels), plain, inputs
    monkeypatch.setattr(losses, "CHUNK_ROWS", request.param)
    real = torch.arange(6) < torch.tensor([6, 1, 4, 6, 0])[:, None]
    labels = torch.randint(37, (5, 6)).masked_fill(~real, -100)

    def plainly(features, weight, bias):
        logits = linear(features, weight, bias).masked_fill(~real[..., None], -1e30)
        bags = bag_of_words(labels, len(weight), torch.float64)
        return -(bags * logits.amax(1).log_softmax(1)).sum(1).mean()

    return lambda *inputs: bag_of_words_loss(*inputs, real, labels), plainly, random_inputs(5, 6)


def test_value_and_gradients_are_those_of_the_formula(problem):
    ours, plain, inputs = problem
    losses = [function(*inputs) for function in (ours, plain)]
    assert torch.allclose(*losses, rtol=0, atol=1e-14)
    for one, other in zip(*(torch.autograd.grad(3 * loss, inputs) for loss in losses), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-14)


def test_without_bias_and_without_gradients(problem):
    ours, plain, (features, weight, _) = problem
    with torch.no_grad():
        assert torch.allclose(ours(features, weight, None), plain(features, weight, None), rtol=0, atol=1e-14)


def test_bfloat16_autocast_stays_within_its_rounding(problem):
    ours, plain, inputs = problem
    inputs = [tensor.detach().float().requires_grad_() for tensor in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        loss = ours(*inputs)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plain(*inputs).item(), rel=2e-2)
    loss.backward()
    assert all(tensor.grad.dtype == torch.float32 and tensor.grad.isfinite().all() for tensor in inputs)


def test_a_second_backward_is_an_error_not_a_wrong_gradient(problem):
    ours, _, inputs = problem
    loss = ours(*inputs)
    (2 * loss).backward(retain_graph=True)
    with pytest.raises(RuntimeError):
        (2 * loss).backward()


def test_huge_logits_stay_finite():
    features = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = linear_cross_entropy(features, torch.eye(2) * 1e4, None, torch.tensor([1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(features.grad).all()


def test_no_rows_give_a_zero_loss_and_zero_gradients():
    features, weight = torch.empty(0, 8, requires_grad=True), torch.randn(37, 8, requires_grad=True)
    loss = linear_cross_entropy(features, weight, None, torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0
    assert not weight.grad.any()


def test_groups_have_their_own_means_and_weights(rows):
    *inputs, labels = rows
    labels[[3, 17, 40]] = -100
    total, means = grouped_cross_entropy(*inputs, labels.split([20, 0, 30]), [0.25, 1.0, 1.0])
    logits = linear(*inputs)
    plain = [cross_entropy(logits[part], labels[part]) for part in (slice(0, 20), slice(20, 50))]
    assert torch.allclose(means[0], plain[0], rtol=0, atol=1e-14)
    assert means[1] == 0
    assert torch.allclose(means[2], plain[1], rtol=0, atol=1e-14)
    expected = 0.25 * plain[0] + plain[1]
    assert torch.allclose(total, expected, rtol=0, atol=1e-14)
    gradients = [torch.autograd.grad(loss, inputs) for loss in (total, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-14)


def test_no_tensor_of_all_rows_by_vocabulary_is_made(rows, monkeypatch):
    *inputs, labels = rows
    largest = []

    def watched(*args):
        largest.append(linear_into(*args).numel())
        return linear_into(*args)

    monkeypatch.setattr(losses, "linear_into", watched)
    linear_cross_entropy(*inputs, labels)
    assert max(largest) == 16 * 37


def test_token_accuracy_counts_the_most_probable(rows):
    *inputs, labels = rows
    expected = (linear(*inputs).argmax(1) == labels).float().mean()
    assert torch.allclose(token_accuracy(*inputs, labels), expected)


def test_a_bag_by_hand():
    labels = torch.tensor([[-100, 3, 1, 3, -100], [-100, -100, -100, -100, -100]])
    assert bag_of_words(labels, 4).tolist() == [
        [0, pytest.approx(1 / 3), 0, pytest.approx(1 / 3)],  # N counts the repeated token twice
        [0, 0, 0, 0],
    ]


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
