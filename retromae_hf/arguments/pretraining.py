"""Arguments of pretraining: text, masks, model and card. Light to import, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..model.errors import RetroMAEError, check_at_least, check_choice

LINE, BLANK_LINE, FILE = SEPARATORS = ("line", "blank-line", "file")
"""What ends a document of a .txt file: the line, a line without text (of which there may be several), or the file."""
SKIP, ERROR = ON_BROKEN_LINE = ("skip", "error")
TOKENIZER_TYPES = ("wordpiece", "bpe", "unigram")
EXTENSIONS = ("tile", "interpolate")
"""Ways to give an encoder more positions, see `checkpoints.starting_model.extend_positions`."""


@dataclass
class CardArguments:
    """What a model card cannot know by itself."""

    license: str | None = field(
        default=None, metadata={"help": "Licence of the model for its card, as the Hub names it (mit, apache-2.0)."}
    )
    language: list[str] | None = field(
        default=None, metadata={"help": "Languages of the texts for the model card, by their codes (en, de)."}
    )


LEARNING_RATE, TUNED_LEARNING_RATE = 1e-4, 2e-5
"""Where none was given: in general, and for an encoder that was tuned for retrieval, of which more undoes too much."""

DEFAULT_TRAINING_ARGUMENTS: dict[str, Any] = {
    "learning_rate": None,  # by what the run starts from, see `LEARNING_RATE`
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
class TextSource:
    """Which text to train on."""

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
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes to prepare data with."})
    dev_queries: int = field(
        default=200,
        metadata={
            "help": "First sentences held out to watch retrieval while training, of a tenth of the documents at most; "
            "0 for none. Of several sources, and with max_documents, they are held out of what is drawn."
        },
    )

    def __post_init__(self) -> None:
        if isinstance(self.dataset, str):  # as a recipe of `compare` and a caller from Python have it
            self.dataset = [self.dataset]
        check_at_least(
            1,
            max_documents=self.max_documents,
            shuffle_buffer_size=self.shuffle_buffer_size,
            preprocessing_num_workers=self.preprocessing_num_workers,
        )
        check_at_least(0, dev_queries=self.dev_queries)
        check_choice("on_broken_line", self.on_broken_line, ON_BROKEN_LINE)
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


@dataclass
class Cutting:
    """How the text becomes passages."""

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

    def __post_init__(self) -> None:
        if not 0 <= self.short_seq_prob <= 1:
            raise RetroMAEError(f"short_seq_prob={self.short_seq_prob} must lie between 0 and 1")
        check_at_least(1, max_passages_per_document=self.max_passages_per_document)


@dataclass
class Masking:
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
    pad_to_multiple_of: int | None = field(
        default=None, metadata={"help": "Pad batches to a multiple of this; 8 suits half precision on a GPU."}
    )

    def __post_init__(self) -> None:
        from ..model.configuration_retromae import check_ratio, check_replacement

        check_ratio("encoder_mask_ratio", self.encoder_mask_ratio)
        check_replacement(self.mask_replace_prob, self.random_replace_prob)
        check_at_least(1, pad_to_multiple_of=self.pad_to_multiple_of)
        if self.segment_chinese and not self.whole_word_mask:
            raise RetroMAEError("segment_chinese is about whole words; give --whole_word_mask too, or leave it out")

    def collator_options(self) -> dict[str, Any]:
        """These as `DataCollatorForRetroMAE` takes them. Chinese words are found when passages are cut."""
        return {name: value for name, value in asdict(self).items() if name != "segment_chinese"}


@dataclass
class RunArguments:
    """How the training begins, and what stops it."""

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

    def __post_init__(self) -> None:
        check_at_least(0, max_skipped_batches=self.max_skipped_batches, head_warmup_steps=self.head_warmup_steps)
        if not self.head_learning_rate > 0:
            raise RetroMAEError(f"head_learning_rate={self.head_learning_rate} must be above 0")


MODEL_OPTIONS = (
    "decoding",
    "pooling",
    "num_decoder_layers",
    "decoder_mask_ratio",
    "bow_loss_weight",
    "final_bow_loss_weight",
    "bow_source",
    "decoder_query",
    "pair_objective",
    "contrast_loss_weight",
    "contrast_temperature",
)
"""Arguments of `retromae-hf pretrain` that are fields of `RetroMAEConfig`."""

SIZES = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
"""Sizes of a new encoder where neither a flag nor a configuration says otherwise."""


@dataclass
class StartArguments:
    """Which model to train."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Masked-LM checkpoint or sentence-transformers model to start from, or a RetroMAE checkpoint to go "
            "on with. The learning rate is 1e-4 by default, from a model that was tuned for retrieval 2e-5."
        },
    )
    decoder_from: str | None = field(
        default=None,
        metadata={
            "help": "Safetensors file in the released RetroMAE code's layout (or its successor's), whose decoder comes "
            "beside the encoder of model_name_or_path; default: a new decoder."
        },
    )
    config_name: str | None = field(
        default=None,
        metadata={
            "help": "From scratch: a family (bert, roberta, xlm-roberta, albert, distilbert, electra, deberta-v2, "
            "mpnet, modernbert, camembert, ernie, rembert, nomic_bert, gte, jina_embeddings_v3, eurobert), or a folder "
            "or Hub name with the encoder's configuration; default: bert."
        },
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer; by default the model's, or from scratch a new one on the corpus."}
    )
    tokenizer_type: str = field(
        default="wordpiece", metadata={"help": "A new tokenizer's kind: wordpiece, bpe (on bytes) or unigram."}
    )
    lowercase: bool = field(default=True, metadata={"help": "A new tokenizer folds case."})
    vocab_size: int = field(default=8192, metadata={"help": "A new tokenizer's entries at most."})
    hidden_size: int | None = field(
        default=None,
        metadata={"help": f"From scratch: hidden size; default: the configuration's or {SIZES['hidden_size']}."},
    )
    num_hidden_layers: int | None = field(
        default=None, metadata={"help": f"From scratch: layers; default: likewise or {SIZES['num_hidden_layers']}."}
    )
    num_attention_heads: int | None = field(
        default=None,
        metadata={"help": f"From scratch: attention heads; default: likewise or {SIZES['num_attention_heads']}."},
    )
    extend_positions: str | None = field(
        default=None,
        metadata={"help": "Where max_length is over the checkpoint's positions, extend them: tile or interpolate."},
    )
    resize_token_embeddings: bool = field(
        default=False, metadata={"help": "Make room in the checkpoint for tokens that were added to the tokenizer."}
    )
    decoding: str | None = field(
        default=None,
        metadata={"help": "enhanced, basic, condenser or none (MLM alone); default: the checkpoint's or enhanced."},
    )
    pooling: str | None = field(
        default=None,
        metadata={
            "help": "Sentence embedding: cls (the papers) or mean; default: that of the checkpoint or of the "
            "sentence-transformers model, or cls."
        },
    )
    num_decoder_layers: int | None = field(
        default=None, metadata={"help": "Layers of the decoder; default: the checkpoint's or 1, as in the paper."}
    )
    decoder_mask_ratio: float | None = field(
        default=None,
        metadata={"help": "Share of tokens hidden from the decoder; default: the checkpoint's or 0.5."},
    )
    bow_loss_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of the bag-of-words loss, 0.1 in DupMAE; default: the checkpoint's or 0."},
    )
    final_bow_loss_weight: float | None = field(
        default=None,
        metadata={"help": "What that weight falls to along a cosine; default: the checkpoint's, or it stays."},
    )
    bow_source: str | None = field(
        default=None,
        metadata={
            "help": "What predicts the bag of words: tokens (DupMAE) or sentence, the sentence embedding alone "
            "(BoW-DPR, with --decoding none); default: the checkpoint's or tokens."
        },
    )
    decoder_query: str | None = field(
        default=None,
        metadata={"help": "sum (RetroMAE) or embedded (DupMAE); default: the checkpoint's or sum."},
    )
    pair_objective: str | None = field(
        default=None,
        metadata={
            "help": "nsp, sop, contrast (two spans of each passage find one another in the batch) or none, beside the "
            "other losses; default: the checkpoint's or none."
        },
    )
    contrast_loss_weight: float | None = field(
        default=None, metadata={"help": "Weight of the span contrast; default: the checkpoint's or 1."}
    )
    contrast_temperature: float | None = field(
        default=None, metadata={"help": "Temperature of its cosines; default: the checkpoint's or 0.05."}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "sdpa, eager, flash_attention_2, flash_attention_3, flex_attention or a kernel's name on the Hub; "
            "default: what transformers takes, sdpa as a rule."
        },
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that comes with a tokenizer; have read it before."}
    )

    def __post_init__(self) -> None:
        from ..model.configuration_retromae import RetroMAEConfig

        check_at_least(1, vocab_size=self.vocab_size, **{name: getattr(self, name) for name in SIZES})
        check_choice("tokenizer_type", self.tokenizer_type, TOKENIZER_TYPES)
        if self.extend_positions is not None:
            check_choice("extend_positions", self.extend_positions, EXTENSIONS)
        if self.config_name is not None and self.model_name_or_path is not None:
            raise RetroMAEError(
                "config_name starts from scratch and model_name_or_path from a checkpoint; give one of them"
            )
        if self.decoder_from is not None and self.model_name_or_path is None:
            raise RetroMAEError("decoder_from goes with the encoder that it was trained with; give model_name_or_path")
        RetroMAEConfig(**self.model_options())  # for its checks, before any text is read

    def model_options(self) -> dict[str, Any]:
        """The fields of `RetroMAEConfig` that were given."""
        given = {name: value for name in MODEL_OPTIONS if (value := getattr(self, name)) is not None}
        if given.get("pair_objective") == "none":
            given["pair_objective"] = None
        return given
