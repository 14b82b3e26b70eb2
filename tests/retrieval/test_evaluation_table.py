"""The table of an evaluation, mark by mark."""

from __future__ import annotations

from typing import Any

from retromae_hf.retrieval.evaluation import format_table
from retromae_hf.retrieval.measures import MEASURE_NAMES


def ranking(value: float, **other: float) -> dict[str, float]:
    """Measures, all of one value but for those that are given by the part of their names before the @."""
    return {name: other.get(name.partition("@")[0], value) for name in MEASURE_NAMES}


def paired(difference: float, p_value: float) -> dict[str, dict[str, float]]:
    return {name: {"difference": difference, "p_value": p_value} for name in MEASURE_NAMES}


def results(**others: Any) -> dict[str, Any]:
    entry = {"num_queries": 1000, "num_documents": 10000, "measures": ranking(0.5, mrr=0.7)}
    return {"model": "mine", "tasks": {"zoo": entry | {"seconds": {"embed": 40.0, "search": 2.0}} | others}}


def test_a_row_a_ranking_the_best_of_each_column_and_what_is_more_than_chance():
    table = format_table(
        results(
            bm25={"measures": ranking(0.4), "paired_test": paired(0.1, 0.01)},  # the model against BM25
            hybrid={"measures": ranking(0.6), "paired_test": paired(0.1, 0.01)},  # against the model
            seconds={"embed": 40.0, "search": 2.0, "bm25": 3.0, "hybrid": 0.5},
        )
    )
    assert table.splitlines() == [
        "zoo: 1,000 queries, 10,000 documents",
        "",
        "|             |    nDCG@10 |     MRR@10 | Recall@100 |    MAP@100 | seconds |",
        "|-------------|-----------:|-----------:|-----------:|-----------:|--------:|",
        "| mine        |   0.500    | **0.700**  |   0.500    |   0.500    |    42.0 |",
        "| BM25        |   0.400  - |   0.400  - |   0.400  - |   0.400  - |     3.0 |",
        "| both joined | **0.600**+ |   0.600  + | **0.600**+ | **0.600**+ |    45.5 |",
        "",
        "**: the best of its column. + and -: above and below the model by more than chance (paired randomisation "
        "test, p < 0.05).",
    ]


def test_chance_is_not_marked_and_a_model_alone_is_not_the_best_of_anything():
    beside = format_table(results(bm25={"measures": ranking(0.4), "paired_test": paired(0.1, 0.06)}))
    assert "| BM25 |   0.400    |" in beside
    alone = format_table(results())
    assert "**" not in alone
    assert "42.0 |" in alone.splitlines()[-1]


def test_bm25_as_the_model_and_a_sample():
    table = format_table(results(max_documents=10000, seconds={"bm25": 3.0}) | {"model": "bm25"})
    assert table.splitlines()[0] == "zoo: 1,000 queries, 10,000 documents, a sample (--max_documents 10000)"
    assert "| BM25 |" in table
    assert "3.0 |" in table.splitlines()[-1]
