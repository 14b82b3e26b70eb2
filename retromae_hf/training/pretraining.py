"""Pretraining from a text source to a checkpoint, with the plain `Trainer`."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import (
    Trainer,
    TrainingArguments,
    set_seed,
)

from ..checkpoints.hub import prepare_pushes, pushing
from ..checkpoints.starting_model import ModelArguments, load_model_and_tokenizer
from ..data.collator import DataCollatorForRetroMAE
from ..data.document_stream import DocumentStream
from ..data.json_lines import SKIP, check_on_broken_line
from ..data.passage_stream import PassageStream
from ..data.passages import tokenize_passages
from ..data.pydocs import DEV_QUERIES, MIN_BODY_WORDS, MIN_QUERY_WORDS, SEARCHED_BODIES, hold_out, load_held_out_pydocs
from ..data.sources import load_documents
from ..data.words import chinese_segmenter
from ..model.configuration_retromae import check_ratio, check_replacement
from ..model.errors import RetroMAEError, check_at_least, in_one_sentence
from ..model.modeling_retromae import RetroMAEForPreTraining
from ..publishing.card_writer import CardArguments, describe_checkpoint, describe_pretraining, describing
from ..retrieval.tasks import RetrievalTask, dev_task
from .callbacks import RetrievalCallback, RetroMAECallback
from .health import HealthCallback
from .resuming.run_folder import prepare_run
from .resuming.training_run import check_training_arguments, run_and_save
from .streaming import check_streaming, held_out_head, open_passage_stream
from .trainer import AccumulatingTrainer

logger = logging.getLogger(__name__)

DEFAULT_TRAINING_ARGUMENTS: dict[str, Any] = {
    "learning_rate": 1e-4,
    "warmup_steps": 0.1,  # below 1 it is a share of the steps
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 32,
    "train_sampling_strategy": "group_by_length",
    "logging_steps": 50,
    "eval_strategy": "steps",
    "eval_steps": 500,
    "ddp_find_unused_parameters": False,  # every parameter takes part in every step
    "logging_nan_inf_filter": False,  # it waits for the device at every step, and hides what HealthCallback looks for
}
"""What `retromae-hf pretrain` sets otherwise than `TrainingArguments`; flags and recipes go before it."""

EVAL_PASSAGES = 256
"""Passages kept from training for the evaluation loss and the embedding gap."""


@dataclass
class DataArguments:
    """Which text to train on, and how it is masked."""

    dataset: str = field(
        metadata={"help": "'pydocs', a .txt/.jsonl/.json/.csv/.parquet file, a folder of them, or a Hub dataset."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a Hub dataset."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    on_broken_line: str = field(
        default=SKIP,
        metadata={"help": "Lines of a .jsonl file that are broken: skip (count and report them) or error."},
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read the text while training, in memory that does not grow with it; needs max_steps."},
    )
    shuffle_buffer_size: int = field(
        default=10_000, metadata={"help": "Passages of a stream that each worker shuffles among themselves."}
    )
    max_length: int = field(default=128, metadata={"help": "Tokens of a passage at most, special tokens included."})
    short_seq_prob: float = field(
        default=0.0, metadata={"help": "Probability that a passage aims at a random shorter length."}
    )
    encoder_mask_ratio: float = field(default=0.3, metadata={"help": "Share of the tokens masked for the encoder."})
    mask_replace_prob: float = field(default=0.8, metadata={"help": "Share of the masked tokens that become [MASK]."})
    random_replace_prob: float = field(
        default=0.1, metadata={"help": "Share of the masked tokens that become a random token; the others stay."}
    )
    static_masking: bool = field(
        default=False, metadata={"help": "The same masks in every epoch (BERT), not new ones (RoBERTa)."}
    )
    whole_word_mask: bool = field(default=False, metadata={"help": "Mask words as a whole."})
    segment_chinese: bool = field(
        default=False,
        metadata={"help": "Take Chinese words, not characters, for the words of whole_word_mask (needs rjieba)."},
    )
    pad_to_multiple_of: int | None = field(
        default=None, metadata={"help": "Pad batches to a multiple of this; 8 suits half precision on a GPU."}
    )
    dev_queries: int = field(
        default=DEV_QUERIES,
        metadata={"help": "First sentences held out to watch retrieval while training; 0 for none."},
    )
    max_skipped_batches: int = field(
        default=0, metadata={"help": "Steps left out for a loss or gradient that is not finite, before the run stops."}
    )
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes to prepare data with."})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Start anew in a folder that holds a run; its checkpoints are deleted."},
    )

    def __post_init__(self) -> None:
        check_at_least(
            1,
            preprocessing_num_workers=self.preprocessing_num_workers,
            pad_to_multiple_of=self.pad_to_multiple_of,
            shuffle_buffer_size=self.shuffle_buffer_size,
        )
        check_at_least(0, dev_queries=self.dev_queries, max_skipped_batches=self.max_skipped_batches)
        check_on_broken_line(self.on_broken_line)
        check_ratio("encoder_mask_ratio", self.encoder_mask_ratio)
        check_replacement(self.mask_replace_prob, self.random_replace_prob)
        if self.segment_chinese and not self.whole_word_mask:
            raise RetroMAEError("segment_chinese is about whole words; give --whole_word_mask too, or leave it out")

    def collator_options(self) -> dict[str, Any]:
        """The arguments of `DataCollatorForRetroMAE` among these."""
        names = (
            "encoder_mask_ratio",
            "mask_replace_prob",
            "random_replace_prob",
            "static_masking",
            "whole_word_mask",
            "pad_to_multiple_of",
        )
        return {name: getattr(self, name) for name in names}


def pretrain(
    args: DataArguments,
    model_args: ModelArguments,
    training_args: TrainingArguments,
    card_args: CardArguments | None = None,
) -> Trainer:
    """Prepare the data, train, and save checkpoint, tokenizer, `trainer_state.json` and card in the output folder.

    Raises:
        RetroMAEError: bad input, found before anything is trained.
    """
    check_training_arguments(training_args)
    if training_args.label_smoothing_factor:
        raise RetroMAEError("label_smoothing_factor needs logits, which this model never holds; leave it at 0")
    started_from = (model_args.model_name_or_path, model_args.config_name, model_args.tokenizer_name)
    prepare_pushes(training_args)
    run = prepare_run(training_args, args.overwrite_output_dir, started_from, args, model_args)
    segmenter = chinese_segmenter() if args.segment_chinese else None
    stream = open_stream(args, model_args, training_args, run.checkpoint is not None) if args.streaming else None
    set_seed(training_args.seed)
    with training_args.main_process_first(desc="preparing the data"):
        # Of a stream the documents that are held out, on which it is evaluated.
        documents, task = load_text(args) if stream is None else held_out_head(stream, args.dev_queries)
        model, tokenizer = load_model_and_tokenizer(model_args, documents["text"], args.max_length, run.checkpoint)
        check_gradient_checkpointing(training_args, model)
        passages = tokenize_passages(
            documents,
            tokenizer,
            args.max_length,
            args.short_seq_prob,
            training_args.seed,
            args.preprocessing_num_workers,
            pairs=model.config.pair_objective is not None,
            word_segmenter=segmenter,
        )
        # Arrays, which the loader need not take apart into Python's numbers.
        passages = passages.with_format("numpy")
        train_passages: Dataset | PassageStream
        if stream is None:
            train_passages, eval_passages = split_passages(passages)
            size = f"{len(train_passages):,} passages, {train_passages['length'][:].sum():,} tokens"
        else:
            eval_passages = passages.select(evaluated_rows(passages, EVAL_PASSAGES))
            train_passages = open_passage_stream(
                stream,
                tokenizer,
                args.max_length,
                args.short_seq_prob,
                model.config.pair_objective,
                segmenter,
                args.shuffle_buffer_size,
                training_args,
                run.checkpoint,
            )
            size = f"a stream of {stream.num_shards} shards, its first {len(documents):,} documents held out"
    # Trainer looks for every label that `forward` names, among them those of objectives that are not in use.
    training_args.label_names = ["labels"]
    logger.info("%s; the model has %s parameters", size, f"{model.num_parameters():,}")
    if task is None and args.dev_queries:
        logger.info(
            "retrieval is not watched while training: too few documents have a first sentence of %d words and %d more",
            MIN_QUERY_WORDS,
            MIN_BODY_WORDS,
        )
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
    stage = describe_pretraining(args, model_args, model, documents, train_passages)
    described = describe_checkpoint(model, tokenizer)
    with (
        pushing(trainer),
        describing(trainer, "checkpoint", described, stage, model_args.model_name_or_path, card_args),
    ):
        run_and_save(trainer, run)
    return trainer


def check_gradient_checkpointing(args: TrainingArguments, model: RetroMAEForPreTraining) -> None:
    """Raise `RetroMAEError` where it is asked for and the encoder's family has none."""
    names = ("gradient_checkpointing", "activation_checkpointing")  # of old versions of transformers and of new ones
    if any(getattr(args, name, False) for name in names) and not model.supports_gradient_checkpointing:
        raise RetroMAEError(
            f"{model.config.encoder_config.model_type} has no gradient checkpointing in transformers; "
            "leave gradient_checkpointing out"
        )


