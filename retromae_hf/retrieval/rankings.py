"""Runs of a retrieval task, each query's best documents with their scores: by embeddings, by BM25, on file."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model.errors import RetroMAEError, import_extra, in_one_sentence
from .embedders import Embedder
from .measures import Run
from .nearest import FAISS, RANKING_DEPTH, search_exact, search_faiss
from .tasks import RetrievalTask


def dense_run(
    task: RetrievalTask, embedder: Embedder, documents: Iterable[Tensor], search: str, device: torch.device | str
) -> dict[str, dict[str, float]]:
    """The documents nearest to each query, see `Embedder`.

    Args:
        documents: the embeddings of the task's documents in their order, in blocks `[n, H]`; no generator.
        search: "exact" or "faiss".
        device: where to search exactly.
    """
    queries = embedder.queries(list(task.queries.values()))
    if search == FAISS:
        scores, indices = search_faiss(queries, documents, len(task.documents), _depth(task))
    else:
        scores, indices = search_exact(queries, documents, _depth(task), device)
    return _with_ids(task, scores, indices)


def bm25_run(task: RetrievalTask) -> dict[str, dict[str, float]]:
    """The best documents by BM25."""
    return _with_ids(task, *search_bm25(list(task.queries.values()), list(task.documents.values()), _depth(task)))


def _depth(task: RetrievalTask) -> int:
    """Hits to ask for, so that `RANKING_DEPTH` are left."""
    return RANKING_DEPTH + bool(task.queries_in_corpus)


def _with_ids(task: RetrievalTask, scores: Any, indices: Any) -> dict[str, dict[str, float]]:
    """A run of scores and indices `[Q, depth]`, where an index of -1 is none.

    It has no hit on the query itself, see `RetrievalTask.queries_in_corpus`.
    """
    ids = list(task.documents)
    themselves = task.queries_in_corpus
    run = {}
    for query, row, row_scores in zip(task.queries, indices.tolist(), scores.tolist(), strict=True):
        hits = ((ids[index], score) for index, score in zip(row, row_scores, strict=True) if index >= 0)
        others = (hit for hit in hits if hit[0] != query or query not in themselves)
        run[query] = dict(islice(others, RANKING_DEPTH))
    return run


def search_bm25(queries: list[str], documents: list[str], depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Like `search_exact`, by BM25, see `BM25Index`."""
    return BM25Index(documents).search(queries, depth)


class BM25Index:
    """Documents to be searched by all their words but English stop words (bm25s).

    Raises:
        RetroMAEError: the documents hold no words, or bm25s is missing.
    """

    def __init__(self, documents: list[str]):
        self._bm25s = import_bm25s()
        self._index = self._bm25s.BM25()
        self._size = len(documents)
        with in_one_sentence("BM25 finds no words to index in the documents"):
            self._index.index(self._bm25s.tokenize(documents, stopwords="en"))

    def search(self, queries: list[str], depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and indices `[Q, depth]`; an index of -1 stands where no more documents share a word with a query."""
        tokens = self._bm25s.tokenize(queries, stopwords="en")
        # Left to itself it takes JAX where that is installed, and with it the GPU that the model needs.
        found = self._index.retrieve(tokens, k=min(depth, self._size), backend_selection="numpy")
        return found.scores, np.where(found.scores > 0, found.documents, -1)


def import_bm25s() -> Any:
    """bm25s, or one sentence on how to get it."""
    bm25s = import_extra("bm25s", "BM25", "retrieval")
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # left to itself it tells what it is doing at every step
    return bm25s


def check_trec_ids(task: RetrievalTask) -> None:
    """Raise `RetroMAEError` for an id that TREC's format, whose columns white space separates, cannot hold."""
    for kind, ids in (("query", task.queries), ("document", task.documents)):
        for one in ids:
            if one.split() != [one]:
                raise RetroMAEError(
                    f"{task.name} has the {kind} id {one!r}, which a TREC run cannot hold; take the white space "
                    "out, or write no runs"
                )


def write_trec_run(run: Run, file: Path, tag: str) -> None:
    """Write a run as lines `query Q0 document rank score tag`, best first; ranks count from 1.

    Nine digits give a float32 score back as it was, so that scoring the file gives the same measures.
    """
    with in_one_sentence(f"the run {file} cannot be written"), file.open("w", encoding="utf-8") as lines:
        for query, scores in run.items():
            ranked = sorted(scores.items(), key=lambda pair: -pair[1])
            lines.writelines(
                f"{query} Q0 {document} {number} {score:.9g} {tag}\n"
                for number, (document, score) in enumerate(ranked, start=1)
            )


def read_trec_run(file: Path) -> Run:
    """A run that `write_trec_run` wrote."""
    run: dict[str, dict[str, float]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        query, _, document, _, score, _ = line.split(" ")
        run.setdefault(query, {})[document] = float(score)
    return run
