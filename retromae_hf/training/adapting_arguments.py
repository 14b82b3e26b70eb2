"""What a user may say of adapting an encoder; light to import, for the help of the command."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..model.errors import RetroMAEError, check_at_least, check_choice
from .rows import PAIRS


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