def open_stream(
    args: DataArguments, model_args: ModelArguments, training_args: TrainingArguments, resumed: bool
) -> DocumentStream:
    """The documents as a stream, after a check that the run can do with one."""
    check_streaming(args.dataset, model_args, training_args, resumed)
    return DocumentStream.open(
        args.dataset,
        args.dataset_config_name,
        args.dataset_split,
        args.text_column,
        training_args.seed,
        args.on_broken_line,
    )


def load_text(args: DataArguments) -> tuple[Dataset, RetrievalTask | None]:
    """The documents to train on, without the held-out queries, and the task to watch, where the text yields one.

    Of "pydocs" the reported test's queries are always held out.
    """
    if args.dataset == "pydocs":
        held_out = load_held_out_pydocs(args.preprocessing_num_workers)
        queries = min(args.dev_queries, DEV_QUERIES)
    else:
        documents = load_documents(
            args.dataset,
            args.dataset_config_name,
            args.dataset_split,
            args.text_column,
            args.preprocessing_num_workers,
            args.on_broken_line,
        )
        documents = documents.select_columns("text").add_column("name", [str(row) for row in range(len(documents))])
        held_out = hold_out(documents, min(args.dev_queries, len(documents) // 10), SEARCHED_BODIES)
        queries = len(held_out.queries)
    if queries == 0:
        return held_out.pretraining, None
    return held_out.pretraining, dev_task(held_out, queries)


def split_passages(passages: Dataset) -> tuple[Dataset, Dataset]:
    """Passages to train on and to evaluate on: `EVAL_PASSAGES` spread evenly over the corpus, at most a tenth.

    What lies between those to evaluate on is put together again as slices: a list of indices would make every read
    slower, and `Trainer` reads all passages once to group them by length.
    """
    if len(passages) < 2:
        raise RetroMAEError("the corpus holds a single passage; give a source with more text")
    count = max(min(EVAL_PASSAGES, len(passages) // 10), 1)
    held_out = evaluated_rows(passages, count)
    between = zip([-1, *held_out], [*held_out, len(passages)], strict=True)
    slices = [passages.select(range(start + 1, stop)) for start, stop in between if stop - start > 1]
    return concatenate_datasets(slices), passages.select(held_out)


def evaluated_rows(passages: Dataset, count: int) -> list[int]:
    """So many rows at most, spread evenly."""
    return np.linspace(0, len(passages) - 1, min(count, len(passages)), dtype=int).tolist()
