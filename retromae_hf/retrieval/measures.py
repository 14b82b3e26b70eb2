"""Retrieval measures of a run, and whether two runs differ by more than chance: pure functions over ir-measures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import ir_measures
import numpy as np
from ir_measures import AP, RR, R, nDCG
from scipy.stats import permutation_test

from ..model.errors import RetroMAEError

METRIC = Path(__file__).parent / "metrics" / "retrieval"
"""The folder that `evaluate.load(str(METRIC))` takes; it needs no network."""

DEFAULT_MEASURES = ("ndcg@10", "mrr@10", "recall@100", "map@100")
RESAMPLES = 9999

Qrels = Mapping[str, Mapping[str, int]]
"""Grade of each judged document of each query; a document with a grade of at least 1 is relevant."""
Run = Mapping[str, Mapping[str, float]]
"""Score of each retrieved document of each query."""


def score_queries(qrels: Qrels, run: Run, measures: Sequence[str] = DEFAULT_MEASURES) -> dict[str, dict[str, float]]:
    """Measures of every judged query, equal to those of trec_eval (`pytrec_eval`), its order of equal scores included.

    A judged query that the run does not have scores 0. Queries of the run without judgments are left out.

    Args:
        measures: `ndcg@k`, `mrr@k`, `recall@k` and `map@k`; all but recall also without `@k`, over the whole run.

    Returns:
        Values in [0, 1], by measure and query.

    Raises:
        RetroMAEError: a measure is unknown, or no query has judgments.
    """
    parsed = {name: _parse(name) for name in measures}
    judged = {query: dict(grades) for query, grades in qrels.items() if grades}
    if not judged:
        raise RetroMAEError("no query has judgments; give the qrels of these queries")
    found = {query: dict(run[query]) for query in judged if query in run}
    wanted = list({measure for measure, _ in parsed.values()})
    values = {measure: dict.fromkeys(judged, 0.0) for measure in wanted}
    for metric in ir_measures.iter_calc(wanted, judged, found):
        values[metric.measure][metric.query_id] = metric.value
    return {
        name: {query: value if value >= least else 0.0 for query, value in values[measure].items()}
        for name, (measure, least) in parsed.items()
    }


def _parse(name: str) -> tuple[ir_measures.Measure, float]:
    """A measure of ir-measures, and the value below which it counts as 0.

    MRR@k is the reciprocal rank without a cut-off, 0 from rank k + 1 on: ir-measures' own RR@k orders documents of
    equal score unlike trec_eval and unlike all the other measures here.
    """
    match = re.fullmatch(r"(ndcg|mrr|map|recall)(?:@([1-9]\d*))?", name)
    if match is None or name == "recall":
        raise RetroMAEError(f"there is no measure {name!r}; use ndcg@10, mrr@10, recall@100, map@100 and the like")
    kind, k = match[1], int(match[2] or 0)
    if kind == "mrr":
        return RR, 1 / k if k else 0.0
    measure = {"ndcg": nDCG, "map": AP, "recall": R}[kind]
    return (measure @ k if k else measure), 0.0


def score_run(qrels: Qrels, run: Run, measures: Sequence[str] = DEFAULT_MEASURES) -> dict[str, float]:
    """The means of `score_queries` over the judged queries, by measure."""
    return mean_values(score_queries(qrels, run, measures))


def mean_values(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Means over the queries of what `score_queries` returns."""
    return {name: fmean(by_query.values()) for name, by_query in values.items()}


def paired_test(values: Mapping[str, float], baseline: Mapping[str, float]) -> dict[str, float]:
    """Two-sided paired randomisation test of one measure of two runs over the same queries.

    Under the null hypothesis each query's two values might as well have been exchanged. All exchanges are tried where
    there are fewer than 10,000 of them (up to 13 queries), otherwise 9,999 random ones, always the same.

    Args:
        values: the measure by query.
        baseline: that of the run to compare with.

    Returns:
        `difference`, the mean of `values` minus that of `baseline`, and `p_value`.

    Raises:
        RetroMAEError: the runs were not scored on the same queries.
    """
    if values.keys() != baseline.keys() or not values:
        raise RetroMAEError("the two runs were scored on different queries; score both with the same qrels")
    differences = np.array([value - baseline[query] for query, value in values.items()])
    p_value = 1.0  # of a single query, whichever way it went
    if len(differences) > 1:
        p_value = permutation_test(
            (differences,),
            np.mean,
            permutation_type="samples",  # of one sample: its signs
            n_resamples=RESAMPLES,
            batch=256,  # resamples held at a time, so that thousands of queries fit into memory
            rng=np.random.default_rng(42),
        ).pvalue
    return {"difference": float(differences.mean()), "p_value": float(p_value)}
