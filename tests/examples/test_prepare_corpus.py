"""The example that prepares a corpus: shards without copies and without what is no text, which a stream reads."""

from __future__ import annotations

import json
import sys
from itertools import takewhile

import prepare_corpus
import pytest

from retromae_hf.arguments.pretraining import TextSource
from retromae_hf.data.streams import DocumentStream, Place


@pytest.fixture
def raw(tmp_path, texts):
    folder = tmp_path / "raw"
    folder.mkdir()
    for name, part in (("a", [*texts[:40], "too short"]), ("b", [*texts[40:], f" {texts[0].upper()}\n", texts[1]])):
        rows = [json.dumps({"id": str(row), "body": f"\x00{text}"}) + "\n" for row, text in enumerate(part)]
        (folder / f"{name}.jsonl").write_text("".join(rows))
    return folder


def test_shards_that_a_stream_reads(raw, tmp_path, texts):
    pytest.importorskip("datatrove", reason="datatrove is not installed")
    shards = tmp_path / "shards"
    prepare_corpus.main([str(raw), str(shards), "--text_column", "body", "--tasks", "2", "--workers", "1"])
    assert len(list(shards.glob("*.parquet"))) == 2
    read = DocumentStream(TextSource(str(shards)), seed=0).read(0, 1)
    first_pass = takewhile(lambda batch: batch[0] < Place(1), read)
    found = [text for _, _, some in first_pass for text in some]
    assert sorted(found) == sorted(texts)


def test_what_is_missing_is_one_sentence(raw, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datatrove.executor", None)
    with pytest.raises(SystemExit, match=r"a package is missing .* pip install 'retromae-hf"):
        prepare_corpus.main([str(raw), str(tmp_path / "shards")])
    (raw / "c.parquet").touch()
    with pytest.raises(SystemExit, match="one kind of files"):
        prepare_corpus.reader_of(raw)
