"""Losses over a vocabulary that never hold `[tokens, vocabulary]`, and the contrast of spans."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from .counting import OPERATORS, count_labels, count_processes, gather_rows
from .errors import RetroMAEError
from .masking import IGNORE_INDEX

CHUNK_ROWS = 256
"""Rows of logits alive at once: few enough that they stay in a CPU's cache, many enough for full matrix products."""


def chunk_rows(features: Tensor) -> int:
    """Rows of logits alive at once, on the device of `features`."""
    # A GPU has no such cache to stay in, and pays for every extra pass over the weight's gradient.
    return CHUNK_ROWS if features.device.type == "cpu" else 8 * CHUNK_ROWS


def autocast_dtype(features: Tensor) -> torch.dtype:
    """The dtype that matrix products of `features` run in: autocast's where it is on, else their own."""
    device = features.device.type
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if enabled else features.dtype


def without_autocast(features: Tensor) -> AbstractContextManager[Any]:
    """What to compute in the tensors' own dtypes in, on the device of `features`."""
    device = features.device.type
    # torch's device "meta" has none.
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


class GradientsInForward(torch.autograd.Function):
    """A scalar function whose forward pass saves the gradients of its first inputs, of any content if not wanted.

    It can be differentiated once: the backward pass scales what was saved in place.
    """

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        # In place: the weight's gradient is as large as the embeddings, and new memory costs more than the product.
        saved = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        gradients = [gradient.mul_(grad_loss.to(gradient.dtype)) if wanted else None for gradient, wanted in saved]
        return *gradients, *[None] * (len(ctx.needs_input_grad) - len(gradients))


class _WeightedCrossEntropy(GradientsInForward):
    """The weighted sum, a scalar, and the rows' losses; the arguments are those of `cross_entropies` but the last."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        losses, *gradients = cross_entropies(*inputs, list(ctx.needs_input_grad[:3]))
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses)
        return (losses * inputs[4]).sum(), losses


class _BagOfWordsLoss(GradientsInForward):
    """The loss, a scalar; the arguments are those of `pooled_cross_entropy` but the last."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        loss, *gradients = pooled_cross_entropy(*inputs, list(ctx.needs_input_grad[:3]))
        ctx.save_for_backward(*gradients)
        return loss


