"""JSON lines some of which are broken: found, counted and, where that is wanted, left out.

Sound files only come here as a stream, since `datasets` reads them far faster, but gives up at a broken line. What it
cannot read is read again line by line.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, Value

from ..model.errors import RetroMAEError
from .text import without_surrogates

logger = logging.getLogger(__name__)

SKIP, ERROR = "skip", "error"
MAX_BROKEN_SHARE = 0.5
"""Share of broken lines above which a file is taken for something else than JSON lines."""


LOOKED_AT = 100
"""Lines of a stream that are looked at for the names of its columns."""

MAX_NESTING = 500
"""Brackets inside of each other; some thousands make the reader of `datasets` end the process without a word."""
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{\]}]')


class UnreadableError(RetroMAEError):
    """What `datasets` makes nothing of."""


def check_nesting(file: Path) -> None:
    """Raise `UnreadableError` where a JSON file has more than `MAX_NESTING` brackets inside of each other."""
    depth = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            opened = line.count(b"[") + line.count(b"{")
            if depth == 0 and opened == line.count(b"]") + line.count(b"}") <= MAX_NESTING:
                continue  # nearly all lines of nearly all files
            for found in _STRING_OR_BRACKET.finditer(line):
                depth = max(0, depth + {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(found[0], 0))
                if depth > MAX_NESTING:
                    raise UnreadableError(
                        f"{file} line {number} has too many brackets inside of each other; leave that line out"
                    )


def check_on_broken_line(value: str) -> None:
    """Raise `RetroMAEError` unless `value` says what to do about broken lines."""
    if value not in (SKIP, ERROR):
        raise RetroMAEError(f"on_broken_line={value!r} is unknown; choose {SKIP} or {ERROR}")


def read_sound_lines(files: list[Path], text_column: str, on_broken_line: str) -> Dataset:
    """The texts of the lines that are sound, as a dataset with that one column; lone surrogates become "?".

    Sound is an object that holds a string or null in the column, or lacks it while others have it.

    Args:
        files: of JSON lines.
        text_column: the column to read.
        on_broken_line: "skip", which counts and reports what is left out, or "error".

    Raises:
        RetroMAEError: a line is broken and that is an error, or half of the lines are.
    """
    for _ in _texts(files, text_column, on_broken_line):
        pass  # once to count what is broken, also where the dataset is cached
    # With what tells one state of a file from the next, for the cache goes by these arguments.
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return Dataset.from_generator(
        _sound_texts,
        features=Features({text_column: Value("large_string")}),
        gen_kwargs={"states": states, "text_column": text_column},
        split="train",
    )


@dataclass
class LineShards:
    """The texts of JSON lines files, read while they are asked for; a broken line is a row without text.

    How many lines of a file are broken is known, and reported, at its end.

    Attributes:
        files: each a shard.
        text_column: the column to read.
        on_broken_line: "skip" or "error".
    """

    files: list[Path]
    text_column: str
    on_broken_line: str

    def __post_init__(self) -> None:
        self.num_shards = len(self.files)

    def column_names(self) -> list[str] | None:
        """The columns of the first lines; None where these are all broken."""
        rows = (row for file in self.files for row, *_ in _rows(file, self.text_column) if row)
        return list(dict.fromkeys(name for row in islice(rows, LOOKED_AT) for name in row)) or None

    def columns(self, shard: int, rows_at_once: int) -> Iterator[pa.ChunkedArray]:
        """The texts of a shard, some at a time.

        Raises:
            RetroMAEError: a line is broken and that is an error, or half of the lines are.
        """
        texts = _texts([self.files[shard]], self.text_column, self.on_broken_line)
        while batch := list(islice(texts, rows_at_once)):
            yield pa.chunked_array([batch], pa.large_string())


def _sound_texts(states: list[tuple[str, int, int]], text_column: str) -> Iterator[dict[str, str | None]]:
    for file, *_ in states:
        for _, text, wrong in _rows(Path(file), text_column):
            if not wrong:
                yield {text_column: text}


def _texts(files: list[Path], text_column: str, on_broken_line: str) -> Iterator[str | None]:
    """The texts of all lines, None for a broken one; how many are broken is reported at the end.

    Raises:
        RetroMAEError: a line is broken and that is an error, or half of the lines are.
    """
    total, broken, first = 0, 0, ""
    for file in files:
        for _, text, wrong in _rows(file, text_column):
            total += 1
            if wrong:
                broken, first = broken + 1, first or wrong
                if on_broken_line == ERROR:
                    raise RetroMAEError(f"{first}; mend the file, or leave broken lines out with --on_broken_line skip")
            yield text
    if broken > MAX_BROKEN_SHARE * total:
        raise RetroMAEError(f"{first}, and so {broken} of {total} lines are broken; give JSON lines")
    if broken:
        logger.warning("%d of %d lines are broken and were left out; the first: %s", broken, total, first)


def _rows(file: Path, text_column: str) -> Iterator[tuple[dict[str, Any], str | None, str]]:
    """The object of each line that is not blank, its text, and what is wrong with the line, "" where nothing is."""
    with file.open(encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row, wrong = json.loads(line), ""
            except (ValueError, RecursionError):
                row, wrong = {}, "is not JSON"
            if not isinstance(row, dict):
                row, wrong = {}, "is not a JSON object"
            text = row.get(text_column)
            if not isinstance(text, str | None):
                text, wrong = None, f"holds no text in {text_column!r}"
            yield row, text and without_surrogates(text), wrong and f"{file} line {number} {wrong}"
