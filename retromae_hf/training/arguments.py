"""What a user may say of a run; light to import, for the help of the commands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..model.errors import RetroMAEError, check_at_least, check_choice

LEARNING_RATE = 1e-4
"""The default of `retromae-hf pretrain`: where its arguments hold this very object, no flag and no recipe gave one."""
TUNED_LEARNING_RATE = 2e-5
"""The default for an encoder that was tuned for retrieval, of which a higher one undoes more than it adds."""

DEFAULT_TRAINING_ARGUMENTS: dict[str, Any] = {
    "learning_rate": LEARNING_RATE,
    "warmup_steps": 0.1,  # below 1 it is a share of the steps
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 32,
    "train_sampling_strategy": "group_by_length",
    "logging_steps": 50,
    "eval_strategy": "steps",
    "eval_steps": 500,
    "eval_on_start": True,  # what training is measured against
    "ddp_find_unused_parameters": False,  # every parameter takes part in every step
    "logging_nan_inf_filter": False,  # it waits for the device at every step, and hides what HealthCallback looks for
}
"""What `retromae-hf pretrain` sets otherwise than `TrainingArguments`; flags and recipes go before it."""

HEAD_WARMUP_SHARE, MAX_HEAD_WARMUP_STEPS = 0.1, 200
"""Of a run's steps, those in which a new MLM head and decoder learn alone, and how many at most."""


@dataclass
class TextArguments:
    """Which text to train on, and how it becomes passages."""

    dataset: list[str] = field(
        metadata={
            "help": "'pydocs', a .txt/.jsonl/.json/.csv/.parquet file (packed too, as .jsonl.gz), a folder of them or "
            "one of save_to_disk, or a Hub dataset; of a folder in BEIR's layout its corpus. Of a .txt file a line is "
            "a document, of a folder of them a file is, and blank lines are none. Several are one text."
        }
    )
    dataset_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "Of several data sets each one's share of the documents, as 0.7 0.3: the one that has too few for "
            "its share is taken whole, of the others a sample; default: all of all."
        },
    )
    max_documents: int | None = field(
        default=None, metadata={"help": "Documents at most, drawn by the seed; default: all."}
    )
    dataset_config_name: str | None = field(
        default=None,
        metadata={"help": "Configuration of a Hub dataset, or one that a folder's README.md names."},
    )
    dataset_split: str = field(
        default="train", metadata={"help": "Split of a Hub dataset or of a folder, as load_dataset finds it there."}
    )
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    title_column: str | None = field(
        default=None,
        metadata={"help": "Column of titles to put in front of the texts; default: in BEIR's layout title."},
    )
    document_separator: str | None = field(
        default=None,
        metadata={
            "help": "What ends a document of a .txt file: line, blank-line or file; default: line, and file for the "
            "files of a folder."
        },
    )
    on_broken_line: str = field(
        default="skip",
        metadata={"help": "Lines of a JSON or .csv file that are broken: skip (count and report them) or error."},
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read the text while training, in memory that does not grow with it; needs max_steps."},
    )
    shuffle_buffer_size: int = field(
        default=10_000, metadata={"help": "Passages of a stream that each worker shuffles among themselves."}
    )
    max_length: int = field(default=128, metadata={"help": "Tokens of a passage at most, special tokens included."})
    stride: int = field(
        default=0,
        metadata={"help": "Tokens that a passage shares with the one before it: as many whole sentences as fit."},
    )
    max_passages_per_document: int | None = field(
        default=None, metadata={"help": "Of a longer document the first so many passages; default: all."}
    )
    short_seq_prob: float = field(
        default=0.0, metadata={"help": "Probability that a passage aims at a random shorter length."}
    )
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes to prepare data with."})


@dataclass
class MaskingArguments:
    """How passages are masked."""

    encoder_mask_ratio: float = field(default=0.3, metadata={"help": "Share of the tokens masked for the encoder."})
    decoder_label_ratio: float = field(
        default=1.0,
        metadata={"help": "Share of the tokens that enhanced decoding rebuilds, a fresh sample; the paper has all."},
    )
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


@dataclass
class WatchArguments:
    """How the training begins, and what is watched."""

    pad_to_multiple_of: int | None = field(
        default=None, metadata={"help": "Pad batches to a multiple of this; 8 suits half precision on a GPU."}
    )
    dev_queries: int = field(
        default=200,
        metadata={"help": "First sentences held out to watch retrieval while training; 0 for none."},
    )
    max_skipped_batches: int = field(
        default=0, metadata={"help": "Steps left out for a loss or gradient that is not finite, before the run stops."}
    )
    head_warmup_steps: int | None = field(
        default=None,
        metadata={
            "help": "First steps, in which what the checkpoint does not have (decoder, MLM head) learns alone while "
            f"the encoder stands still; default: where the MLM head is new a tenth of the steps, "
            f"{MAX_HEAD_WARMUP_STEPS} at most, else 0."
        },
    )
    head_learning_rate: float = field(
        default=1e-3, metadata={"help": "Learning rate of the new parts in these steps, constant."}
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Start anew in a folder that holds a run; its checkpoints are deleted."},
    )


@dataclass
class DataArguments(WatchArguments, MaskingArguments, TextArguments):
    """What `retromae-hf pretrain` makes of a text; of its bases the last one's fields come first."""

    def __post_init__(self) -> None:
        from ..data.reading.rows import SEPARATORS, check_on_broken_line
        from ..model.configuration_retromae import check_ratio, check_replacement

        if isinstance(self.dataset, str):  # as a recipe of `compare` and a caller from Python have it
            self.dataset = [self.dataset]
        check_at_least(
            1,
            max_documents=self.max_documents,
            preprocessing_num_workers=self.preprocessing_num_workers,
            pad_to_multiple_of=self.pad_to_multiple_of,
            shuffle_buffer_size=self.shuffle_buffer_size,
        )
        check_at_least(
            0,
            dev_queries=self.dev_queries,
            max_skipped_batches=self.max_skipped_batches,
            head_warmup_steps=self.head_warmup_steps,
        )
        if not self.head_learning_rate > 0:
            raise RetroMAEError(f"head_learning_rate={self.head_learning_rate} must be above 0")
        check_on_broken_line(self.on_broken_line)
        if self.document_separator is not None:
            check_choice("document_separator", self.document_separator, SEPARATORS)
        weights = self.dataset_weights
        if weights is not None and len(weights) != len(self.dataset):
            raise RetroMAEError(f"{len(weights)} dataset_weights for {len(self.dataset)} data sets; give one for each")
        if weights is not None and not all(0 < weight < float("inf") for weight in weights):
            raise RetroMAEError(f"dataset_weights={weights} must all be finite numbers above 0")
        if self.streaming and (weights is not None or self.max_documents is not None):
            raise RetroMAEError(
                "dataset_weights and max_documents draw from the whole text, which is not at hand in a stream; leave "
                "streaming out, or end the stream by max_steps"
            )
        check_ratio("encoder_mask_ratio", self.encoder_mask_ratio)
        check_replacement(self.mask_replace_prob, self.random_replace_prob)
        if self.segment_chinese and not self.whole_word_mask:
            raise RetroMAEError("segment_chinese is about whole words; give --whole_word_mask too, or leave it out")

    def collator_options(self) -> dict[str, Any]:
        """The arguments of `DataCollatorForRetroMAE` among these."""
        names = (
            "encoder_mask_ratio",
            "decoder_label_ratio",
            "mask_replace_prob",
            "random_replace_prob",
            "static_masking",
            "whole_word_mask",
            "pad_to_multiple_of",
        )
        return {name: getattr(self, name) for name in names}
