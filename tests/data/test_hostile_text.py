"""Text that is broken, endless or none, and names that would lead out of their folder."""

from __future__ import annotations

import json
import logging

import pytest
from conftest import write_beir
from datasets import Dataset

import retromae_hf.data.passages
from retromae_hf import RetroMAEError, load_documents, tokenize_passages
from retromae_hf.arguments.filling import fill
from retromae_hf.data.disk import LONGEST_NAME, check_file_name
from retromae_hf.data.text import LONGEST_READ, cut_long
from retromae_hf.data.tokenizers import train_tokenizer
from retromae_hf.retrieval.embedders import embed
from retromae_hf.retrieval.tasks import load_beir
from retromae_hf.studies.comparison_recipe import Comparison

SOUND = '{"text": "a b"}\n'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": \n', "is not JSON"),
        ('"a"\n', "is not a JSON object"),
        ('{"text": 5}\n', "holds no text in 'text'"),
        ('{"text": ["a"]}\n', "holds no text in 'text'"),
        ('{"text": "a \x00 b"}\n', "is not JSON"),
        ('{"text": "c", "other": ' + "[" * 9999 + "]" * 9999 + "}\n", "is not JSON"),
    ],
)
def test_a_broken_line_is_counted_and_left_out_or_fatal(line, reason, tmp_path, caplog):
    file = tmp_path / "lines.jsonl"
    file.write_text(SOUND * 2 + line + SOUND, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert load_documents(file)["text"][:] == ["a b"] * 3
    assert f"1 of 4 lines are broken and were left out; the first: {file} line 3 {reason}" in caplog.text
    with pytest.raises(RetroMAEError, match=f"line 3 {reason}; mend the file"):
        load_documents(file, on_broken_line="error")


@pytest.mark.parametrize("opening", ["[", '{"a":', "[\n"])
def test_endless_brackets_do_not_end_the_process(opening, tmp_path):
    """Read by pyarrow they overflow its stack."""
    for content in (SOUND + opening * 20_000, opening * 20_000):
        (tmp_path / "deep.json").write_text(content)
        with pytest.raises(RetroMAEError, match=r"deep\.json line \d+ is not JSON"):
            load_documents(tmp_path / "deep.json", on_broken_line="error")
    task = write_beir(tmp_path / "task")
    (task / "corpus.jsonl").write_text('{"_id": "d", "text": "a", "x": ' + opening * 20_000 + "\n")
    with pytest.raises(RetroMAEError, match=r"corpus\.jsonl line 1 is not"):
        load_beir(task)


def test_brackets_in_a_text_are_no_nesting(tmp_path):
    rows = [{"text": "[" * 2000 + '"{'}, {"text": "a"}]
    (tmp_path / "brackets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_documents(tmp_path / "brackets.jsonl", on_broken_line="error")["text"][:] == [
        row["text"] for row in rows
    ]


def test_a_file_that_changes_is_read_anew(tmp_path):
    file = tmp_path / "lines.jsonl"
    for text in ("one", "other!"):
        file.write_text(json.dumps({"text": text}) + "\n" + SOUND + "{\n")
        assert load_documents(file)["text"][:] == [text, "a b"]


def test_what_is_mostly_broken_is_no_corpus(tmp_path):
    (tmp_path / "lines.jsonl").write_text(SOUND + "no JSON\n" * 2)
    with pytest.raises(RetroMAEError, match="2 of 3 lines are broken; give lines with text"):
        load_documents(tmp_path / "lines.jsonl")


def test_lone_surrogates_become_question_marks(tmp_path, tokenizer, model):
    (tmp_path / "lines.jsonl").write_text(SOUND + '{"text": "a \\ud800 b"}\n')
    assert load_documents(tmp_path / "lines.jsonl")["text"][:] == ["a b", "a ? b"]
    assert load_documents(["a \ud800 b"])["text"][:] == ["a ? b"]
    assert train_tokenizer("wordpiece", ["a \ud800 b"], 99, 16, True)("b")["input_ids"]
    assert embed(model, tokenizer, ["fox \udce9"], progress=False).isfinite().all()


def test_a_mark_of_byte_order_is_no_text(tmp_path):
    for content in (b"\xef\xbb\xbfa\r\nb\r\n", b"a\nb\n"):
        (tmp_path / "lines.txt").write_bytes(content)
        assert load_documents(tmp_path / "lines.txt")["text"][:] == ["a", "b"]


def test_half_a_character_at_the_end_is_not_utf8(tmp_path):
    (tmp_path / "half.txt").write_bytes("a\né".encode()[:-1])
    with pytest.raises(RetroMAEError, match=r"half\.txt is not UTF-8"):
        load_documents(tmp_path / "half.txt")


def test_a_folder_that_holds_itself_is_read_once(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "self").symlink_to(tmp_path)
    assert load_documents(tmp_path)["text"][:] == ["hello"]


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])  # byte-level BPE may see a word without its space at a cut
def test_a_long_document_is_never_tokenised_at_once(kind, texts, monkeypatch):
    tokenizer = train_tokenizer(kind, texts, 400, 32, lowercase=False)
    documents = Dataset.from_dict({"text": [" ".join(texts), *texts[:5], ""]})
    whole = tokenize_passages(documents, tokenizer, 32)
    sizes = []

    class Watched:
        def __call__(self, given, **options):
            sizes.append(sum(map(len, given)))
            return tokenizer(given, **options)

    monkeypatch.setattr(retromae_hf.data.passages, "LONGEST_PIECE", 500)
    monkeypatch.setattr(retromae_hf.data.passages, "cut_long", lambda text: cut_long(text, 500))
    found = [
        tokens.tolist()
        for tokens, *_ in retromae_hf.data.passages._tokenize_documents(documents["text"][:], Watched(), None)
    ]
    assert max(sizes) <= 500 < len(documents[0]["text"])
    tokens = {}
    for row in whole:
        tokens.setdefault(row["passage_id"] >> 24, []).extend(row["input_ids"][1:-1])
    assert found[:-1] == list(tokens.values())  # cut at white space, the pieces have the very tokens of the whole
    assert found[-1] == []


