"""Text is read while training: each passage once, the same whoever reads it, and from where a cut run stopped."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from itertools import islice

import pytest
from datasets import Dataset, load_dataset

from retromae_hf import RetroMAEError, tokenize_passages
from retromae_hf.document_stream import ROWS_AT_ONCE, DocumentStream, Place
from retromae_hf.passage_stream import Bookmarks, PassageStream
from retromae_hf.passages import cut_passages, cutting_options


def write_shards(folder, texts, shards):
    folder.mkdir()
    for shard in range(shards):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts[shard::shards])
        (folder / f"{shard:03}.jsonl").write_text(rows)
    return folder


def open_stream(folder, seed=0) -> DocumentStream:
    return DocumentStream.open(str(folder), None, "train", "text", seed)


def one_pass(stream, reader, readers, epoch=0):
    """Numbers and texts that a reader gets in one pass."""
    found = []
    for place, numbers, texts in stream.read(reader, readers, Place(epoch)):
        if place.epoch > epoch:
            return found
        found += zip(numbers, texts, strict=True)


@pytest.mark.parametrize("shards", [1, 3, 12])
@pytest.mark.parametrize("readers", [1, 3, 5])
def test_every_document_goes_to_one_reader_in_every_pass(tmp_path, texts, shards, readers):
    stream = open_stream(write_shards(tmp_path / "corpus", texts, shards))
    held_out = stream.hold_out_head()
    assert len(held_out) == len(texts) // 10
    numbers = set()
    for epoch in range(3):
        got = [document for reader in range(readers) for document in one_pass(stream, reader, readers, epoch)]
        assert Counter(text for _, text in got) + Counter(held_out) == Counter(texts)
        numbers |= set(got)
    assert len({number for number, _ in numbers}) == len(numbers) == len(texts) - len(held_out)
