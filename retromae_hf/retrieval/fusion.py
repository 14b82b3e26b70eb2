"""Rankings joined by their ranks alone, so that scores of any kinds go together: those of a model and of BM25."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .measures import Run
from .nearest import RANKING_DEPTH


def reciprocal_rank_fusion(*runs: Run, k: int = 60, depth: int = RANKING_DEPTH) -> dict[str, dict[str, float]]:
    """One run of several (Cormack, Clarke and Büttcher 2009): a document scores the sum of 1 / (k + its ranks).

    Ranks count from 1; a run that lacks a document adds nothing. Documents of equal score stand in trec_eval's order,
    in the runs and in what comes out, so that the same runs give the same one.

    Args:
        runs: any number, each with the queries that it answers.
        k: how little the first ranks are ahead of the next ones; 60 is the paper's.
        depth: documents of a query that stay.

    Returns:
        The best documents of each query of any run, best first.
    """
    scores: dict[str, dict[str, float]] = {}
    for run in runs:
        for query, hits in run.items():
            summed = scores.setdefault(query, {})
            for rank, document in enumerate(best_first(hits), start=1):
                summed[document] = summed.get(document, 0.0) + 1 / (k + rank)
    joined = {}
    for query, summed in scores.items():
        # Sums that are equal but for rounding are equal to trec_eval, and in a run on file.
        rounded = {document: float(np.float32(score)) for document, score in summed.items()}
        joined[query] = {document: rounded[document] for document in best_first(rounded)[:depth]}
    return joined


def best_first(hits: Mapping[str, float]) -> list[str]:
    """Documents as trec_eval ranks them: of equal scores the greater id comes first."""
    return sorted(hits, key=lambda document: (hits[document], document), reverse=True)
