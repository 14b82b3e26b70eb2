"""Any text source into a dataset of documents."""

from __future__ import annotations

import codecs
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset

from .errors import RetroMAEError, first_line, in_one_sentence
from .pydocs import load_pydocs

logger = logging.getLogger(__name__)

# Builders of `datasets` by file ending.
FILE_BUILDERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def load_documents(
    source: str | Path | Iterable[str | Mapping[str, Any]],
    config_name: str | None = None,
    split: str = "train",
    text_column: str = "text",
    num_proc: int | None = None,
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

    Returns:
        A dataset with the column `text` beside those of the source.

    Raises:
        RetroMAEError: the source does not exist, is not UTF-8, lacks the column or holds no text in it.
    """
    if not isinstance(source, str | Path | Iterable):
        raise RetroMAEError(f"{source!r} is no source of text; give a name, a path or an iterable of texts")
    if not isinstance(source, str | Path):
        documents = _from_iterable(source, text_column)
    elif str(source) == "pydocs":
        documents = load_pydocs(num_proc)
    else:
        documents = load_rows(str(source), config_name, split, num_proc)
    if text_column not in documents.column_names:
        raise RetroMAEError(
            f"{_describe(source)} has no column {text_column!r}; its columns are {', '.join(documents.column_names)}"
        )
    if text_column != "text":
        documents = documents.select_columns(text_column).rename_column(text_column, "text")
    feature = documents.features["text"]
    if len(documents) and getattr(feature, "dtype", None) not in ("string", "large_string"):
        raise RetroMAEError(f"the column {text_column!r} of {_describe(source)} holds {feature}, not text")
    if missing := documents.data.column("text").null_count:
        logger.warning("%d documents hold null instead of text and were dropped", missing)
        documents = documents.filter(lambda text: text is not None, input_columns="text")
    if len(documents) == 0:
        raise RetroMAEError(f"{_describe(source)} holds no documents; give a source with text")
    return documents


def _describe(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else "the corpus"


def _from_iterable(source: Iterable[str | Mapping[str, Any]], text_column: str) -> Dataset:
    if isinstance(source, Dataset):
        return source
    with in_one_sentence("the corpus holds something that is neither a string nor a mapping"):
        rows = [{text_column: row} if isinstance(row, str) else dict(row) for row in source]
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
    return _load(source, builder, data_files=[str(file) for file in files], split="train", num_proc=num_proc, **options)


def stream_rows(source: str, config_name: str | None, split: str) -> IterableDataset:
    """The same rows as those of `load_rows`, read while they are asked for; a file is a shard.

    Raises:
        RetroMAEError: there is no such source.
    """
    builder, files, options = _find_files(source)
    if builder is None:
        return _load(source, source, config_name, split=split, streaming=True)
    names = [str(file) for file in files if file.stat().st_size]
    return _load(source, builder, data_files=names, split="train", streaming=True, **options)


def _find_files(source: str) -> tuple[str | None, list[Path], dict[str, Any]]:
    """The builder of `datasets`, the files and the builder's options; no builder for a name on the Hub."""
    path = Path(source).expanduser()
    if not path.exists():
        if path.suffix in FILE_BUILDERS or path.is_absolute() or source.startswith((".", "~")):
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
    return builder, files, {"sample_by": "line" if path.is_file() else "document"} if builder == "text" else {}


def _load(source: str, *args: Any, **kwargs: Any) -> Any:
    """`datasets.load_dataset` with its failures as one sentence."""
    try:
        loaded = load_dataset(*args, **kwargs)
    except Exception as error:  # whatever a builder, a file or the Hub raises
        raise RetroMAEError(f"{source} cannot be read as a dataset: {first_line(error.__cause__ or error)}") from error
    if isinstance(loaded, DatasetDict | IterableDatasetDict):
        raise RetroMAEError(f"{source} has several splits, {', '.join(loaded)}; name one")
    return loaded


def _check_utf8(file: Path) -> None:
    """Read a text file once up front: not every reader of `datasets` notices, and none names the place."""
    decoder, position = codecs.getincrementaldecoder("utf-8")(), 0
    with in_one_sentence(f"{file} cannot be read"), file.open("rb") as content:
        while chunk := content.read(1 << 20):
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                raise RetroMAEError(
                    f"{file} is not UTF-8 (near byte {position + error.start}); convert it, for example with iconv"
                ) from error
            position += len(chunk)
