"""The rows of a file, of whatever kind, and the document in each: one row at a time, so that a file may be of any size.

A row is a mapping from columns to Python's own values, or a `Broken` that says what is wrong, and has the number of its
line or, where rows are no lines, its own. A blank line is no row.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import lzma
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from itertools import groupby, islice
from os.path import splitext
from pathlib import Path
from typing import Any, TextIO, TypeAlias, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ...model.errors import RetroMAEError, check_choice, in_one_sentence
from .text import titled, without_surrogates

logger = logging.getLogger(__name__)

FILE_KINDS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
"""Kinds of files by their ending; all but .parquet, which is packed already, may have one of `_CODECS` behind it."""

_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4", ".xz": None}

NAME_COLUMNS = ("name", "title", "_id", "docid", "id")
"""A document is called what the first of these says that its row has."""

LINE, BLANK_LINE, FILE = SEPARATORS = ("line", "blank-line", "file")
"""What ends a document of a .txt file: the line, a line without text (of which there may be several), or the file."""

SKIP, ERROR = "skip", "error"
MAX_BROKEN_SHARE = 0.5
"""Share of broken rows above which a file is taken for something else."""

LOOKED_AT = 100
"""Rows that are looked at for the names of a source's columns."""

ROWS_A_BATCH = 1000

T = TypeVar("T")
Row: TypeAlias = "tuple[int, dict[str, Any] | Broken]"
Document: TypeAlias = "dict[str, str | None]"


class Broken(str):
    """What is wrong with a row."""


def kind_of(name: str) -> str | None:
    """The kind of a file by its name; None where it is no kind of text."""
    stem, ending = splitext(name.lower())
    return FILE_KINDS.get(splitext(stem)[1] if ending in _CODECS else ending)


def check_on_broken_line(value: str) -> None:
    """Raise `RetroMAEError` unless `value` says what to do about broken lines."""
    check_choice("on_broken_line", value, (SKIP, ERROR))


def read_rows(file: str | Path, columns: Collection[str] | None = None, separator: str = LINE) -> Iterator[Row]:
    """The rows of a file.

    Args:
        file: of one of the `FILE_KINDS`.
        columns: those that are wanted; of a .parquet file no other is read. None for all.
        separator: one of `SEPARATORS`, what ends a row of a .txt file.

    Raises:
        RetroMAEError: the file cannot be read, or its text is not UTF-8.
    """
    file = Path(file)
    try:
        with in_one_sentence(f"{file} cannot be read"):
            kind = kind_of(file.name)
            if kind == "parquet":
                yield from _parquet_rows(file, columns)
            elif kind == "csv":
                yield from _csv_rows(file)
            elif kind == "json":
                yield from _json_rows(file)
            else:
                with _open(file, newline=None) as lines:
                    yield from enumerate(({"text": text} for text in _texts(lines, separator)), start=1)
    except RetroMAEError as error:
        if isinstance(cause := error.__cause__, UnicodeDecodeError):
            found = "UTF-16" if cause.object[:2] in (b"\xff\xfe", b"\xfe\xff") else "not UTF-8"
            raise RetroMAEError(f"{file} is {found}; convert it to UTF-8, for example with iconv") from cause
        raise


def _texts(lines: Iterable[str], separator: str) -> Iterator[str]:
    """The documents of a .txt file."""
    if separator == LINE:
        return (line.removesuffix("\n") for line in lines)
    if separator == FILE:
        return filter(None, ["".join(lines)])
    paragraphs = groupby(lines, key=lambda line: bool(line.strip()))
    return ("".join(group).removesuffix("\n") for has_text, group in paragraphs if has_text)


def numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number and text of the lines of a file that are not blank."""
    with _open(file, newline="\n") as lines:
        yield from ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def column_names(files: Iterable[Path]) -> list[str]:
    """The columns of the first sound rows of some files; none where all rows are broken."""
    parquet = next((file for file in files if kind_of(file.name) == "parquet"), None)
    if parquet:
        with in_one_sentence(f"{parquet} cannot be read"):
            return pq.read_schema(parquet).names
    rows = (row for file in files for _, row in read_rows(file) if not isinstance(row, Broken))
    return list(dict.fromkeys(name for row in islice(rows, LOOKED_AT) for name in row))


def document_of(row: Mapping[str, Any], text_column: str, title_column: str | None = None) -> Document:
    """`text`, `title` and `name` of the document in a row, None where it has none, and what is `broken` about the row.

    The title stands in front of the text where its column was named, and in BEIR's and Tevatron's corpora.
    """
    text, title = row.get(text_column), row.get(title_column or "title")
    title = title if isinstance(title, str) else None
    if not isinstance(text, str | None):
        return _broken(f"holds no text in {text_column!r}")
    if text is not None and is_titled(row, text_column, title_column):
        text = titled(title or "", text)
    names = (row.get(column) for column in NAME_COLUMNS)
    name = next((str(name) for name in names if isinstance(name, str | int) and name != ""), None)
    known = {"text": text, "title": title or None, "name": name}
    return {what: found and without_surrogates(found) for what, found in known.items()} | {"broken": None}


def _broken(wrong: str) -> Document:
    return {"text": None, "title": None, "name": None, "broken": wrong}


def is_titled(columns: Container[str], text_column: str, title_column: str | None) -> bool:
    """Whether titles belong to the texts: somebody says so, or a corpus is BEIR's (`_id`) or Tevatron's (`docid`)."""
    return title_column is not None or (text_column == "text" and ("_id" in columns or "docid" in columns))


def read_documents(
    file: str | Path, text_column: str, title_column: str | None = None, separator: str = LINE
) -> Iterator[Document]:
    """The document in each row of a file, see `document_of`, with the row's place where it is broken.

    Raises:
        RetroMAEError: as `read_rows`.
    """
    columns = {text_column, *NAME_COLUMNS, *([title_column] if title_column else [])}
    for number, row in read_rows(file, columns, separator):
        document = _broken(row) if isinstance(row, Broken) else document_of(row, text_column, title_column)
        yield _broken(f"{file} line {number} {document['broken']}") if document["broken"] else document


def in_batches(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """So many rows at a time."""
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        yield batch


def report_broken(first: str | None, broken: int, total: int, on_broken_line: str) -> None:
    """Say how many rows of how many are broken, and what is wrong with the first of them.

    Raises:
        RetroMAEError: a row is broken and that is an error, or half of the rows are.
    """
    if broken and on_broken_line == ERROR:
        raise RetroMAEError(f"{first}; mend the file, or leave broken lines out with --on_broken_line skip")
    if broken > MAX_BROKEN_SHARE * total:
        raise RetroMAEError(f"{first}, and so {broken} of {total} lines are broken; give lines with text")
    if broken:
        logger.warning("%d of %d lines are broken and were left out; the first: %s", broken, total, first)


def report_null(count: int, source: str) -> None:
    """Say how many documents have no text."""
    if count:
        logger.warning("%d documents of %s hold null instead of text and were dropped", count, source)


def _open(file: Path, newline: str | None) -> TextIO:
    ending = file.suffix.lower()
    content = pa.OSFile(str(file))
    if ending == ".xz":  # which pyarrow does not know; Python 3.10 knows less
        content = lzma.LZMAFile(content)  # noqa: SIM115
    elif ending in _CODECS:
        content = pa.CompressedInputStream(content, _CODECS[ending])
    return io.TextIOWrapper(content, encoding="utf-8-sig", newline=newline)


def _parquet_rows(file: Path, columns: Collection[str] | None) -> Iterator[Row]:
    with pa.OSFile(str(file)) as content, pq.ParquetFile(content) as parquet:
        names = parquet.schema_arrow.names
        wanted = None if columns is None else [name for name in names if name in columns]
        batches = parquet.iter_batches(ROWS_A_BATCH, columns=wanted)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)


def _csv_rows(file: Path) -> Iterator[Row]:
    """All values are text, also "NA" and numbers; a column without a name, as an index of pandas, is left out."""
    csv.field_size_limit(2**31 - 1)
    with _open(file, newline="") as lines:
        rows = csv.reader(lines, strict=True)
        header = next(rows, [])
        while True:
            try:
                values = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield rows.line_num, Broken(f"is not CSV: {error}")
                continue
            if any(values[len(header) :]):
                yield rows.line_num, Broken(f"has {len(values)} values for {len(header)} columns")
            elif values:
                yield rows.line_num, {name: value for name, value in zip(header, values, strict=False) if name}


def _json_rows(file: Path) -> Iterator[Row]:
    """One array of rows, or of texts, or else a row a line."""
    with _open(file, newline="\n") as lines:
        first = next((line for line in lines if line.strip()), "")
        array = _parsed(first + lines.read()) if first.lstrip().startswith("[") else None
    if isinstance(array, list):
        rows = ({"text": row} if isinstance(row, str) else row for row in array)
        yield from ((number, _checked(row)) for number, row in enumerate(rows, start=1))
        return
    yield from ((number, _checked(_parsed(line))) for number, line in numbered_lines(file))


def _checked(row: Any) -> dict[str, Any] | Broken:
    return row if isinstance(row, dict | Broken) else Broken("is not a JSON object")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return Broken("is not JSON")
