"""Where a training run stands in its output folder: anew, at a checkpoint, or refused because it holds another one."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
from datasets import Dataset
from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from ..data.disk import read_json, write_json
from ..data.documents import fingerprint_of_rows
from ..model.errors import RetroMAEError, in_one_sentence
from .saving import (
    MANIFEST,
    checkpoints,
    fault_of,
    is_complete,
    is_resumable,
    last_complete_checkpoint,
    mark_complete,
)

logger = logging.getLogger(__name__)

RUN_FILE = "_run.json"
"""The arguments of the run that a folder holds, and on how many processes and on which data it trains; what begins so
stays behind when `Trainer` pushes to the Hub."""

DATA, NEW_PARAMETERS = "data", "new_parameters"
"""In `RUN_FILE`: the data's fingerprint, and the names of what the model that the run starts from did not have."""

MODEL_PATTERNS = ("config.json", "*.safetensors", "*.safetensors.index.json")

NOT_OF_THE_RUN = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "local_rank", "logging_dir"}
"""Arguments that may differ when a run goes on."""

SHOWN_ARGUMENTS = 3


@dataclass(frozen=True)
class Run:
    """A training run and where it stands."""

    folder: Path
    arguments: dict[str, Any]  # what tells it from another run, as JSON holds it
    checkpoint: str | None  # where it goes on from, None where it starts
    noted: dict[str, Any]  # of the run that it goes on with, empty where nothing is known
    again: str | None  # how a run that is cut goes on, as the subject of a sentence; None where it cannot
    lock: Any  # keeps other runs out of the folder while it is held

    def is_at_its_end(self, args: TrainingArguments) -> bool:
        """Whether the checkpoint is its last one, after which `Trainer` would take one step more."""
        if self.checkpoint is None:
            return False
        state = read_state(self.checkpoint)
        if args.max_steps > 0:
            return state.global_step >= args.max_steps
        return (state.epoch or 0) >= args.num_train_epochs

    def take_data(self, rows: Dataset, *more: str) -> None:
        """Note what the run trains on, `rows` (of a stream those at its head) and more fingerprints; refuse others."""
        found = "-".join([fingerprint_of_rows(rows), *more])
        if self.noted.get(DATA, found) != found:
            raise RetroMAEError(
                f"{self.checkpoint} is of a run on other data: what the arguments name holds something else by now; "
                "bring back what it held, or start anew from the model with --model_name_or_path"
            )
        self.arguments[DATA] = found

    def take_new_parameters(self, names: Iterable[str]) -> list[str]:
        """Note which of the model's parameters are new; where the run goes on, those that were when it began."""
        self.arguments[NEW_PARAMETERS] = self.noted.get(NEW_PARAMETERS, sorted(names))
        return self.arguments[NEW_PARAMETERS]

    def note(self) -> None:
        """Write down whose folder it is; not before everything has been checked that may be wrong with the run.

        The model in the folder goes: it is not the one that the run is about to train. Of an earlier run everything
        does, and its checkpoints count no more from the first moment, whenever this is cut off. Checkpoints that a
        plain `Trainer` wrote are taken for whole.
        """
        file, old = self.folder / RUN_FILE, checkpoints(self.folder)
        anew = self.checkpoint is None or not _lies_in(self.checkpoint, self.folder)
        left = [self.folder / TRAINER_STATE_NAME, *(one / MANIFEST for one in old)] if anew else []
        for one in [*left, *_model_files(self.folder)]:
            one.unlink(missing_ok=True)
        for one in old:
            if anew:
                shutil.rmtree(one)
            elif not file.exists() and not (one / MANIFEST).exists():
                mark_complete(one, resumable=is_resumable(one))
        write_json(file, self.arguments)


def prepare_run(args: TrainingArguments, overwrite: bool, started_from: Iterable[str | None], *others: Any) -> Run:
    """Find out where a run stands; a folder that holds another one, or in which one is under way, is refused.

    The same command goes on from the last checkpoint that was written to its end. `overwrite` lets an earlier run go,
    with none of what the run is `started_from`; `others` are dataclasses that tell one run from another.
    """
    folder, arguments = Path(args.output_dir), _run_arguments(args, *others)
    lock = None
    if args.should_save:
        with in_one_sentence(f"output_dir={args.output_dir!r} cannot be written"):
            folder.mkdir(parents=True, exist_ok=True)
            lock = lock_folder(folder) if args.process_index == 0 else None
    resume, again = str(args.resume_from_checkpoint or False), "the same command"
    named = None if resume.lower() in ("true", "false") else resume
    if named is not None:
        _check_named(Path(named))
    checkpoint: str | None
    if resume.lower() == "true" or (named is not None and _lies_in(named, folder)):
        checkpoint = named or _last_checkpoint(folder)
        again += " with --resume_from_checkpoint true" if named else ""
    else:
        checkpoint = None if overwrite else _checkpoint_of_the_same_run(folder, arguments)
        again += " without --overwrite_output_dir" if overwrite else ""
        if checkpoint is None:
            checkpoint = named
            _check_not_overwritten(folder, [*started_from, named])
    noted = (None if checkpoint is None else read_json(Path(checkpoint).parent / RUN_FILE)) or {}
    before, now = noted.get("passages_a_step", arguments["passages_a_step"]), arguments["passages_a_step"]
    if before != now:
        raise RetroMAEError(
            f"{checkpoint} is of a run of {before} passages a step, not {now}; give per_device_train_batch_size and "
            "gradient_accumulation_steps that make as many on these processes, or start anew from the model with "
            "--model_name_or_path"
        )
    if noted and (different := _different(noted, arguments)):
        logger.warning("%s is of a run with other arguments (%s)", checkpoint, different)
    own = {one.name for other in others for one in dataclasses.fields(other)}
    if any(noted.get(name) != arguments.get(name) for name in own):
        noted.pop(DATA, None)  # other data may have been asked for
    return Run(folder, arguments, checkpoint, noted, None if args.save_only_model else again, lock)


