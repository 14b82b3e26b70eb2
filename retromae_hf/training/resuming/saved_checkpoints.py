"""Which checkpoints of a run were written to their end.

`Trainer` writes a checkpoint file by file. A run that is killed meanwhile leaves half of one, under the name of a whole
one. Here a checkpoint counts once it holds a list of its files, their sizes and their checksums, which is written last,
aside, and then renamed; so one that was cut off while it was written, or while it was deleted, is told from a whole
one. The checksums are looked at where a run goes on from a checkpoint.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...data.reading.whole_files import checksum, read_json

logger = logging.getLogger(__name__)

MANIFEST = "complete.json"

NO_FLUSHING = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
"""What file systems answer, some of networks among them, that cannot be asked to flush a file or a folder."""

_NAME = re.compile(r"checkpoint-\d+")


def checkpoints(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, whole or not, by their step."""
    found = [folder for folder in run.glob("checkpoint-*") if _NAME.fullmatch(folder.name) and folder.is_dir()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written, which its name says."""
    return int(checkpoint.name.split("-")[1])


def mark_complete(checkpoint: Path, resumable: bool) -> None:
    """Write the list of the checkpoint's files, after they have reached the disk.

    Args:
        checkpoint: a folder that nobody writes to any more.
        resumable: whether the optimizer's state is in it.
    """
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


def is_marked(checkpoint: Path) -> bool:
    """Whether there is a list of the checkpoint's files, whatever has become of them."""
    return (checkpoint / MANIFEST).is_file()


def is_resumable(checkpoint: Path) -> bool:
    """Whether a checkpoint holds what it takes to go on; where no list tells, the generators' state does."""
    manifest = _manifest(checkpoint)
    return any(checkpoint.glob("rng_state*.pth")) if manifest is None else bool(manifest.get("resumable"))


def unmark(checkpoint: Path) -> None:
    """Make sure that a checkpoint that is to be written again does not count meanwhile."""
    (checkpoint / MANIFEST).unlink(missing_ok=True)


def is_complete(checkpoint: Path) -> bool:
    """Whether every file of its list is there in its full size."""
    manifest = _manifest(checkpoint)
    if manifest is None:
        return False
    files = [(checkpoint / name, size) for name, size in manifest["files"].items()]
    return all(file.is_file() and file.stat().st_size == size for file, size in files)


def damaged_file(checkpoint: Path) -> str | None:
    """The first file of a whole checkpoint's list that does not hold what was written; None where all do."""
    checksums = (_manifest(checkpoint) or {}).get("checksums", {})
    differing = (name for name, known in checksums.items() if checksum(checkpoint / name) != known)
    return next(differing, None)


def last_complete_checkpoint(run: Path) -> Path | None:
    """The run's latest whole checkpoint that training can go on from, or None."""
    return next(_resumable_checkpoints(run), None)


def last_sound_checkpoint(run: Path) -> Path | None:
    """Likewise, but the latest one whose files hold what was written; later ones are told."""
    for folder in _resumable_checkpoints(run):
        if (name := damaged_file(folder)) is None:
            return folder
        logger.warning("%s/%s does not hold any more what was written; the checkpoint does not count", folder, name)
    return None


def _resumable_checkpoints(run: Path) -> Iterator[Path]:
    """Whole checkpoints that training can go on from, the latest first."""
    return (folder for folder in reversed(checkpoints(run)) if is_complete(folder) and is_resumable(folder))


def remove_incomplete(run: Path) -> list[Path]:
    """Delete the half-written checkpoints of a run and return their former folders."""
    halves = [folder for folder in checkpoints(run) if not is_complete(folder)]
    for folder in halves:
        shutil.rmtree(folder, ignore_errors=True)
    return halves


def remove_beyond(run: Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest whole checkpoints of a run that are more than `limit`, but neither the newest nor the best.

    Those that do not count, left of a run that went on from an earlier one of its checkpoints, are not counted.
    """
    if limit is None or limit < 1:
        return
    whole = [folder for folder in checkpoints(run) if is_complete(folder)]
    names = {"" if best is None else Path(best).name, *(folder.name for folder in whole[-1:])}
    others = [folder for folder in whole if folder.name not in names]
    room = max(limit - (len(whole) - len(others)), 0)
    for folder in others[: max(len(others) - room, 0)]:
        shutil.rmtree(folder, ignore_errors=True)


def _manifest(checkpoint: Path) -> dict[str, Any] | None:
    manifest = read_json(checkpoint / MANIFEST)
    return manifest if manifest is not None and isinstance(manifest.get("files"), dict) else None


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk and would survive a power cut."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FLUSHING:
            raise
    finally:
        os.close(descriptor)
