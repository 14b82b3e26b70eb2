"""Passages cut and shuffled while a stream of documents is read, each at its own place in the order of training."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import get_worker_info

from ..model.errors import RetroMAEError
from ..model.masking import passage_seeds
from .document_stream import DocumentStream, Place


@dataclass(frozen=True)
class Bookmarks:
    """Where the blocks of passages begin in the stream, on disk, so that a resumed run need not read from the start.

    They are facts of the stream, not of a checkpoint: whichever are there are true, and a run that finds none gets
    the same passages, only later.

    Attributes:
        folder: holds a file for each lane, a line for each bookmark; None keeps none.
    """

    folder: Path | None = None

    def note(self, lane: int, passages: int, place: Place) -> None:
        """A block begins at `place`, with so many passages of the lane before it."""
        if self.folder is not None:
            # What cannot be written, on a full disk, costs time when the run is resumed and nothing else. A line that
            # a killed run left without its end spoils no line behind it.
            with suppress(OSError), self._file(lane).open("a", encoding="utf-8") as lines:
                lines.write(f"\n{json.dumps([passages, *place])}\n")

    def last(self, lane: int, passages: int) -> tuple[int, Place]:
        """The last bookmark that has no more than so many passages before it: how many, and the place."""
        best = (0, Place())
        if self.folder is None or not self._file(lane).is_file():
            return best
        with self._file(lane).open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                with suppress(ValueError, TypeError, RecursionError):
                    before, epoch, shards, row = map(int, json.loads(line))
                    if before <= passages:
                        best = max(best, (before, Place(epoch, shards, row)))
        return best

    def _file(self, lane: int) -> Path:
        return Path(self.folder or "") / f"lane-{lane:05}.jsonl"


@dataclass
class _Block:
    """Passages that are shuffled among themselves, and where they begin in the stream."""

    start: Place | None = None
    passages: list[dict[str, Any]] = field(default_factory=list)

    def fill(self, reading: Iterator[tuple[Place, list[dict[str, Any]]]], size: int) -> None:
        """Read until the block has this size. Where blocks end does not depend on how often this is called."""
        while len(self.passages) < size:
            place, passages = next(reading)
            self.start = self.start or place
            self.passages += passages

    def shuffled(self, seed: int) -> Iterator[dict[str, Any]]:
        """The passages in an order that follows from seed, pass and passage alone, and none of them twice."""
        columns = (torch.tensor([passage[name] for passage in self.passages]) for name in ("epoch", "passage_id"))
        for index in passage_seeds(seed, *columns).argsort().tolist():
            yield self.passages[index]


@dataclass(eq=False)
class PassageStream(torch.utils.data.Dataset[dict[str, Any]]):
    """The passages of a training run on a stream, addressed by their place in the order of training.

    To a `Trainer` this is an ordinary data set of as many passages as the run takes, to be read in its own order
    (`train_sampling_strategy="sequential"`). So every process gets the same number of batches whatever the shards hold,
    a resumed run skips batches without reading them, and nothing is sent from one process to the others.

    The order consists of lanes that take turns by batches, one lane for each worker of each process when the run
    began. A lane is a reader of the stream whose passages are shuffled block by block. Which passage stands at a place
    is a pure function of the arguments; a run that is resumed on another number of processes or workers gets the same
    ones, though each of its workers may have to read several lanes.

    Args:
        documents: the stream.
        cut: makes passages of texts and their numbers, `cut_passages` with its options.
        length: passages that the run takes.
        batch_size: passages of a batch of one process.
        lanes: number of lanes.
        buffer_size: passages of a block at least; 1 leaves them in the order of the stream.
        bookmarks: where to note where blocks begin.

    Raises:
        RetroMAEError: while reading: a shard cannot be read, or there is no passage in the stream.
    """

    documents: DocumentStream
    cut: Callable[[list[str], list[int]], dict[str, list[Any]]]
    length: int
    batch_size: int
    lanes: int
    buffer_size: int
    bookmarks: Bookmarks

    def __post_init__(self) -> None:
        # Per lane: how many of its passages have been given out, and what gives out the next.
        self._open: dict[int, tuple[int, Iterator[dict[str, Any]]]] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch, row = divmod(index, self.batch_size)
        turn, lane = divmod(batch, self.lanes)
        return self._passage(lane, turn * self.batch_size + row)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # a worker opens its own

    def _passage(self, lane: int, place: int) -> dict[str, Any]:
        """The passage at a place of a lane. It is quick to go forward."""
        given, passages = self._open.get(lane, (place + 1, iter(())))
        if given > place:
            given, start = self.bookmarks.last(lane, place)
            passages = self._shuffled(lane, given, start)
        for _ in range(place - given):
            next(passages)
        passage = next(passages)
        self._open[lane] = (place + 1, passages)
        return passage

    def _shuffled(self, lane: int, given: int, start: Place) -> Iterator[dict[str, Any]]:
        """A lane's passages from a block's beginning on, shuffled block by block."""
        reading = self._read(lane, start)
        block = _Block()
        block.fill(reading, self.buffer_size)
        while True:
            self.bookmarks.note(lane, given, block.start or start)
            following = _Block()
            for done, passage in enumerate(block.shuffled(self.documents.seed), start=1):
                # As much is read as is given out, so that no batch has to wait for a whole block.
                following.fill(reading, min(done, self.buffer_size))
                yield passage
            following.fill(reading, self.buffer_size)
            given += len(block.passages)
            block = following

    def _read(self, lane: int, start: Place) -> Iterator[tuple[Place, list[dict[str, Any]]]]:
        """A lane's passages as they come, some at a time, with the place where they begin."""
        if get_worker_info() is not None:
            # A forked worker has none of the tokenizer's threads and would wait for them for ever; the workers
            # themselves are what runs at once.
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        last_epoch = start.epoch
        for place, numbers, texts in self.documents.read(lane, self.lanes, start):
            columns = self.cut(texts, numbers)
            rows = zip(*columns.values(), strict=True)
            passages = [dict(zip(columns, row, strict=True)) | {"epoch": place.epoch} for row in rows]
            if passages:
                last_epoch = place.epoch
            elif place.epoch > last_epoch + self.lanes:  # in so many passes a reader has been every other one
                raise RetroMAEError(
                    f"{self.documents.source} holds no passage to train on beside the held-out ones; "
                    "give a source with more text"
                )
            yield place, passages
