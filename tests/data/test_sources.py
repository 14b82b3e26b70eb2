"""Text of any kind becomes passages cut at sentence ends."""

from __future__ import annotations

import json
import logging
from itertools import pairwise

import pytest
from conftest import CHINESE_TEXTS
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from retromae_hf import RetroMAEError, load_documents, tokenize_passages
from retromae_hf.data.passages import _pack
from retromae_hf.data.text import cut_sentences
from retromae_hf.data.tokenizers import train_tokenizer


def split_sentences(text):
    return [sentence.strip() for sentence in cut_sentences(text)]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("See e.g. Smith, i.e. him.  Then go.", ["See e.g. Smith, i.e. him.", "Then go."]),
        ("It is about 3.5 or so, approx. four.", ["It is about 3.5 or so, approx. four."]),
        ("A title\n\nA paragraph\nover two lines.", ["A title", "A paragraph\nover two lines."]),
        ("今天很好。真的吗？是！", ["今天很好。", "真的吗？", "是！"]),
        ("他说：（「是的！」）然后走了。", ["他说：（「是的！」）", "然后走了。"]),
        ("“好吗？！”他问。\n\n没有", ["“好吗？！”", "他问。", "没有"]),
        ("一。 \n\n 二", ["一。", "二"]),
        (" \n ", []),
    ],
)
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet="ab A.!?。！”）\n ", max_size=40))
def test_sentences_are_the_text(text):
    sentences = cut_sentences(text)
    assert "".join(sentences) == text.strip()
    assert all(sentence.strip() for sentence in sentences)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_passages_have_the_very_tokens_of_their_document(kind, texts):
    """Also where a tokenizer sees the beginning of a text otherwise than its inside."""
    texts = [*CHINESE_TEXTS, *texts[:20], "Title\n\nTwo  spaces. And 'quotes'!  End"]
    tokenizer = train_tokenizer(kind, texts, 600, 64, lowercase=False)
    passages = tokenize_passages(Dataset.from_dict({"text": texts}), tokenizer, 20)
    found: dict[int, list[int]] = {}
    for row in passages:
        found.setdefault(row["passage_id"] >> 24, []).extend(row["input_ids"][1:-1])
    assert list(found.values()) == tokenizer(texts, add_special_tokens=False)["input_ids"]


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), max_size=12),
    room=st.integers(1, 20),
    targets=st.lists(st.integers(1, 20), min_size=500, max_size=500),
    stride=st.integers(0, 20),
)
def test_packing_keeps_every_token_in_order_and_never_overflows(lengths, room, targets, stride):
    passages = list(_pack(lengths, room, iter([min(target, room) for target in targets]), stride))
    assert sorted({token for passage in passages for token in range(*passage)}) == list(range(sum(lengths)))
    assert all(0 < end - start <= room for start, end in passages)
    for (start, end), (next_start, next_end) in pairwise(passages):
        assert start < next_start
        assert next_start <= end < next_end
        assert end - next_start <= stride


def test_sentences_that_fit_are_not_cut():
    assert list(_pack([2, 2, 3], 4, iter([4] * 9), 0)) == [(0, 4), (4, 7)]


def test_passages_share_the_sentences_that_fit_into_the_stride():
    assert list(_pack([2] * 5, 6, iter([6] * 9), 2)) == [(0, 6), (4, 10)]
    assert list(_pack([2] * 5, 6, iter([6] * 9), 3)) == [(0, 6), (4, 10)]
    assert list(_pack([2] * 5, 6, iter([6] * 9), 1)) == [(0, 6), (6, 10)]
    assert list(_pack([2, 2, 5], 6, iter([6] * 9), 4)) == [(0, 4), (4, 9)], "a sentence is not cut for it"


def test_passages_hold_whole_sentences_and_the_special_tokens(texts, tokenizer):
    passages = tokenize_passages(Dataset.from_dict({"text": texts}), tokenizer, max_length=32)
    assert set(passages.column_names) == {"input_ids", "length", "passage_id", "document_id"}
    for row in passages:
        assert row["input_ids"][0] == tokenizer.cls_token_id
        assert row["input_ids"][-1] == tokenizer.sep_token_id
        assert row["length"] == len(row["input_ids"]) <= 32
    first = tokenizer.decode(passages[0]["input_ids"], skip_special_tokens=True)
    assert first == "the quick fox jumps over the river number 0. it was quick indeed!"
    assert len(set(passages["passage_id"])) == len(passages)


def test_passages_do_not_depend_on_processes_nor_batches(texts, tokenizer):
    documents = Dataset.from_dict({"text": texts})
    one = tokenize_passages(documents, tokenizer, 16, short_seq_prob=0.5, seed=3)
    two = tokenize_passages(documents, tokenizer, 16, short_seq_prob=0.5, seed=3, num_proc=2)
    assert one[:] == two[:]


