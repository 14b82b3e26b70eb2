"""Several texts are one, each with its share; what a document is, and what stands in front of it."""

from __future__ import annotations

import json
import logging

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from retromae_hf import RetroMAEError, load_documents
from retromae_hf.arguments.finetuning import FinetuneArguments
from retromae_hf.arguments.pretraining import TextSource
from retromae_hf.commands.main import main
from retromae_hf.data.documents import mix_documents, sample_documents
from retromae_hf.data.held_out import load_held_out
from retromae_hf.data.streams import DocumentStream


def source(name: str, count: int) -> tuple[str, Dataset]:
    return name, Dataset.from_dict({"text": [f"{name} {row}" for row in range(count)]})


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(20, 60), min_size=2, max_size=3),
    weights=st.lists(st.floats(0.2, 5), min_size=3, max_size=3),
    most=st.none() | st.integers(15, 40),
    seed=st.integers(0, 3),
)
def test_shares_are_those_of_the_weights_and_nothing_is_there_twice(counts, weights, most, seed):
    sources = [source(str(number), count) for number, count in enumerate(counts)]
    weights = weights[: len(counts)]
    texts = mix_documents(sources, weights, most, seed)["text"][:]
    assert len(set(texts)) == len(texts)
    total = min(count * sum(weights) / weight for count, weight in zip(counts, weights, strict=True))
    total = min(total, most or total)
    for number, weight in enumerate(weights):
        found = [text for text in texts if text.startswith(f"{number} ")]
        assert found == sorted(found, key=lambda text: int(text.split()[1]))
        assert len(found) == pytest.approx(weight / sum(weights) * total, abs=0.51)
    assert mix_documents(sources, weights, most, seed)["text"][:] == texts
    if most is None:
        assert any(text.count(" ") for text in texts)
        whole = [sum(text.startswith(f"{number} ") for text in texts) == count for number, count in enumerate(counts)]
        assert any(whole)  # the one that has too few


def test_without_weights_all_of_all_and_a_sample_is_always_the_same():
    sources = [source("a", 30), source("b", 10)]
    assert mix_documents(sources, None, None, 0)["text"][:] == sources[0][1]["text"][:] + sources[1][1]["text"][:]
    first, again, other = (mix_documents(sources, None, 12, seed)["text"][:] for seed in (0, 0, 1))
    assert len(first) == 12
    assert first == again != other
    assert sample_documents(sources[1][1], 10, 0) is sources[1][1]


def test_a_share_without_a_document_is_told():
    with pytest.raises(RetroMAEError, match="the share of b in 10 documents is none; give it a larger weight"):
        mix_documents([source("a", 10), source("b", 10)], [1.0, 0.001], None, 0)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_what_ends_a_document_of_a_text_file(tmp_path, ends):
    poem = ["one", "two", "", "  ", "three", "", "four"]
    (tmp_path / "poems").mkdir()
    file = tmp_path / "poems" / "poem.txt"
    file.write_bytes(ends.join(poem).encode())
    paragraphs = ["one\ntwo", "three", "four"]
    for path, separator, expected in (
        (file, None, poem),
        (file, "line", poem),
        (file, "blank-line", paragraphs),
        (file, "file", ["\n".join(poem)]),
        (file.parent, None, ["\n".join(poem)]),
        (file.parent, "blank-line", paragraphs),
        (file.parent, "line", poem),
    ):
        assert load_documents(path, document_separator=separator)["text"][:] == expected, (path, separator)
        stream = DocumentStream(TextSource(str(path), document_separator=separator), 0)
        assert [text for _, text in stream.in_order()] == expected
    for other in (["a list"], "pydocs"):
        with pytest.raises(RetroMAEError, match="document_separator is about; leave it out"):
            load_documents(other, document_separator="line")


def test_a_title_in_front_of_the_text(tmp_path):
    rows = [
        {"head": "Foxes", "body": "They sleep."},
        {"head": None, "body": "Nobody."},
        {"head": "", "body": "Wolves."},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    expected = ["Foxes They sleep.", "Nobody.", "Wolves."]
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "rows.jsonl", tmp_path / "saved"):
        assert load_documents(path, text_column="body", title_column="head")["text"][:] == expected
        stream = DocumentStream(TextSource(str(path), text_column="body", title_column="head"), 0)
        assert [text for _, text in stream.in_order()] == expected
    assert load_documents(rows, text_column="body", title_column="head")["text"][:] == expected
    with pytest.raises(RetroMAEError, match="no column 'header'; its columns are"):
        load_documents(tmp_path / "rows.jsonl", text_column="body", title_column="header")


@pytest.fixture
def two_files(tmp_path, texts) -> list[str]:
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts[:40]))
    (tmp_path / "b.txt").write_text("".join(f"{text}\n" for text in texts[40:60]))
    return [str(tmp_path / "a.jsonl"), str(tmp_path / "b.txt")]


def test_a_stream_of_several_sources_is_each_after_the_other(two_files, texts):
    stream = DocumentStream(TextSource(two_files), 0)
    numbers, read = zip(*stream.in_order(), strict=True)
    assert list(read) == texts[:60]
    assert len(set(numbers)) == 60


def test_a_run_on_two_sources_goes_on_as_it_was_and_says_what_it_read(two_files, encoder_folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    common = f"--model_name_or_path {encoder_folder} --max_length 32 --use_cpu --disable_tqdm true --report_to none"
    common += " --max_steps 4 --save_steps 2 --dev_queries 0 --per_device_train_batch_size 4"
    mix = ["--dataset", *two_files, "--dataset_weights", "3", "1"]
    out = str(tmp_path / "out")
    assert main(["pretrain", *common.split(), *mix, "--output_dir", out]) == 0
    assert "40 of the 40 documents of" in caplog.text
    assert "13 of the 20 documents of" in caplog.text
    card = (tmp_path / "out/README.md").read_text()
    assert "75% of `a.jsonl`, a local file or folder; 25% of `b.txt`, a local file or folder; 53 documents" in card
    changed = [*mix[:-2], "1", "3"]
    assert main(["pretrain", *common.split(), *changed, "--output_dir", out, "--max_steps", "6"]) == 2


def test_of_pydocs_among_others_the_test_is_left_out(two_files, monkeypatch):
    held_out = type("HeldOut", (), {"pretraining": Dataset.from_dict({"text": ["a body"] * 5})})
    monkeypatch.setattr("retromae_hf.data.held_out.load_held_out_pydocs", lambda num_proc: held_out)
    documents = load_held_out(TextSource(["pydocs", two_files[0]], dev_queries=0)).pretraining
    assert documents["text"][:5] == ["a body"] * 5
    assert len(documents) == 45


def test_finetuning_says_when_it_holds_out_other_queries_than_pretraining(tmp_path, texts):
    rows = "".join(f"{json.dumps({'text': text, 'head': 'On animals.'})}\n" for text in texts)
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(rows)
    file = str(tmp_path / "a.jsonl")
    alone = load_held_out(TextSource(file)).queries
    told = FinetuneArguments.__dataclass_fields__["dev_queries"].metadata["help"]
    for option, text in {
        "max_documents": TextSource(file, max_documents=50),
        "title_column": TextSource(file, title_column="head"),
        "other data sets": TextSource([file, str(tmp_path / "b.jsonl")]),
    }.items():
        assert load_held_out(text).queries != alone
        assert option in told