def test_a_text_without_white_space_is_cut_too():
    assert list(cut_long("a" * 25, 10)) == ["a" * 10, "a" * 10, "a" * 5]
    assert list(cut_long(f"{'a' * 19} bb {'c' * 20}", 20)) == ["a" * 19, f"bb {'c' * 17}", "ccc"]
    assert list(cut_long(" \n ")) == [""]


def test_an_embedding_looks_at_the_head_of_a_text_alone(model, tokenizer, texts):
    class Watched:
        model_max_length = 32

        def __call__(self, given, **options):
            assert max(map(len, given)) <= LONGEST_READ
            return tokenizer(given, **options)

    endless = texts[0] + " fox" * LONGEST_READ
    assert (embed(model, Watched(), [endless], progress=False) == embed(model, tokenizer, [endless])).all()


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../x", "/x", "a/b", "a\\b", "a\0b", "a\nb", "x" * 201, 5, None])
def test_names_that_would_lead_out_of_their_folder(name):
    with pytest.raises(RetroMAEError, match=r"the name .* becomes part of a file name"):
        check_file_name("the name", name)


@pytest.mark.parametrize("name", ["mlm", "...", "a b", "Überraschung", "x" * LONGEST_NAME])
def test_names_that_are_fine(name, tmp_path):
    check_file_name("the name", name)
    (tmp_path / f"{name}-dense.trec").write_text("")


def test_objectives_and_splits_stay_in_their_folders(tmp_path):
    sound = {
        "dataset": "x",
        "finetuning_dataset": "x",
        "tasks": ["x"],
        "model": {},
        "pretraining": {},
        "finetuning": {},
    }
    for seeds, name, message in (([0], "../x", "the objective's name"), (["../x"], "mlm", r"seeds=\['../x'\] must be")):
        recipe = sound | {"seeds": seeds, "objectives": {name: {}}, "reference": name, "output_dir": str(tmp_path)}
        with pytest.raises(RetroMAEError, match=message):
            fill(recipe, [Comparison], "the recipe")
    with pytest.raises(RetroMAEError, match=r"split '\.\./test' becomes part"):
        load_beir(write_beir(tmp_path / "task"), "../test")
