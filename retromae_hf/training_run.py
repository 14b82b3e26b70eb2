"""What every training run does: check its arguments, find where it was cut, train and save."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import DefaultFlowCallback, Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from .errors import RetroMAEError, RunInterruptedError, check_at_least, in_one_sentence
from .saved_checkpoints import checkpoints, is_complete, last_complete_checkpoint
from .saving import SavingCallback

logger = logging.getLogger(__name__)

RUN_FILE = "_run.json"
"""The arguments of the run that a folder holds; what begins so stays behind when `Trainer` pushes to the Hub."""

NOT_OF_THE_RUN = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "local_rank", "logging_dir"}
"""Arguments that may differ when a run goes on."""

LITTLE_SPACE = 1 << 20
"""Bytes of free space below which a failed write is put down to a full disk."""


def check_training_arguments(args: TrainingArguments) -> None:
    """Raise `RetroMAEError` for values that `TrainingArguments` lets pass and that fail only after the preparation."""
    check_processes(args)
    positive = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
    check_at_least(1, **{name: getattr(args, name) for name in positive})
    check_at_least(0, **{name: getattr(args, name) for name in ("learning_rate", "seed", "dataloader_num_workers")})
    if args.max_steps == 0 or args.max_steps < -1 or (args.max_steps == -1 and args.num_train_epochs <= 0):
        raise RetroMAEError(
            f"max_steps={args.max_steps} and num_train_epochs={args.num_train_epochs} leave nothing to train; "
            "one of them must be above 0"
        )
    if getattr(args, "enable_jit_checkpoint", False):
        raise RetroMAEError("a run saves a checkpoint at SIGTERM in any case; leave enable_jit_checkpoint out")


def check_processes(args: TrainingArguments) -> None:
    """Raise `RetroMAEError` where a launcher has started several processes and `Trainer` takes each for the only one.

    They would all train the same and write to the same files.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched > 1 and args.world_size == 1:
        raise RetroMAEError(
            f"{launched} processes were started on a machine without an accelerator, where Trainer brings them "
            "together only with --use_cpu; give it, or start one process"
        )


@dataclass(frozen=True)
class Run:
    """A training run and where it stands.

    Attributes:
        folder: its output folder.
        arguments: what tells it from another run, as JSON holds it.
        checkpoint: where it goes on from, None where it starts.
    """

    folder: Path
    arguments: dict[str, Any]
    checkpoint: str | None

    def is_at_its_end(self, args: TrainingArguments) -> bool:
        """Whether the checkpoint is its last one, after which `Trainer` would take one step more."""
        if self.checkpoint is None:
            return False
        state = TrainerState.load_from_json(str(Path(self.checkpoint, TRAINER_STATE_NAME)))
        if args.max_steps > 0:
            return state.global_step >= args.max_steps
        return (state.epoch or 0) >= args.num_train_epochs


def prepare_run(args: TrainingArguments, overwrite: bool, started_from: Iterable[str | None], *others: Any) -> Run:
    """Find out where a run stands; a folder that holds another one is refused.

    The same command goes on from the last checkpoint that was written to its end.

    Args:
        args: the output folder, and whether to resume.
        overwrite: whether an earlier run may go.
        started_from: models that the run is to start from, none of which may be among what goes.
        *others: the command's other arguments, dataclasses, which tell one run from another.
    """
    folder, arguments = Path(args.output_dir), _run_arguments(args, *others)
    resume = args.resume_from_checkpoint
    if resume is not None and str(resume).lower() != "false":
        return Run(folder, arguments, _checkpoint_to_resume(folder, str(resume)))
    if folder.exists() and not folder.is_dir():
        raise RetroMAEError(f"output_dir={folder} is a file; name a folder")
    checkpoint = None if overwrite else _checkpoint_of_the_same_run(folder, arguments)
    with in_one_sentence(f"output_dir={args.output_dir!r} cannot be written"):
        os.makedirs(args.output_dir, exist_ok=True)
    if checkpoint is None:
        _check_not_overwritten(folder, started_from)
    return Run(folder, arguments, checkpoint)


def _run_arguments(args: TrainingArguments, *others: Any) -> dict[str, Any]:
    values = args.to_dict()
    for other in others:
        values |= dataclasses.asdict(other)
    return json.loads(json.dumps({k: v for k, v in values.items() if k not in NOT_OF_THE_RUN}, default=str))


def _checkpoint_to_resume(folder: Path, resume: str) -> str:
    """The checkpoint that `resume_from_checkpoint` means."""
    last = resume.lower() == "true"
    checkpoint = last_complete_checkpoint(folder) if last else Path(resume)
    if checkpoint is None and checkpoints(folder):
        raise RetroMAEError(
            f"no checkpoint in {folder} was written to its end with all that it takes to go on; "
            "start anew with --overwrite_output_dir"
        )
    if checkpoint is None or not (checkpoint / TRAINER_STATE_NAME).is_file():
        raise RetroMAEError(f"there is no checkpoint to resume from in {folder if last else resume}")
    return str(checkpoint)


