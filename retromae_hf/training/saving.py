"""Checkpoints that a run can go on from wherever it was cut, as a callback of a plain `Trainer`."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import re
import shutil
import signal
import threading
import time
from functools import partial
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import nn
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from ..data.disk import checksum, read_json

logger = logging.getLogger(__name__)

MANIFEST = "complete.json"
"""The list of a checkpoint's files, which is written last; a checkpoint without it is not whole."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What a cluster sends before it takes a machine back, and what Ctrl-C sends."""

AGREE_EVERY = 5.0
"""Seconds, about, after which several processes ask one another whether any got a signal; each waits for its device
then. A launcher leaves them half a minute."""

CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
"""Answers of file systems, some of networks among them, that cannot flush a file or a folder."""


def checkpoints(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, whole or not, by their step."""
    found = [one for one in run.glob("checkpoint-*") if one.is_dir() and re.fullmatch(r"checkpoint-\d+", one.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def mark_complete(checkpoint: Path, resumable: bool) -> None:
    """Write the list of the checkpoint's files, after they have reached the disk; `resumable` with an optimizer's."""
    files = [file for file in sorted(checkpoint.rglob("*")) if file.is_file() and file.name != MANIFEST]
    for file in files:
        _flush(file)
    names = {file.relative_to(checkpoint).as_posix(): file for file in files}
    manifest = {
        "resumable": resumable,
        "files": {name: file.stat().st_size for name, file in names.items()},
        "checksums": {name: checksum(file) for name, file in names.items()},
    }
    aside = checkpoint / f"{MANIFEST}.new"
    aside.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _flush(aside)
    aside.replace(checkpoint / MANIFEST)
    _flush(checkpoint)


def is_resumable(checkpoint: Path) -> bool:
    """Whether a checkpoint holds what it takes to go on; where no list tells, the generators' state does."""
    return bool(_manifest(checkpoint).get("resumable", any(checkpoint.glob("rng_state*.pth"))))


def is_complete(checkpoint: Path) -> bool:
    """Whether every file of its list is there in its full size."""
    manifest = _manifest(checkpoint)
    files = [(checkpoint / name, size) for name, size in manifest.get("files", {}).items()]
    return bool(manifest) and all(file.is_file() and file.stat().st_size == size for file, size in files)


def fault_of(checkpoint: Path, read: bool = True) -> str | None:
    """Why training cannot go on from a checkpoint; None where it can. Without `read` its files may be damaged."""
    if not is_complete(checkpoint):
        return "was not written to its end, or some of it is gone"
    if not is_resumable(checkpoint):
        return "has no optimizer state (save_only_model)"
    checksums = _manifest(checkpoint)["checksums"].items() if read else ()
    damaged = next((name for name, known in checksums if checksum(checkpoint / name) != known), None)
    return None if damaged is None else f"is damaged in {damaged}"


def last_complete_checkpoint(run: Path, read: bool = False) -> Path | None:
    """The run's latest whole checkpoint that training can go on from; with `read` one whose files are undamaged."""
    for folder in reversed(checkpoints(run)):
        fault = fault_of(folder, read)
        if fault is None:
            return folder
        if "damaged" in fault:
            logger.warning("%s %s; it does not count", folder, fault)
    return None


def remove_incomplete(run: Path) -> list[Path]:
    """Delete the half-written checkpoints of a run and return their former folders."""
    halves = [folder for folder in checkpoints(run) if not is_complete(folder)]
    for folder in halves:
        shutil.rmtree(folder, ignore_errors=True)
    return halves


def remove_beyond(run: Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest whole checkpoints of a run that are more than `limit`, but neither the newest nor the best."""
    whole = [folder for folder in checkpoints(run) if is_complete(folder)]
    spared = {folder.name for folder in whole[-1:]} | ({Path(best).name} if best else set())
    others = [folder for folder in whole if folder.name not in spared]
    beyond = max(len(whole) - limit, 0) if limit is not None and limit > 0 else 0
    for folder in others[:beyond]:
        shutil.rmtree(folder, ignore_errors=True)


def _manifest(checkpoint: Path) -> dict[str, Any]:
    """The list of a checkpoint's files, empty where there is none."""
    manifest = read_json(checkpoint / MANIFEST) or {}
    return manifest if isinstance(manifest.get("files"), dict) else {}


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk and would survive a power cut."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_FLUSH:
            raise
    finally:
        os.close(descriptor)


def best_checkpoint(run: Path, state: TrainerState) -> str | None:
    best = run / f"checkpoint-{state.best_global_step}"
    return str(best) if best.is_dir() else None


def save_without_paths(state: TrainerState, file: str) -> None:
    """Save a state as `TrainerState` does, but for the path of the best checkpoint."""
    TrainerState.save_to_json(dataclasses.replace(state, best_model_checkpoint=None), file)


def weights_are_finite(model: nn.Module) -> bool:
    """Whether all weights are, in every process, each of which has to ask; the host waits for its device once."""
    local = [getattr(weight, "to_local", lambda weight=weight: weight)() for weight in model.parameters()]
    bad = torch.stack([~weight.detach().isfinite().all() for weight in local]).any()
    return not reduce(bad.float(), "sum").item()


class SavingCallback(TrainerCallback):
    """Marks checkpoints that were written to their end, and saves one before a signal ends the run.

    - `Trainer` deletes old checkpoints for `save_total_limit` before anyone knows that the new one is whole. This
      callback does it instead, after the new one is marked.
    - `trainer_state.json`, which goes to the Hub, names the best checkpoint by its step and not by its path.
    - SIGTERM and Ctrl-C end the run after the step that is under way, with a checkpoint; a second Ctrl-C ends it at
      once. In a distributed run all processes stop after the same step.
    """

    def __init__(self) -> None:
        self.saving = False  # or it was, when training ended with an error
        self.stopped_by: signal.Signals | None = None
        self._asked: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._under_way = RawValue("b", False)  # which the loader's workers see too
        self._limit: int | None = None
        self._talked_after, self._talked_at, self._talk_after = 0, 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        """Clear away what an earlier run left half-written or will be written again, and listen for signals."""
        self.saving, self.stopped_by, self._asked = False, None, None
        self._under_way.value = True
        self._talked_after, self._talked_at = state.global_step, time.monotonic()
        self._talk_after = state.global_step + 1
        run = Path(args.output_dir)
        state.best_model_checkpoint = best_checkpoint(run, state)
        state.save_to_json = partial(save_without_paths, state)
        if args.should_save:
            for half in remove_incomplete(run):
                logger.warning("%s was not written to its end and is deleted", half)
            for later in checkpoints(run):
                if step_of(later) > state.global_step:
                    (later / MANIFEST).unlink(missing_ok=True)
        self._limit, args.save_total_limit = args.save_total_limit, None
        if threading.current_thread() is threading.main_thread():
            self._handlers = {
                number: signal.signal(number, self._ask_to_stop) or signal.SIG_DFL
                for number in STOP_SIGNALS
                if signal.getsignal(number) != signal.SIG_IGN
            }
        if train_dataloader is not None:
            self.spare_workers(train_dataloader)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step < state.max_steps and self._all_stop(args, state):
            if args.save_strategy == SaveStrategy.BEST:
                control.should_evaluate = False  # it alone would decide what is saved
            self.stopped_by = self._asked or signal.SIGTERM
            control.should_training_stop = True
            # What is saved at the end of an epoch also holds the evaluation there.
            control.should_save |= args.save_strategy != SaveStrategy.EPOCH or not _ends_epoch(state)
        self.saving = control.should_save

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A run that stops within an epoch comes here too. It has saved; and an evaluation that an uncut run never makes
        # could become its best.
        if self.stopped_by is not None and not _ends_epoch(state):
            control.should_log = control.should_evaluate = control.should_save = False
        self.saving = control.should_save

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the checkpoint after every process has written its part, and delete those beyond the limit."""
        PartialState().wait_for_everyone()
        if args.should_save:
            run = Path(args.output_dir)
            mark_complete(run / f"checkpoint-{state.global_step}", resumable=not args.save_only_model)
            remove_beyond(run, self._limit, state.best_model_checkpoint)
        self.saving = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stop_listening()
        args.save_total_limit = self._limit
        if args.should_save:
            remove_incomplete(Path(args.output_dir))

    def stop_listening(self) -> None:
        """Give the signals back; for a training that ended with an error, after which `on_train_end` is not called."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        self._under_way.value = False

    def spare_workers(self, loader: Any) -> Any:
        """The loader; its workers will survive what a cluster sends to all processes, for the step under way.

        Not after the run: Python ends the workers that an error has left behind by SIGTERM, and waits for them.
        """
        # accelerate's loader starts the workers of the one inside of it, but is itself asked when batches are skipped.
        loaders: list[Any] = [loader, getattr(loader, "base_dataloader", None)]
        for one in loaders:
            if hasattr(one, "worker_init_fn"):
                one.worker_init_fn = partial(_live_on, self._under_way, one.worker_init_fn)
        return loader

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._asked = signal.Signals(number)
        logger.warning("%s: this run saves a checkpoint after the step under way and ends", self._asked.name)
        # A second SIGTERM is not impatience: a launcher passes on what the cluster has sent to everyone.
        if signal.SIGINT in self._handlers:
            signal.signal(signal.SIGINT, self._handlers.pop(signal.SIGINT))

    def _all_stop(self, args: TrainingArguments, state: TrainerState) -> bool:
        if args.world_size == 1:
            return self._asked is not None
        if state.global_step < self._talk_after:
            return False
        now = time.monotonic()
        seconds_a_step = (now - self._talked_at) / (state.global_step - self._talked_after)
        told = torch.tensor([float(self._asked is not None), seconds_a_step], device=args.device)
        asked, seconds_a_step = reduce(told, "mean").tolist()  # the same in all processes, and so is the next time
        self._talked_after, self._talked_at = state.global_step, now
        self._talk_after = state.global_step + max(1, int(AGREE_EVERY / max(seconds_a_step, 1e-3)))
        return asked > 0


def _ends_epoch(state: TrainerState) -> bool:
    return float(state.epoch or 0).is_integer()


def _live_on(under_way: Any, init: Any, worker: int) -> None:
    """What a loader's worker does first."""

    def end_after_the_run(number: int, frame: FrameType | None) -> None:
        if not under_way.value:
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_after_the_run)
    if init is not None:
        init(worker)
