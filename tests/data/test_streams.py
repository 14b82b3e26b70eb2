"""Text is read while training: each passage once, the same whoever reads it, and from where a cut run stopped."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest
from conftest import write_shards
from datasets import Dataset

from retromae_hf import RetroMAEError
from retromae_hf.arguments.pretraining import Cutting, TextSource
from retromae_hf.data.passages import PassageCutter
from retromae_hf.data.streams import ROWS_AT_ONCE, DocumentStream, PassageStream, Place


def open_stream(folder, seed=0) -> DocumentStream:
    return DocumentStream(TextSource(str(folder)), seed)


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


def test_a_reader_goes_on_from_any_place(tmp_path):
    texts = [f"Document {number} of the stream." for number in range(3 * ROWS_AT_ONCE)]
    stream = open_stream(write_shards(tmp_path / "corpus", texts, 2))

    def read(start, count):
        return list(islice((batch for batch in stream.read(1, 3, start) if batch[1]), count))

    batches = read(None, 25)
    assert batches[-1][0].epoch > 1
    for index, (place, _, _) in enumerate(batches):
        assert read(place, 25 - index) == batches[index:]


def test_files_of_every_kind_and_null(tmp_path):
    rows = [{"text": f"Line {number}.", "n": number} for number in range(30)]
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    Dataset.from_list(rows).to_csv(tmp_path / "a.csv")
    (tmp_path / "a.txt").write_text("".join(row["text"] + "\n" for row in rows))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": None}]))
    for file in tmp_path.glob("a.*"):
        assert [text for _, text in one_pass(open_stream(file), 0, 1)] == [row["text"] for row in rows]
    (tmp_path / "books").mkdir()
    for book in "abc":
        (tmp_path / "books" / f"{book}.txt").write_text(f"{book} 1\n{book} 2\n")
    assert sorted(text for _, text in one_pass(open_stream(tmp_path / "books"), 0, 1)) == [
        "a 1\na 2\n",
        "b 1\nb 2\n",
        "c 1\nc 2\n",
    ]


@pytest.fixture
def make_stream(tmp_path, texts, tokenizer):
    folder = write_shards(tmp_path / "corpus", texts, 2)
    cut = PassageCutter(Cutting(32, short_seq_prob=0.2), tokenizer)

    def make(lanes=1, batch_size=4, buffer_size=50, bookmarks=None, length=10_000):
        documents = open_stream(folder)
        documents.hold_out_head()
        return PassageStream(documents, cut, length, batch_size, lanes, buffer_size, bookmarks)

    return make


def key(passage):
    return passage["epoch"], passage["passage_id"], tuple(passage["input_ids"])


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_every_passage_comes_once_in_a_pass_under_the_same_id(make_stream, lanes):
    stream = make_stream(lanes, batch_size=1)
    seen = [key(stream[index]) for index in range(2500)]
    assert len(set(seen)) == len(seen)
    counts = Counter(epoch for epoch, _, _ in seen)
    in_first = sorted(tokens for epoch, _, tokens in seen if epoch == 0)
    in_second = sorted(tokens for epoch, _, tokens in seen if epoch == 1)
    assert counts[0] == counts[1] == len(in_first)
    assert in_first == in_second
    ids = {(id, tokens) for _, id, tokens in seen}
    assert len({id for id, _ in ids}) == len(ids), "a passage has the same id in every pass"


def test_the_order_is_shuffled_and_another_in_every_pass(make_stream):
    stream = make_stream(buffer_size=10_000)
    seen = [key(stream[index]) for index in range(800)]
    orders = [[id for epoch, id, _ in seen if epoch == wanted] for wanted in (0, 1)]
    assert orders[0] != sorted(orders[0])
    assert orders[0] != orders[1]


@pytest.mark.parametrize("buffer_size", [1, 50])
def test_a_passage_is_a_pure_function_of_its_place(make_stream, tmp_path, buffer_size):
    marked = tmp_path / "marks"
    marked.mkdir()
    (marked / "lane-00000.jsonl").write_text("[8, 0, 0, 1")  # what a killed run left of a line
    whole = make_stream(2, buffer_size=buffer_size, bookmarks=marked)
    seen = [key(whole[index]) for index in range(700)]
    for start in (0, 37, 333, 698):
        for bookmarks in (marked, None):
            again = make_stream(2, buffer_size=buffer_size, bookmarks=bookmarks)
            assert [key(again[index]) for index in range(start, 700)] == seen[start:]


def test_going_on_reads_from_the_last_bookmark(make_stream, tmp_path, monkeypatch):
    (tmp_path / "marks").mkdir()
    stream = make_stream(bookmarks=tmp_path / "marks")
    expected = key([stream[index] for index in range(1500)][-1])
    starts = []
    read = DocumentStream.read
    monkeypatch.setattr(DocumentStream, "read", lambda self, *args: starts.append(args[-1]) or read(self, *args))
    assert key(make_stream(bookmarks=tmp_path / "marks")[1499]) == expected
    assert starts[0] > Place(1)


def test_many_shards_are_each_the_right_one(tmp_path):
    texts = [f"Document {number}." for number in range(150)]
    stream = open_stream(write_shards(tmp_path / "corpus", texts, 150))
    assert stream.num_shards == 150
    assert [text for _, text in stream.in_order()] == texts
    assert sorted(text for _, text in one_pass(stream, 0, 1)) == sorted(texts)


@pytest.fixture
def broken(tmp_path, texts):
    """A folder one of whose two files has broken lines among sound ones, and the texts of the sound ones."""
    folder = write_shards(tmp_path / "corpus", texts, 2)
    lines = (folder / "001.jsonl").read_text().splitlines()
    lines[7:7] = ['{"text": "cut off', '{"text": 5}', "[" * 100_000]
    (folder / "001.jsonl").write_text("\n".join(lines))
    return folder, texts


def test_broken_lines_of_a_stream_are_counted_and_left_out(broken, caplog):
    folder, texts = broken
    got = one_pass(open_stream(folder), 0, 1)
    assert Counter(text for _, text in got) == Counter(texts)
    assert len({number for number, _ in got}) == len(texts)
    (told,) = [record.message for record in caplog.records if "broken" in record.message]
    assert told.startswith("3 of 63 lines are broken and were left out; the first: ")
    assert told.endswith("001.jsonl line 8 is not JSON")


def test_broken_lines_of_a_stream_can_be_errors(broken):
    stream = DocumentStream(TextSource(str(broken[0]), on_broken_line="error"), 0)
    with pytest.raises(RetroMAEError, match=r"001.jsonl line 8 is not JSON; mend the file, or leave broken lines out"):
        one_pass(stream, 0, 1)


def test_endless_brackets_do_not_end_the_process(tmp_path):
    (tmp_path / "corpus.json").write_text('[{"text": "The fox."},\n{"text": "b", "c": ' + "[" * 100_000)
    with pytest.raises(RetroMAEError, match=r"corpus.json line 1 is not JSON, and so 2 of 2 lines are broken"):
        one_pass(open_stream(tmp_path / "corpus.json"), 0, 1)
