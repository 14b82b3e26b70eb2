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
import posixpath
import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from os.path import splitext
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, TextIO, TypeAlias, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from datasets.data_files import ALL_DEFAULT_PATTERNS, FILES_TO_IGNORE, SPLIT_PATTERN_SHARDED, sanitize_patterns
from datasets.utils.metadata import MetadataConfigs
from fsspec.utils import glob_translate
from huggingface_hub import DatasetCardData, metadata_load

from ..arguments.pretraining import ERROR, FILE, LINE
from ..model.errors import RetroMAEError, check_choice, in_one_sentence
from .text import titled, without_surrogates

logger = logging.getLogger(__name__)

FILE_KINDS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
"""Kinds of files by their ending; all but .parquet, which is packed already, may have one of `CODECS` behind it."""

# fsspec knows no .zst and .lz4 without more packages, and takes "::" in a name for an address; pyarrow knows no .xz.
CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4", ".xz": "xz"}

NAME_COLUMNS = ("name", "title", "_id", "docid", "id")
"""A document is called what the first of these says that its row has."""

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
    return FILE_KINDS.get(splitext(stem)[1] if ending in CODECS else ending)


def read_rows(file: str | Path, columns: Collection[str] | None = None, separator: str = LINE) -> Iterator[Row]:
    """The rows of a file. Of a .parquet file only `columns` are read; `separator` is what ends a row of a .txt file.

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


def _open(file: Path, newline: str | None) -> TextIO:
    codec = CODECS.get(file.suffix.lower())
    content = lzma.open(file) if codec == "xz" else pa.input_stream(str(file), compression=codec)  # noqa: SIM115
    return io.TextIOWrapper(content, encoding="utf-8-sig", newline=newline)


def _texts(lines: Iterable[str], separator: str) -> Iterator[str]:
    """The documents of a .txt file."""
    if separator == LINE:
        return (line.removesuffix("\n") for line in lines)
    if separator == FILE:
        return filter(None, ["".join(lines)])
    paragraphs = groupby(lines, key=lambda line: bool(line.strip()))
    return ("".join(group).removesuffix("\n") for has_text, group in paragraphs if has_text)


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


def numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number and text of the lines of a file that are not blank."""
    with _open(file, newline="\n") as lines:
        yield from ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _checked(row: Any) -> dict[str, Any] | Broken:
    return row if isinstance(row, dict | Broken) else Broken("is not a JSON object")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return Broken("is not JSON")


def column_names(files: Iterable[Path]) -> list[str]:
    """The columns of the first sound rows of some files; none where all rows are broken."""
    parquet = next((file for file in files if kind_of(file.name) == "parquet"), None)
    if parquet:
        with in_one_sentence(f"{parquet} cannot be read"):
            return pq.read_schema(parquet).names
    rows = (row for file in files for _, row in read_rows(file) if not isinstance(row, Broken))
    return list(dict.fromkeys(name for row in islice(rows, LOOKED_AT) for name in row))


def read_documents(
    file: str | Path, text_column: str, title_column: str | None = None, separator: str = LINE
) -> Iterator[Document]:
    """The document in each row of a file, see `document_of`, with the row's place where it is broken."""
    columns = {text_column, *NAME_COLUMNS, *([title_column] if title_column else [])}
    for number, row in read_rows(file, columns, separator):
        document = _broken(row) if isinstance(row, Broken) else document_of(row, text_column, title_column)
        yield _broken(f"{file} line {number} {document['broken']}") if document["broken"] else document


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


DEFAULT, WHOLE = "default", "train"
"""What `datasets` calls the configuration and the split of what has none: all of it."""


@dataclass(frozen=True)
class SourceFiles:
    """The files of a source.

    Attributes:
        source: what to call it in messages.
        files: absolute paths, sorted by name; none is empty.
        separator: what ends a document of a .txt file, one of `SEPARATORS`.
    """

    source: str
    files: list[Path]
    separator: str


def local_path(source: str) -> Path | None:
    """The file or folder that is called so; None for a name on the Hub. A path that leads nowhere is an error."""
    with in_one_sentence("the source of the text is no path"):
        path = Path(source)
        if source.startswith("~") and not path.exists():
            path = path.expanduser()
        if source and path.exists():
            return path.absolute()
        if source == "" or kind_of(source) or Path(source).is_absolute() or source.startswith((".", "~")):
            raise RetroMAEError(f"{source} does not exist; give a file, a folder, a Hub dataset or 'pydocs'")
    return None


