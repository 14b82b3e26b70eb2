"""Any text source into a dataset of documents."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset

from ..model.errors import RetroMAEError, first_line, in_one_sentence
from .json_lines import SKIP, UnreadableError, check_nesting, check_on_broken_line, read_sound_lines
from .pydocs import load_pydocs
from .text import without_surrogates

logger = logging.getLogger(__name__)

# Builders of `datasets` by file ending.
FILE_BUILDERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def load_documents(
    source: str | Path | Iterable[str | Mapping[str, Any]],
    config_name: str | None = None,
    split: str = "train",
    text_column: str = "text",
    num_proc: int | None = None,
    on_broken_line: str = SKIP,
) -> Dataset:
    """Read documents from any text source.

    Args:
        source: "pydocs" (the documentation in this Python environment); a .txt (a line is a document), .jsonl, .json,
            .csv or .parquet file; a folder of such files (there a .txt file is one document); the name of a dataset
            on the Hub; or an iterable of strings or of mappings.
        config_name: configuration of a Hub dataset.
        split: split of a Hub dataset.
        text_column: column that holds the text.
        num_proc: processes to read with.
        on_broken_line: of a .jsonl file, "skip" (left out, counted and reported) or "error". The other columns of a
            file that has some are left out too.

    Returns:
        A dataset with the column `text` beside those of the source.

    Raises:
        RetroMAEError: the source does not exist, is not UTF-8, lacks the column or holds no text in it.
    """
    check_on_broken_line(on_broken_line)
    if not isinstance(source, str | Path | Iterable) or isinstance(source, bytes | Mapping):
        raise RetroMAEError(f"{source!r} is no source of text; give a name, a path or an iterable of texts")
    if not isinstance(source, str | Path):
        documents = _from_iterable(source, text_column)
    elif str(source) == "pydocs":
        documents = load_pydocs(num_proc)
    else:
        documents = _read_rows(str(source), config_name, split, text_column, num_proc, on_broken_line)
    name = str(source) if isinstance(source, str | Path) else "the corpus"
    check_column(name, text_column, documents.column_names)
    if not _holds_text(documents, text_column):
        raise RetroMAEError(f"the column {text_column!r} of {name} holds {documents.features[text_column]}, not text")
    if text_column != "text":
        documents = documents.select_columns(text_column).rename_column(text_column, "text")
    if missing := documents.data.column("text").null_count:
        logger.warning("%d documents hold null instead of text and were dropped", missing)
        documents = documents.filter(lambda text: text is not None, input_columns="text")
    if len(documents) == 0:
        raise RetroMAEError(f"{name} holds no documents; give a source with text")
    return documents


def check_column(source: str, text_column: str, columns: list[str] | None) -> None:
    """Raise `RetroMAEError` where a source lacks the column; None are columns that are not known."""
    if columns is not None and text_column not in columns:
        raise RetroMAEError(f"{source} has no column {text_column!r}; its columns are {', '.join(columns)}")


def _holds_text(documents: Dataset, column: str) -> bool:
    return len(documents) == 0 or getattr(documents.features[column], "dtype", None) in ("string", "large_string")


def _read_rows(
    source: str, config_name: str | None, split: str, text_column: str, num_proc: int | None, on_broken_line: str
) -> Dataset:
    """`load_rows`; JSON lines that it cannot read, or reads as something else than text, are taken line by line."""
    files = files_of_lines(source)
    try:
        documents = load_rows(source, config_name, split, num_proc)
    except UnreadableError:
        if not files:
            raise
    else:
        if not files or text_column not in documents.column_names or _holds_text(documents, text_column):
            return documents
    return read_sound_lines(files, text_column, on_broken_line)


def _from_iterable(source: Iterable[str | Mapping[str, Any]], text_column: str) -> Dataset:
    if isinstance(source, Dataset):
        return source
    with in_one_sentence("the corpus holds something that is neither a string nor a mapping"):
        rows = [{text_column: row} if isinstance(row, str) else dict(row) for row in source]
        for row in rows:
            row |= {name: without_surrogates(value) for name, value in row.items() if isinstance(value, str)}
    with in_one_sentence("the corpus holds rows that are not alike"):
        return Dataset.from_list(rows) if rows else Dataset.from_dict({text_column: []})


def load_rows(source: str, config_name: str | None, split: str, num_proc: int | None = None) -> Dataset:
    """The rows of a file, a folder of files or a Hub data set as they are; `split` is one of a Hub data set.

    Raises:
        RetroMAEError: there is no such source, or it cannot be read.
    """
    builder, files, options = _find_files(source)
    if builder is None:
        return _load(source, source, config_name, split=split, num_proc=num_proc)
    if builder != "parquet":
        for file in files:
            _check_utf8(file)
            if builder == "json":
                check_nesting(file)
    return _load(source, builder, data_files=[str(file) for file in files], split="train", num_proc=num_proc, **options)


def stream_rows(source: str, config_name: str | None, split: str) -> IterableDataset:
    """The same rows as those of `load_rows`, read while they are asked for; a file is a shard.

    Raises:
        RetroMAEError: there is no such source.
    """
    builder, files, options = _find_files(source)
    if builder is None:
        return _load(source, source, config_name, split=split, streaming=True)
    for file in files if builder == "json" else ():
        check_nesting(file)
    names = [str(file) for file in files if file.stat().st_size]
    return _load(source, builder, data_files=names, split="train", streaming=True, **options)


def files_of_lines(source: str) -> list[Path]:
    """The files of a source of .jsonl files that hold something; none where it is something else."""
    _, files, _ = _find_files(source)
    return [file for file in files if file.stat().st_size] if {file.suffix for file in files} == {".jsonl"} else []


def _find_files(source: str) -> tuple[str | None, list[Path], dict[str, Any]]:
    """The builder of `datasets`, the files and the builder's options; no builder for a name on the Hub."""
    path = Path(source).expanduser()
    with in_one_sentence("the source of the text is no path"):
        exists = source != "" and path.exists()
    if not exists:
        if source == "" or path.suffix in FILE_BUILDERS or path.is_absolute() or source.startswith((".", "~")):
            raise RetroMAEError(f"{source} does not exist; give a file, a folder, a Hub dataset or 'pydocs'")
        return None, [], {}
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    files = [file for file in files if file.suffix in FILE_BUILDERS]
    builders = {FILE_BUILDERS[file.suffix] for file in files}
    if not files:
        raise RetroMAEError(f"{source} is neither a {', '.join(FILE_BUILDERS)} file nor a folder with such files")
    if len(builders) > 1:
        raise RetroMAEError(f"{source} holds several kinds of files, {', '.join(sorted(builders))}; give one kind")
    builder = builders.pop()
    if not any(file.stat().st_size for file in files):
        raise RetroMAEError(f"{source} holds no documents, only empty files; give a source with text")
    options = {"sample_by": "line" if path.is_file() else "document", "encoding": "utf-8-sig"}
    return builder, files, options if builder == "text" else {}


def _load(source: str, *args: Any, **kwargs: Any) -> Any:
    """`datasets.load_dataset` with its failures as one sentence."""
    try:
        loaded = load_dataset(*args, **kwargs)
    except Exception as error:  # whatever a builder, a file or the Hub raises
        reason = first_line(error.__cause__ or error)
        raise UnreadableError(f"{source} cannot be read as a dataset: {reason}") from error
    if isinstance(loaded, DatasetDict | IterableDatasetDict):
        raise RetroMAEError(f"{source} has several splits, {', '.join(loaded)}; name one")
    return loaded


def _check_utf8(file: Path) -> None:
    """Read a text file once up front: not every reader of `datasets` notices, and none names the place."""
    position = 0
    with in_one_sentence(f"{file} cannot be read"), file.open("rb") as lines:
        for line in lines:
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise RetroMAEError(
                    f"{file} is not UTF-8 (near byte {position + error.start}); convert it, for example with iconv"
                ) from error
            position += len(line)
