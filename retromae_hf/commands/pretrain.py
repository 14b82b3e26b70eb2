"""`retromae-hf pretrain`: pretrain an encoder on a corpus with the plain `Trainer`."""

from __future__ import annotations

import shlex
import sys

from ..arguments.pretraining import (
    DEFAULT_TRAINING_ARGUMENTS,
    CardArguments,
    Cutting,
    Masking,
    RunArguments,
    StartArguments,
    TextSource,
)
from .common import command, parse


@command
def main(argv: list[str] | None = None) -> None:
    """Pretrain and save."""
    arguments = parse(
        "pretrain",
        "Pretrain an encoder on a corpus.",
        [TextSource, Cutting, Masking, StartArguments, "transformers.TrainingArguments", RunArguments, CardArguments],
        argv,
        DEFAULT_TRAINING_ARGUMENTS,
    )
    from ..training.pretraining import pretrain

    trainer = pretrain(*arguments)
    if trainer.is_world_process_zero():
        folder = trainer.args.output_dir
        checkpoint = "checkpoint" if trainer.model.config.decoding == "none" else "checkpoint, decoder included,"
        print(f"Trained {trainer.state.global_step} steps; the {checkpoint} is in {folder}.")
        told, encoder = shlex.quote(folder), shlex.quote(f"{folder}/encoder")
        print(f"Next: retromae-hf export --model_name_or_path {told} --output_dir {encoder}")


if __name__ == "__main__":
    sys.exit(main())
