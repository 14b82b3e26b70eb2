"""The trainer of a pretraining run, with its collator and its callbacks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
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
from .health import HealthCallback

logger = logging.getLogger(__name__)


class AccumulatingTrainer(Trainer):
    """`Trainer` whose accumulated steps are those of one large batch.

    `Trainer` by itself takes the mean of the batches' means, in which a label of a batch with few counts for more than
    one of a batch with many. It tells models one count of labels a step, and RetroMAE has several kinds of them.
    """

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

    Raises:
        RetroMAEError: an argument cannot be used.
    """
    logger.info("the model has %s parameters", f"{model.num_parameters():,}")
    # Trainer looks for every label that `forward` names, among them those of objectives that are not in use.
    training_args.label_names = ["labels"]
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
        )
    # Before the reporters (TensorBoard and the like), so that they see the parts of the loss.
    trainer.callback_handler.callbacks.insert(0, RetroMAECallback())
    trainer.add_callback(RetrievalCallback(trainer, task, args.max_length))
    trainer.add_callback(HealthCallback(args.max_skipped_batches))
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
