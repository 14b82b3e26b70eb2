"""What fine-tuning learns from: rows of other people's files, pairs made of text, and negatives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..model.errors import RetroMAEError, check_at_least, check_choice

PAIRS = ("first-sentence", "title", "crop")
"""Kinds of pairs that text without queries yields, see `text_pairs`."""


DEFAULT_FINETUNING_ARGUMENTS: dict[str, Any] = {
    "learning_rate": 2e-5,
    "warmup_steps": 0.1,  # below 1 it is a share of the steps
    "per_device_train_batch_size": 128,
    "logging_steps": 50,
    "dataloader_drop_last": True,  # all processes must bring batches of one size to share their negatives
}
"""What `retromae-hf finetune` sets otherwise than sentence-transformers; flags and recipes go before it."""

OBJECTIVES = ("contrastive", "kl", "margin_mse")
MINERS = ("bm25", "model")
SIMILARITIES = ("cosine", "dot")


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
    query_column: str | None = field(
        default=None, metadata={"help": "Column of the queries; default: the one whose name tells, see the guide."}
    )
    positive_column: str | None = field(default=None, metadata={"help": "Likewise of the passages that answer them."})
    negative_columns: list[str] | None = field(default=None, metadata={"help": "Likewise of the passages that do not."})
    eval_dataset: str | None = field(
        default=None,
        metadata={
            "help": "What nDCG@10 is watched on and the best checkpoint is chosen by: a folder in BEIR's layout, rows "
            "of query and positive, or a share of the training queries to hold out, as 0.05."
        },
    )
    eval_split: str | None = field(
        default=None, metadata={"help": "Its split; default: in BEIR's layout dev, else dataset_split."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Evaluations without a better one after which the training stops."}
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
        metadata={
            "help": "First sentences held out of such text; 0 for none. They are those that pretrain holds out of the "
            "same text by itself, without other data sets, max_documents and title_column."
        },
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
    matryoshka_dims: list[int] | None = field(
        default=None,
        metadata={"help": "First numbers of an embedding that serve alone too, as 384 128 64 (MatryoshkaLoss)."},
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
            early_stopping_patience=self.early_stopping_patience,
            matryoshka_dims=None if self.matryoshka_dims is None else min(self.matryoshka_dims, default=0),
        )
        if self.early_stopping_patience is not None and self.eval_dataset is None:
            raise RetroMAEError("early_stopping_patience needs something to watch; give --eval_dataset too")
        if self.pairs is not None and self.columns():
            raise RetroMAEError("pairs are made of text_column alone; leave query_column and the like out")
        if self.eval_share is not None and not 0 < self.eval_share < 1:
            raise RetroMAEError(f"eval_dataset={self.eval_dataset} as a share must be between 0 and 1")
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

    @property
    def eval_share(self) -> float | None:
        """`eval_dataset` as a share of the queries; None where it names something."""
        try:
            return float(self.eval_dataset or "")
        except ValueError:
            return None

    def columns(self) -> dict[str, str]:
        """What the user says that columns are: `query`, `positive` or `negative`, by their names."""
        named = {self.query_column: "query", self.positive_column: "positive"}
        named |= dict.fromkeys(self.negative_columns or [], "negative")
        return {name: role for name, role in named.items() if name is not None}


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
    report_to: str = field(
        default="none", metadata={"help": "tensorboard, wandb or another reporter that is installed."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that comes with the model; have read it before."}
    )

    def __post_init__(self) -> None:
        check_at_least(0, seed=self.seed)
        if not self.minutes > 0:
            raise RetroMAEError(f"minutes={self.minutes} must be above 0")
        if self.pairs is not None:
            check_choice("pairs", self.pairs, PAIRS)
