"""What a batch tells beside its tokens, and the counts that make means of sums; nothing here changes the objective."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor

from .configuration_retromae import RetroMAEConfig
from .distributed import average_over_processes
from .losses import count_labels
from .masking import IGNORE_INDEX

COUNTED = ("mlm_loss", "decoder_loss", "passages")
"""What is counted of each batch of a step that accumulates gradients: the labels of two losses, and the passages."""


class Bookkeeping(TypedDict, total=False):
    """What `RetroMAEForPreTraining.forward` takes beside the method's own inputs; the collator and the trainer give it.

    Attributes:
        label_slots: of no content, `[B, T, 0]`: its shape says that there are T labels in the batch, or fewer. The
            shape is known on the host, so that nobody waits for an accelerator to count them.
        decoder_label_slots: likewise for `decoder_labels`.
        step_counts: int64 `[batches, 3]`, `COUNTED` in each batch of a step that accumulates gradients; their averages
            then take the place of the batch's own counts.
        passage_id: int64 `[B]`, of which the collator derives the seeds, and which lets a callback tell which passages
            a batch holds.
        length: int64 `[B]`; `Trainer` groups passages by it, and without it reads them all to know.
    """

    label_slots: Tensor
    decoder_label_slots: Tensor
    step_counts: Tensor
    passage_id: Tensor
    length: Tensor


def signature_for_trainer(forward: Callable[..., Any]) -> inspect.Signature:
    """The signature of a `forward(..., **bookkeeping)` as `Trainer` is to read it.

    It drops the columns of a dataset that it does not find there, so the names of `Bookkeeping` are spelt out. It gives
    an evaluation no loss unless every name with "label" in it is in the batch, so of those `labels` stands alone: the
    others belong to objectives of which no run has all, and come from the collator, not from a column.
    """
    signature = inspect.signature(forward)
    *own, _ = signature.parameters.values()
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in Bookkeeping.__annotations__
    ]
    return signature.replace(
        parameters=[one for one in [*own, *added] if one.name == "labels" or "label" not in one.name]
    )


def warn_of_missing_labels(
    config: RetroMAEConfig,
    decoder_labels: Tensor | None,
    pair_labels: Tensor | None,
    bow_labels: Tensor | None,
    document_id: Tensor | None,
) -> None:
    """Say which objectives a training batch leaves out, as those of other collators do."""
    contrast = config.pair_objective == "contrast"
    of_pairs = (document_id, "document_id") if contrast else (pair_labels, "pair_labels")
    wanted = {
        f"decoding={config.decoding!r}": (config.decoding in ("enhanced", "basic"), decoder_labels, "decoder_labels"),
        f"pair_objective={config.pair_objective!r}": (config.pair_objective is not None, *of_pairs),
        f"bow_source={config.bow_source!r}": (config.bow_source == "sentence", bow_labels, "bow_labels"),
    }
    for objective, (configured, labels, name) in wanted.items():
        if configured and labels is None:
            warnings.warn(
                f"the model has {objective} and its batches no {name}, so that this objective is not trained; use "
                "DataCollatorForRetroMAE.from_config(tokenizer, model.config) as data collator",
                stacklevel=3,
            )


def labelled_rows(states: Tensor, labels: Tensor, slots: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The states and labels at the positions that carry a label.

    Args:
        states: `[B, L, H]`.
        labels: integers `[B, L]`, -100 where there is none.
        slots: `[B, T, 0]`, room for T labels, see `Bookkeeping`: for where counting them would make the host wait for
            an accelerator, or cut a compiled graph in two. None: they are counted.

    Returns:
        `[T, H]` and `[T]`; slots that are left over hold rows whose label is -100.
    """
    labels = labels.flatten().to(torch.int64)
    counting_is_free = labels.device.type == "cpu" and not torch.compiler.is_compiling()
    if slots is None or counting_is_free:
        positions = (labels != IGNORE_INDEX).nonzero().squeeze(1)
        found = labels.index_select(0, positions)
    else:
        positions, found = labels_in_slots(labels, slots.shape[1])
    return states.flatten(0, 1).index_select(0, positions), found


def labels_in_slots(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Positions and labels of `labels`, int64 `[N]`, in `count` slots, both int64 `[count]`, without counting them.

    Slots that are left over point to position 0 and have the label -100. Too few slots are an error on the device.
    """
    real = labels != IGNORE_INDEX
    torch._assert_async(real.sum() <= count, "there are more labels than slots; leave the slots out")
    # Every labelled position is written into its own slot, and the others into one behind the last.
    slot = torch.where(real, real.cumsum(0) - 1, count).clamp(max=count)
    here = torch.arange(len(labels), device=labels.device)
    positions = torch.zeros(count + 1, dtype=torch.int64, device=labels.device).scatter(0, slot, here)[:count]
    filled = torch.arange(count, device=labels.device) < real.sum()
    return positions, labels.index_select(0, positions).masked_fill(~filled, IGNORE_INDEX)


def counts_of(batch: Mapping[str, Tensor]) -> Tensor:
    """`COUNTED` of a batch of the collator, int64 `[3]`."""
    labels = batch["labels"]
    # A Condenser's decoder predicts what the encoder has to.
    decoder_labels = batch.get("decoder_labels", labels)
    if "decoder_rows" in batch:
        decoder_labels = decoder_labels.take_along_dim(batch["decoder_rows"].to(torch.int64), 1)
    return count_labels([labels, decoder_labels, torch.zeros_like(labels[:, 0])])


def divisors(
    predicted: Mapping[str, tuple[Tensor, Tensor]], embeddings: Tensor, step_counts: Tensor | None, training: bool
) -> dict[str, Tensor]:
    """What the sums of a batch's losses are divided by to make their means.

    In training these are averages over the processes and over the batches of a step, which then equals that of one
    process on one batch of them all; a mean of means would count a label of a short batch for more than others.

    Args:
        predicted: states and labels of each loss over tokens, as `labelled_rows` gives them.
        embeddings: `[B, H]`.
        step_counts: see `Bookkeeping`.
        training: whether the model trains.

    Returns:
        Scalars: under each loss's name its labels, and under "passages" those.
    """
    names = (*predicted, "passages")
    if step_counts is None:
        passages = torch.zeros_like(embeddings[:, 0], dtype=torch.int64)  # none of them is IGNORE_INDEX
        counts = count_labels([*(labels for _, labels in predicted.values()), passages])
    else:
        of_step = dict(zip(COUNTED, (step_counts.sum(0) / len(step_counts)).unbind(), strict=True))
        counts = torch.stack([of_step[name] for name in names])
    counts = average_over_processes(counts) if training else counts
    return dict(zip(names, counts.unbind(), strict=True))
