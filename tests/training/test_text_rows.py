"""Columns are what their names say, in whatever order and kind of file; what cannot be told is refused."""

from __future__ import annotations

import json
import logging

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset

from retromae_hf import RetroMAEError
from retromae_hf.arguments.finetuning import FinetuneArguments
from retromae_hf.data.documents import load_rows
from retromae_hf.training.text_rows import role_of, uniform_rows
from retromae_hf.training.training_rows import load_training_data

PAIR = {"query": "who swims", "positive": "an otter"}
FLAG = {
    "query": "who swims",
    "pos": ["an otter", "a seal"],
    "neg": ["a wolf", "a seal", " ", "a bell", "a wolf", "a cat"],
    "pos_scores": [9.0, 8.0],
    "neg_scores": [1, 8.5, 0, 2, 1, 3],
    "prompt": "ask: ",
    "id": 7,
}


def rows_of(*rows, num_negatives=4, objective="contrastive", seed=0):
    read = uniform_rows("rows", Dataset.from_list(list(rows)), num_negatives, objective, seed)
    return read.to_list()


def load(file, num_negatives=4, **options):
    return load_training_data(FinetuneArguments("m", str(file), num_negatives=num_negatives, **options))


def write(file, *rows):
    """Rows as a file of the kind that its ending says."""
    table = pd.DataFrame(list(rows))
    if file.suffix == ".parquet":
        table.to_parquet(file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        table.to_csv(file, index=False, sep="\t" if file.suffix == ".tsv" else ",")
    return str(file)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "parquet"])
def test_a_column_is_what_its_name_says_in_every_kind_of_file(ending, tmp_path):
    row = {"qid": 12, "Negative": "a wolf", "is_duplicate": 1, "Positive": "an otter", "Anchor": "who swims"}
    read = load(write(tmp_path / f"rows.{ending}", row, row | {"is_duplicate": 0}), 1)
    assert read.to_list() == [PAIR | {"negative_1": "a wolf"}]


@pytest.mark.parametrize(
    "row",
    [
        {"positive": "P", "query": "Q"},
        {"answer": "P", "question": "Q", "answer_id": "x", "language": "en"},
        {"passage": "P", "anchor": "Q", "title": "T", "__index_level_0__": "i"},
        {"Positive Passage": "P", "queryText": "Q"},
        {"sentence2": "P", "sentence1": "Q", "genre": "g"},
        {"text_b": "P", "text_a": "Q"},
    ],
)
def test_the_names_tell_and_what_they_tell_is_said(row, caplog):
    with caplog.at_level(logging.INFO):
        assert rows_of(row) == [{"query": "Q", "positive": "P"}]
    assert f"the query is {next(name for name, text in row.items() if text == 'Q')!r}" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "a", "positive": "b", "answer": "c"}, "several columns for the positive, positive, answer"),
        (PAIR | {"label": 1, "score": 0.5}, "several columns for the label, label, score"),
        ({"title": "a", "abstract": "b"}, "tell the query and the positive .* --query_column and --positive_column"),
        (PAIR | {"negative": "34"}, "the negative_1 of rows is no text but '34'"),
        ({"query": "a", "pos": "['b', 'c']"}, "the positive of rows is no text but"),
        ({"query": "a", "positive_passages": [{"docid": "1"}]}, "for 'positive_passages', which is no text"),
        ({"query": ["a", "b"], "positive": "c"}, "for 'query', which is no text"),
    ],
)
def test_what_the_columns_do_not_tell_is_refused(row, message):
    with pytest.raises(RetroMAEError, match=message):
        rows_of(row)


@pytest.mark.parametrize("label", [-1, None, "entailment", [1, 0]])
def test_a_label_that_does_not_tell_whether_a_pair_matches_is_refused(label):
    with pytest.raises(RetroMAEError, match="for 'score'"):
        rows_of(PAIR | {"score": label})


def test_where_0_is_entailment_labels_are_refused():
    classes = ClassLabel(names=["entailment", "not_entailment"])
    rows = Dataset.from_dict({"question": ["a"], "answer": ["b"], "label": [1]}).cast_column("label", classes)
    with pytest.raises(RetroMAEError, match="for 'label'"):
        uniform_rows("rows", rows, 1, "contrastive", 0)


def test_a_row_of_flag_embedding_makes_one_for_each_positive(caplog):
    rows = rows_of(FLAG)
    assert [row["positive"] for row in rows] == ["an otter", "a seal"]
    assert all([row[f"negative_{one}"] for one in (1, 2, 3)] == ["a wolf", "a bell", "a cat"] for row in rows)
    assert "1 negatives are positives of their row" in caplog.text


def test_a_drawn_negative_takes_its_score_along():
    scores = dict(zip(FLAG["neg"], FLAG["neg_scores"], strict=True))
    for objective in ("kl", "margin_mse"):
        for row, score in zip(rows_of(FLAG, num_negatives=2, objective=objective), (9.0, 8.0), strict=True):
            assert row["label"] == [score, scores[row["negative_1"]], scores[row["negative_2"]]]


def test_tevatrons_passages_have_their_titles_in_front():
    passages = [{"docid": "1", "title": "Seas", "text": "an otter"}, {"docid": "2", "title": "", "text": "a seal"}]
    negatives = [{"docid": "3", "title": None, "text": "a wolf"}]
    rows = rows_of({"query_id": "1", "query": "Q", "positive_passages": passages, "negative_passages": negatives})
    assert [row["positive"] for row in rows] == ["Seas an otter", "a seal"]
    assert {row["negative_1"] for row in rows} == {"a wolf"}


