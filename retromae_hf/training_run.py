"""What every training run does: check its arguments, find its checkpoint, train and save."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from .errors import RetroMAEError, check_at_least, in_one_sentence


def check_training_arguments(args: TrainingArguments) -> None:
    """Raise `RetroMAEError` for values that `TrainingArguments` lets pass and that fail only after the preparation."""
    positive = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
    check_at_least(1, **{name: getattr(args, name) for name in positive})
    check_at_least(0, **{name: getattr(args, name) for name in ("learning_rate", "seed", "dataloader_num_workers")})
    if args.max_steps == 0 or args.max_steps < -1 or (args.max_steps == -1 and args.num_train_epochs <= 0):
        raise RetroMAEError(
            f"max_steps={args.max_steps} and num_train_epochs={args.num_train_epochs} leave nothing to train; "
            "one of them must be above 0"
        )


def prepare_output_dir(args: TrainingArguments, overwrite: bool, started_from: Iterable[str | None]) -> str | None:
    """The checkpoint to resume from, or None to start; an output folder that holds a run is refused otherwise.

    Args:
        args: the output folder, and whether to resume.
        overwrite: whether an earlier run may go.
        started_from: models that the run is to start from, none of which may be among what goes.
    """
    folder = Path(args.output_dir)
    resume = args.resume_from_checkpoint
    if resume is not None and str(resume).lower() != "false":
        last = str(resume).lower() == "true"
        checkpoint = get_last_checkpoint(folder) if last and folder.is_dir() else str(resume)
        if checkpoint is None or not (Path(checkpoint) / "trainer_state.json").is_file():
            raise RetroMAEError(f"there is no checkpoint to resume from in {folder if last else resume}")
        return checkpoint
    if folder.exists() and not folder.is_dir():
        raise RetroMAEError(f"output_dir={folder} is a file; name a folder")
    runs = [*folder.glob("checkpoint-*"), *folder.glob("config.json"), *folder.glob("*.safetensors")]
    if runs and not overwrite:
        raise RetroMAEError(
            f"{folder} already holds a run; go on with --resume_from_checkpoint true, "
            "start anew with --overwrite_output_dir, or name another folder"
        )
    with in_one_sentence(f"output_dir={args.output_dir!r} cannot be written"):
        os.makedirs(args.output_dir, exist_ok=True)
    for name in started_from:
        inside = [] if name is None else [Path(name).resolve(), *Path(name).resolve().parents]
        if any(old.resolve() in inside for old in folder.glob("checkpoint-*")):
            raise RetroMAEError(
                f"{name}, which is to start from, lies in a checkpoint of {folder} that is to be overwritten; "
                "name another output folder"
            )
    return None


def run_and_save(trainer: Trainer, checkpoint: str | None) -> None:
    """Train, from a checkpoint where there is one, and save the model and `trainer_state.json`."""
    if checkpoint is None and trainer.is_world_process_zero():
        # Of an earlier run; not before everything has been checked that may be wrong with this one.
        for old in Path(trainer.args.output_dir).glob("checkpoint-*"):
            shutil.rmtree(old)
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.state.global_step == 0:
        raise RetroMAEError(
            f"no step was taken, because the data fills no batch of {trainer.args.per_device_train_batch_size} rows "
            "(with texts of their own, where duplicates are kept apart); lower per_device_train_batch_size"
        )
    trainer.save_model()
    trainer.save_state()
