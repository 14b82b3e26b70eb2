"""Where the time of a training step goes, part by part, forward and backward.

Parts are marked in the forward pass; what the backward pass does for an operation is counted for the part that the
operation stood in, which autograd's sequence numbers tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

from benchmark import SIDES, Setting, batches_of, new_model, new_tokenizer, random_passages, step_of
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

PARTS = ("embeddings", "encoder: attention", "encoder: feed-forward", "visibility mask", "decoder", "head and losses")
OPTIMIZER, REST = "optimizer", "rest"


def measure_profile(setting: Setting, length: int) -> dict[str, Any]:
    rows = random_passages(length, setting.batch_size(length))
    batches = batches_of(setting, new_tokenizer(), rows, None)
    seconds = {}
    for side in SIDES:
        model = new_model(setting, length, side)
        for owner, method, part in parts_of(model):
            mark(owner, method, part)
        step = step_of(setting, model, batches[side])
        step()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for _ in range(setting.rounds):
                step()
        seconds[side] = by_part(cast(Any, profiled.events()), setting.rounds)
    return {"length": length, "seconds_by_part": seconds}


def parts_of(model: Any) -> Iterator[tuple[Any, str, str]]:
    """What computes each part: an object, its method, and the part."""
    bert, head = (model.encoder, model) if hasattr(model, "decoder") else (model, model.cls)
    yield bert.bert.embeddings, "forward", "embeddings"
    for layer in bert.bert.encoder.layer:
        yield layer.attention, "forward", "encoder: attention"
        yield layer.intermediate, "forward", "encoder: feed-forward"
        yield layer.output, "forward", "encoder: feed-forward"
    if head is model:
        yield model, "_visibility", "visibility mask"
        yield model.decoder, "forward", "decoder"
        yield model, "_token_losses", "head and losses"
    else:
        yield head, "forward", "head and losses"
        yield model, "loss_function", "head and losses"


def mark(owner: nn.Module, method: str, part: str) -> None:
    """Let the profiler see what an object's method does as `part`."""
    plain: Callable[..., Any] = getattr(owner, method)

    def marked(*args: Any, **kwargs: Any) -> Any:
        with record_function(part):
            return plain(*args, **kwargs)

    setattr(owner, method, marked)


def by_part(events: list[FunctionEvent], steps: int) -> dict[str, float]:
    part_of = {}
    for event in events:
        if event.sequence_nr >= 0 and not event.fwd_thread and (part := _outermost(event).name) in PARTS:
            part_of[event.sequence_nr] = part
    seconds = dict.fromkeys((*PARTS, OPTIMIZER, REST), 0.0)
    for event in events:
        if event.cpu_parent is None:
            name = OPTIMIZER if event.name.startswith("Optimizer.") else event.name
            part = name if name in seconds else part_of.get(event.sequence_nr, REST)
            seconds[part] += event.time_range.elapsed_us() / 1e6 / steps
    return {part: value for part, value in seconds.items() if value}


def _outermost(event: FunctionEvent) -> FunctionEvent:
    while event.cpu_parent is not None:
        event = event.cpu_parent
    return event
