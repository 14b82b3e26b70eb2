"""New parts first: what a checkpoint does not have learns alone, before the encoder learns with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..model.errors import RetroMAEError
from ..model.modeling_retromae import RetroMAEForPreTraining
from .arguments import HEAD_WARMUP_SHARE, MAX_HEAD_WARMUP_STEPS, DataArguments
from .resuming.run_folder import Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeadWarmup(TrainerCallback):
    """The first steps of a run, in which new parameters learn alone at a rate of their own; as a callback it says so.

    A new head sends large gradients into an encoder that is good already. The trainer drops the encoder's gradients
    in these steps, so that an optimizer leaves its weights alone and counts its moments from the first step of its
    own, and so that the norm that is clipped is that of the new parameters. Nothing is switched off in the model
    itself, which DDP, FSDP and `torch.compile` would have to be told of in the midst of a run.

    Attributes:
        names: the new parameters, as `named_parameters` calls them.
        steps: so many; None for a share of the run's.
        learning_rate: theirs in these steps; after them everything has that of the `TrainingArguments`.
    """

    names: Collection[str]
    steps: int | None
    learning_rate: float

    def steps_of(self, total: int) -> int:
        """How many of the `total` steps of a run.

        Raises:
            RetroMAEError: it would be all of them.
        """
        if self.steps is None:
            return min(MAX_HEAD_WARMUP_STEPS, int(HEAD_WARMUP_SHARE * total))
        if self.steps >= total:
            raise RetroMAEError(
                f"head_warmup_steps={self.steps} leaves none of the run's {total} steps to the encoder; lower it, or "
                "train longer"
            )
        return self.steps

    def split(self, optimizer: Optimizer, model: nn.Module) -> int:
        """Part the optimizer's groups into those of new parameters, which come first, and the others.

        The first group's rate is the one that `Trainer` logs.

        Returns:
            How many groups are new.
        """
        ours = {parameter for name, parameter in model.named_parameters() if name in self.names}
        parts: list[list[dict[str, Any]]] = []
        for is_new in (True, False):
            groups = [
                group | {"params": [parameter for parameter in group["params"] if (parameter in ours) == is_new]}
                for group in optimizer.param_groups
            ]
            parts.append([group for group in groups if group["params"]])
        new, old = parts
        for group in new:
            group["lr"] = self.learning_rate
        optimizer.param_groups[:] = new + old
        return len(new)

    def schedule(
        self, optimizer: Optimizer, num_new: int, steps: int, usual: Callable[[int], float], learning_rate: float
    ) -> LambdaLR:
        """A constant rate for the first `num_new` groups and none for the others, then the usual schedule for all.

        Args:
            optimizer: whose groups are split.
            num_new: how many of them are new.
            steps: before the usual schedule begins.
            usual: the factor on `learning_rate` after so many of the other steps.
            learning_rate: that of the encoder.
        """

        def of_new(step: int) -> float:
            return 1.0 if step < steps else usual(step - steps) * learning_rate / self.learning_rate

        def of_old(step: int) -> float:
            return 0.0 if step < steps else usual(step - steps)

        num_old = len(optimizer.param_groups) - num_new
        factors: list[Any] = [of_new] * num_new + [of_old] * num_old
        return LambdaLR(optimizer, factors)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say what begins."""
        if state.global_step < (steps := self.steps_of(state.max_steps)):
            logger.info(
                "the first %d of %d steps train the new parts alone: %d parameter tensors at a rate of %g; the encoder "
                "learns after them",
                steps,
                state.max_steps,
                len(self.names),
                self.learning_rate,
            )


def plan_head_warmup(args: DataArguments, model: RetroMAEForPreTraining, run: Run) -> HeadWarmup | None:
    """What the arguments ask for of a run that is about to train the model; None where all learn from the start.

    Raises:
        RetroMAEError: nothing is new, or the run that goes on had another warm-up, to which its optimizer belongs.
    """
    names = run.take_new_parameters(model.new_parameters)
    if args.head_warmup_steps and not names:
        raise RetroMAEError(
            f"head_warmup_steps={args.head_warmup_steps} needs new parts beside a trained encoder, which there are "
            "only where a run starts from a plain masked LM or encoder; leave it out"
        )
    for name in ("head_warmup_steps", "head_learning_rate") if names and run.noted else ():
        if run.noted.get(name) != getattr(args, name):
            raise RetroMAEError(
                f"{run.checkpoint} is of a run with {name}={run.noted.get(name)}, not {getattr(args, name)}, which "
                "cannot be changed on the way; give the same, or start anew from the model with --model_name_or_path"
            )
    head_is_new = any(name.startswith("encoder.") for name in names)
    if args.head_warmup_steps == 0 or (args.head_warmup_steps is None and not head_is_new):
        return None
    return HeadWarmup(names, args.head_warmup_steps, args.head_learning_rate)
