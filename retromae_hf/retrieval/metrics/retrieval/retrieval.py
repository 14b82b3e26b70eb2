"""nDCG@k, MRR@k, Recall@k and MAP as a module of the `evaluate` library.

`evaluate.load` copies this file to its own folder, so that it can import the installed package but no neighbour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets
import evaluate

from retromae_hf.model.errors import RetroMAEError
from retromae_hf.retrieval.measures import DEFAULT_MEASURES, mean_values, paired_test, score_queries

DESCRIPTION = """
Retrieval measures by ir-measures, equal to those of trec_eval: ndcg@k, mrr@k, recall@k and map, means over the judged
queries, with the values of every query and a paired randomisation test against another run where they are asked for.
"""

INPUTS = """
Args:
    predictions: a row a query, {"query_id", "document_ids", "scores"}; the order is that of the scores.
    references: a row a query, {"query_id", "document_ids", "grades"}; a grade of 1 or more is relevant, one below 0
        scores as 0. The rows need be neither as many as the predictions nor in their order.
    measures: names such as "ndcg@10", "mrr@10", "recall@100", "map".
    per_query: whether to return the values of every query too.
    baseline: another run, in rows like those of the predictions, for the paired test.

Returns:
    The mean of each measure by its name, and
    num_queries: the judged queries that it is the mean of; one that has no prediction counts as 0;
    num_unjudged_queries: the queries that were left out because they have no reference;
    per_query: values by measure and query id, where asked for;
    paired_test: by measure, "difference" (mean of this run minus that of the baseline) and two-sided "p_value".

Example:
    >>> metric = evaluate.load(str(retromae_hf.retrieval.measures.METRIC))
    >>> metric.compute(
    ...     predictions=[{"query_id": "q", "document_ids": ["a", "b"], "scores": [0.9, 0.8]}],
    ...     references=[{"query_id": "q", "document_ids": ["b"], "grades": [1]}],
    ...     measures=["mrr@10"],
    ... )
    {'mrr@10': 0.5, 'num_queries': 1, 'num_unjudged_queries': 0}
"""


class Retrieval(evaluate.Metric):
    """The metric; `compute` raises `RetroMAEError` where an id stands twice, or a row or a value does not fit."""

    def _info(self) -> evaluate.MetricInfo:
        def rows(values: str) -> dict[str, Any]:
            return {
                "query_id": datasets.Value("string"),
                "document_ids": datasets.List(datasets.Value("string")),
                values: datasets.List(datasets.Value("float64")),  # integers would cut a grade of 0.5 off, unseen
            }

        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": rows("scores"), "references": rows("grades")}),
            reference_urls=["https://ir-measur.es", "https://github.com/usnistgov/trec_eval"],
        )

    def add_batch(
        self, *, predictions: Sequence[Any] | None = None, references: Sequence[Any] | None = None, **kwargs: Any
    ) -> None:
        """Add rows; `evaluate` wants as many of the one as of the other, so the shorter is filled up with blanks."""
        found, judged = list(predictions or []), list(references or [])
        rows = max(len(found), len(judged))
        found += [{"query_id": "", "document_ids": [], "scores": []}] * (rows - len(found))
        judged += [{"query_id": "", "document_ids": [], "grades": []}] * (rows - len(judged))
        super().add_batch(predictions=found, references=judged, **kwargs)

    def _compute(
        self,
        predictions: Iterable[Mapping[str, Any]],
        references: Iterable[Mapping[str, Any]],
        measures: Sequence[str] = DEFAULT_MEASURES,
        per_query: bool = False,
        baseline: Iterable[Mapping[str, Any]] | None = None,
    ) -> dict[str, Any]:
        run = _by_query("predictions", predictions, "scores")
        qrels = {query: grades for query, grades in _by_query("references", references, "grades").items() if grades}
        values = score_queries(qrels, run, measures)
        result: dict[str, Any] = {
            **mean_values(values),
            "num_queries": len(qrels),
            "num_unjudged_queries": len(run.keys() - qrels.keys()),
        }
        if per_query:
            result["per_query"] = values
        if baseline is not None:
            others = score_queries(qrels, _by_query("baseline", baseline, "scores"), measures)
            result["paired_test"] = {name: paired_test(values[name], others[name]) for name in values}
        return result


def _by_query(what: str, rows: Iterable[Mapping[str, Any]], values: str) -> dict[str, dict[str, Any]]:
    """Rows as a mapping of mappings, each checked; blank ones have only filled a column up."""
    by_query: dict[str, dict[str, Any]] = {}
    for row in rows:
        if absent := {"query_id", "document_ids", values} - row.keys():
            raise RetroMAEError(f"a row of the {what} lacks {', '.join(sorted(absent))}")
        query, documents = row["query_id"], row["document_ids"]
        if not query and not len(documents):
            continue
        if query in by_query:
            raise RetroMAEError(f"the query {query!r} stands twice in the {what}; give each query one row")
        if len(documents) != len(row[values]):
            raise RetroMAEError(
                f"the query {query!r} has {len(documents)} document_ids and {len(row[values])} {values} in the {what}; "
                "give one for each"
            )
        by_query[query] = dict(zip(documents, row[values], strict=True))
        if len(by_query[query]) != len(documents):
            raise RetroMAEError(f"the query {query!r} has a document twice in the {what}; give each document once")
    return by_query
