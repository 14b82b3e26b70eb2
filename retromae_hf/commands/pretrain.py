"""`retromae-hf pretrain`: pretrain an encoder on a corpus with the plain `Trainer`."""

from __future__ import annotations

import shlex
import sys

from ..arguments.pretraining import (
    DEFAULT_TRAINING_ARGUMENTS,
    LEARNING_RATE,
    CardArguments,
    DataArguments,
    ModelArguments,
)
from .common import command, parse


@command
def main(argv: list[str] | None = None) -> None:
    """Pretrain and save."""
    args, model_args, training_args, card_args = parse(
        "pretrain",
        "Pretrain an encoder on a corpus.",
        [DataArguments, ModelArguments, "transformers.TrainingArguments", CardArguments],
        argv,
        DEFAULT_TRAINING_ARGUMENTS,
    )
    from ..training.pretraining import pretrain

    default_rate = training_args.learning_rate is LEARNING_RATE
    trainer = pretrain(args, model_args, training_args, card_args, default_rate)
    if trainer.is_world_process_zero():
        folder = training_args.output_dir
        checkpoint = "checkpoint" if trainer.model.config.decoding == "none" else "checkpoint, decoder included,"
        print(f"Trained {trainer.state.global_step} steps; the {checkpoint} is in {folder}.")
        told, encoder = shlex.quote(folder), shlex.quote(f"{folder}/encoder")
        print(f"Next: retromae-hf export --model_name_or_path {told} --output_dir {encoder}")


if __name__ == "__main__":
    sys.exit(main())
