"""Labels, and the numbers of them that the processes of a distributed run and the batches of a step agree on."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .configuration_retromae import SEGMENT_OBJECTIVES, RetroMAEConfig
from .masking import IGNORE_INDEX

OPERATORS = re.sub(r"\W", "_", __package__)
"""The namespace of the operators of this copy of the code, in the package "retromae_hf".

Copies of this file that come with checkpoints, of this or another revision, may live in one process. torch lets the
last operator of a name replace all the others, so each copy needs names of its own.
"""


def count_processes() -> int:
    """Processes that train together, 1 where there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sharded_by_accelerate() -> bool:
    """Whether accelerate shards models over the processes (FSDP)."""
    try:  # a copy of this file, in a checkpoint on the Hub, does without
        from accelerate.state import AcceleratorState, is_initialized
        from accelerate.utils import DistributedType
    except ImportError:
        return False
    return is_initialized() and AcceleratorState().distributed_type == DistributedType.FSDP


def average_over_processes(counts: Tensor) -> Tensor:
    """`counts`, averaged over the processes that train together, each of which has to call it.

    The mean over the processes of sums that are divided by it is the mean over all that was counted; and that mean is
    what data parallelism makes of the gradients, and `Trainer` of the losses that it logs. The host does not wait.
    """
    processes = count_processes()
    return counts if processes == 1 else sum_over_processes(counts.double()) / processes


# An operator of its own, so that torch.compile does not cut the graph at it.
@torch.library.custom_op(f"{OPERATORS}::sum_over_processes", mutates_args=())
def sum_over_processes(counts: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    total = counts.clone()
    dist.all_reduce(total)
    return total


@sum_over_processes.register_fake
def _sum_over_no_processes(counts: Tensor) -> Tensor:
    return torch.empty_like(counts)


@torch.library.custom_op(f"{OPERATORS}::gather_rows", mutates_args=())
def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes, which have as many each, one process behind the other.

    Gradients go back: the loss of every process depends on all rows, so that a row's is the sum of theirs.
    """
    everything = rows.new_empty(count_processes() * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(everything, rows.contiguous())
    return everything


@gather_rows.register_fake
def _gather_no_rows(rows: Tensor) -> Tensor:
    return rows.new_empty(count_processes() * len(rows), *rows.shape[1:])


def _gradients_of_own_rows(ctx: Any, gradients: Tensor) -> Tensor:
    return sum_over_processes(gradients).chunk(count_processes())[dist.get_rank()].clone()


gather_rows.register_autograd(_gradients_of_own_rows)


COUNTED = ("mlm_loss", "decoder_loss", "passages")
"""What is counted of each batch of a step that accumulates gradients: the labels of two losses, and the passages."""

BOOKKEEPING = ("label_slots", "decoder_label_slots", "step_counts", "passage_id", "length")
"""What `RetroMAEForPreTraining.forward` takes beside the method's own inputs; the collator and the trainer give it.

`label_slots` and `decoder_label_slots`, `[B, T, 0]`, are of no content: their shape, which the host knows, says that
there are T labels in the batch, or fewer, so that nobody waits for an accelerator to count them. `step_counts`, int64
`[batches, 3]`, are `COUNTED` in each batch of a step that accumulates gradients, whose averages take the place of the
batch's own counts. Of `passage_id`, int64 `[B]`, the collator derives the seeds, and a callback can tell the passages
of a batch by it. By `length`, int64 `[B]`, `Trainer` groups passages, and without it reads them all to know.
"""


def signature_for_trainer(forward: Callable[..., Any]) -> inspect.Signature:
    """The signature of a `forward(..., **bookkeeping)` as `Trainer` is to read it.

    It drops the columns of a dataset that it does not find there, so `BOOKKEEPING` is spelt out. It gives an
    evaluation no loss unless every name with "label" in it is in the batch, so of those `labels` stands alone: the
    others belong to objectives of which no run has all, and come from the collator, not from a column.
    """
    signature = inspect.signature(forward)
    *own, _ = signature.parameters.values()
    added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in BOOKKEEPING]
    return signature.replace(
        parameters=[one for one in [*own, *added] if one.name == "labels" or "label" not in one.name]
    )


def warn_of_missing_labels(config: RetroMAEConfig, **labels: Tensor | None) -> None:
    """Say which objectives a training batch leaves out, as those of other collators do; `labels` are its own."""
    needed = {
        "decoder_labels": ("decoding", config.decoding in ("enhanced", "basic")),
        "pair_labels": ("pair_objective", config.pair_objective in SEGMENT_OBJECTIVES),
        "document_id": ("pair_objective", config.pair_objective == "contrast"),
        "bow_labels": ("bow_source", config.bow_source == "sentence"),
    }
    for name, (field, is_needed) in needed.items():
        if is_needed and labels[name] is None:
            warnings.warn(
                f"the model has {field}={getattr(config, field)!r} and its batches no {name}, so that this objective "
                "is not trained; use DataCollatorForRetroMAE.from_config(tokenizer, model.config) as data collator",
                stacklevel=3,
            )


def labelled_rows(states: Tensor, labels: Tensor, slots: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The states and labels at the positions that carry a label.

    Args:
        states: `[B, L, H]`.
        labels: integers `[B, L]`, -100 where there is none.
        slots: `[B, T, 0]`, room for T labels, see `BOOKKEEPING`: for where counting them would make the host wait for
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


def count_labels(groups: Sequence[Tensor]) -> Tensor:
    """How many labels each tensor of labels holds, int64 `[groups]`."""
    return torch.stack([(labels != IGNORE_INDEX).sum() for labels in groups])


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
    `predicted` are the states and labels of each loss over tokens, `embeddings` `[B, H]`; of `step_counts` see
    `BOOKKEEPING`. Scalars come back: under each loss's name its labels, and under "passages" those.
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
