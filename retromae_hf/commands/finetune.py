"""`retromae-hf finetune`: fine-tune an encoder for retrieval on sentence-transformers' trainer."""

from __future__ import annotations

import shlex
import sys

from ..arguments.finetuning import DEFAULT_FINETUNING_ARGUMENTS, FinetuneArguments
from ..arguments.pretraining import CardArguments
from .common import command, parse


@command
def main(argv: list[str] | None = None) -> None:
    """Fine-tune and save."""
    args, training_args, card_args = parse(
        "finetune",
        "Fine-tune an encoder for retrieval.",
        [FinetuneArguments, "sentence_transformers.SentenceTransformerTrainingArguments", CardArguments],
        argv,
        DEFAULT_FINETUNING_ARGUMENTS,
    )
    from ..training.finetuning import finetune

    trainer = finetune(args, training_args, card_args)
    if trainer.is_world_process_zero():
        folder = training_args.output_dir
        print(f"Trained {trainer.state.global_step} steps; the model is in {folder}.")
        print(f"Next: retromae-hf evaluate --model_name_or_path {shlex.quote(folder)} --dataset FOLDER_IN_BEIR_LAYOUT")


if __name__ == "__main__":
    sys.exit(main())
