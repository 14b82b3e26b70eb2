"""The trainer of a pretraining run, with its collator and its callbacks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from ..data.collator import DataCollatorForRetroMAE
from ..data.passage_stream import PassageStream
from ..model.bookkeeping import counts_of
from ..model.errors import RetroMAEError, check_choice, in_one_sentence
from ..model.modeling_retromae import RetroMAEForPreTraining
from ..retrieval.measures import DEFAULT_MEASURES
from ..retrieval.tasks import RetrievalTask
from .arguments import DataArguments
from .callbacks import MEASURED, RetrievalCallback, RetroMAECallback
from .head_warmup import HeadWarmup
from .health import HealthCallback

logger = logging.getLogger(__name__)


class AccumulatingTrainer(Trainer):
    """`Trainer` whose accumulated steps are those of one large batch, and whose new parameters may learn first.

    `Trainer` by itself takes the mean of the batches' means, in which a label of a batch with few counts for more than
    one of a batch with many. It tells models one count of labels a step, and RetroMAE has several kinds of them.

    Args:
        head_warmup: how new parameters learn alone; None where all learn from the start.
    """

    lr_scheduler: Any

    def __init__(self, *args: Any, head_warmup: HeadWarmup | None = None, **kwargs: Any):
        self.head_warmup = head_warmup
        self._num_new_groups = 0
        super().__init__(*args, **kwargs)

    @property
    def head_warmup_steps(self) -> int:
        """Steps of the run in which new parameters learn alone."""
        return 0 if self.head_warmup is None else self.head_warmup.steps_of(self.state.max_steps)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """As in `Trainer`; new parameters have groups of their own."""
        is_made = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if self.head_warmup is not None and not is_made:
            self._num_new_groups = self.head_warmup.split(optimizer, self.model if model is None else model)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """As in `Trainer`, for the steps behind those of the new parameters alone."""
        if self.head_warmup is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        steps, rate = self.head_warmup.steps_of(num_training_steps), self.args.learning_rate
        usual = super().create_scheduler(num_training_steps - steps, SGD([torch.zeros(1)], lr=rate))
        if not isinstance(usual, LambdaLR):
            raise RetroMAEError(
                f"lr_scheduler_type={self.args.lr_scheduler_type} has no rate by the step alone, behind which new "
                "parts could learn first; choose another one, or give --head_warmup_steps 0"
            )
        self.lr_scheduler = self.head_warmup.schedule(
            optimizer or self.optimizer, self._num_new_groups, steps, usual.lr_lambdas[0], rate
        )
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
    args: DataArguments,
    training_args: TrainingArguments,
    model: RetroMAEForPreTraining,
    tokenizer: PreTrainedTokenizerBase,
    train_passages: Dataset | PassageStream,
    eval_passages: Dataset,
    task: RetrievalTask | None,
    head_warmup: HeadWarmup | None,
) -> AccumulatingTrainer:
    """The trainer that `retromae-hf pretrain` runs.

    Args:
        args: how passages are masked, and how many steps may be skipped.
        training_args: the run.
        model: what is trained.
        tokenizer: the model's.
        train_passages: what it is trained on.
        eval_passages: what it is evaluated on.
        task: what retrieval is watched on; None leaves that out.
        head_warmup: how new parameters learn alone, likewise.

    Raises:
        RetroMAEError: an argument cannot be used.
    """
    logger.info("the model has %s parameters", f"{model.num_parameters():,}")
    with in_one_sentence("the training arguments cannot be used"):
        trainer = AccumulatingTrainer(
            model=model,
            args=training_args,
            train_dataset=train_passages,
            eval_dataset=eval_passages,
            data_collator=DataCollatorForRetroMAE.from_config(
                tokenizer,
                model.config,
                seed=training_args.seed,
                compact=True,
                pair_partners=train_passages if model.config.pair_objective == "nsp" else None,
                **args.collator_options(),
            ),
            processing_class=tokenizer,
            callbacks=[RetroMAECallback()],
            head_warmup=head_warmup,
        )
    trainer.add_callback(RetrievalCallback(trainer, task, args.max_length))
    trainer.add_callback(HealthCallback(args.max_skipped_batches))
    if head_warmup is not None:
        trainer.add_callback(head_warmup)
    return trainer


def check_metric(args: TrainingArguments, task: RetrievalTask | None) -> None:
    """Raise `RetroMAEError` for a `metric_for_best_model` that no evaluation measures."""
    measured = ["loss", *MEASURED, *(DEFAULT_MEASURES if task is not None else [])]
    if args.metric_for_best_model is not None:
        check_choice("metric_for_best_model", args.metric_for_best_model.removeprefix("eval_"), measured)


def check_gradient_checkpointing(args: TrainingArguments, model: RetroMAEForPreTraining) -> None:
    """Raise `RetroMAEError` where it is asked for and the encoder's family has none."""
    names = ("gradient_checkpointing", "activation_checkpointing")  # of old versions of transformers and of new ones
    if any(getattr(args, name, False) for name in names) and not model.supports_gradient_checkpointing:
        raise RetroMAEError(
            f"{model.config.encoder_config.model_type} has no gradient checkpointing in transformers; "
            "leave gradient_checkpointing out"
        )
