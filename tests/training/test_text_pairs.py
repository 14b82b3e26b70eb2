"""Text without queries yields pairs of its own, which follow from the text and keep out what is held out."""

from __future__ import annotations

import dataclasses
import json
import logging
import re

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from retromae_hf import RetroMAEError
from retromae_hf.arguments.finetuning import PAIRS, FinetuneArguments
from retromae_hf.arguments.pretraining import TextSource
from retromae_hf.checkpoints.loading import load_sentence_transformer
from retromae_hf.data.documents import fingerprint_of_rows
from retromae_hf.data.text import split_first_sentence
from retromae_hf.data.text_pairs import CROPPED_WORDS, MIN_CROPPED_WORDS, _crops, pairs_from_text
from retromae_hf.data.words import spans_of_words
from retromae_hf.training.pretraining import read_text
from retromae_hf.training.training_rows import (
    JudgedCorpus,
    TrainingData,
    fitted_rows,
    mined_rows,
    read_training_data,
)

WORDS = st.sampled_from(["otter", "wolf", "我", "们", "ไก่", "re-tie,", "e\u0301t\u00e9", "🦊", "meadow."])
GAPS = st.sampled_from([" ", "\n", " \t ", "\n\n"])


def titled_rows(texts):
    return [{"title": f"Note {number}", "text": text} for number, text in enumerate(texts)]


@pytest.fixture
def notes(texts, tmp_path):
    file = tmp_path / "notes.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in titled_rows(texts)))
    return str(file)


def rows_of(encoder_folder, dataset, kind, seed=0, **options):
    args = FinetuneArguments(
        model_name_or_path=encoder_folder,
        dataset=dataset,
        pairs=kind,
        query_length=512,
        passage_length=512,
        **options,
    )
    data, model = read_training_data(args, seed), load_sentence_transformer(encoder_folder)
    return fitted_rows(args, mined_rows(args, data, model, seed) if args.hard_negatives else data.rows, model, seed)


def folded(text):
    return " ".join(text.lower().split())


@pytest.mark.parametrize("kind", PAIRS)
def test_what_pretraining_holds_out_is_in_no_pair(kind, notes, texts, encoder_folder):
    _, task, _ = read_text(TextSource(notes), 42)
    assert len(task.queries) == 12
    held_out = {*map(folded, task.queries.values())}
    rows = rows_of(encoder_folder, notes, kind)
    assert len(rows) == len(texts) - 12
    of_held_out = {texts.index(text) for text in texts if folded(split_first_sentence(text)[0]) in held_out}
    for row in rows:
        assert not any(query in folded(row[column]) for query in held_out for column in row)
        assert row["query"] not in {f"Note {place}" for place in of_held_out}
    assert len(rows_of(encoder_folder, notes, kind, dev_queries=0)) == len(texts)


def test_of_pydocs_the_reported_queries_are_never_in_a_pair(documents_held_out, encoder_folder):
    rows = rows_of(encoder_folder, "pydocs", "first-sentence", dev_queries=0)
    assert documents_held_out.queries
    assert not {*documents_held_out.queries.values()} & {*rows["query"][:]}
    assert len(rows) == len(documents_held_out.pretraining) - len(documents_held_out.queries)


@pytest.fixture
def documents_held_out(texts, monkeypatch):
    from retromae_hf.data.held_out import hold_out

    documents = Dataset.from_dict({"name": [f"name{number}" for number in range(len(texts))], "text": texts})
    held_out = hold_out(documents, 10, 50)
    monkeypatch.setattr("retromae_hf.data.held_out.load_held_out_pydocs", lambda num_proc=None: held_out)
    return held_out


def test_a_first_sentence_goes_with_the_rest(texts):
    (row,) = pairs_from_text(Dataset.from_dict({"text": texts[:1]}), "first-sentence", seed=0)
    assert (row["query"], row["positive"]) == split_first_sentence(texts[0])