# An operator of its own, so that torch.compile neither unrolls the chunks nor compiles anew for every number of rows.
@torch.library.custom_op(f"{OPERATORS}::cross_entropies", mutates_args=())
def cross_entropies(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    row_weights: Tensor,
    compute_dtype: torch.dtype,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The cross-entropy of each row, and the gradients of their weighted sum while each chunk's logits are at hand.

    Args:
        features: `[T, H]`.
        weight: `[V, H]`.
        bias: `[V]` or None.
        labels: int64 `[T]`.
        row_weights: `[T]`, in the dtype of the sums.
        compute_dtype: that of the matrix products.
        wanted: whether the gradients of features, weight and bias are wanted; those that are not come back empty.

    Returns:
        `[T]` and the three gradients.
    """
    compute_features, compute_weight = features.to(compute_dtype), weight.to(compute_dtype)
    compute_bias = None if bias is None else bias.to(compute_dtype)
    sum_dtype = row_weights.dtype
    wants_features, wants_weight, wants_bias = wanted
    losses = torch.empty_like(row_weights)
    grad_features, grad_weight, grad_bias = zero_gradients(features, weight, wanted, sum_dtype)
    rows = min(chunk_rows(features), len(labels))
    # Every chunk reuses this memory: fresh pages cost about as much as what is written into them.
    products = compute_features.new_empty(rows, len(weight))
    sums = products if compute_dtype == sum_dtype else products.new_empty(products.shape, dtype=sum_dtype)
    with without_autocast(features):
        for start in range(0, len(labels), rows or 1):
            chunk = slice(start, start + rows)
            target, row_weight = labels[chunk, None], row_weights[chunk, None]
            logits = linear_into(products[: len(target)], compute_features[chunk], compute_weight, compute_bias)
            if sums is not products:
                logits = sums[: len(target)].copy_(logits)
            logits -= logits.amax(1, keepdim=True)
            target_logits = logits.gather(1, target)
            # In place from here on: passes over the chunk in memory cost as much as the matrix products.
            exponentials = logits.exp_()
            normaliser = exponentials.sum(1, keepdim=True)
            losses[chunk] = (normaliser.log() - target_logits).squeeze(1)
            if not any(wanted):
                continue
            # d loss / d logits = (softmax - one-hot) x the row's weight. The weight, which is small, comes in on
            # the other side of each product, so that these values are of order one and survive half precision.
            grad_logits = exponentials.div_(normaliser)
            grad_logits.scatter_add_(1, target, grad_logits.new_full(target.shape, -1.0))
            if wants_bias:
                grad_bias.addmv_(grad_logits.T, row_weight.squeeze(1))
            if sums is not products:
                grad_logits = products[: len(target)].copy_(grad_logits)
            if wants_features:
                torch.mul(grad_logits @ compute_weight, row_weight, out=grad_features[chunk])
            if wants_weight:
                add_product(grad_weight, grad_logits.T, (compute_features[chunk] * row_weight).to(compute_dtype))
    return losses, grad_features, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


@cross_entropies.register_fake
def _cross_entropies_of_nothing(features: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *_, row_weights, _, wanted = others
    return torch.empty_like(row_weights), *zero_gradients(features, weight, wanted, weight.dtype)


def zero_gradients(
    features: Tensor, weight: Tensor, wanted: Sequence[bool], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the gradients of features, weight and bias go, the latter two in `dtype`; empty where not wanted."""
    wants_features, wants_weight, wants_bias = wanted
    return (
        features.new_zeros(features.shape if wants_features else [0]),
        weight.new_zeros(weight.shape if wants_weight else [0], dtype=dtype),
        weight.new_zeros(weight.shape[:1] if wants_bias else [0], dtype=dtype),
    )


def linear_into(out: Tensor, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`out`, with `features @ weight.T + bias` written into it."""
    if bias is None:
        return torch.mm(features, weight.T, out=out)
    return torch.addmm(bias, features, weight.T, out=out)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """`total += a @ b`, summed in `total`'s own precision."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def grouped_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Sequence[Tensor],
    group_weights: Sequence[float],
    counts: Sequence[Tensor] | Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Weighted sum of the mean cross-entropies of several groups of rows against one output projection.

    The logits are `features @ weight.T + bias`; they live for a few hundred rows at a time on a CPU, a few thousand on
    a GPU, and the gradient of the weight, which is as large as the embeddings, is made once for all groups. Under
    autocast the matrix products run in the autocast dtype and everything that sums in float32. A group without labels
    has the loss 0.

    Args:
        features: `[T, H]`, the states of the groups' positions, one group behind the other.
        weight: `[V, H]`, the output projection (usually tied to the word embeddings).
        bias: `[V]` or None.
        labels: int64, those of each group, T in all; -100 where a row has none.
        group_weights: weight of each group's mean in the sum.
        counts: scalars that the groups' sums are divided by to make their means; by default the numbers of labels.

    Returns:
        The sum, a scalar in float32 or wider that can be differentiated once, and the groups' means, which cannot.
    """
    compute_dtype = autocast_dtype(features)
    # Sums run in float32 at least: half precision would lose the small terms.
    sum_dtype = torch.promote_types(compute_dtype, torch.float32)
    if counts is None:
        counts = count_labels(labels)
    shares = [
        (group != IGNORE_INDEX).to(sum_dtype) / count.masked_fill(count == 0, 1)
        for group, count in zip(labels, counts, strict=True)
    ]
    row_weights = torch.cat([share * group for share, group in zip(shares, group_weights, strict=True)])
    targets = torch.cat(list(labels))
    targets = targets.masked_fill(targets == IGNORE_INDEX, 0)
    total, losses = _WeightedCrossEntropy.apply(features, weight, bias, targets, row_weights, compute_dtype)
    parts = losses.split([len(group) for group in labels])
    return total, [(share * part).sum() for share, part in zip(shares, parts, strict=True)]


def linear_cross_entropy(features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Mean cross-entropy of `features @ weight.T + bias` against `labels`, those of `grouped_cross_entropy`."""
    total, _ = grouped_cross_entropy(features, weight, bias, [labels], [1.0])
    return total


@torch.no_grad()
def token_accuracy(features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Share of rows whose largest logit is the label, a float32 scalar; shapes as in `linear_cross_entropy`."""
    correct = torch.zeros((), device=features.device)
    rows = chunk_rows(features)
    for start in range(0, len(labels), rows):
        logits = linear(features[start : start + rows], weight, bias)
        correct += (logits.argmax(1) == labels[start : start + rows]).sum()
    return correct / max(len(labels), 1)


def bag_of_words(labels: Tensor, vocab_size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The targets of passages, `[B, V]`: 1 / N at each distinct token, of N tokens in all, repeated ones too.

    `labels` are the ordinary tokens, int64 `[B, L]`, -100 elsewhere; a passage without labels has an empty bag.
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


# An operator of its own for the reason that `cross_entropies` is one.
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

    Arguments are those of `bag_of_words_loss`, and as in `cross_entropies`.
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
def _pooled_cross_entropy_of_nothing(features: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *_, compute_dtype, wanted = others
    loss = features.new_empty((), dtype=torch.promote_types(compute_dtype, torch.float32))
    return loss, *zero_gradients(features, weight, wanted, weight.dtype)


def contrast_logits(
    embeddings: Tensor, document_id: Tensor, temperature: float, gathered: bool = False
) -> tuple[Tensor, Tensor]:
    """How much every span is like every other one, and which of them is its partner.

    Span contrast is coCondenser's (arXiv 2108.05540, section 3.2) and Contriever's (arXiv 2112.09118, section 3.1).
    Spans of one document say nothing against each other: those that are no partners count neither way.

    Args:
        embeddings: `[2B, H]`, those of passage i in the rows i and B + i.
        document_id: int64 `[B]`, each passage's document.
        temperature: what the cosines are divided by.
        gathered: let the spans of all processes that train together be candidates; each of them has to call it.

    Returns:
        Logits `[2B, N]` in float32 or wider over the N candidates, -inf where a candidate does not count; and the
        partners' columns, int64 `[2B]`.

    Raises:
        RetroMAEError: there are not two embeddings a document.
    """
    if len(embeddings) != 2 * len(document_id):
        raise RetroMAEError(
            f"{len(embeddings)} rows are not the two spans of {len(document_id)} passages each; let a batch reach the "
            "model as DataCollatorForRetroMAE makes it, uncut"
        )
    spans = normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)
    documents = document_id.repeat(2)
    partners = torch.arange(len(spans), device=spans.device).roll(-len(document_id))
    candidates, of_candidates = spans, documents
    if gathered and count_processes() > 1:
        candidates, of_candidates = gather_rows(spans), gather_rows(documents)
        partners = partners + torch.distributed.get_rank() * len(spans)
    of_one_document = documents[:, None] == of_candidates
    hidden = of_one_document.scatter(1, partners[:, None], False)
    with without_autocast(spans):
        logits = spans @ candidates.T / temperature
    return logits.masked_fill(hidden, float("-inf")), partners
