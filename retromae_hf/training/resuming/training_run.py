"""What every training run does: see where it stands, train and save."""

from __future__ import annotations

import copy
import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import DefaultFlowCallback, Trainer, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer import TRAINER_STATE_NAME

from ...checkpoints.hub import prepare_pushes, pushing
from ...model.errors import RetroMAEError, RunInterruptedError, check_at_least, in_one_sentence
from .run_folder import Run, prepare_run, read_state
from .saving import (
    SavingCallback,
    best_checkpoint,
    last_complete_checkpoint,
    remove_beyond,
    remove_incomplete,
    save_without_paths,
    weights_are_finite,
)

logger = logging.getLogger(__name__)

STATES = ("_load_optimizer_and_scheduler", "_load_scaler", "_load_rng_state")
"""What loads the rest of a checkpoint behind its weights, of `Trainer`."""

STEPS_OF_A_TRIAL = 10**9
"""Of a schedule that is made before the data are there, whose number of steps is not known; more than any part of it
takes."""

LITTLE_SPACE = 1 << 20
"""Bytes of free space below which a failed write is put down to a full disk."""


def begin_run(
    args: TrainingArguments, overwrite: bool, evaluates: bool, started_from: Iterable[str | None], *others: Any
) -> Run:
    """See whether the arguments make a run, whether it may push to the Hub, and where it stands, before any work.

    The arguments are those of `check_trainable` and of `prepare_run`.
    """
    check_training_arguments(args)
    prepare_pushes(args)
    run = prepare_run(args, overwrite, started_from, *others)
    if args.optim_target_modules is None:  # which only the model has
        check_trainable(args, nn.Linear(1, 1), evaluates)
    if run.checkpoint is not None:
        args.eval_on_start = False  # a run that goes on has the row of step 0
    if not torch.accelerator.is_available():
        args.dataloader_pin_memory = False  # there is nothing to pin it for, as a warning would say at every loader
    return run


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


def check_trainable(
    args: TrainingArguments, model: nn.Module, evaluates: bool, trainer: Callable[..., Trainer] = Trainer
) -> None:
    """Make on a copy of the model what `Trainer` makes of the arguments when training begins, hours before that.

    Args:
        args: the run.
        model: what is to be trained; it is left as it is.
        evaluates: whether there will be data to evaluate on.
        trainer: what makes optimizer and schedule.

    Raises:
        RetroMAEError: optimizer, schedule, loader or reporter cannot be made, for want of a package for example.
    """
    quiet = copy.copy(args)
    quiet.push_to_hub = False
    rows = Dataset.from_dict({"input_ids": [[0]]})
    with in_one_sentence("the training arguments cannot be used"):
        trial = trainer(copy.deepcopy(model), quiet, train_dataset=rows, eval_dataset=rows if evaluates else None)
        if args.use_liger_kernel:
            from transformers.integrations.liger import apply_liger_kernel

            apply_liger_kernel(trial.model, args.liger_kernel_config)
        if not trial.is_deepspeed_enabled:
            trial.create_optimizer_and_scheduler(args.max_steps if args.max_steps > 0 else STEPS_OF_A_TRIAL)
        DataLoader(
            rows,
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
        )


def check_reporters(names: str | list[str]) -> None:
    """Raise `RetroMAEError` for a reporter that is unknown or not installed, in `Trainer`'s words."""
    with in_one_sentence("report_to cannot be used"):
        for reporter in get_reporting_integration_callbacks(names):
            reporter()


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


