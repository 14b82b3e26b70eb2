"""The rows of files as a dataset, which `datasets` keeps in its cache.

A file of its own: in the module of a builder `datasets` replaces `Path`, `open` and `os.path`, by such as take a name
with "::" apart. So none of them is used here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from datasets import ArrowBasedBuilder, BuilderConfig, Dataset, DatasetInfo, Features, SplitGenerator, Value

from ..arguments.pretraining import LINE
from ..model.errors import RetroMAEError, in_one_sentence
from .files import ROWS_A_BATCH, Broken, SourceFiles, in_batches, read_documents, read_rows
from .text import without_surrogates

DOCUMENT = Features(dict.fromkeys(("text", "title", "name", "broken"), Value("large_string")))
"""A document as `document_of` has it."""


def read_cached(
    files: SourceFiles, text_column: str | None, num_proc: int | None, title_column: str | None = None
) -> Dataset:
    """The documents of some files, or where no column is named all columns, each of the type that fits its values.

    Raises:
        RetroMAEError: a file cannot be read, there is no row, or a row is broken that is wanted as it is.
    """
    # With what tells one state of a file from the next, for the cache goes by these arguments.
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files.files]
    builder = _CachedRows(states=states, text_column=text_column, title_column=title_column, separator=files.separator)
    try:
        with in_one_sentence(f"{files.source} cannot be read"):
            builder.download_and_prepare(num_proc=num_proc)
            if not builder.info.splits["train"].num_examples:
                raise RetroMAEError(f"{files.source} holds no documents; give a source with text")
            return builder.as_dataset(split="train")
    except RetroMAEError as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, RetroMAEError):
            cause = cause.__cause__
        raise cause or error from error


@dataclass
class _CachedRowsConfig(BuilderConfig):
    states: list[tuple[str, int, int]] | None = None
    text_column: str | None = None
    title_column: str | None = None
    separator: str = LINE


class _CachedRows(ArrowBasedBuilder):
    BUILDER_CONFIG_CLASS = _CachedRowsConfig

    def _info(self) -> DatasetInfo:
        return DatasetInfo(features=self.config.text_column and DOCUMENT)

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        if self.config.text_column is None:
            self.info.features = Features.from_arrow_schema(self._schema())
        return [SplitGenerator("train", {"states": self.config.states})]

    def _generate_tables(self, states: list[tuple[str, int, int]]) -> Iterator[tuple[tuple[int, int], pa.Table]]:
        schema = self.info.features.arrow_schema
        for shard, (file, *_) in enumerate(states):
            for number, rows in enumerate(in_batches(self._rows(file), ROWS_A_BATCH)):
                yield (shard, number), pa.Table.from_arrays([_column(rows, field) for field in schema], schema=schema)

    def _rows(self, file: str) -> Iterator[dict[str, Any]]:
        if self.config.text_column is not None:
            yield from read_documents(file, self.config.text_column, self.config.title_column, self.config.separator)
            return
        for number, row in read_rows(file, separator=self.config.separator):
            if isinstance(row, Broken):
                raise RetroMAEError(f"{file} line {number} {row}; mend the file")
            yield row

    def _schema(self) -> pa.Schema:
        """The columns of all rows, each of the type that fits all of its values or, where none does, text."""
        types: dict[str, pa.DataType] = {}
        for file, *_ in self.config.states:
            for rows in in_batches(self._rows(file), ROWS_A_BATCH):
                for name in dict.fromkeys(name for row in rows for name in row):
                    types[name] = _common_type(types.get(name, pa.null()), [row.get(name) for row in rows])
        return pa.schema(types)


def _common_type(known: pa.DataType, values: list[Any]) -> pa.DataType:
    try:
        schemas = [pa.schema({"": type}) for type in (known, pa.array(values).type)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowException, ValueError, OverflowError):  # values of different kinds, or none that Arrow knows
        return pa.string()


def _column(rows: list[dict[str, Any]], field: pa.Field) -> pa.Array:
    values = [row.get(field.name) for row in rows]
    if pa.types.is_string(field.type):
        values = [value if value is None else _as_text(value) for value in values]
    return pa.array(values, field.type)


def _as_text(value: Any) -> str:
    return without_surrogates(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
