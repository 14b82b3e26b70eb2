"""Short names for contents, the same wherever the content lies and whatever it was loaded from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from .reading.source_files import is_hidden

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
