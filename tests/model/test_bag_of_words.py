"""DupMAE's bag-of-words loss."""

from __future__ import annotations

import pytest
import torch

from retromae_hf.model import losses
from retromae_hf.model.bag_of_words import bag_of_words, bag_of_words_loss


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
    from conftest import features_of

    from retromae_hf import DataCollatorForRetroMAE

    model.config.bow_loss_weight = 0.1
    batch = DataCollatorForRetroMAE.from_config(tokenizer, model.config)(features_of(tokenizer, texts[:8]))
    output = model(**batch)
    expected = output.mlm_loss + output.decoder_loss + 0.1 * output.bow_loss
    assert torch.allclose(output.loss, expected)
    assert 0 < output.bow_loss < 10
