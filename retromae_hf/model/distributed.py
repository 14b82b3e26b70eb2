"""What the processes of a distributed run have to agree on."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from .losses import OPERATORS


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


def end_process_group() -> None:
    """Leave the process group, where there is one: left open, it may abort a process that ends in good order.

    So may native threads (gloo's, Arrow's) that ask for Python while it shuts down. What they belong to is held by
    `Trainer`'s circles of references until somebody collects them.
    """
    gc.collect()
    if count_processes() > 1:
        dist.destroy_process_group()


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """A sharded model (FSDP2) whose methods beside `forward` can be called; its layers gather their own weights."""
    if isinstance(model, FSDPModule):
        model.unshard()
    try:
        yield
    finally:
        if isinstance(model, FSDPModule):
            model.reshard()


def average_over_processes(counts: Tensor) -> Tensor:
    """`counts`, averaged over the processes that train together; each of them has to call it.

    Sums that every process divides by this average, instead of its own count, have as their mean over the processes
    the mean over all that was counted. That mean is what data parallelism makes of the gradients, and `Trainer` of the
    losses that it logs.

    Args:
        counts: numbers, any shape.

    Returns:
        The same shape; as given where one process trains, else float64. The host does not wait for it.
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
