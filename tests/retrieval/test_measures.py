"""Measures against hand counts and against `pytrec_eval`, and the `evaluate` module over them."""

from __future__ import annotations

import math

import evaluate
import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from retromae_hf import RetroMAEError
from retromae_hf.retrieval.measures import DEFAULT_MEASURES, METRIC, paired_test, score_queries, score_run

DOCUMENTS = [f"d{number}" for number in range(25)]
TREC = {"ndcg@10": "ndcg_cut_10", "ndcg": "ndcg", "recall@5": "recall_5", "map": "map", "map@7": "map_cut_7"}


def rows(run, values):
    return [{"query_id": query, "document_ids": list(row), values: list(row.values())} for query, row in run.items()]


@pytest.fixture(scope="module")
def metric():
    return evaluate.load(str(METRIC))


def test_measures_by_hand():
    qrels = {"a": {"x": 1, "y": 2}, "b": {"z": 1}, "c": {"w": 1}}
    run = {"a": {"x": 2.0, "y": 1.0}, "b": {"k": 1.0}}
    measured = score_run(qrels, run)
    gain = 1 + 2 / math.log2(3)
    ideal = 2 + 1 / math.log2(3)
    assert measured["ndcg@10"] == pytest.approx(gain / ideal / 3)
    assert measured["mrr@10"] == pytest.approx(1 / 3)
    assert measured["recall@100"] == pytest.approx(1 / 3)
    assert measured["map@100"] == pytest.approx(1 / 3)


@settings(max_examples=60, deadline=None)
@given(
    qrels=st.dictionaries(
        st.sampled_from("abcdef"), st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(0, 3), min_size=1),
        min_size=1,
    ),
    # Few different scores, so that most of them are ties.
    run=st.dictionaries(
        st.sampled_from("abcdef"), st.dictionaries(st.sampled_from(DOCUMENTS), st.sampled_from([-1.0, 0.5, 0.75]))
    ),
    k=st.integers(1, 12),
)  # fmt: skip
def test_values_are_those_of_pytrec_eval_ties_included(qrels, run, k):
    expected = pytrec_eval.RelevanceEvaluator(qrels, {*TREC.values(), "recip_rank"}).evaluate(run)
    values = score_queries(qrels, run, [*TREC, "mrr", f"mrr@{k}"])
    for query in qrels:
        trec = expected.get(query, dict.fromkeys([*TREC.values(), "recip_rank"], 0.0))
        for name, trec_name in TREC.items():
            assert values[name][query] == trec[trec_name]
        assert values["mrr"][query] == trec["recip_rank"]
        # Reciprocal ranks are 1, 1/2, 1/3 ..., so those from rank k + 1 on are below 1/k.
        assert values[f"mrr@{k}"][query] == (trec["recip_rank"] if trec["recip_rank"] >= 1 / k else 0)


@settings(max_examples=30, deadline=None)
@given(
    qrels=st.dictionaries(
        st.sampled_from("abcdef"),
        st.dictionaries(st.sampled_from(DOCUMENTS[:10]), st.integers(1, 3), min_size=1),
        min_size=1,
    )
)
def test_a_perfect_run_scores_1_and_an_empty_one_0(qrels):
    perfect = {query: {document: float(grade) for document, grade in grades.items()} for query, grades in qrels.items()}
    assert score_run(qrels, perfect) == dict.fromkeys(DEFAULT_MEASURES, 1.0)
    assert score_run(qrels, {}) == dict.fromkeys(DEFAULT_MEASURES, 0.0)


@pytest.mark.parametrize("name", ["ndcg@0", "recall", "precision@5", "ndcg@ten", "mrr@10 "])
def test_an_unknown_measure(name):
    with pytest.raises(RetroMAEError, match=f"there is no measure '{name}'"):
        score_run({"q": {"d": 1}}, {}, [name])


def test_nothing_judged():
    with pytest.raises(RetroMAEError, match="no query has judgments"):
        score_run({"q": {}}, {"q": {"d": 1.0}})


def test_grades_below_0_count_as_0_whatever_else_is_judged():
    run = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}
    for grade in (-1, -2, -1000, -(2**70)):
        assert score_run({"q": {"a": grade, "b": 2}}, run) == score_run({"q": {"a": 0, "b": 2}}, run)
        assert score_run({"q": {"a": grade}}, run) == dict.fromkeys(DEFAULT_MEASURES, 0.0)


def test_numbers_of_other_types_are_numbers():
    expected = score_run({"q": {"a": 1, "b": 2}}, {"q": {"a": 1.0, "b": 0.5}})
    assert score_run({"q": {"a": 1.0, "b": np.int8(2)}}, {"q": {"a": np.float32(1), "b": np.float16(0.5)}}) == expected


@pytest.mark.parametrize("grade", [10**9, 2**64, 0.5, math.nan, math.inf, None, "1", "good"])
def test_a_grade_is_a_whole_number_of_reasonable_size(grade):
    with pytest.raises(RetroMAEError, match=r"the grade .* cannot be scored; give whole numbers up to 10000"):
        score_queries({"q": {"d": grade}}, {"q": {"d": 1.0}})


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, None, "high"])
def test_a_score_is_a_finite_number(score):
    with pytest.raises(RetroMAEError, match="a hit of query 'q' has the score"):
        score_queries({"q": {"d": 1}}, {"q": {"d": score}})