def test_negatives_are_drawn_by_seed_and_row_alone(caplog):
    rows = [PAIR | {"neg": [f"n{number}" for number in range(50)]}] * 3
    first = rows_of(*rows, num_negatives=3)
    assert first == rows_of(*rows, num_negatives=3)
    assert first[:2] == rows_of(*rows[:2], num_negatives=3)
    assert first[0] != first[1]
    assert first != rows_of(*rows, num_negatives=3, seed=1)


def test_rows_of_few_negatives_are_said(caplog):
    lists = [["a", "b", "c"], ["d"], [], None]
    rows = rows_of(*({"query": "Q", "positive": "P", "negatives": found} for found in lists))
    assert [list(row) for row in rows] == [["query", "positive", "negative_1", "negative_2", "negative_3"]] * 2
    assert rows[1]["negative_3"] == "d"
    assert "3 rows have fewer than 3 negatives: 2 were left out, in 1 some come twice" in caplog.text


def test_rows_that_all_lack_negatives_are_pairs():
    assert rows_of({"query": "Q", "pos": ["P"], "neg": []}) == [{"query": "Q", "positive": "P"}]


def test_of_columns_of_negatives_as_many_are_drawn_as_of_a_list():
    row = PAIR | {f"negative_{number}": f"n{number}" for number in range(1, 7)}
    (drawn,) = rows_of(row, num_negatives=2)
    assert len(drawn) == 4
    (scored,) = rows_of(row | {"label": [9.0, 1, 2, 3, 4, 5, 6]}, num_negatives=2, objective="kl")
    assert scored["label"] == [9.0, *(float(scored[name][1:]) for name in ("negative_1", "negative_2"))]


@pytest.mark.parametrize(
    ("label", "objective", "found"),
    [
        ([5.0, 1.0], "kl", [5.0, 1.0]),
        ("[5, 1]", "kl", [5.0, 1.0]),
        (4.0, "margin_mse", [0.0, -4.0]),
        ("4.0", "margin_mse", [0.0, -4.0]),
        ([5.0, 1.0], "margin_mse", [5.0, 1.0]),
        (4.0, "kl", "each of its 1 positives and 1 negatives"),
        ([1.0, 2.0, 3.0], "kl", "each of its 1 positives and 1 negatives"),
        ([1.0, float("nan")], "kl", "each of its 1 positives and 1 negatives"),
        ("good", "margin_mse", "or as many margins as negatives"),
    ],
)
def test_a_label_is_a_teachers_where_the_objective_has_one(label, objective, found):
    row = PAIR | {"negative": "a wolf", "label": label}
    if isinstance(found, str):
        with pytest.raises(RetroMAEError, match=found):
            rows_of(row, objective=objective)
    else:
        assert rows_of(row, objective=objective) == [PAIR | {"negative_1": "a wolf", "label": found}]


def test_a_teachers_label_has_no_part_in_contrastive_training(caplog):
    with caplog.at_level(logging.INFO):
        assert rows_of(PAIR | {"negative": "a wolf", "score": 4.5}) == [PAIR | {"negative_1": "a wolf"}]
    assert "'score' is a teacher's" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (PAIR | {"negative": "a"}, "needs a teacher's scores"),
        (PAIR | {"label": [1.0]}, "give rows with negatives"),
        (FLAG | {"label": 1}, "either a column label or pos_scores"),
        (FLAG | {"neg_scores": [1.0]}, "each of its 2 positives and 6 negatives"),
    ],
)
def test_an_objective_with_a_teacher_needs_its_scores(row, message):
    with pytest.raises(RetroMAEError, match=message):
        rows_of(row, objective="kl")


def test_what_was_read_once_is_not_read_again(tmp_path):
    file = write(tmp_path / "rows.jsonl", FLAG, FLAG)
    first, second = (uniform_rows(file, load_rows(file, None, "train"), 2, "kl", 0) for _ in range(2))
    assert first.cache_files == second.cache_files != []


@pytest.mark.parametrize(
    "header",
    [
        "query\tpositive",
        "Query\tPOS",
        "\ufeffanchor\tpositive",
        "question\tanswer\r",
        "sentence1\tsentence2",
    ],
)
def test_a_first_line_of_names_is_a_header(header, tmp_path):
    file = tmp_path / "pairs.tsv"
    file.write_text(f"{header}\nwho swims\tan otter\n", encoding="utf-8", newline="\n")
    assert load(file).to_list() == [PAIR]


@pytest.mark.parametrize("name", ["triples.tsv", "triples[1].TSV", "$HOME.tsv"])
def test_a_tsv_without_a_header_is_text_as_it_stands(name, tmp_path):
    file = tmp_path / name
    file.write_text('\ufeffis it paid "na"\tNA\t12\r\n"open\tquote\tnull\n\n', encoding="utf-8", newline="\n")
    (tmp_path / "triples1.tsv").write_text("another\tfile\n")
    assert load(file, 1)[:] == {
        "query": ['is it paid "na"', '"open'],
        "positive": ["NA", "quote"],
        "negative_1": ["12", "null"],
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("qid\tpid\n1\t2\n", "qid, pid, do not tell the query and the positive"),
        ("who swims\tan otter\t1\n", "the negative_1 of .* is no text but '1'"),
        ("a\nb\n", "no rows of two columns"),
        ("query\tpositive\n", "no rows of two columns"),
    ],
)
def test_a_tsv_that_holds_no_texts_is_one_sentence(content, message, tmp_path):
    (tmp_path / "rows.tsv").write_text(content)
    with pytest.raises(RetroMAEError, match=message):
        load(tmp_path / "rows.tsv")


@pytest.mark.parametrize(
    "name", ["qid", "_id", "docid", "query_id", "positive_ids", "idx", "pid2", "queryId", "Unnamed: 0"]
)
def test_ids_are_no_text(name):
    assert role_of(name) == "other"
