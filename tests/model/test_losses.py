"""The loss without logits is the plain one."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from retromae_hf.model import losses
from retromae_hf.model.losses import grouped_cross_entropy, linear_cross_entropy, linear_into, token_accuracy


@pytest.fixture
def problem(monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_ROWS", 16)  # several chunks, the last one short
    features = torch.randn(50, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(37, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(37, dtype=torch.float64, requires_grad=True)
    return features, weight, bias, torch.randint(37, (50,))


def test_value_and_gradients_are_those_of_cross_entropy(problem):
    *inputs, labels = problem
    loss = linear_cross_entropy(*inputs, labels)
    plain = cross_entropy(linear(*inputs), labels)
    assert torch.allclose(loss, plain, rtol=0, atol=1e-14)
    for ours, theirs in zip(torch.autograd.grad(3 * loss, inputs), torch.autograd.grad(3 * plain, inputs), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-14)


def test_without_bias_and_without_gradients(problem):
    features, weight, _, labels = problem
    with torch.no_grad():
        loss = linear_cross_entropy(features, weight, None, labels)
    assert torch.allclose(loss, cross_entropy(features @ weight.T, labels), rtol=0, atol=1e-14)


def test_bfloat16_autocast_stays_within_its_rounding(problem):
    features, weight, bias, labels = (tensor.detach() for tensor in problem)
    features, weight, bias = (tensor.float().requires_grad_() for tensor in (features, weight, bias))
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(features, weight, bias, labels)
    assert loss.dtype == torch.float32
    assert torch.allclose(loss, cross_entropy(linear(features, weight, bias), labels), rtol=1e-2)
    loss.backward()
    assert features.grad.dtype == weight.grad.dtype == bias.grad.dtype == torch.float32


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


def test_groups_have_their_own_means_and_weights(problem):
    *inputs, labels = problem
    labels[[3, 17, 40]] = -100
    total, means = grouped_cross_entropy(*inputs, labels.split([20, 0, 30]), [0.25, 1.0, 1.0])
    logits = linear(*inputs)
    plain = [cross_entropy(logits[rows], labels[rows]) for rows in (slice(0, 20), slice(20, 50))]
    assert torch.allclose(means[0], plain[0], rtol=0, atol=1e-14)
    assert means[1] == 0
    assert torch.allclose(means[2], plain[1], rtol=0, atol=1e-14)
    expected = 0.25 * plain[0] + plain[1]
    assert torch.allclose(total, expected, rtol=0, atol=1e-14)
    for ours, theirs in zip(torch.autograd.grad(total, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-14)


def test_a_second_backward_is_an_error_not_a_wrong_gradient(problem):
    *inputs, labels = problem
    loss = linear_cross_entropy(*inputs, labels)
    (2 * loss).backward(retain_graph=True)
    with pytest.raises(RuntimeError):
        (2 * loss).backward()


def test_no_tensor_of_all_rows_by_vocabulary_is_made(problem, monkeypatch):
    *inputs, labels = problem
    largest = []

    def watched(*args):
        largest.append(linear_into(*args).numel())
        return linear_into(*args)

    monkeypatch.setattr(losses, "linear_into", watched)
    linear_cross_entropy(*inputs, labels)
    assert max(largest) == 16 * 37


def test_token_accuracy_counts_the_most_probable(problem):
    *inputs, labels = problem
    expected = (linear(*inputs).argmax(1) == labels).float().mean()
    assert torch.allclose(token_accuracy(*inputs, labels), expected)
