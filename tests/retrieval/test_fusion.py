"""Rankings joined by reciprocal ranks, against hand counts."""

from __future__ import annotations

import pytest

from retromae_hf.retrieval.rankings import RANKING_DEPTH, reciprocal_rank_fusion


def test_a_document_scores_the_sum_of_its_reciprocal_ranks_whatever_the_scores_were():
    dense = {"q": {"a": 0.9, "b": 0.8, "c": 0.1}}
    words = {"q": {"c": 31.0, "a": 7.0}, "only here": {"a": 1.0}}
    joined = reciprocal_rank_fusion(dense, words)
    assert list(joined["q"]) == ["a", "c", "b"]
    assert joined["q"] == pytest.approx({"a": 1 / 61 + 1 / 62, "c": 1 / 63 + 1 / 61, "b": 1 / 62})
    assert joined["only here"] == pytest.approx({"a": 1 / 61})


def test_equal_scores_stand_in_trec_evals_order_whatever_order_they_come_in():
    one = {"q": {"a": 1.0, "b": 1.0}}
    same = {"q": {"b": 1.0, "a": 1.0}}
    assert reciprocal_rank_fusion(one) == reciprocal_rank_fusion(same)
    assert list(reciprocal_rank_fusion(one)["q"]) == ["b", "a"]
    crossed = reciprocal_rank_fusion({"q": {"a": 2.0, "b": 1.0}}, {"q": {"b": 2.0, "a": 1.0}})
    assert list(crossed["q"]) == ["b", "a"]


def test_what_comes_out_is_as_deep_as_any_ranking():
    first = {"q": {f"a{number}": -float(number) for number in range(RANKING_DEPTH)}}
    second = {"q": {f"b{number}": -float(number) for number in range(RANKING_DEPTH)}}
    joined = reciprocal_rank_fusion(first, second)["q"]
    assert len(joined) == RANKING_DEPTH
    assert reciprocal_rank_fusion(first, second, depth=9)["q"] == dict(list(joined.items())[:9])
    assert set(joined) == {f"{run}{number}" for run in "ab" for number in range(RANKING_DEPTH // 2)}
