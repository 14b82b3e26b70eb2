"""Any text source into a dataset of documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict, IterableDatasetDict, load_dataset, load_from_disk

from ...model.errors import RetroMAEError, check_choice, first_line, in_one_sentence
from .cached_rows import DOCUMENT, read_cached
from .pydocs import load_pydocs
from .rows import (
    NAME_COLUMNS,
    SKIP,
    check_on_broken_line,
    column_names,
    document_of,
    is_titled,
    report_broken,
    report_null,
)
from .source_files import WHOLE, SourceFiles, check_whole, find_files, local_path


def load_documents(
    source: str | Path | Iterable[str | Mapping[str, Any]],
    config_name: str | None = None,
    split: str = WHOLE,
    text_column: str = "text",
    num_proc: int | None = None,
    on_broken_line: str = SKIP,
    title_column: str | None = None,
    document_separator: str | None = None,
) -> Dataset:
    """Read documents from any text source.

    Args:
        source: "pydocs" (the documentation in this Python environment); a .txt, .jsonl, .json, .csv or .parquet file,
            also packed (.gz, .bz2, .xz, .zst, .lz4); a folder of such files, one in BEIR's layout (its corpus), or what
            `save_to_disk` wrote; the name of a dataset on the Hub; or an iterable of strings or of mappings.
        config_name: configuration of a folder or of a Hub dataset.
        split: split of a folder or of a Hub dataset; what has none is all "train".
        text_column: column that holds the text. Where it is `text`, and a row has an `_id` or a `docid` as in BEIR's
            and Tevatron's corpora, the row's `title` stands in front of it.
        num_proc: processes to read with.
        on_broken_line: of a .jsonl, .json or .csv file, "skip" (left out, counted and reported) or "error".
        title_column: column of titles to put in front of the texts, wherever they come from.
        document_separator: what ends a document of a .txt file: "line", "blank-line" (one or more of them) or "file";
            by default the line, and in a folder the file.

    Returns:
        A dataset with the column `text`, beside what names a document: of files `name` and `title`, null where there
        is none, else the `NAME_COLUMNS` that there are.

    Raises:
        RetroMAEError: the source does not exist, is not UTF-8, lacks the column or holds no text in it, or has no such
            configuration or split.
    """
    check_on_broken_line(on_broken_line)
    if not isinstance(source, str | Path | Iterable) or isinstance(source, bytes | Mapping):
        raise RetroMAEError(f"{source!r} is no source of text; give a name, a path or an iterable of texts")
    name = str(source) if isinstance(source, str | Path) else "the corpus"
    num_broken = 0
    if name == "pydocs" or not isinstance(source, str | Path):
        check_whole(name, config_name, split)
        _check_separated(name, document_separator)
        rows = load_pydocs(num_proc) if isinstance(source, str | Path) else source
        read = _text_of if isinstance(rows, Dataset) else _listed
        documents = read(rows, name, text_column, title_column)
    elif isinstance(found := find_source(name, config_name, split, document_separator), SourceFiles):
        check_columns(name, text_column, title_column, column_names(found.files))
        documents = read_cached(found, text_column, num_proc, title_column)
        broken = documents.data.column("broken").drop_null()
        num_broken = len(broken)
        report_broken(broken[0].as_py() if num_broken else None, num_broken, len(documents), on_broken_line)
        documents = documents.remove_columns("broken")
    else:
        rows = load_hub(name, config_name, split, num_proc=num_proc) if found is None else found
        documents = _text_of(rows, name, text_column, title_column)
    valid = documents.with_format("arrow")["text"][:].is_valid().to_numpy()
    report_null(len(valid) - int(valid.sum()) - num_broken, name)
    if not valid.any():
        raise RetroMAEError(f"{name} holds no documents; give a source with text")
    return documents if valid.all() else documents.select(np.flatnonzero(valid))


def check_columns(source: str, text_column: str, title_column: str | None, columns: list[str] | None) -> None:
    """Raise `RetroMAEError` where a source lacks one of the columns; None or none are columns that are not known."""
    for column in (text_column, title_column):
        if columns and column is not None and column not in columns:
            raise RetroMAEError(f"{source} has no column {column!r}; its columns are {', '.join(columns)}")


def _check_separated(source: str, separator: str | None) -> None:
    if separator is not None:
        raise RetroMAEError(f"{source} is no .txt file, which document_separator is about; leave it out")


def check_text(source: str, text_column: str, kind: pa.DataType) -> None:
    """Raise `RetroMAEError` where a column is of a type that is not text, nor null throughout."""
    value_type = kind.value_type if pa.types.is_dictionary(kind) else kind
    if str(value_type) not in ("string", "large_string", "string_view", "null"):
        raise RetroMAEError(f"the column {text_column!r} of {source} holds {kind}, not text")


def _text_of(rows: Dataset, source: str, text_column: str, title_column: str | None) -> Dataset:
    """The documents in the rows of a dataset: `text` as text, and the columns that name them."""
    check_columns(source, text_column, title_column, rows.column_names)
    check_text(source, text_column, rows.features.arrow_schema.field(text_column).type)
    wanted = [name for name in rows.column_names if name in (text_column, title_column, *NAME_COLUMNS)]
    if is_titled(wanted, text_column, title_column):
        columns = {"text_column": text_column, "title_column": title_column}
        documents = rows.select_columns(wanted).map(
            document_of, fn_kwargs=columns, remove_columns=wanted, features=DOCUMENT, desc="Adding titles"
        )
        return documents.remove_columns("broken")
    rows = rows.select_columns(wanted)
    return rows if text_column == "text" else rows.rename_column(text_column, "text")


def _listed(
    rows: Iterable[str | Mapping[str, Any]], source: str, text_column: str, title_column: str | None
) -> Dataset:
    """The documents in an iterable."""
    documents = []
    names: dict[str, None] = {}
    with in_one_sentence(f"{source} holds something that is neither a string nor a mapping"):
        for number, row in enumerate(rows, start=1):
            fields = {text_column: row} if isinstance(row, str) else dict(row)
            names |= dict.fromkeys(fields)
            documents.append(document_of(fields, text_column, title_column))
            if wrong := documents[-1]["broken"]:
                raise RetroMAEError(f"{source} row {number} {wrong}; give strings")
    check_columns(source, text_column, title_column, list(names))
    columns = {name: [document[name] for document in documents] for name in DOCUMENT}
    return Dataset.from_dict(columns, features=DOCUMENT).remove_columns("broken")


def load_rows(source: str, config_name: str | None, split: str, num_proc: int | None = None) -> Dataset:
    """The rows of a file, a folder of files or a Hub data set with all their columns.

    Values of a column of files that are of different kinds become text. All of a .csv file is text, but for the numbers
    of a teacher.

    Raises:
        RetroMAEError: there is no such source, configuration or split, or it cannot be read.
    """
    found = find_source(source, config_name, split)
    if isinstance(found, SourceFiles):
        return read_cached(found, None, num_proc)
    return load_hub(source, config_name, split, num_proc=num_proc) if found is None else found


def find_source(
    source: str, config_name: str | None, split: str, document_separator: str | None = None
) -> SourceFiles | Dataset | None:
    """The files of a local source, or the data set that a folder of `save_to_disk` is; None for a name on the Hub.

    Raises:
        RetroMAEError: there is no such source, configuration or split.
    """
    path = local_path(source)
    if path is not None and not any((path / file).is_file() for file in ("state.json", "dataset_dict.json")):
        return find_files(source, path, config_name, split, document_separator)
    _check_separated(source, document_separator)
    if path is None:
        return None
    check_whole(source, config_name, WHOLE)
    with in_one_sentence(f"{source} cannot be read as a dataset"):
        saved = load_from_disk(path)
    splits = saved if isinstance(saved, DatasetDict) else {WHOLE: saved}
    check_choice(f"{source}: dataset_split", split, splits)
    return splits[split]


def load_hub(source: str, config_name: str | None, split: str, **options: Any) -> Any:
    """`datasets.load_dataset` with its failures as one sentence."""
    try:
        loaded = load_dataset(source, config_name, split=split, **options)
    except Exception as error:  # whatever a builder or the Hub raises
        reason = first_line(error.__cause__ or error)
        raise RetroMAEError(f"{source} cannot be read as a dataset: {reason}") from error
    if isinstance(loaded, DatasetDict | IterableDatasetDict):
        raise RetroMAEError(f"{source} has several splits, {', '.join(loaded)}; name one")
    return loaded
