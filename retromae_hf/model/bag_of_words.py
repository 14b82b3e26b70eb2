"""The bag-of-words loss of DupMAE (arXiv 2211.08769, section 3.2) without ever holding `[tokens, vocabulary]`.

Over a single state a passage it is that of BoW-DPR (arXiv 2401.11248).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .losses import (
    OPERATORS,
    GradientsInForward,
    add_product,
    autocast_dtype,
    chunk_rows,
    linear_into,
    without_autocast,
    zero_gradients,
)
from .masking import IGNORE_INDEX


def bag_of_words(labels: Tensor, vocab_size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The target of each passage: 1 / N at each distinct token, N being the number of its tokens, repeated ones too.

    Args:
        labels: int64 `[B, L]`, the ordinary tokens, -100 elsewhere.
        vocab_size: V.
        dtype: of the result.

    Returns:
        `[B, V]`; a passage without labels has an empty bag.
    """
    ordinary = labels != IGNORE_INDEX
    share = 1.0 / ordinary.sum(1, keepdim=True).clamp(min=1).to(dtype)
    # Positions without a label write into a column that is cut off again.
    bags = torch.zeros(len(labels), vocab_size + 1, dtype=dtype, device=labels.device)
    bags.scatter_(1, labels.masked_fill(~ordinary, vocab_size), share.expand(labels.shape))
    return bags[:, :vocab_size]


def bag_of_words_loss(features: Tensor, weight: Tensor, bias: Tensor | None, real: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy between each passage's bag of words and the softmax of its max-pooled logits, mean over passages.

    Logits live for a few passages at a time, of at most a few hundred tokens on a CPU. Under autocast the matrix
    products run in the autocast dtype and everything that sums in float32. It cannot be differentiated twice.

    Args:
        features: `[B, P, H]`, the states to pool over as they go into the output projection.
        weight: `[V, H]`, the output projection.
        bias: `[V]` or None.
        real: bool `[B, P]`, False at padding.
        labels: int64 `[B, L]`, the ordinary tokens, -100 elsewhere.

    Returns:
        A scalar, float32 or wider.
    """
    return _BagOfWordsLoss.apply(features, weight, bias, real, labels, autocast_dtype(features))


class _BagOfWordsLoss(GradientsInForward):
    """Saves the gradients that `pooled_cross_entropy` has made."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        real: Tensor,
        labels: Tensor,
        compute_dtype: torch.dtype,
    ) -> Tensor:
        wanted = list(ctx.needs_input_grad[:3])
        loss, *gradients = pooled_cross_entropy(features, weight, bias, real, labels, compute_dtype, wanted)
        _BagOfWordsLoss.save(ctx, gradients)
        return loss


# An operator of its own for the reason that `losses.cross_entropies` is one.
@torch.library.custom_op(f"{OPERATORS}::pooled_cross_entropy", mutates_args=())
def pooled_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    real: Tensor,
    labels: Tensor,
    compute_dtype: torch.dtype,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss and its gradients, some passages at a time, while their logits are at hand.

    Arguments are those of `bag_of_words_loss`, and as in `losses.cross_entropies`.
    """
    compute_features, compute_weight = features.to(compute_dtype), weight.to(compute_dtype)
    compute_bias = None if bias is None else bias.to(compute_dtype)
    sum_dtype = torch.promote_types(compute_dtype, torch.float32)
    wants_features, wants_weight, wants_bias = wanted
    bags = bag_of_words(labels, len(weight), sum_dtype)
    # A passage of nothing but padding has an empty bag, so that its pooled logits only need to be finite.
    hidden = ~(real | ~real.any(1, keepdim=True))
    loss = features.new_zeros((), dtype=sum_dtype)
    grad_features, grad_weight, grad_bias = zero_gradients(features, weight, wanted, sum_dtype)
    passages, length = features.shape[:2]
    step = min(max(chunk_rows(features) // length, 1), passages)
    products = compute_features.new_empty(step * length, len(weight))  # which every chunk reuses
    with without_autocast(features):
        for start in range(0, passages, step):
            chunk = slice(start, start + step)
            rows = compute_features[chunk].flatten(0, 1)
            logits = linear_into(products[: len(rows)], rows, compute_weight, compute_bias)
            logits = logits.unflatten(0, (-1, length))
            pooled, places = logits.masked_fill_(hidden[chunk, :, None], float("-inf")).max(dim=1)
            log_probabilities = pooled.to(sum_dtype).log_softmax(1)
            loss -= (bags[chunk] * log_probabilities).sum()
            if not any(wanted):
                continue
            grad_pooled = log_probabilities.exp_() * bags[chunk].sum(1, keepdim=True) - bags[chunk]
            # Only the place that a maximum came from gets its gradient.
            grad_logits = logits.zero_().scatter_(1, places[:, None], grad_pooled[:, None].to(compute_dtype))
            if wants_features:
                torch.div(grad_logits @ compute_weight, passages, out=grad_features[chunk])
            if wants_weight:
                add_product(grad_weight, grad_logits.flatten(0, 1).T, rows)
            if wants_bias:
                grad_bias += grad_pooled.sum(0)
    grad_weight, grad_bias = ((gradient / passages).to(weight.dtype) for gradient in (grad_weight, grad_bias))
    return loss / passages, grad_features, grad_weight, grad_bias


@pooled_cross_entropy.register_fake
def _pooled_cross_entropy_of_nothing(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    real: Tensor,
    labels: Tensor,
    compute_dtype: torch.dtype,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    loss = features.new_empty((), dtype=torch.promote_types(compute_dtype, torch.float32))
    return loss, *zero_gradients(features, weight, wanted, weight.dtype)
