"""The file that is named is read, of a folder what is data, of a row what was asked for; by a stream as well."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
import re

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, load_dataset

import retromae_hf.data.files
from retromae_hf import RetroMAEError, load_documents
from retromae_hf.arguments.pretraining import TextSource
from retromae_hf.data.documents import load_rows
from retromae_hf.data.held_out import load_held_out
from retromae_hf.data.streams import DocumentStream
from retromae_hf.retrieval.tasks import _read_texts


def lines(*rows) -> str:
    return "".join(json.dumps(row if isinstance(row, dict) else {"text": row}) + "\n" for row in rows)


def put(file, content: str | bytes):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def texts_of(source, config_name=None, split="train", text_column="text") -> list[str]:
    """The texts of a source, which are the same read at once and as a stream; both refuse with the same sentence."""

    def stream() -> list[str]:
        text = TextSource(str(source), dataset_config_name=config_name, dataset_split=split, text_column=text_column)
        return [text for _, text in DocumentStream(text, 0).in_order()]

    try:
        documents = load_documents(source, config_name, split, text_column)["text"][:]
    except RetroMAEError as error:
        with pytest.raises(RetroMAEError, match=re.escape(str(error))):
            stream()
        raise
    assert stream() == documents
    return documents


NAMES = [
    "notes[1].txt",
    "a*.txt",
    "*.txt",
    "a?b.txt",
    "$HOME.txt",
    "~x.txt",
    "file::x.txt",
    "zip:x::y.txt",
    "#1 %41.txt",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_named_file_is_read_whatever_its_name(name, tmp_path, monkeypatch):
    folder = tmp_path / "[work]" / "a::b"
    for neighbour in ("notes1.txt", "abc.txt", "x.txt"):
        put(folder / neighbour, "neighbour\n")
    put(folder / name, "one\n")
    assert texts_of(folder / name) == ["one"]
    assert load_rows(str(folder / name), None, "train")["text"][:] == ["one"]
    assert sorted(texts_of(folder)) == ["neighbour\n"] * 3 + ["one\n"]
    monkeypatch.chdir(folder)
    assert texts_of(name) == ["one"]


@pytest.mark.parametrize(
    "hidden",
    [
        ".ipynb_checkpoints/a-checkpoint.jsonl",
        ".b.jsonl",
        "__MACOSX/b.jsonl",
        "__b.jsonl",
        "x/.y/b.jsonl",
        "config.json",
    ],
)
def test_what_is_no_data_in_a_folder_is_left_out(hidden, tmp_path):
    put(tmp_path / "corpus" / "a.jsonl", lines("a"))
    put(tmp_path / "corpus" / hidden, lines("b"))
    assert texts_of(tmp_path / "corpus") == ["a"]


SPLIT_FOLDERS = {
    "shards": ("data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-00000-of-00001.jsonl"),
    "own splits": ("data/train-00000-of-00001.jsonl", "data/queries.hard-00000-of-00001.jsonl"),
    "names": ("train.jsonl", "sub/my_train_2.jsonl", "dev.jsonl", "eval-1.jsonl"),
    "folders": ("train/a.jsonl", "test/train.jsonl", "validation/x/a.jsonl"),
    "some have none": ("train.jsonl", "other.jsonl"),
    "no splits": ("a.jsonl", "b/trains.jsonl"),
    "test alone": ("test.jsonl",),
}


@pytest.mark.parametrize("names", SPLIT_FOLDERS.values(), ids=SPLIT_FOLDERS)
def test_splits_of_a_folder_are_those_of_load_dataset(names, tmp_path):
    for name in names:
        put(tmp_path / name, lines(name))
    expected = load_dataset(str(tmp_path))
    for split in expected:
        assert sorted(texts_of(tmp_path, split=split)) == sorted(expected[split]["text"])
        assert sorted(load_rows(str(tmp_path), None, split)["text"]) == sorted(expected[split]["text"])
    for split in {"train", "validation", "test"} - set(expected):
        with pytest.raises(RetroMAEError, match=f"dataset_split='{split}' is unknown; choose one of "):
            texts_of(tmp_path, split=split)


def test_files_that_belong_to_no_split_are_told(tmp_path, caplog):
    put(tmp_path / "train.jsonl", lines("a"))
    put(tmp_path / "other.jsonl", lines("b"))
    assert load_documents(tmp_path)["text"][:] == ["a"]
    assert f"1 of 2 files of {tmp_path} are left out, as they belong to no split (train)" in caplog.text


def test_configurations_of_a_folder_are_those_of_its_readme(tmp_path):
    for name in ("en/1.jsonl", "en/dev.jsonl", "de.jsonl"):
        put(tmp_path / name, lines(name))
    card = 'configs:\n- config_name: en\n  data_files:\n  - {split: train, path: "en/[0-9].jsonl"}\n'
    card += "  - {split: dev, path: [en/dev.jsonl]}\n- config_name: de\n  data_files: de.jsonl\n"
    put(tmp_path / "README.md", f"---\n{card}---\nText.\n")
    assert texts_of(tmp_path, "en") == ["en/1.jsonl"]
    assert texts_of(tmp_path, "en", "dev") == ["en/dev.jsonl"]
    assert texts_of(tmp_path, "de") == ["de.jsonl"]
    for config in (None, "fr"):
        with pytest.raises(RetroMAEError, match=f"dataset_config_name={config!r} is unknown; choose one of en, de"):
            texts_of(tmp_path, config)


def test_an_option_without_an_effect_is_refused(tmp_path):
    put(tmp_path / "a.jsonl", lines("a"))
    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    for source in (tmp_path / "a.jsonl", tmp_path, tmp_path / "saved"):
        with pytest.raises(RetroMAEError, match="dataset_split='validation' is unknown; choose one of train"):
            texts_of(source, split="validation")
        with pytest.raises(RetroMAEError, match="dataset_config_name='en' is unknown; choose one of default"):
            texts_of(source, "en")
    for load in (load_documents, lambda source, split: load_held_out(TextSource(source, dataset_split=split))):
        with pytest.raises(RetroMAEError, match="pydocs: dataset_split='validation' is unknown"):
            load("pydocs", split="validation")


def test_what_save_to_disk_wrote_is_read(tmp_path):
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "id": [1, 2, 3]})
    rows.save_to_disk(tmp_path / "[1]", num_shards=2)
    DatasetDict(train=rows, test=rows.select([2])).save_to_disk(tmp_path / "dict")
    assert texts_of(tmp_path / "[1]") == texts_of(tmp_path / "dict") == ["a", "b", "c"]
    assert texts_of(tmp_path / "dict", split="test") == ["c"]
    assert load_rows(str(tmp_path / "dict"), None, "test").to_list() == [{"text": "c", "id": 3}]
    with pytest.raises(RetroMAEError, match="choose one of train, test"):
        texts_of(tmp_path / "dict", split="validation")


PACKED = {
    ".gz": lambda content: gzip.compress(content[:9]) + gzip.compress(content[9:]),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}


@pytest.mark.parametrize("ending", PACKED)
def test_packed_files_are_read(ending, tmp_path):
    for name, content in {
        "x.jsonl": lines("a", "b"),
        "x.json": '["a", "b"]',
        "x.csv": "text\na\nb",
        "x.TXT": "a\nb",
    }.items():
        assert texts_of(put(tmp_path / f"{name}{ending}", PACKED[ending](content.encode()))) == ["a", "b"]
    (tmp_path / f"x.jsonl{ending}").write_bytes(PACKED[ending](lines(*map(str, range(999))).encode())[:-30])
    with pytest.raises(RetroMAEError, match="cannot be read"):
        load_documents(tmp_path / f"x.jsonl{ending}")


def test_all_of_a_csv_file_is_text(tmp_path):
    words = ["NA", "null", "None", "nan", "007", "1.50", "a, b", "c\nd", "true"]
    pd.DataFrame({"text": words, "label": range(9)}).to_csv(tmp_path / "a.csv")
    assert texts_of(tmp_path / "a.csv") == words
    rows = load_rows(str(tmp_path / "a.csv"), None, "train")
    assert rows.column_names == ["text", "label"], "the index of pandas has no name"
    assert (rows["text"][:], rows["label"][:]) == (words, list("012345678"))
    assert texts_of(put(tmp_path / "numbers.csv", "\ufefftext\r\n12\r\n007\r\n")) == ["12", "007"]


def test_rows_of_a_csv_file_that_do_not_fit_are_broken(tmp_path, caplog):
    put(tmp_path / "a.csv", 'text\na\nb\nc, d\ne\n"f\ng\n')
    assert texts_of(tmp_path / "a.csv") == ["a", "b", "e"]
    assert f"2 of 5 lines are broken and were left out; the first: {tmp_path}/a.csv line 4 has 2 values" in caplog.text
    with pytest.raises(RetroMAEError, match="line 4 has 2 values for 1 columns; mend the file"):
        load_rows(str(tmp_path / "a.csv"), None, "train")


def test_columns_that_nobody_asked_for_do_not_matter(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "id": [1], "more": [[1.5]]}), put(tmp_path / "pq" / "a.parquet", b""))
    pq.write_table(pa.table({"id": ["x"], "text": ["b"]}), tmp_path / "pq" / "b.parquet")
    put(tmp_path / "js" / "a.jsonl", lines({"text": "a", "id": 1, "meta": None}))
    put(tmp_path / "js" / "b.jsonl", lines({"text": "b", "id": "x", "meta": {"k": [1]}}))
    put(tmp_path / "a.json", json.dumps([{"text": "a", "meta": None, "id": 1}, {"meta": [{}], "id": "x", "text": "b"}]))
    for source in (tmp_path / "pq", tmp_path / "js", tmp_path / "a.json"):
        assert texts_of(source) == ["a", "b"]
        rows = load_rows(str(source), None, "train")
        assert (rows["text"][:], rows["id"][:]) == (["a", "b"], ["1", "x"])
    assert load_documents([{"text": "a", "id": 1}, {"text": "b", "id": "x", "meta": 1}])["text"][:] == ["a", "b"]


def test_rows_keep_their_lists_and_numbers(tmp_path):
    rows = [{"query": "a", "pos": ["b", "c"], "scores": [1, 0.5]}, {"query": "d", "pos": [], "scores": []}]
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    put(tmp_path / "a.jsonl", lines(*rows))
    for file in ("a.parquet", "a.jsonl"):
        assert load_rows(str(tmp_path / file), None, "train").to_list() == rows


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", "b"], pa.string_view()),
        pa.array(["a", "b"], pa.large_string()),
        pa.array(["a", "b"]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_every_kind_of_string_is_text(column, tmp_path):
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert texts_of(tmp_path / "a.parquet") == ["a", "b"]
    assert load_documents(Dataset(pa.table({"text": column})))["text"][:] == ["a", "b"]


def test_what_is_not_text_is_refused(tmp_path):
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "numbers.parquet")
    offsets, content = pa.array([0, 3, 5], pa.int32()).buffers()[1], pa.py_buffer(b"abc\xe9\xe9")
    latin = pa.Array.from_buffers(pa.string(), 2, [None, offsets, content])
    pq.write_table(pa.table({"text": latin}), tmp_path / "latin.parquet")
    for name, content in {
        "numbers.jsonl": lines({"text": 1}, {"text": 2}),
        "excel.csv": "text\na\n".encode("utf-16"),
        "header.csv": "text\n",
        "broken.jsonl": '{"body": "a"}\n{\n{"body": "b"}\n',
    }.items():
        put(tmp_path / name, content)
    for name, message in {
        "numbers.parquet": "line 1 holds no text in 'text', and so 2 of 2 lines are broken",
        "numbers.jsonl": "line 1 holds no text in 'text', and so 2 of 2 lines are broken",
        "latin.parquet": "latin.parquet is not UTF-8; convert it",
        "excel.csv": "excel.csv is UTF-16; convert it to UTF-8",
        "broken.jsonl": "has no column 'text'; its columns are body",
    }.items():
        with pytest.raises(RetroMAEError, match=message):
            texts_of(tmp_path / name)
    with pytest.raises(RetroMAEError, match=r"header\.csv holds no documents"):
        load_documents(tmp_path / "header.csv")
    with pytest.raises(RetroMAEError, match=r"latin\.parquet is not UTF-8"):
        load_rows(str(tmp_path / "latin.parquet"), None, "train")


def test_an_empty_file_is_no_document(tmp_path):
    for name, content in {"a.txt": "one\ntwo", "b.txt": "", "c.txt.gz": gzip.compress(b"")}.items():
        put(tmp_path / name, content)
    assert texts_of(tmp_path) == ["one\ntwo"]


def test_null_is_told_in_a_stream_too(tmp_path, caplog):
    put(tmp_path / "a.jsonl", lines("a", {"text": None}, {"body": "b"}))
    with caplog.at_level(logging.WARNING):
        assert texts_of(tmp_path / "a.jsonl") == ["a"]
    assert [record.message for record in caplog.records] == [
        f"2 documents of {tmp_path / 'a.jsonl'} hold null instead of text and were dropped"
    ] * 2


@pytest.mark.parametrize("beside", ["queries.jsonl", "qrels/test.tsv"])
def test_a_beir_folder_is_its_corpus_with_titles_in_front_as_evaluate_has_them(beside, tmp_path):
    corpus = lines(
        {"_id": "1", "title": "T", "text": "a"}, {"_id": "2", "title": "", "text": " b "}, {"_id": "3", "text": "c"}
    )
    put(tmp_path / "beir" / "corpus.jsonl", corpus)
    put(tmp_path / "beir" / beside, lines({"_id": "q", "text": "a query"}))
    put(tmp_path / "packed" / "corpus.jsonl.gz", gzip.compress(corpus.encode()))
    put(tmp_path / "packed" / "queries.jsonl.gz", gzip.compress(lines("a query").encode()))
    evaluated = list(_read_texts(tmp_path / "beir" / "corpus.jsonl", titles=True).values())
    assert evaluated == ["T a", "b", "c"]
    for source in (tmp_path / "beir", tmp_path / "beir" / "corpus.jsonl", tmp_path / "packed"):
        assert texts_of(source) == evaluated


def test_titles_belong_to_the_text_of_collections_alone(tmp_path):
    row = {"title": "T", "text": "a"}
    collections = Dataset.from_list([row | {"docid": 1}])
    collections.to_parquet(tmp_path / "tevatron.parquet")
    collections.save_to_disk(tmp_path / "saved")
    put(tmp_path / "wikipedia.jsonl", lines(row | {"id": 1}))
    assert texts_of(tmp_path / "tevatron.parquet") == texts_of(tmp_path / "saved") == ["T a"]
    assert texts_of(tmp_path / "wikipedia.jsonl") == ["a"]
    assert texts_of(tmp_path / "tevatron.parquet", text_column="title") == ["T"]


def test_the_same_files_are_read_once_and_broken_lines_told_each_time(tmp_path, caplog, monkeypatch):
    put(tmp_path / "a.jsonl", lines("a", "b", "c") + "{\n")
    first = load_documents(tmp_path / "a.jsonl")
    monkeypatch.setattr(retromae_hf.data.files, "LOOKED_AT", 1)
    seen = []
    parsed = retromae_hf.data.files._parsed
    monkeypatch.setattr(retromae_hf.data.files, "_parsed", lambda line: seen.append(line) or parsed(line))
    again = load_documents(tmp_path / "a.jsonl")
    assert len(seen) == 1, "which is looked at for the columns"
    assert first["text"][:] == again["text"][:]
    assert first._fingerprint == again._fingerprint
    assert caplog.text.count("1 of 4 lines are broken and were left out") == 2


def test_files_are_read_by_several_processes_in_their_order(tmp_path):
    for number in range(3):
        put(tmp_path / f"{number}.jsonl", lines(f"{number} a", f"{number} b"))
    assert load_documents(tmp_path, num_proc=2)["text"][:] == [f"{number} {one}" for number in range(3) for one in "ab"]
    put(tmp_path / "3.jsonl", lines("é").encode("utf-16"))
    with pytest.raises(RetroMAEError, match=r"3\.jsonl is UTF-16"):
        load_documents(tmp_path, num_proc=2)
