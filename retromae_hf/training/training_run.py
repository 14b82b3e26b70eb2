"""What every training run does: see where it stands, train and save."""

from __future__ import annotations

import copy
import errno
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import DefaultFlowCallback, Trainer, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import is_liger_kernel_available

from ..checkpoints.hub import prepare_pushes, pushing
from ..model.errors import RetroMAEError, RunInterruptedError, check_at_least, in_one_sentence
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

STEPS_OF_A_TRIAL = 10**9
"""Of a schedule that is made before the number of steps is known; more than any part of it takes."""

LITTLE_SPACE = 1 << 20
"""Bytes of free space below which a failed write is put down to a full disk."""


def begin_run(
    args: TrainingArguments, overwrite: bool, evaluates: bool, started_from: Iterable[str | None], *others: Any
) -> Run:
    """See whether the arguments make a run, whether it may push to the Hub, and where it stands, before any work.

    `evaluates` tells whether there will be data to evaluate on; for the other arguments see `prepare_run`.
    """
    _check_values(args)
    prepare_pushes(args)
    run = prepare_run(args, overwrite, started_from, *others)
    _check_trainable(args, evaluates)
    if run.checkpoint is not None:
        args.eval_on_start = False  # a run that goes on has the row of step 0
    if not torch.accelerator.is_available():
        args.dataloader_pin_memory = False  # there is nothing to pin it for, as a warning would say at every loader
    return run


def _check_values(args: TrainingArguments) -> None:
    """Refuse values that `TrainingArguments` lets pass and that fail only after the preparation."""
    positive = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
    check_at_least(1, **{name: getattr(args, name) for name in positive})
    check_at_least(0, **{name: getattr(args, name) for name in ("learning_rate", "seed", "dataloader_num_workers")})
    if args.max_steps == 0 or args.max_steps < -1 or (args.max_steps == -1 and args.num_train_epochs <= 0):
        raise RetroMAEError(
            f"max_steps={args.max_steps} and num_train_epochs={args.num_train_epochs} leave nothing to train; "
            "one of them must be above 0"
        )


def _check_trainable(args: TrainingArguments, evaluates: bool) -> None:
    """Make optimizer, schedule, loader and reporters of the arguments for one weight: one may want a package."""
    quiet = copy.copy(args)
    quiet.push_to_hub = False
    rows = Dataset.from_dict({"input_ids": [[0]]})
    with in_one_sentence("the training arguments cannot be used"):
        trial = Trainer(nn.Linear(1, 1), quiet, train_dataset=rows, eval_dataset=rows if evaluates else None)
        if args.use_liger_kernel and not is_liger_kernel_available():
            raise RetroMAEError("liger-kernel >= 0.3.0 is not available; install it, or leave use_liger_kernel out")
        if args.optim_target_modules is None and not trial.is_deepspeed_enabled:
            trial.create_optimizer_and_scheduler(args.max_steps if args.max_steps > 0 else STEPS_OF_A_TRIAL)
        DataLoader(
            rows,
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
        )


def check_reporters(names: str | list[str]) -> None:
    """Refuse a reporter that is unknown or not installed, in `Trainer`'s words."""
    with in_one_sentence("report_to cannot be used"):
        for reporter in get_reporting_integration_callbacks(names):
            reporter()


def run_and_save(trainer: Trainer, run: Run) -> None:
    """Train, from a checkpoint where there is one, save the model and `trainer_state.json`, and push where asked to.

    Raises `RunInterruptedError` where a signal ended the run, which can go on from the checkpoint that was saved.
    """
    for name in ("_save", "_push_from_checkpoint"):
        setattr(trainer, name, _no_arguments_saved()(getattr(trainer, name)))
    if run.is_at_its_end(trainer.args):
        with pushing(trainer):
            _save_again(trainer, run)
        return
    if trainer.args.should_save:
        run.note()
    saving = SavingCallback()
    # Behind the one that decides when to save, before those that look at the weights first.
    names = [type(callback) for callback in trainer.callback_handler.callbacks]
    trainer.callback_handler.callbacks.insert(names.index(DefaultFlowCallback) + 1, saving)
    if run.checkpoint is not None:
        broken = (
            f"{run.checkpoint} has an optimizer, scheduler or generator state that is broken or more than tensors, and "
            "was not read; resume from another checkpoint"
        )
        for name in ("_load_optimizer_and_scheduler", "_load_scaler", "_load_rng_state"):
            setattr(trainer, name, in_one_sentence(broken)(getattr(trainer, name)))
    # Callbacks do not see the loader of an evaluation before its workers have started.
    loader = trainer.get_eval_dataloader
    trainer.get_eval_dataloader = lambda *args, **options: saving.spare_workers(loader(*args, **options))
    with pushing(trainer), _full_disk_told(saving, run):
        try:
            trainer.train(resume_from_checkpoint=run.checkpoint)
        finally:
            saving.stop_listening()
        step, steps = trainer.state.global_step, trainer.state.max_steps
        if saving.stopped_by is not None and step < steps:
            place = f"checkpoint-{step} in {run.folder}"
            goes_on = f"{run.again} goes on from {place}"
            if run.again is None:
                goes_on = f"{place} has no optimizer state (save_only_model), so that the run cannot go on"
            raise RunInterruptedError(
                f"stopped by {saving.stopped_by.name} after step {step} of {steps}; {goes_on}",
                status=128 + saving.stopped_by,
            )
        if step == 0:
            raise RetroMAEError(
                f"no step was taken, because the data fills no batch of {trainer.args.per_device_train_batch_size} "
                "different rows; lower per_device_train_batch_size"
            )
        saving.saving = True
        trainer.save_state()  # first, since saving the model may push the folder to the Hub
        trainer.save_model()


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
def _full_disk_told(saving: SavingCallback, run: Run) -> Iterator[None]:
    """A write that fails for want of space becomes a sentence; what was written of that checkpoint goes."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        # safetensors and torch raise errors of their own; torch's does not say why it could not write.
        full = full or "No space left" in str(error) or shutil.disk_usage(run.folder).free < LITTLE_SPACE
        if not (saving.saving and full):
            raise
        remove_incomplete(run.folder)
        last = last_complete_checkpoint(run.folder)
        kept = f"the last whole checkpoint is {last}" if last else "there is no whole checkpoint yet"
        then = f", and {run.again} goes on from there" if run.again and last else ""
        raise RetroMAEError(f"the disk that holds {run.folder} is full; {kept}; make room{then}") from error
