"""Documents read from files or the Hub while they are asked for, divided among readers, without end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import IterableDataset
from torch.utils.data import get_worker_info

from ..arguments.pretraining import ERROR, TextSource
from ..model.errors import RetroMAEError, in_one_sentence
from .documents import check_columns, check_text, find_source, load_hub
from .draws import passage_seeds
from .files import (
    NAME_COLUMNS,
    SourceFiles,
    column_names,
    document_of,
    in_batches,
    is_titled,
    read_documents,
    report_broken,
    report_null,
)
from .passages import DOCUMENT_BITS

ROWS_AT_ONCE = 64
"""Rows that are read at once; a reader that goes on from a place starts at one of their firsts."""

SHARDS_PER_READER = 4
"""With so many shards for each reader, each reads shards of its own. With fewer, which may be of very different sizes,
each reads all of them and takes every so many-th row."""

# The head of the stream is held out from training: so much of it at most, and at most this share of the stream.
HEAD_DOCUMENTS = 1000
HEAD_CHARACTERS = 16_000_000
HEAD_SHARE = 0.1


class Place(NamedTuple):
    """Where a reader stands: the pass over the source, how many shards of it are behind, the next row of the shard.

    To go on, the shard is read up to the row again, as by the `load_state_dict` of `datasets`, whose states are of no
    use to another version of it.
    """

    epoch: int = 0
    shards: int = 0
    row: int = 0


class DatasetShards:
    """The shards of a dataset of `datasets` that is read as a stream."""

    def __init__(self, rows: IterableDataset, source: str, text: TextSource) -> None:
        self.num_shards = rows.num_shards
        self._source = source
        self._columns: dict[str, Any] = {"text_column": text.text_column, "title_column": text.title_column}
        columns = rows.column_names or [text.text_column]
        wanted: set[str | None] = {text.text_column}
        if is_titled(columns, **self._columns):
            wanted |= {text.title_column, *NAME_COLUMNS}
        self._rows = rows.select_columns([column for column in columns if column in wanted]).with_format("arrow")

    def texts(self, shard: int) -> Iterator[str | None]:
        """The texts of a shard. A column that holds something else is an error."""
        column = self._columns["text_column"]
        # `iter`, unlike `__iter__`, does not divide the rows among the workers of a loader behind our back.
        for table in self._rows.shard(self.num_shards, shard).iter(ROWS_AT_ONCE):
            check_text(self._source, column, table.schema.field(column).type)
            for row in table.to_pylist():
                yield document_of(row, **self._columns)["text"]


class FileShards:
    """The files of a source, each a shard. How many rows of a file are broken is known, and reported, at its end."""

    def __init__(self, files: SourceFiles, text: TextSource) -> None:
        self.num_shards = len(files.files)
        self._files, self._text = files, text

    def texts(self, shard: int) -> Iterator[str | None]:
        """The texts of a file, none where a row is broken.

        Raises:
            RetroMAEError: the file cannot be read, a row is broken and that is an error, or half of the rows are.
        """
        total, broken, empty, first = 0, 0, 0, None
        file, text = self._files.files[shard], self._text
        for document in read_documents(file, text.text_column, text.title_column, self._files.separator):
            total += 1
            if document["broken"]:
                broken, first = broken + 1, first or document["broken"]
                if text.on_broken_line == ERROR:
                    break
            empty += document["text"] is None and not document["broken"]
            yield document["text"]
        report_broken(first, broken, total, text.on_broken_line)
        report_null(empty, str(file))


class DocumentStream:
    """The documents of a text, in passes over it that never end, and never more than a few of them in memory.

    A document's number is a pure function of its shard (a file, as a rule) and its row there, and ascends in the
    source's order. In every pass the shards come in another order, drawn from seed and pass; the rows of a shard stay
    in theirs. In every pass a document goes to exactly one of the readers, and in the next pass to another, so that a
    reader that gets nothing of a small source in one pass does in a later one.

    Args:
        text: files, folders of files or data sets on the Hub, see `load_documents`; each goes on behind the other.
        seed: of the order of shards.

    Attributes:
        first: number of the first document that readers get; those before it are held out.

    Raises:
        RetroMAEError: there is no such source, or it has no such column.
    """

    def __init__(self, text: TextSource, seed: int) -> None:
        self.source = text.dataset[0] if len(text.dataset) == 1 else "the text"
        self.seed = seed
        self.first = 0
        opened = [_open(source, text) for source in text.dataset]
        self._shards = [(source, shard) for source in opened for shard in range(source.num_shards)]
        self.num_shards = len(self._shards)
        self._row_bits = DOCUMENT_BITS - (self.num_shards - 1).bit_length()

    def hold_out_head(self) -> list[str]:
        """Take the source's first documents away from the readers and return them.

        A stream's length is not known before its end, so it is read ten times as far as the head may go at most.

        Raises:
            RetroMAEError: there are not two documents.
        """
        head: list[tuple[int, str]] = []
        documents = characters = 0
        for number, text in self.in_order():
            if documents * HEAD_SHARE >= HEAD_DOCUMENTS or characters * HEAD_SHARE >= HEAD_CHARACTERS:
                break
            if documents < HEAD_DOCUMENTS and characters < HEAD_CHARACTERS:
                head.append((number, text))
            documents, characters = documents + 1, characters + len(text)
        if documents < 2:
            raise RetroMAEError(f"{self.source} holds fewer than two documents; give a source with more text")
        head = head[: max(int(documents * HEAD_SHARE), 1)]
        self.first = head[-1][0] + 1
        return [text for _, text in head]

    def read(
        self, reader: int, readers: int, start: Place | None = None
    ) -> Iterator[tuple[Place, list[int], list[str]]]:
        """The documents of one of so many readers, some at a time, from a place on, without end.

        Yields:
            Where these documents begin, their numbers and their texts. There may be none, and the end of every pass
            yields none.
        """
        epoch, behind, row = start or Place()
        own_shards = self.num_shards >= SHARDS_PER_READER * readers
        while True:
            order = passage_seeds(self.seed, epoch, torch.arange(self.num_shards)).argsort().tolist()
            for place in range(behind, self.num_shards):
                shard = order[place]
                turn = (reader - shard - epoch) % readers
                if own_shards and turn:
                    continue
                for first, texts in self._batches(shard, row):
                    own = range(len(texts)) if own_shards else range((turn - first) % readers, len(texts), readers)
                    documents = list(self._numbered(shard, first, texts, own))
                    numbers = [number for number, _ in documents]
                    yield Place(epoch, place, first), numbers, [text for _, text in documents]
                row = 0
            behind, row, epoch = 0, 0, epoch + 1
            yield Place(epoch), [], []

    def in_order(self) -> Iterator[tuple[int, str]]:
        """Numbers and texts of one pass, in the order of the source."""
        for shard in range(self.num_shards):
            for first, texts in self._batches(shard, 0):
                yield from self._numbered(shard, first, texts, range(len(texts)))

    def _numbered(self, shard: int, first: int, texts: list[str | None], rows: range) -> Iterator[tuple[int, str]]:
        """Numbers and texts of some rows of a batch, less the rows without text and what is held out."""
        for row in rows:
            number = shard << self._row_bits | first + row
            if (text := texts[row]) is not None and number >= self.first:
                yield number, text

    def _batches(self, shard: int, start: int) -> Iterator[tuple[int, list[str | None]]]:
        """The number of the first row and the texts, batch by batch, of a shard from row `start` on."""
        row = 0
        source, own = self._shards[shard]
        with in_one_sentence(f"shard {shard} of {self.source} cannot be read"):
            for texts in in_batches(source.texts(own), ROWS_AT_ONCE):
                if row >= start:
                    yield row, texts
                row += len(texts)
                if row >> self._row_bits:
                    raise RetroMAEError(
                        f"shard {shard} of {self.source} has more than {1 << self._row_bits} rows; cut it into several"
                    )


def _open(source: str, text: TextSource) -> DatasetShards | FileShards:
    found = find_source(source, text)
    if isinstance(found, SourceFiles):
        check_columns(source, text, column_names(found.files))
        return FileShards(found, text)
    if found is None:
        rows = load_hub(source, text, streaming=True)
    else:
        rows = found.to_iterable_dataset(num_shards=max(len(found.cache_files), 1))
    check_columns(source, text, rows.column_names)
    return DatasetShards(rows, source, text)


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
        cut: makes passages of texts and their numbers, a `PassageCutter`.
        length: passages that the run takes.
        batch_size: passages of a batch of one process.
        lanes: number of lanes.
        buffer_size: passages of a block at least; 1 leaves them in the order of the stream.
        bookmarks: a folder for where blocks begin, so that a resumed run need not read from the start; None keeps none.
            They are facts of the stream, not of a checkpoint: a run that finds none gets the same passages, only later.
    """

    documents: DocumentStream
    cut: Callable[[list[str], list[int]], dict[str, list[Any]]]
    length: int
    batch_size: int
    lanes: int
    buffer_size: int
    bookmarks: Path | None = None

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
            given, start = self._last_bookmark(lane, place)
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
            self._note(lane, given, block.start or start)
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

    def _note(self, lane: int, passages: int, place: Place) -> None:
        """A block begins at `place`, with so many passages of the lane before it."""
        if self.bookmarks is not None:
            # What cannot be written, on a full disk, costs time when the run is resumed and nothing else. A line that
            # a killed run left without its end spoils no line behind it.
            with suppress(OSError), _lane_file(self.bookmarks, lane).open("a", encoding="utf-8") as lines:
                lines.write(f"\n{json.dumps([passages, *place])}\n")

    def _last_bookmark(self, lane: int, passages: int) -> tuple[int, Place]:
        """The last one that has no more than so many passages before it: how many, and the place."""
        best = (0, Place())
        if self.bookmarks is None or not (file := _lane_file(self.bookmarks, lane)).is_file():
            return best
        with file.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                with suppress(ValueError, TypeError, RecursionError):
                    before, epoch, shards, row = map(int, json.loads(line))
                    if before <= passages:
                        best = max(best, (before, Place(epoch, shards, row)))
        return best


def _lane_file(folder: Path, lane: int) -> Path:
    return folder / f"lane-{lane:05}.jsonl"
