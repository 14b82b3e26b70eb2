"""The trainer of `retromae-hf pretrain`, in which what a checkpoint does not have may learn alone at first."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import Trainer, TrainerCallback, TrainingArguments

from ..arguments.pretraining import HEAD_WARMUP_SHARE, MAX_HEAD_WARMUP_STEPS, RunArguments
from ..data.collator import DataCollatorForRetroMAE
from ..data.streams import PassageStream
from ..model.counting import counts_of
from ..model.errors import RetroMAEError, check_choice, in_one_sentence
from ..model.modeling_retromae import RetroMAEForPreTraining
from ..retrieval.measures import DEFAULT_MEASURES
from ..retrieval.tasks import RetrievalTask
from .callbacks import MEASURED, RetrievalCallback, RetroMAECallback
from .health import HealthCallback
from .run_folder import Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeadWarmup(TrainerCallback):
    """The first steps of a run, in which new parameters learn alone at a rate of their own; as a callback it says so.

    A new head sends large gradients into an encoder that is good already. The trainer drops the encoder's gradients
    in these steps, so that an optimizer leaves its weights alone and counts its moments from the first step of its
    own, and so that the norm that is clipped is that of the new parameters. Nothing is switched off in the model
    itself, which DDP, FSDP and `torch.compile` would have to be told of in the midst of a run.
    """

    names: Collection[str]  # as `named_parameters` calls them
    steps: int | None  # None for a share of the run's
    learning_rate: float  # in these steps; after them everything has that of the `TrainingArguments`

    def steps_of(self, total: int) -> int:
        """How many of the `total` steps of a run; all of them are an error."""
        if self.steps is None:
            return min(MAX_HEAD_WARMUP_STEPS, int(HEAD_WARMUP_SHARE * total))
        if self.steps >= total:
            raise RetroMAEError(
                f"head_warmup_steps={self.steps} leaves none of the run's {total} steps to the encoder; lower it"
            )
        return self.steps

    def split(self, optimizer: Optimizer, model: nn.Module) -> int:
        """Part the optimizer's groups into those of new parameters, which come first, and the others.

        The first group's rate is the one that `Trainer` logs. Returns how many groups are new.
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

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step < (steps := self.steps_of(state.max_steps)):
            logger.info(
                "the first %d of %d steps train the new parts alone: %d parameter tensors at a rate of %g; the encoder "
                "learns after them",
                steps,
                state.max_steps,
                len(self.names),
                self.learning_rate,
            )


def plan_head_warmup(
    args: RunArguments, training_args: TrainingArguments, model: RetroMAEForPreTraining, run: Run
) -> HeadWarmup | None:
    """What the arguments ask for of a run that is about to train the model; None where all learn from the start."""
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
    warmup = HeadWarmup(names, args.head_warmup_steps, args.head_learning_rate)
    if training_args.max_steps > 0:
        warmup.steps_of(training_args.max_steps)
    return warmup


class AccumulatingTrainer(Trainer):
    """`Trainer` whose accumulated steps are those of one large batch, and whose new parameters may learn first.

    `Trainer` by itself takes the mean of the batches' means, in which a label of a batch with few counts for more than
    one of a batch with many. It tells models one count of labels a step, and RetroMAE has several kinds of them.
    """

    lr_scheduler: Any

    def __init__(self, *args: Any, head_warmup: HeadWarmup | None = None, **kwargs: Any):
        self.head_warmup = head_warmup
        self._num_new_groups = 0
        super().__init__(*args, **kwargs)

    @property
    def head_warmup_steps(self) -> int:
        return 0 if self.head_warmup is None else self.head_warmup.steps_of(self.state.max_steps)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        is_made = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if self.head_warmup is not None and not is_made:
            self._num_new_groups = self.head_warmup.split(optimizer, self.model if model is None else model)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """As in `Trainer`, behind the steps of the new parameters alone, in which they have a constant rate."""
        warmup = self.head_warmup
        if warmup is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        steps, rate = warmup.steps_of(num_training_steps), self.args.learning_rate
        alone = SGD([torch.zeros(1)], lr=rate)  # a schedule may ask its optimizer for the rate
        usual = super().create_scheduler(num_training_steps - steps, alone).lr_lambdas[0]

        def of_new(step: int) -> float:
            return 1.0 if step < steps else usual(step - steps) * rate / warmup.learning_rate

        def of_old(step: int) -> float:
            return 0.0 if step < steps else usual(step - steps)

        optimizer = optimizer or self.optimizer
        num_old = len(optimizer.param_groups) - self._num_new_groups
        factors: list[Any] = [of_new] * self._num_new_groups + [of_old] * num_old
        self.lr_scheduler = LambdaLR(optimizer, factors)
        return self.lr_scheduler

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As in `Trainer`; while new parameters learn alone, the others' gradients are dropped."""
        loss = super().training_step(*args, **kwargs)
        if self.state.global_step < self.head_warmup_steps:
            for group in self.optimizer.param_groups[self._num_new_groups :]:
                for parameter in group["params"]:
                    parameter.grad = None
        return loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Any]:
        """The batches of a step, each with the counts of all of them."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if len(batches) > 1:
            counts = torch.stack([counts_of(batch) for batch in batches])
            for batch in batches:
                batch["step_counts"] = counts
        return batches, items

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """`Trainer`'s warnings, but for tied weights: a checkpoint holds them once, and they are not missing."""
        tied = self.model.all_tied_weights_keys
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)


def pretraining_trainer(
    model: RetroMAEForPreTraining,
    training_args: TrainingArguments,
    run_args: RunArguments,
    collator: DataCollatorForRetroMAE,
    passages: tuple[Dataset | PassageStream, Dataset],
    task: RetrievalTask | None,
    max_length: int,
    head_warmup: HeadWarmup | None,
) -> AccumulatingTrainer:
    """The trainer that `retromae-hf pretrain` runs; `task` is what retrieval is watched on, if anything."""
    logger.info("the model has %s parameters", f"{model.num_parameters():,}")
    with in_one_sentence("the training arguments cannot be used"):
        trainer = AccumulatingTrainer(
            model=model,
            args=training_args,
            train_dataset=passages[0],
            eval_dataset=passages[1],
            data_collator=collator,
            processing_class=collator.tokenizer,
            callbacks=[RetroMAECallback()],
            head_warmup=head_warmup,
        )
    trainer.add_callback(RetrievalCallback(trainer, task, max_length))
    trainer.add_callback(HealthCallback(run_args.max_skipped_batches))
    if head_warmup is not None:
        trainer.add_callback(head_warmup)
    return trainer


def check_model(args: TrainingArguments, model: RetroMAEForPreTraining, task: RetrievalTask | None) -> None:
    """Refuse training arguments that do not go with the model or with what is watched."""
    names = ("gradient_checkpointing", "activation_checkpointing")  # of old versions of transformers and of new ones
    if any(getattr(args, name, False) for name in names) and not model.supports_gradient_checkpointing:
        raise RetroMAEError(
            f"{model.config.encoder_config.model_type} has no gradient checkpointing in transformers; "
            "leave gradient_checkpointing out"
        )
    measured = ["loss", *MEASURED, *(DEFAULT_MEASURES if task is not None else [])]
    if args.metric_for_best_model is not None:
        check_choice("metric_for_best_model", args.metric_for_best_model.removeprefix("eval_"), measured)
