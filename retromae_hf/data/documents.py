"""Documents of any source of text, their mixture, and short names for contents, the same wherever they lie."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xxhash
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDatasetDict,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from ..arguments.pretraining import SKIP, TextSource
from ..model.errors import RetroMAEError, check_choice, first_line, in_one_sentence
from .cached_rows import DOCUMENT, read_cached
from .draws import passage_seeds
from .files import (
    NAME_COLUMNS,
    WHOLE,
    SourceFiles,
    check_whole,
    column_names,
    document_of,
    find_files,
    is_hidden,
    is_titled,
    local_path,
    report_broken,
    report_null,
)
from .pydocs import PYDOCS, load_pydocs

logger = logging.getLogger(__name__)


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
    if not isinstance(source, str | Path | Iterable) or isinstance(source, bytes | Mapping):
        raise RetroMAEError(f"{source!r} is no source of text; give a name, a path or an iterable of texts")
    name = str(source) if isinstance(source, str | Path) else "the corpus"
    text = TextSource(
        [name],
        dataset_config_name=config_name,
        dataset_split=split,
        text_column=text_column,
        title_column=title_column,
        document_separator=document_separator,
        on_broken_line=on_broken_line,
        preprocessing_num_workers=num_proc,
    )
    return read_source(name, text, rows=None if isinstance(source, str | Path) else source)


def read_source(source: str, text: TextSource, rows: Iterable[str | Mapping[str, Any]] | None = None) -> Dataset:
    """The documents of one of the data sets of a text, or of `rows` that are called so, see `load_documents`."""
    num_broken = 0
    if rows is not None or source == PYDOCS:
        check_whole(source, text.dataset_config_name, text.dataset_split)
        _check_separated(source, text)
        rows = load_pydocs(text.preprocessing_num_workers) if rows is None else rows
        documents = (_text_of if isinstance(rows, Dataset) else _listed)(rows, source, text)
    elif isinstance(found := find_source(source, text), SourceFiles):
        check_columns(source, text, column_names(found.files))
        documents = read_cached(found, text.text_column, text.preprocessing_num_workers, text.title_column)
        broken = documents.data.column("broken").drop_null()
        num_broken = len(broken)
        report_broken(broken[0].as_py() if num_broken else None, num_broken, len(documents), text.on_broken_line)
        documents = documents.remove_columns("broken")
    else:
        if found is None:
            found = load_hub(source, text, num_proc=text.preprocessing_num_workers)
        documents = _text_of(found, source, text)
    valid = documents.with_format("arrow")["text"][:].is_valid().to_numpy()
    report_null(len(valid) - int(valid.sum()) - num_broken, source)
    if not valid.any():
        raise RetroMAEError(f"{source} holds no documents; give a source with text")
    return documents if valid.all() else documents.select(np.flatnonzero(valid))


def check_columns(source: str, text: TextSource, columns: list[str] | None) -> None:
    """Refuse a source that lacks one of the columns; None or none are columns that are not known."""
    for column in (text.text_column, text.title_column):
        if columns and column is not None and column not in columns:
            raise RetroMAEError(f"{source} has no column {column!r}; its columns are {', '.join(columns)}")


def _check_separated(source: str, text: TextSource) -> None:
    if text.document_separator is not None:
        raise RetroMAEError(f"{source} is no .txt file, which document_separator is about; leave it out")


def check_text(source: str, text_column: str, kind: pa.DataType) -> None:
    """Refuse a column of a type that is not text, nor null throughout."""
    value_type = kind.value_type if pa.types.is_dictionary(kind) else kind
    if str(value_type) not in ("string", "large_string", "string_view", "null"):
        raise RetroMAEError(f"the column {text_column!r} of {source} holds {kind}, not text")


def _text_of(rows: Dataset, source: str, text: TextSource) -> Dataset:
    """The documents in the rows of a dataset: `text` as text, and the columns that name them."""
    columns: dict[str, Any] = {"text_column": text.text_column, "title_column": text.title_column}
    check_columns(source, text, rows.column_names)
    check_text(source, text.text_column, rows.features.arrow_schema.field(text.text_column).type)
    rows = rows.select_columns([name for name in rows.column_names if name in (*columns.values(), *NAME_COLUMNS)])
    if is_titled(rows.column_names, **columns):
        documents = rows.map(
            document_of, fn_kwargs=columns, remove_columns=rows.column_names, features=DOCUMENT, desc="Adding titles"
        )
        return documents.remove_columns("broken")
    return rows if text.text_column == "text" else rows.rename_column(text.text_column, "text")


def _listed(rows: Iterable[str | Mapping[str, Any]], source: str, text: TextSource) -> Dataset:
    """The documents in an iterable."""
    documents = []
    names: dict[str, None] = {}
    with in_one_sentence(f"{source} holds something that is neither a string nor a mapping"):
        for number, row in enumerate(rows, start=1):
            fields = {text.text_column: row} if isinstance(row, str) else dict(row)
            names |= dict.fromkeys(fields)
            documents.append(document_of(fields, text.text_column, text.title_column))
            if wrong := documents[-1]["broken"]:
                raise RetroMAEError(f"{source} row {number} {wrong}; give strings")
    check_columns(source, text, list(names))
    columns = {name: [document[name] for document in documents] for name in DOCUMENT}
    return Dataset.from_dict(columns, features=DOCUMENT).remove_columns("broken")


def load_rows(source: str, config_name: str | None, split: str) -> Dataset:
    """The rows of a file, a folder of files or a Hub data set with all their columns.

    Values of a column of files that are of different kinds become text, and so does all of a .csv file.
    """
    text = TextSource([source], dataset_config_name=config_name, dataset_split=split)
    found = find_source(source, text)
    if isinstance(found, SourceFiles):
        return read_cached(found, None, None)
    return load_hub(source, text) if found is None else found


def find_source(source: str, text: TextSource) -> SourceFiles | Dataset | None:
    """The files of a local source, or the data set that a folder of `save_to_disk` is; None for a name on the Hub."""
    path = local_path(source)
    config_name, split = text.dataset_config_name, text.dataset_split
    if path is not None and not any((path / file).is_file() for file in ("state.json", "dataset_dict.json")):
        return find_files(source, path, config_name, split, text.document_separator)
    _check_separated(source, text)
    if path is None:
        return None
    check_whole(source, config_name, WHOLE)
    with in_one_sentence(f"{source} cannot be read as a dataset"):
        saved = load_from_disk(path)
    splits = saved if isinstance(saved, DatasetDict) else {WHOLE: saved}
    check_choice(f"{source}: dataset_split", split, splits)
    return splits[split]


def load_hub(source: str, text: TextSource, **options: Any) -> Any:
    """`datasets.load_dataset` with its failures as one sentence."""
    try:
        loaded = load_dataset(source, text.dataset_config_name, split=text.dataset_split, **options)
    except Exception as error:  # whatever a builder or the Hub raises
        reason = first_line(error.__cause__ or error)
        raise RetroMAEError(f"{source} cannot be read as a dataset: {reason}") from error
    if isinstance(loaded, DatasetDict | IterableDatasetDict):
        raise RetroMAEError(f"{source} has several splits, {', '.join(loaded)}; name one")
    return loaded


def mix_documents(
    documents: Sequence[tuple[str, Dataset]], weights: Sequence[float] | None, max_documents: int | None, seed: int
) -> Dataset:
    """The documents of several sources by name, one source behind the other; `Trainer` shuffles them as one.

    `weights` are each source's share of the documents, in any unit: the source that has too few for its share is taken
    whole, and the others are as large as their shares then. So nothing is there twice.
    """
    parts = [part for _, part in documents]
    if len(parts) > 1:
        features = Features({"text": Value("large_string")})
        parts = [part.select_columns("text").cast(features) for part in parts]
    if weights is None:
        # One data set concatenated has another fingerprint each time, and what is cached of it would be made anew.
        whole = concatenate_datasets(parts) if len(parts) > 1 else parts[0]
        return sample_documents(whole, max_documents, seed)
    shares = [weight / sum(weights) for weight in weights]
    total = min(len(part) / share for part, share in zip(parts, shares, strict=True))
    total = total if max_documents is None else min(total, max_documents)
    counts = [round(share * total) for share in shares]
    for (name, part), count in zip(documents, counts, strict=True):
        if not count:
            raise RetroMAEError(f"the share of {name} in {round(total)} documents is none; give it a larger weight")
        logger.info("%s of the %s documents of %s", f"{count:,}", f"{len(part):,}", name)
    drawn = [sample_documents(part, count, seed) for part, count in zip(parts, counts, strict=True)]
    return concatenate_datasets(drawn)


def sample_documents(documents: Dataset, count: int | None, seed: int) -> Dataset:
    """So many documents at most, in their order: always the same of the same text and seed; None for all."""
    if count is None or count >= len(documents):
        return documents
    drawn = passage_seeds(seed, 0, torch.arange(len(documents))).argsort()[:count]
    return documents.select(drawn.sort().values.numpy())


ROWS_AT_ONCE = 1000
"""Rows that are hashed as one, in however many pieces a dataset holds them."""


def fingerprint_of_files(source: str) -> str:
    """Of the names and sizes of a local source's files, which a stream has not read yet; of the Hub's nothing."""
    path = Path(source).expanduser()
    files = {one.relative_to(path): one for one in (path, *sorted(path.rglob("*"))) if one.is_file()}
    named = [name for name in files if not is_hidden(name)]
    return Hasher.hash([(name.as_posix(), files[name].stat().st_size) for name in named])


def fingerprint_of_rows(rows: Dataset) -> str:
    """Of what a dataset holds, row by row, at some 3 GB a second."""
    digest = xxhash.xxh3_64()
    for table in rows.with_format("arrow").iter(ROWS_AT_ONCE):
        # Of several pieces one is made anew; of one, which may be part of a larger one, nothing would be.
        pieces = pa.concat_tables([table.schema.empty_table(), table])
        for batch in pieces.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()


def fingerprint_of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of what decides which tokens a fast tokenizer makes of a text: not its folder, nor where it last truncated."""
    content = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    return Hasher.hash([json.dumps(content), tokenizer.truncation_side, tokenizer.split_special_tokens])


def fingerprint_of_mapped(
    rows: Dataset, function: Callable[..., Any], tokenizer: PreTrainedTokenizerBase, **options: Any
) -> str:
    """Of what a function makes of rows with a tokenizer, as `Dataset.map` takes it for the key of its cache.

    Left to itself, `datasets` hashes the tokenizer with the folder that it was loaded from, and every checkpoint of a
    run is another one.
    """
    return Hasher.hash([rows._fingerprint, function, fingerprint_of_tokenizer(tokenizer), options])
