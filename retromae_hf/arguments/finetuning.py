"""What fine-tuning learns from: rows of other people's files, pairs made of text, and negatives."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
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


def argument(help_text: str, default: Any = MISSING) -> Any:
    """A field of a command's arguments, with what `--help` says of it."""
    return field(default=default, metadata={"help": help_text})


@dataclass
class FinetuneArguments:
    """What to fine-tune, on what, and how."""

    model_name_or_path: str = argument("Exported encoder, or any encoder or sentence-transformers model.")
    dataset: str = argument(
        "'pydocs', a folder in BEIR's layout with qrels/train.tsv, a .tsv file of triples, or another file, a folder "
        "or a Hub dataset with columns named query, positive and negative, or as FlagEmbedding or Tevatron name "
        "them; with pairs any text that pretrain takes."
    )
    dataset_config_name: str | None = argument(
        "Configuration of a Hub dataset, or one that a folder's README.md names.", None
    )
    dataset_split: str = argument("Split of a Hub dataset or of a folder; in BEIR's layout qrels/SPLIT.tsv.", "train")
    query_column: str | None = argument(
        "Column of the queries; default: the one whose name tells, see the guide.", None
    )
    positive_column: str | None = argument("Likewise of the passages that answer them.", None)
    negative_columns: list[str] | None = field(default=None, metadata={"help": "Likewise of the passages that do not."})
    eval_dataset: str | None = argument(
        "What nDCG@10 is watched on and the best checkpoint is chosen by: a folder in BEIR's layout, rows of query "
        "and positive, or a share of the training queries to hold out, as 0.05.",
        None,
    )
    eval_split: str | None = argument("Its split; default: in BEIR's layout dev, else dataset_split.", None)
    early_stopping_patience: int | None = argument(
        "Evaluations without a better one after which the training stops.", None
    )
    pairs: str | None = argument(
        "What to make of text without queries: first-sentence (-> the rest), title (-> text) or crop (-> another "
        "random crop of the document).",
        None,
    )
    text_column: str = argument("Column that holds the text that pairs are made of.", "text")
    dev_queries: int = argument(
        "First sentences held out of such text; 0 for none. They are those that pretrain holds out of the same text by "
        "itself, without other data sets, max_documents and title_column.",
        200,
    )
    hard_negatives: str | None = argument(
        "'bm25' or 'model' to mine them so, or a file of JSON lines with query_id and negative_ids.", None
    )
    num_negatives: int = argument("Hard negatives a row at most; where a row has more, so many are drawn.", 4)
    negative_depth: int = argument("Mined negatives are drawn from that many documents.", 100)
    objective: str = argument("contrastive, or with a teacher's scores: kl (over lists) or margin_mse.", "contrastive")
    teacher_scores: str | None = argument(
        "JSON lines of a cross-encoder's scores, one list for each line of negatives.", None
    )
    similarity: str = argument("cosine or dot.", "cosine")
    temperature: float = argument("What similarities are divided by; 1 goes with dot.", 0.05)
    max_train_samples: int | None = argument(
        "Rows to train on, drawn by the seed, where there are more; default: all.", None
    )
    matryoshka_dims: list[int] | None = field(
        default=None,
        metadata={"help": "First numbers of an embedding that serve alone too, as 384 128 64 (MatryoshkaLoss)."},
    )
    query_length: int = argument("Tokens of a query, special tokens included.", 32)
    passage_length: int = argument("Tokens of a passage, special tokens included.", 140)
    query_prompt: str | None = argument("Text in front of every query.", None)
    passage_prompt: str | None = argument("Text in front of every passage.", None)
    mini_batch_size: int = argument(
        "Texts encoded at a time; the batch may be far larger than the memory (GradCache).", 32
    )
    overwrite_output_dir: bool = argument("Start anew where a run is already.", False)
    attn_implementation: str | None = argument(
        "sdpa, eager, flash_attention_2, flash_attention_3, flex_attention or a kernel's name on the Hub; default: "
        "what transformers takes, sdpa as a rule.",
        None,
    )
    trust_remote_code: bool = argument("Run code that comes with the model; have read it before.", False)

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

    model_name_or_path: str = argument(
        "Masked-LM checkpoint, which is pretrained first, or any sentence-transformers model."
    )
    dataset: str = argument(
        "'pydocs', a .txt/.jsonl/.json/.csv/.parquet file, a folder of them, or a Hub dataset; of a folder in BEIR's "
        "layout its corpus."
    )
    output_dir: str = argument("Folder of all results; what was cut off there goes on.")
    minutes: float = argument(
        "Time for all of it but reading the text: measuring twice, training, and the search index.", 30.0
    )
    pretrain: bool | None = argument(
        "Whether to pretrain with RetroMAE before fine-tuning; default: where the encoder was not tuned for retrieval.",
        None,
    )
    pairs: str | None = argument(
        "What to make of the text to train and to measure on: first-sentence, title or crop, see finetune; default: "
        "the first one that half of the documents yield.",
        None,
    )
    dataset_config_name: str | None = argument(
        "Configuration of a Hub dataset, or one that a folder's README.md names.", None
    )
    dataset_split: str = argument("Split of a Hub dataset or of a folder.", "train")
    text_column: str = argument("Column that holds the text.", "text")
    seed: int = argument("Of crops, order, masks and new weights.", 42)
    report_to: str = argument("tensorboard, wandb or another reporter that is installed.", "none")
    trust_remote_code: bool = argument("Run code that comes with the model; have read it before.", False)

    def __post_init__(self) -> None:
        check_at_least(0, seed=self.seed)
        if not self.minutes > 0:
            raise RetroMAEError(f"minutes={self.minutes} must be above 0")
        if self.pairs is not None:
            check_choice("pairs", self.pairs, PAIRS)
