"""Files that are there as a whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from ..model.errors import RetroMAEError

BYTES_AT_ONCE = 1 << 24

UNFINISHED = ".unfinished"


@contextmanager
def written_aside(file: Path) -> Iterator[Path]:
    """Where to write a file that then gets its name; a process that is killed meanwhile leaves no half of it."""
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    yield aside
    aside.replace(file)


@contextmanager
def folder_written_aside(folder: Path) -> Iterator[Path]:
    """Where to write what a model's folder is to hold; its weights come into it last, and half of it never.

    The place is in the folder itself, which may be one that cannot be replaced: a mount, or where the user stands.

    Args:
        folder: new or `vacant`.

    Yields:
        An empty folder, which is called as `folder` is and lies in one that is called as its parent, for what goes by
        the names.
    """
    whole, around = folder.resolve(), folder / UNFINISHED
    aside = around / whole.parent.name / whole.name
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
    except BaseException:
        shutil.rmtree(around, ignore_errors=True)
        raise
    for written in sorted(aside.iterdir(), key=lambda one: one.suffix == ".safetensors"):
        if (folder / written.name).is_dir():
            shutil.rmtree(folder / written.name)  # of a process that was killed here
        written.rename(folder / written.name)
    shutil.rmtree(around)


def vacant(folder: Path) -> bool:
    """Whether nothing is at a path but an empty folder, or what a `folder_written_aside` has left that was killed."""
    return not folder.exists() or (folder / UNFINISHED).is_dir() or (folder.is_dir() and not any(folder.iterdir()))


def write_json(file: Path, content: Any) -> None:
    """Write JSON as a whole."""
    with written_aside(file) as aside:
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_json(file: Path) -> dict[str, Any] | None:
    """The object that a JSON file of ours holds; None where it cannot be read, is broken or holds something else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # the last at very many brackets inside of each other
        return None
    return found if isinstance(found, dict) else None


def checksum(file: Path) -> str:
    """Of a file's bytes, at some 5 GB a second where they have just been written."""
    digest = xxhash.xxh3_64()
    for block in blocks(file):
        digest.update(block)
    return digest.hexdigest()


def blocks(file: Path) -> Iterator[bytes]:
    """A file's bytes, so many at a time that it may be of any size."""
    with file.open("rb") as content:
        while block := content.read(BYTES_AT_ONCE):
            yield block


LONGEST_NAME = 200
"""Bytes of a name that becomes part of a file's; file systems take 255 in all."""


def check_file_name(what: str, name: object) -> None:
    """Raise `RetroMAEError` for a name that cannot be part of a file's, or would lead out of its folder."""
    if not isinstance(name, str) or not name.strip() or name in (".", "..") or not name.isprintable():
        raise RetroMAEError(f"{what} {name!r} becomes part of a file name; give one of letters and digits")
    if {"/", "\\"} & set(name) or len(name.encode("utf-8", "replace")) > LONGEST_NAME:
        raise RetroMAEError(
            f"{what} {name!r} becomes part of a file name; give {LONGEST_NAME} bytes at most, without slashes"
        )