def check_whole(source: str, config_name: str | None, split: str) -> None:
    """Refuse a configuration or a split of a source that has none."""
    check_choice(f"{source}: dataset_config_name", config_name or DEFAULT, [DEFAULT])
    check_choice(f"{source}: dataset_split", split, [WHOLE])


def find_files(
    source: str, path: Path, config_name: str | None, split: str, separator: str | None = None
) -> SourceFiles:
    """The files of a file, or of a split of a folder, as `load_dataset(folder, config_name, split=split)` finds them.

    Names that begin with "." or "__" are no data. A folder in BEIR's layout is its corpus. What ends a document of a
    .txt file is by default the line, and in a folder the file.

    Raises:
        RetroMAEError: there are none, or several kinds, or no such configuration or split, or a separator is named that
            they have not.
    """
    if path.is_dir():
        names = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*"))}
        found = {name: file for name, file in names.items() if _is_data(name) and file.is_file()}
    else:
        check_whole(source, config_name, split)
        found = {path.name: path} if kind_of(path.name) else {}
    if not found:
        raise RetroMAEError(f"{source} is neither a {', '.join(FILE_KINDS)} file nor a folder with such files")
    splits = _splits(source, path, list(found), config_name) if path.is_dir() else {WHOLE: list(found)}
    check_choice(f"{source}: dataset_split", split, splits)
    kinds = sorted({kind_of(name) or "" for name in splits[split]})
    if len(kinds) > 1:
        raise RetroMAEError(f"{source} holds several kinds of files, {', '.join(kinds)}; give one kind")
    files = [found[name] for name in splits[split] if found[name].stat().st_size]
    if not files:
        raise RetroMAEError(f"{source} holds no documents, only empty files; give a source with text")
    if separator is not None and kinds != ["text"]:
        raise RetroMAEError(f"{source} is no text; document_separator is about .txt files alone, leave it out")
    return SourceFiles(source, files, separator or (FILE if path.is_dir() else LINE))


def _is_data(name: str) -> bool:
    path = PurePosixPath(name)
    return kind_of(name) is not None and not is_hidden(path) and path.name not in FILES_TO_IGNORE


def is_hidden(path: PurePath) -> bool:
    """Whether a file is no data by its name or a folder's, as seen from the source."""
    return any(part.startswith((".", "__")) for part in path.parts)


def _splits(source: str, folder: Path, names: list[str], config_name: str | None) -> dict[str, list[str]]:
    """The names of the files of each split: by the folder's README.md, else by the names themselves."""
    corpora = [name for name in names if name.startswith("corpus.jsonl")]
    beside = any(name.startswith("queries.jsonl") for name in names) or (folder / "qrels").is_dir()
    if corpora and beside and config_name is None:
        return {WHOLE: corpora[:1]}
    card = folder / "README.md"
    with in_one_sentence(f"{card} cannot be read"):
        data = DatasetCardData(**((card.is_file() and metadata_load(card)) or {}))
        configs = MetadataConfigs.from_dataset_card_data(data) or MetadataConfigs({DEFAULT: {}})
    chosen = config_name or configs.get_default_config_name()
    check_choice(f"{source}: dataset_config_name", chosen, configs)
    config = configs[str(chosen)]
    named = "data_files" in config
    within = config.get("data_dir") or ""
    for patterns in [sanitize_patterns(config["data_files"])] if named else [_sharded(names), *ALL_DEFAULT_PATTERNS]:
        splits = {str(split): _matching(names, within, wanted) for split, wanted in patterns.items()}
        splits = {split: found for split, found in splits.items() if found}
        left_out = len(set(names).difference(*splits.values()))
        if splits and left_out and not named:
            told = f"{left_out} of {len(names)} files of {source} are left out, as they belong to no split"
            logger.warning("%s (%s)", told, ", ".join(splits))
        if splits:
            return splits
    raise RetroMAEError(f"{source} has none of the files that its README.md names; mend that, or give the files alone")


def _sharded(names: list[str]) -> dict[str, list[str]]:
    """The patterns by which `datasets` saves shards, for the splits that there are."""
    splits = sorted({match[1] for name in names if (match := re.match(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}", name))})
    return {split: [SPLIT_PATTERN_SHARDED.format(split=split)] for split in splits}


def _matching(names: list[str], within: str, patterns: list[str]) -> list[str]:
    paths = [posixpath.normpath(posixpath.join(within, pattern)) for pattern in patterns]
    return [name for name in names if any(re.match(glob_translate(path), name) for path in paths)]