def run_and_save(trainer: Trainer, run: Run) -> None:
    """Train, from a checkpoint where there is one, save the model and `trainer_state.json`, and push where asked to.

    Raises:
        RetroMAEError: no step was taken, the disk is full, or the Hub does not take the model.
        RunInterruptedError: a signal ended the run; it can go on from the checkpoint that was saved.
    """
    if run.is_at_its_end(trainer.args):
        with pushing(trainer), _no_arguments_saved():
            _save_again(trainer, run)
        return
    if trainer.args.should_save:
        run.note()
    saving = SavingCallback()
    # Behind the one that decides when to save, before those that look at the weights first.
    names = [type(callback) for callback in trainer.callback_handler.callbacks]
    trainer.callback_handler.callbacks.insert(names.index(DefaultFlowCallback) + 1, saving)
    if run.checkpoint is not None:
        for name in STATES:
            setattr(trainer, name, _broken_state_told(run.checkpoint)(getattr(trainer, name)))
    with (
        pushing(trainer),
        _no_arguments_saved(),
        _full_disk_told(saving, run),
        _workers_of_evaluation_spared(saving, trainer),
    ):
        try:
            trainer.train(resume_from_checkpoint=run.checkpoint)
        finally:
            saving.stop_listening()
        step, steps = trainer.state.global_step, trainer.state.max_steps
        if saving.stopped_by is not None and step < steps:
            raise RunInterruptedError(
                f"stopped by {saving.stopped_by.name} after step {step} of {steps}; {_how_it_goes_on(run, step)}",
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


def _how_it_goes_on(run: Run, step: int) -> str:
    place = f"checkpoint-{step} in {run.folder}"
    if run.again is None:
        return f"{place} has no optimizer state (save_only_model), so that the run cannot go on"
    return f"{run.again} goes on from {place}"


def _save_again(trainer: Trainer, run: Run) -> None:
    """Make sure that a run that has reached its end has its model, before whose saving it may have been cut."""
    logger.info("%s was trained to its end", run.folder)
    trainer._load_from_checkpoint(run.checkpoint)
    trainer.state = read_state(str(run.checkpoint))
    best = trainer.state.best_model_checkpoint = best_checkpoint(run.folder, trainer.state)
    if trainer.args.load_best_model_at_end and best is not None:
        trainer._load_best_model()
    if not weights_are_finite(trainer.model):
        raise RetroMAEError(f"the weights in {run.checkpoint} are not finite; resume from an earlier checkpoint")
    if trainer.args.should_save:
        remove_incomplete(run.folder)
        remove_beyond(run.folder, trainer.args.save_total_limit, best)
        save_without_paths(trainer.state, str(run.folder / TRAINER_STATE_NAME))
    trainer.save_model()


@contextmanager
def _broken_state_told(checkpoint: str) -> Iterator[None]:
    """What cannot be loaded of a checkpoint becomes a sentence. transformers reads tensors alone."""
    try:
        yield
    except (RetroMAEError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise RetroMAEError(
            f"{checkpoint} has an optimizer, scheduler or generator state that is broken or more than tensors, and was "
            "not read; resume from another checkpoint"
        ) from error


@contextmanager
def _no_arguments_saved() -> Iterator[None]:
    """`Trainer` pickles its arguments beside every model, and pushes them: paths of this machine that nothing reads."""
    save = torch.save

    def save_others(content: Any, *args: Any, **options: Any) -> None:
        if not isinstance(content, TrainingArguments):
            save(content, *args, **options)

    torch.save = save_others  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.save = save


@contextmanager
def _workers_of_evaluation_spared(saving: SavingCallback, trainer: Trainer) -> Iterator[None]:
    """A signal in the midst of an evaluation; callbacks do not see its loader before the workers have started."""
    loader = trainer.get_eval_dataloader
    trainer.get_eval_dataloader = lambda *args, **options: saving.spare_workers(loader(*args, **options))
    try:
        yield
    finally:
        del trainer.get_eval_dataloader  # of this object; that of its class is behind it


@contextmanager
def _full_disk_told(saving: SavingCallback, run: Run) -> Iterator[None]:
    """A write that fails for want of space becomes a sentence; what was written of that checkpoint goes."""
    folder = run.folder
    try:
        yield
    except Exception as error:
        if not saving.saving or not _is_for_want_of_space(error, folder):
            raise
        remove_incomplete(folder)
        last = last_complete_checkpoint(folder)
        kept = f"the last whole checkpoint is {last}" if last else "there is no whole checkpoint yet"
        then = f", and {run.again} goes on from there" if run.again and last else ""
        raise RetroMAEError(f"the disk that holds {folder} is full; {kept}; make room{then}") from error


def _is_for_want_of_space(error: BaseException, folder: Path) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # safetensors and torch raise errors of their own; torch's does not say why it could not write.
    return "No space left" in str(error) or shutil.disk_usage(folder).free < LITTLE_SPACE
