"""Retrieval measures of a run, and whether two runs differ by more than chance: pure functions over ir-measures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import ir_measures
import numpy as np
from ir_measures import AP, RR, R, nDCG
from scipy.stats import permutation_test

from ..data.text import without_surrogates
from ..model.errors import RetroMAEError

METRIC = Path(__file__).parent / "metrics" / "retrieval"
"""The folder that `evaluate.load(str(METRIC))` takes; it needs no network."""

MEASURE_NAMES = {"ndcg@10": "nDCG@10", "mrr@10": "MRR@10", "recall@100": "Recall@100", "map@100": "MAP@100"}
"""What is measured unless something else is asked for, as people write it."""

DEFAULT_MEASURES = tuple(MEASURE_NAMES)
RESAMPLES = 9999

SIGNIFICANT = 0.05
"""The p-value below which a difference is marked."""

MAX_GRADE = 10_000
"""No collection grades higher, and trec_eval counts from 0 to the highest grade for every query."""

Qrels = Mapping[str, Mapping[str, int]]
"""Grade of each judged document of each query, see `whole_grade`; one with a grade of at least 1 is relevant."""
Run = Mapping[str, Mapping[str, float]]
"""Score of each retrieved document of each query, a finite number."""


def score_queries(qrels: Qrels, run: Run, measures: Sequence[str] = DEFAULT_MEASURES) -> dict[str, dict[str, float]]:
    """Measures of every judged query, equal to those of trec_eval (`pytrec_eval`), its order of equal scores included.

    A judged query that the run does not have scores 0. Queries of the run without judgments are left out.

    Args:
        measures: `ndcg@k`, `mrr@k`, `recall@k` and `map@k`; all but recall also without `@k`, over the whole run.

    Returns:
        Values in [0, 1], by measure and query.

    Raises:
        RetroMAEError: a measure is unknown, no query has judgments, or an id, a grade or a score is none.
    """
    parsed = {name: _parse(name) for name in measures}
    # trec_eval is C code: what is wrong here ends the process, or is scored as something else.
    judged = {
        query: {document: whole_grade(grade) for document, grade in grades.items()}
        for query, grades in qrels.items()
        if grades
    }
    if not judged:
        raise RetroMAEError("no query has judgments; give the qrels of these queries")
    found = {
        query: {document: _finite(query, score) for document, score in run[query].items()}
        for query in judged
        if query in run
    }
    check_ids("there is the query id", judged)
    check_ids("there is the document id", chain(*judged.values(), *found.values()))
    wanted = list({measure for measure, _ in parsed.values()})
    values = {measure: dict.fromkeys(judged, 0.0) for measure in wanted}
    for metric in ir_measures.iter_calc(wanted, judged, found):
        values[metric.measure][metric.query_id] = metric.value
    return {
        name: {query: value if value >= least else 0.0 for query, value in values[measure].items()}
        for name, (measure, least) in parsed.items()
    }


def check_ids(what: str, ids: Iterable[Any]) -> None:
    """Raise `RetroMAEError`, which `what` begins, for an id that trec_eval cannot take or takes for another."""
    for one in ids:
        if not isinstance(one, str) or not one or "\0" in one or without_surrogates(one) != one:
            raise RetroMAEError(
                f"{what} {one!r}, which cannot be scored; give ids as texts that are not empty, without NULs and lone "
                "surrogates"
            )


def whole_grade(grade: Any) -> int:
    """A grade as it is scored: a whole number, whatever its type (1.0 is 1), and 0 where it is below.

    Raises:
        RetroMAEError: it is no whole number, or above `MAX_GRADE`.
    """
    try:
        whole = int(grade)
    except (TypeError, ValueError, OverflowError):
        whole = None
    if whole is None or whole != grade or whole > MAX_GRADE:
        raise RetroMAEError(f"the grade {grade!r} cannot be scored; give whole numbers up to {MAX_GRADE}")
    return max(whole, 0)


def _finite(query: Any, score: Any) -> float:
    try:
        number = float(score)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RetroMAEError(f"a hit of query {query!r} has the score {score!r}; give finite numbers")
    return number


def _parse(name: str) -> tuple[ir_measures.Measure, float]:
    """A measure of ir-measures, and the value below which it counts as 0.

    MRR@k is the reciprocal rank without a cut-off, 0 from rank k + 1 on: ir-measures' own RR@k orders documents of
    equal score unlike trec_eval and unlike all the other measures here.
    """
    match = re.fullmatch(r"(ndcg|mrr|map|recall)(?:@([1-9]\d{0,8}))?", name)
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


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1, aligned: bool = False) -> str:
    """A Markdown table.

    Args:
        header: the titles of the columns.
        rows: the cells of each row.
        left: how many of the first columns are aligned to the left; the others hold figures, aligned to the right.
        aligned: whether to pad all cells of a column to one width, for a table that is read in a terminal.
    """
    columns = []
    for place, column in enumerate(zip(header, *rows, strict=True)):
        width = max(map(len, column)) if aligned else 0
        if place < left:
            cells, rule = [cell.ljust(width) for cell in column], "-" * max(width + 2, 3)
        else:
            cells, rule = [cell.rjust(width) for cell in column], "-" * max(width + 1, 3) + ":"
        title, *others = [f" {cell} " if cell else " " for cell in cells]
        columns.append([title, rule, *others])
    return "\n".join(f"|{'|'.join(line)}|" for line in zip(*columns, strict=True))
