"""What a user may say of a run; light to import, for the help of the commands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..model.errors import RetroMAEError, check_at_least, check_choice
from .rows import PAIRS

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

DEFAULT_FINETUNING_ARGUMENTS: dict[str, Any] = {
    "learning_rate": 2e-5,
    "warmup_steps": 0.1,  # below 1 it is a share of the steps
    "per_device_train_batch_size": 128,
    "logging_steps": 50,
    "dataloader_drop_last": True,  # all processes must bring batches of one size to share their negatives
}
"""What `retromae-hf finetune` sets otherwise than sentence-transformers; flags and recipes go before it."""

HEAD_WARMUP_SHARE, MAX_HEAD_WARMUP_STEPS = 0.1, 200
"""Of a run's steps, those in which a new MLM head and decoder learn alone, and how many at most."""

OBJECTIVES = ("contrastive", "kl", "margin_mse")
MINERS = ("bm25", "model")
SIMILARITIES = ("cosine", "dot")


@dataclass
class DataArguments:
    """Which text to train on, and how it is masked."""

    dataset: list[str] = field(
        metadata={
            "help": "'pydocs', a .txt/.jsonl/.json/.csv/.parquet file (packed too, as .jsonl.gz), a folder of them or "
            "one of save_to_disk, or a Hub dataset; of a folder in BEIR's layout its corpus. Several are one text."
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
    short_seq_prob: float = field(
        default=0.0, metadata={"help": "Probability that a passage aims at a random shorter length."}
    )
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
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes to prepare data with."})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Start anew in a folder that holds a run; its checkpoints are deleted."},
    )

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


@dataclass
class FinetuneArguments:
    """What to fine-tune, on what, and how."""

    model_name_or_path: str = field(
        metadata={"help": "Exported encoder, or any encoder or sentence-transformers model."}
    )
    dataset: str = field(
        metadata={
            "help": "'pydocs', a folder in BEIR's layout with qrels/train.tsv, a .tsv file of triples, or another "
            "file, a folder or a Hub dataset with columns named query, positive and negative, or as FlagEmbedding or "
            "Tevatron name them; with pairs any text that pretrain takes."
        }
    )
    dataset_config_name: str | None = field(
        default=None,
        metadata={"help": "Configuration of a Hub dataset, or one that a folder's README.md names."},
    )
    dataset_split: str = field(
        default="train", metadata={"help": "Split of a Hub dataset or of a folder; in BEIR's layout qrels/SPLIT.tsv."}
    )
    pairs: str | None = field(
        default=None,
        metadata={
            "help": "What to make of text without queries: first-sentence (-> the rest), title (-> text) or crop (-> "
            "another random crop of the document)."
        },
    )
    text_column: str = field(default="text", metadata={"help": "Column that holds the text that pairs are made of."})
    dev_queries: int = field(
        default=200,
        metadata={"help": "First sentences held out of such text, those that pretrain holds out; 0 for none."},
    )
    hard_negatives: str | None = field(
        default=None,
        metadata={"help": "'bm25' or 'model' to mine them so, or a file of JSON lines with query_id and negative_ids."},
    )
    num_negatives: int = field(
        default=4, metadata={"help": "Hard negatives a row at most; where a row has more, so many are drawn."}
    )
    negative_depth: int = field(default=100, metadata={"help": "Mined negatives are drawn from that many documents."})
    objective: str = field(
        default="contrastive",
        metadata={"help": "contrastive, or with a teacher's scores: kl (over lists) or margin_mse."},
    )
    teacher_scores: str | None = field(
        default=None, metadata={"help": "JSON lines of a cross-encoder's scores, one list for each line of negatives."}
    )
    similarity: str = field(default="cosine", metadata={"help": "cosine or dot."})
    temperature: float = field(default=0.05, metadata={"help": "What similarities are divided by; 1 goes with dot."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Rows to train on, drawn by the seed, where there are more; default: all."}
    )
    query_length: int = field(default=32, metadata={"help": "Tokens of a query, special tokens included."})
    passage_length: int = field(default=140, metadata={"help": "Tokens of a passage, special tokens included."})
    query_prompt: str | None = field(default=None, metadata={"help": "Text in front of every query."})
    passage_prompt: str | None = field(default=None, metadata={"help": "Text in front of every passage."})
    mini_batch_size: int = field(
        default=32,
        metadata={"help": "Texts encoded at a time; the batch may be far larger than the memory (GradCache)."},
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Start anew where a run is already."})
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "sdpa, eager, flash_attention_2, flash_attention_3, flex_attention or a kernel's name on the Hub; "
            "default: what transformers takes, sdpa as a rule."
        },
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that comes with the model; have read it before."}
    )

    def __post_init__(self) -> None:
        check_choice("objective", self.objective, OBJECTIVES)
        check_choice("similarity", self.similarity, SIMILARITIES)
        check_at_least(
            1,
            num_negatives=self.num_negatives,
            negative_depth=self.negative_depth,
            mini_batch_size=self.mini_batch_size,
            max_train_samples=self.max_train_samples,
        )
        check_at_least(8, query_length=self.query_length, passage_length=self.passage_length)
        check_at_least(0, dev_queries=self.dev_queries)
        if self.pairs is not None:
            check_choice("pairs", self.pairs, PAIRS)
            if self.hard_negatives not in (None, *MINERS):
                raise RetroMAEError(
                    "a file of hard_negatives names ids of queries, which pairs of text have not; give bm25 or model"
                )
        elif self.text_column != "text":
            raise RetroMAEError("text_column is about text that pairs are made of; give --pairs too, or leave it out")
        if self.temperature <= 0:
            raise RetroMAEError(f"temperature={self.temperature} must be above 0")
        if self.negative_depth < self.num_negatives:
            raise RetroMAEError(
                f"negative_depth={self.negative_depth} leaves less than num_negatives={self.num_negatives} to draw from"
            )
        if self.objective != "contrastive" and (self.hard_negatives in MINERS or self.pairs is not None):
            rows = "mined negatives" if self.hard_negatives in MINERS else "pairs of text"
            raise RetroMAEError(f"objective={self.objective} needs a teacher's scores, which {rows} have not")
        if self.teacher_scores is not None and self.hard_negatives in (None, *MINERS):
            raise RetroMAEError("teacher_scores belong to a file of hard_negatives; name that too")
        if self.objective == "margin_mse" and self.similarity == "cosine":
            raise RetroMAEError(
                "margin_mse cannot reach a teacher's margins with cosines, which differ by 2 at most; give "
                "--similarity dot"
            )
        if self.teacher_scores is not None and self.objective == "contrastive":
            raise RetroMAEError("teacher_scores are for the objectives kl and margin_mse; choose one")