@pytest.mark.parametrize("in_front", ["", "On  foxes. "])
def test_a_title_goes_with_the_text_without_it(in_front, texts):
    documents = Dataset.from_dict({"title": ["On  foxes.", None], "text": [in_front + texts[0], texts[1]]})
    (row,) = pairs_from_text(documents, "title", seed=0)
    assert row == {"query": "On foxes.", "positive": texts[0]}


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.tuples(WORDS, GAPS), max_size=60), min_size=1, max_size=3),
    st.integers(min_value=0, max_value=2**40),
)
def test_crops_are_words_in_a_row_a_tenth_to_a_half_of_the_document(documents, seed):
    texts = ["".join(word + gap for word, gap in words) for words in documents]
    long_enough = [text for text in texts if len(spans_of_words(text)) >= MIN_CROPPED_WORDS]
    pairs = list(_crops(texts, seed))
    assert len(pairs) == len(long_enough)
    for text, pair in zip(long_enough, pairs, strict=True):
        spans = spans_of_words(text)
        words = [text[start:end] for start, end in spans]
        for crop in pair:
            start = text.index(crop)
            cropped = [crop[begin:end] for begin, end in spans_of_words(crop)]
            assert max(5, len(words) // 10) <= len(cropped) <= len(words) // 2
            assert any(words[place : place + len(cropped)] == cropped for place in range(len(words)))
            assert text[start : start + len(crop)] == crop
    assert pairs == list(_crops(texts, seed))
    assert sorted(pairs) == sorted(_crops(texts[::-1], seed)), "the order of documents does not matter"


def test_crops_of_another_seed_are_others(texts):
    documents = Dataset.from_dict({"text": texts})
    one, same, other = (pairs_from_text(documents, "crop", seed).to_list() for seed in (1, 1, 2))
    assert one == same
    assert sum(row == another for row, another in zip(one, other, strict=True)) < len(texts) // 10


def test_crops_are_spread_over_a_document_and_lie_near_each_other_in_a_book():
    book = " ".join(map(str, range(5000)))
    starts = []
    for seed in range(40):
        ((query, positive),) = _crops([book], seed)
        numbers = [int(word) for crop in (query, positive) for word in crop.split()]
        assert max(numbers) - min(numbers) < CROPPED_WORDS
        assert CROPPED_WORDS // 10 <= len(query.split()) <= CROPPED_WORDS // 2
        starts.append(numbers[0])
    assert min(starts) < 500
    assert max(starts) > 4500


def test_words_are_told_apart_by_white_space_or_where_there_is_none_by_characters():
    text = "An otter-like  one。我们 ไก่กา"
    words = ["An", "otter-like", "one。", "我", "们", "ไ", "ก่", "ก", "า"]
    assert [text[start:end] for start, end in spans_of_words(text)] == words


def test_documents_too_short_for_a_pair_are_counted(texts, caplog):
    documents = Dataset.from_dict({"text": [texts[0], "The fox. It ran.", "", texts[1]]})
    with caplog.at_level(logging.INFO):
        assert len(pairs_from_text(documents, "first-sentence", 0)) == 2
    assert "2 pairs of 4 documents; 2 have no first sentence of 5 words with 15 more" in caplog.text


@pytest.mark.parametrize(
    ("documents", "kind", "message"),
    [
        ({"text": ["The fox. It ran."]}, "first-sentence", "all have no first sentence of 5 words"),
        ({"text": ["The fox."], "title": ["Fox"]}, "title", "all have no title with 15 words beside it"),
        ({"text": ["The fox."], "title": [None]}, "title", "needs a column 'title' that is not empty"),
        ({"text": ["The fox."], "title": [1]}, "title", "the column 'title' of the text holds int64, not text"),
    ],
)
def test_text_that_yields_no_pair_is_one_sentence(documents, kind, message):
    with pytest.raises(RetroMAEError, match=message):
        pairs_from_text(Dataset.from_dict(documents), kind, seed=0)


@pytest.mark.parametrize("miner", ["bm25", "model"])
@pytest.mark.parametrize("kind", ["first-sentence", "crop"])
def test_a_pair_s_own_document_is_never_its_negative(kind, miner, encoder_folder, tmp_path):
    # Every second word tells the document.
    lines = [f"The otter x{place} wolf x{place}. " + f"Otter x{place} meadow x{place} " * 8 for place in range(12)]
    (tmp_path / "lines.txt").write_text("\n".join([*lines, lines[0]]))  # the last is a copy of the first
    options = {"hard_negatives": miner, "num_negatives": 3, "negative_depth": 8}
    rows = rows_of(encoder_folder, str(tmp_path / "lines.txt"), kind, dev_queries=0, **options)
    assert len({*rows["query"][:]}) == 12
    for row in rows:
        positive, *negatives = ({*re.findall(r"x\d+", row[name])} for name in row if name != "query")
        assert positive == {*re.findall(r"x\d+", row["query"])}
        assert not any(positive & negative for negative in negatives)


@pytest.mark.parametrize("miner", ["bm25", "model"])
def test_a_query_that_is_a_document_itself_is_never_its_own_negative(miner, encoder_folder):
    animals = ("otter", "wolf", "horse", "raven", "trout")
    documents = {animal: f"The {animal} sleeps in the meadow." for animal in animals}
    # Under the same id another text, as in ArguAna; under another id the same text.
    queries = {"otter": "an otter sleeps in the meadow", "q": documents["wolf"]}
    corpus = JudgedCorpus(queries, documents, {"otter": ["horse"], "q": ["raven"]})
    args = FinetuneArguments(encoder_folder, "d", hard_negatives=miner, num_negatives=3, negative_depth=5)
    rows = mined_rows(args, TrainingData(corpus.pairs(), corpus), load_sentence_transformer(encoder_folder), seed=0)
    assert {(row["query"], row["positive"]) for row in rows} == {
        (queries["otter"], documents["horse"]),
        (queries["q"], documents["raven"]),
    }
    for row, own in zip(sorted(rows, key=lambda row: row["positive"]), ("otter", "wolf"), strict=True):
        assert documents[own] not in {row[f"negative_{number}"] for number in (1, 2, 3)}
    too_few = dataclasses.replace(args, num_negatives=4)
    with pytest.raises(RetroMAEError, match="no query has 4 hard negatives"):
        mined_rows(too_few, TrainingData(corpus.pairs(), corpus), load_sentence_transformer(encoder_folder), seed=0)


def test_rows_are_the_same_at_every_start(notes, encoder_folder):
    first, again = (rows_of(encoder_folder, notes, "crop") for _ in range(2))
    assert fingerprint_of_rows(first) == fingerprint_of_rows(again)


@pytest.mark.parametrize("ending", ["csv", "saved", "beir"])
def test_every_source_of_text_has_titles_and_rests(ending, texts, tmp_path, encoder_folder):
    rows = titled_rows(texts[:30])
    source = tmp_path / f"notes.{ending}"
    dataset = Dataset.from_list(rows)
    if ending == "csv":
        dataset.to_csv(source)
    elif ending == "saved":
        dataset.save_to_disk(source)
    elif ending == "beir":
        source.mkdir()
        dataset.add_column("_id", [str(number) for number in range(30)]).to_json(source / "corpus.jsonl")
    pairs = rows_of(encoder_folder, str(source), "title", dev_queries=0)
    assert pairs[:] == {"query": [row["title"] for row in rows], "positive": texts[:30]}
