"""The bag-of-words loss of DupMAE (arXiv 2211.08769, section 3.2) without ever holding `[tokens, vocabulary]`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .losses import GradientsInForward, add_product, autocast_dtype, chunk_rows, linear_into
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
    """Takes the gradients in the forward pass, some passages at a time, while their logits are at hand."""

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
        compute_features, compute_weight = features.to(compute_dtype), weight.to(compute_dtype)
        compute_bias = None if bias is None else bias.to(compute_dtype)
        sum_dtype = torch.promote_types(compute_dtype, torch.float32)
        bags = bag_of_words(labels, len(weight), sum_dtype)
        # A passage of nothing but padding has an empty bag, so that its pooled logits only need to be finite.
        hidden = ~(real | ~real.any(1, keepdim=True))
        loss = features.new_zeros((), dtype=sum_dtype)
        wants_gradients = any(ctx.needs_input_grad[:3])
        grad_features = torch.empty_like(features) if wants_gradients else None
        grad_weight = weight.new_zeros(weight.shape, dtype=sum_dtype) if wants_gradients else None
        grad_bias = weight.new_zeros(len(weight), dtype=sum_dtype) if wants_gradients and bias is not None else None
        passages, length = features.shape[:2]
        step = min(max(chunk_rows(features) // length, 1), passages)
        products = compute_features.new_empty(step * length, len(weight))  # which every chunk reuses
        with torch.autocast(features.device.type, enabled=False):
            for start in range(0, passages, step):
                chunk = slice(start, start + step)
                rows = compute_features[chunk].flatten(0, 1)
                logits = linear_into(products[: len(rows)], rows, compute_weight, compute_bias)
                logits = logits.unflatten(0, (-1, length))
                pooled, places = logits.masked_fill_(hidden[chunk, :, None], float("-inf")).max(dim=1)
                log_probabilities = pooled.to(sum_dtype).log_softmax(1)
                loss -= (bags[chunk] * log_probabilities).sum()
                if grad_features is None or grad_weight is None:
                    continue
                grad_pooled = log_probabilities.exp_() * bags[chunk].sum(1, keepdim=True) - bags[chunk]
                # Only the place that a maximum came from gets its gradient.
                grad_logits = logits.zero_().scatter_(1, places[:, None], grad_pooled[:, None].to(compute_dtype))
                torch.div(grad_logits @ compute_weight, passages, out=grad_features[chunk])
                add_product(grad_weight, grad_logits.flatten(0, 1).T, rows)
                if grad_bias is not None:
                    grad_bias += grad_pooled.sum(0)
        ctx.save_for_backward(
            grad_features,
            None if grad_weight is None else (grad_weight / passages).to(weight.dtype),
            None if grad_bias is None or bias is None else (grad_bias / passages).to(bias.dtype),
        )
        return loss / passages