@dataclass
class AdaptArguments:
    """Which encoder to adapt to which text, and for how long."""

    model_name_or_path: str = field(
        metadata={"help": "Masked-LM checkpoint, which is pretrained first, or any sentence-transformers model."}
    )
    dataset: str = field(
        metadata={
            "help": "'pydocs', a .txt/.jsonl/.json/.csv/.parquet file, a folder of them, or a Hub dataset; of a folder "
            "in BEIR's layout its corpus."
        }
    )
    output_dir: str = field(metadata={"help": "Folder of all results; what was cut off there goes on."})
    minutes: float = field(
        default=30.0,
        metadata={"help": "Time for all of it but reading the text: measuring twice, training, and the search index."},
    )
    pretrain: bool | None = field(
        default=None,
        metadata={
            "help": "Whether to pretrain with RetroMAE before fine-tuning; default: where the encoder was not tuned "
            "for retrieval."
        },
    )
    pairs: str | None = field(
        default=None,
        metadata={
            "help": "What to make of the text to train and to measure on: first-sentence, title or crop, see finetune; "
            "default: the first one that half of the documents yield."
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of a Hub dataset, or one that a folder's README.md names."}
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of a Hub dataset or of a folder."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    seed: int = field(default=42, metadata={"help": "Of crops, order, masks and new weights."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that comes with the model; have read it before."}
    )

    def __post_init__(self) -> None:
        check_at_least(0, seed=self.seed)
        if not self.minutes > 0:
            raise RetroMAEError(f"minutes={self.minutes} must be above 0")
        if self.pairs is not None:
            check_choice("pairs", self.pairs, PAIRS)