def _run_arguments(args: TrainingArguments, *others: Any) -> dict[str, Any]:
    values = args.to_dict()
    for other in others:
        values |= dataclasses.asdict(other)
    values["world_size"] = args.world_size
    values["passages_a_step"] = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return json.loads(json.dumps({k: v for k, v in values.items() if k not in NOT_OF_THE_RUN}, default=str))


def read_state(checkpoint: str | Path) -> TrainerState:
    """The state of `Trainer` in a checkpoint."""
    with in_one_sentence(f"{checkpoint} has a broken {TRAINER_STATE_NAME}; resume from another checkpoint"):
        state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
        state.global_step, state.epoch = int(state.global_step), float(state.epoch or 0)
    return state


def _model_files(folder: Path) -> list[Path]:
    return [file for pattern in MODEL_PATTERNS for file in folder.glob(pattern)]


def _lies_in(checkpoint: str, folder: Path) -> bool:
    return Path(checkpoint).resolve().parent == folder.resolve()


def lock_folder(folder: Path) -> Any:
    """Keep other processes from training in a folder until the lock that is returned, or this process, ends."""
    try:
        return filelock.FileLock(folder / "_lock", thread_local=False, is_singleton=True).acquire(blocking=False)
    except filelock.Timeout as error:
        raise RetroMAEError(
            f"another process trains in {folder} at this moment; wait for its end, or name another folder"
        ) from error


def _last_checkpoint(folder: Path) -> str:
    if (last := last_complete_checkpoint(folder, read=True)) is not None:
        return str(last)
    if not checkpoints(folder):
        raise RetroMAEError(f"there is no checkpoint to resume from in {folder}")
    raise RetroMAEError(
        f"no checkpoint in {folder} was written to its end with all that it takes to go on; "
        "start anew with --overwrite_output_dir"
    )


def _check_named(checkpoint: Path) -> None:
    """Look at a checkpoint that the user has named; one of a plain `Trainer`, which has no list, is taken as it is."""
    if not (checkpoint / TRAINER_STATE_NAME).is_file():
        raise RetroMAEError(f"there is no checkpoint to resume from in {checkpoint}")
    listed = (checkpoint / MANIFEST).is_file() or (checkpoint.parent / RUN_FILE).exists()
    if listed and (fault := fault_of(checkpoint)):
        raise RetroMAEError(
            f"{checkpoint} {fault}; resume from another checkpoint, or start a new run with --model_name_or_path"
        )


def _checkpoint_of_the_same_run(folder: Path, arguments: dict[str, Any]) -> str | None:
    """The last whole checkpoint of a run with these arguments, None where there is none; another run is an error."""
    old = read_json(folder / RUN_FILE)
    different = "" if old is None else _different(old, arguments)
    checkpoint = last_complete_checkpoint(folder, read=not different)
    if old is not None and not different:
        if checkpoint is not None:
            logger.info("%s holds this run up to %s; it goes on from there", folder, checkpoint.name)
            return str(checkpoint)
        if not (folder / TRAINER_STATE_NAME).is_file() and not any(map(is_complete, checkpoints(folder))):
            return None  # cut off before its first checkpoint
    if not (checkpoints(folder) or _model_files(folder)):
        return None
    why = f" with other arguments ({different})" if different else ""
    raise RetroMAEError(
        f"{folder} already holds a run{why}; {'go on with --resume_from_checkpoint true, ' if checkpoint else ''}"
        "start anew with --overwrite_output_dir, or name another folder"
    )


def _different(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Which arguments of two runs differ, and how; of what is found out on the way nothing is said."""
    names = sorted(name for name in {*old, *new} - {DATA, NEW_PARAMETERS} if old.get(name) != new.get(name))
    told = [f"{name}: {old.get(name)!r} there, {new.get(name)!r} here" for name in names[:SHOWN_ARGUMENTS]]
    return ", ".join([*told, *(["..."] if len(names) > SHOWN_ARGUMENTS else [])])


def _check_not_overwritten(folder: Path, started_from: Iterable[str | None]) -> None:
    for path in (Path(name).resolve() for name in started_from if name is not None):
        in_checkpoint = any(old.resolve() in (path, *path.parents) for old in checkpoints(folder))
        if in_checkpoint or (path == folder.resolve() and _model_files(folder)):
            raise RetroMAEError(
                f"{path}, which is to start from, is of the run in {folder} that is to be overwritten; name another "
                "output folder"
            )