def test_short_targets_make_more_and_shorter_passages(tokenizer):
    documents = Dataset.from_dict({"text": ["The fox. " * 300]})
    long, short = (
        tokenize_passages(documents, tokenizer, 32, short_seq_prob=probability) for probability in (0.0, 0.9)
    )
    assert sum(long["length"]) - 2 * len(long) == sum(short["length"]) - 2 * len(short)
    assert len(short) > 1.4 * len(long)


def test_a_stride_and_a_bound_of_passages(tokenizer):
    documents = Dataset.from_dict({"text": ["The fox. The wolf. The otter. " * 9, "The otter."]})
    plain, shared = (tokenize_passages(documents, tokenizer, 16, stride=stride) for stride in (0, 6))
    assert len(shared) > len(plain)
    first, second = (tokenizer.decode(row, skip_special_tokens=True) for row in shared["input_ids"][:2])
    assert any(first.endswith(second[:length]) for length in range(8, len(second)))
    bounded = tokenize_passages(documents, tokenizer, 16, max_passages_per_document=2)
    assert bounded["document_id"][:] == [0, 0, 1]
    assert bounded["input_ids"][:2] == plain["input_ids"][:2]


def test_documents_without_a_token_are_dropped_and_counted(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        passages = tokenize_passages(Dataset.from_dict({"text": ["the fox", "", " \n", "a wolf"]}), tokenizer, 16)
    assert len(passages) == 2
    assert "2 of 4 documents hold no token and were dropped" in caplog.text


def write_files(folder):
    (folder / "lines.txt").write_text("first line\nsecond line\n", encoding="utf-8")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": t, "n": 1}) + "\n" for t in ("a b", "c d")))
    (folder / "other.jsonl").write_text(json.dumps({"body": "a b"}) + "\n")
    Dataset.from_dict({"text": ["p q", "r s"]}).to_parquet(folder / "rows.parquet")
    (folder / "books").mkdir()
    (folder / "books" / "one.txt").write_text("line 1\nline 2\n")
    (folder / "books" / "two.txt").write_text("line 3\n")


def test_sources(tmp_path):
    write_files(tmp_path)
    assert load_documents(tmp_path / "lines.txt")["text"][:] == ["first line", "second line"]
    assert load_documents(str(tmp_path / "rows.jsonl"))["text"][:] == ["a b", "c d"]
    assert load_documents(str(tmp_path / "rows.parquet"))["text"][:] == ["p q", "r s"]
    assert load_documents(tmp_path / "books")["text"][:] == ["line 1\nline 2\n", "line 3\n"]
    assert load_documents(tmp_path / "other.jsonl", text_column="body")["text"][:] == ["a b"]
    assert load_documents(iter(["x", "y"]))["text"][:] == ["x", "y"]
    assert load_documents([{"text": "x", "n": 1}])["text"][:] == ["x"]


def test_null_is_dropped_and_counted(caplog):
    with caplog.at_level(logging.WARNING):
        assert load_documents([{"text": "x"}, {"text": None}])["text"][:] == ["x"]
    assert "1 documents of the corpus hold null" in caplog.text


def test_bad_sources_are_one_sentence(tmp_path):
    write_files(tmp_path)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    (tmp_path / "README.md").write_text("text")
    for source, message in (
        ("./absent", "does not exist"),
        (tmp_path / "nothing", "neither a .txt"),
        (tmp_path / "README.md", "neither a .txt"),
        ([1, 2], "neither a string nor a mapping"),
        (5, "no source of text"),
        (tmp_path, "several kinds"),
        ([], "the corpus holds no documents"),
        ([{"text": "a"}, {"text": 1}], "the corpus row 2 holds no text in 'text'"),
        ([{"text": ["a"]}], "the corpus row 1 holds no text in 'text'"),
        (Dataset.from_dict({"text": [1]}), "the column 'text' of the corpus holds int64, not text"),
        ("no-such-dataset-on-the-hub", "cannot be read as a dataset"),
    ):
        with pytest.raises(RetroMAEError, match=message) as raised:
            pytest.fail(f"{source} gave {load_documents(source)[:]}")
        assert "\n" not in str(raised.value), source


def test_bad_arguments_are_one_sentence(tokenizer):
    documents = Dataset.from_dict({"text": ["the fox"]})
    for arguments, message in (
        ({"max_length": 2}, "no room for a token"),
        ({"max_length": 16, "short_seq_prob": 1.5}, "short_seq_prob"),
        ({"max_length": 16, "stride": 14}, "stride=14 must be 0 or more, and below the 14 tokens"),
        ({"max_length": 16, "stride": 2, "pairs": True}, "leave stride out"),
        ({"max_length": 16, "max_passages_per_document": 0}, "max_passages_per_document=0"),
    ):
        with pytest.raises(RetroMAEError, match=message):
            tokenize_passages(documents, tokenizer, **arguments)
    with pytest.raises(RetroMAEError, match="no passage with a token"):
        tokenize_passages(Dataset.from_dict({"text": [" "]}), tokenizer, 16)