def _checkpoint_of_the_same_run(folder: Path, arguments: dict[str, Any]) -> str | None:
    """The last whole checkpoint of a run with these arguments, None where there is none; another run is an error."""
    try:
        old = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        old = None
    checkpoint = last_complete_checkpoint(folder)
    if old == arguments:
        if checkpoint is not None:
            logger.info("%s holds this run up to %s; it goes on from there", folder, checkpoint.name)
            return str(checkpoint)
        if not (folder / TRAINER_STATE_NAME).is_file():
            return None  # cut off before its first checkpoint
    if not (checkpoints(folder) or any(folder.glob("config.json")) or any(folder.glob("*.safetensors"))):
        return None
    different = [] if old is None else sorted(n for n in {*old, *arguments} if old.get(n) != arguments.get(n))
    why = f" with other arguments ({_differences(old, arguments, different)})" if different else ""
    raise RetroMAEError(
        f"{folder} already holds a run{why}; go on with --resume_from_checkpoint true, "
        "start anew with --overwrite_output_dir, or name another folder"
    )


def _differences(old: dict[str, Any], new: dict[str, Any], names: list[str], at_most: int = 3) -> str:
    told = [f"{name}: {old.get(name)!r} there, {new.get(name)!r} here" for name in names[:at_most]]
    return ", ".join([*told, *(["..."] if len(names) > at_most else [])])


def _check_not_overwritten(folder: Path, started_from: Iterable[str | None]) -> None:
    for name in started_from:
        inside = [] if name is None else [Path(name).resolve(), *Path(name).resolve().parents]
        if any(old.resolve() in inside for old in folder.glob("checkpoint-*")):
            raise RetroMAEError(
                f"{name}, which is to start from, lies in a checkpoint of {folder} that is to be overwritten; "
                "name another output folder"
            )


def run_and_save(trainer: Trainer, run: Run) -> None:
    """Train, from a checkpoint where there is one, and save the model and `trainer_state.json`.

    Raises:
        RetroMAEError: no step was taken, or the disk is full.
        RunInterruptedError: a signal ended the run; it can go on from the checkpoint that was saved.
    """
    if run.is_at_its_end(trainer.args):
        _save_again(trainer, run)
        return
    if trainer.is_world_process_zero():
        _write_run_file(run)
    saving = SavingCallback()
    # Behind the one that decides when to save, before those that look at the weights first.
    names = [type(callback) for callback in trainer.callback_handler.callbacks]
    trainer.callback_handler.callbacks.insert(names.index(DefaultFlowCallback) + 1, saving)
    with _full_disk_told(saving, run.folder):
        try:
            trainer.train(resume_from_checkpoint=run.checkpoint)
        except pickle.UnpicklingError as error:  # transformers reads the optimizer's state as tensors alone
            raise RetroMAEError(
                f"{run.checkpoint} has an optimizer, scheduler or generator state that is broken or more than tensors, "
                "and was not read; resume from another checkpoint"
            ) from error
        finally:
            saving.stop_listening()
        step, steps = trainer.state.global_step, trainer.state.max_steps
        if saving.stopped_by is not None and step < steps:
            raise RunInterruptedError(
                f"stopped by {saving.stopped_by.name} after step {step} of {steps}; "
                f"the same command goes on from checkpoint-{step} in {run.folder}",
                status=128 + saving.stopped_by,
            )
        if step == 0:
            raise RetroMAEError(
                f"no step was taken, because the data fills no batch of {trainer.args.per_device_train_batch_size} "
                "rows (with texts of their own, where duplicates are kept apart); lower per_device_train_batch_size"
            )
        saving.saving = True
        trainer.save_state()  # first, since saving the model may push the folder to the Hub
        trainer.save_model()


def _write_run_file(run: Run) -> None:
    if run.checkpoint is None:
        # Of an earlier run; not before everything has been checked that may be wrong with this one.
        for old in run.folder.glob("checkpoint-*"):
            shutil.rmtree(old)
        (run.folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
    (run.folder / RUN_FILE).write_text(json.dumps(run.arguments, indent=1), encoding="utf-8")


def _save_again(trainer: Trainer, run: Run) -> None:
    """Make sure that a run that has reached its end has its model, before whose saving it may have been cut."""
    logger.info("%s was trained to its end", run.folder)
    trainer._load_from_checkpoint(run.checkpoint)
    trainer.state = TrainerState.load_from_json(str(Path(str(run.checkpoint), TRAINER_STATE_NAME)))
    trainer.save_state()
    trainer.save_model()


@contextmanager
def _full_disk_told(saving: SavingCallback, folder: Path) -> Iterator[None]:
    """A write that fails for want of space becomes a sentence; what was written of that checkpoint goes."""
    try:
        yield
    except Exception as error:
        if not saving.saving or not _is_for_want_of_space(error, folder):
            raise
        for half in checkpoints(folder):
            if not is_complete(half):
                shutil.rmtree(half, ignore_errors=True)
        last = last_complete_checkpoint(folder)
        kept = f"the last whole checkpoint is {last}" if last else "there is no whole checkpoint yet"
        raise RetroMAEError(
            f"the disk that holds {folder} is full; {kept}; make room, and the same command goes on from there"
        ) from error


def _is_for_want_of_space(error: BaseException, folder: Path) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # safetensors and torch raise errors of their own; torch's does not say why it could not write.
    return "No space left" in str(error) or shutil.disk_usage(folder).free < LITTLE_SPACE