@pytest.mark.parametrize("wrong", ["", "a\0b", "\ud800", None, 7])
def test_ids_are_such_as_trec_eval_takes(wrong):
    for qrels, run in (
        ({wrong: {"d": 1}}, {wrong: {"d": 1.0}}),
        ({"q": {wrong: 1}}, {"q": {"d": 1.0}}),
        ({"q": {"d": 1}}, {"q": {wrong: 1.0}}),
    ):
        with pytest.raises(RetroMAEError, match=r"there is the (query|document) id .*, which cannot be scored"):
            score_queries(qrels, run)


def test_the_paired_test_by_hand():
    better, worse = {"a": 1.0, "b": 0.7, "c": 0.9}, {"a": 0.5, "b": 0.2, "c": 0.4}
    tested = paired_test(better, worse)
    assert tested["difference"] == pytest.approx(0.5)
    assert tested["p_value"] == pytest.approx(2 / 8)  # of the 8 ways to exchange, this one and its mirror image
    assert paired_test(worse, better)["p_value"] == tested["p_value"]
    assert paired_test({"a": 1.0}, {"a": 0.0}) == {"difference": 1.0, "p_value": 1.0}


def test_the_paired_test_tells_a_difference_from_chance_and_does_so_again():
    noise = {str(number): (number * 37 % 101) / 101 for number in range(100)}
    shuffled = {query: noise[str((int(query) * 7 + 3) % 100)] for query in noise}
    better = {query: value + 0.2 for query, value in shuffled.items()}
    assert paired_test(noise, noise) == {"difference": 0.0, "p_value": 1.0}
    assert paired_test(shuffled, noise)["p_value"] > 0.5
    assert paired_test(better, noise)["p_value"] < 0.001
    assert paired_test(better, noise) == paired_test(better, noise)
    with pytest.raises(RetroMAEError, match="different queries"):
        paired_test(noise, {"a": 1.0})


def test_the_module_of_evaluate(metric):
    qrels = {"a": {"x": 1, "y": 2}, "b": {"z": 1}, "c": {"w": 1}}
    run = {"a": {"x": 2.0, "y": 1.0}, "b": {"k": 1.0}, "unjudged": {"k": 1.0}, "another": {"k": 1.0}}
    measured = metric.compute(predictions=rows(run, "scores"), references=rows(qrels, "grades"))
    assert measured.pop("num_queries") == 3
    assert measured.pop("num_unjudged_queries") == 2
    assert measured == pytest.approx(score_run(qrels, run))


def test_per_query_values_and_another_run_to_compare_with(metric):
    qrels = {"a": {"x": 1}, "b": {"z": 1}}
    run, baseline = {"a": {"x": 1.0}, "b": {"z": 1.0, "k": 2.0}}, {"a": {"k": 1.0}}
    measured = metric.compute(
        predictions=rows(run, "scores"),
        references=rows(qrels, "grades"),
        measures=["mrr@10", "map"],
        per_query=True,
        baseline=rows(baseline, "scores"),
    )
    assert measured["per_query"] == {"mrr@10": {"a": 1.0, "b": 0.5}, "map": {"a": 1.0, "b": 0.5}}
    assert measured["paired_test"]["mrr@10"] == {"difference": 0.75, "p_value": 0.5}


def test_batches_of_the_module_and_an_empty_run(metric):
    references = rows({"a": {"x": 1}, "b": {"z": 1}}, "grades")
    metric.add_batch(predictions=rows({"a": {"x": 1.0}}, "scores"), references=references[:1])
    metric.add_batch(predictions=[], references=references[1:])
    assert metric.compute(measures=["mrr@10"]) == {"mrr@10": 0.5, "num_queries": 2, "num_unjudged_queries": 0}
    assert metric.compute(predictions=[], references=references, measures=["map"])["map"] == 0


def test_the_module_of_evaluate_takes_the_grades_that_collections_have(metric):
    def measured(grades):
        return metric.compute(predictions=rows(run, "scores"), references=rows({"q": grades}, "grades"))

    run = {"q": {"a": 3.0, "b": 2.0}}
    assert measured({"a": -2, "b": 2}) == measured({"a": 0, "b": 2.0})
    for wrong, message in (
        ({"a": 10**9}, r"the grade 1000000000\.0 cannot be scored"),
        ({"a": 0.5}, r"the grade 0\.5 cannot be scored"),
        ({"": 1}, "the document id ''"),
    ):
        with pytest.raises(RetroMAEError, match=message):
            measured(wrong)


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        ({"query_id": "a", "document_ids": ["x"], "scores": [1.0]}, "'a' stands twice in the predictions"),
        ({"query_id": "b", "document_ids": ["x", "x"], "scores": [1.0, 2.0]}, "2 document_ids, 1 of them different"),
        ({"query_id": "b", "document_ids": ["x", "y"], "scores": [1.0]}, "2 of them different, and 1 scores"),
    ],
)
def test_rows_that_do_not_fit(prediction, message):
    metric = evaluate.load(str(METRIC), keep_in_memory=True)  # a failed one keeps its file locked
    predictions = [*rows({"a": {"x": 1.0}}, "scores"), prediction]
    with pytest.raises(RetroMAEError, match=message):
        metric.compute(predictions=predictions, references=rows({"a": {"x": 1}}, "grades"))
    with pytest.raises(RetroMAEError, match="a row of the baseline lacks scores"):
        metric.compute(
            predictions=predictions[:1],
            references=rows({"a": {"x": 1}}, "grades"),
            baseline=[{"query_id": "a", "document_ids": ["x"]}],
        )
