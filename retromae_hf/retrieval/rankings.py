"""Rankings of documents: by dot product, exactly or through an index of faiss, by BM25, and several joined to one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..model.errors import RetroMAEError, import_extra, in_one_sentence
from .embedders import Embedder
from .measures import Run
from .tasks import RetrievalTask

RANKING_DEPTH = 100
EXACT, FAISS = "exact", "faiss"
LARGE_CORPUS = 1_000_000
"""Documents from which on an index is thought of."""

BLOCK_QUERIES = 1024
BLOCK_DOCUMENTS = 8192


@torch.inference_mode()
def search_exact(
    queries: Tensor,
    blocks: Iterable[Tensor],
    depth: int = RANKING_DEPTH,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """The `depth` documents nearest to each query by dot product, best first: scores and indices, both `[Q, depth]`.

    Of queries `[Q, H]` and documents that come a block `[n, H]` at a time, of which one is held with its scores; where
    they are less than `depth`, so many columns are returned.
    """
    queries = queries.to(device, torch.float32)
    best_scores = queries.new_empty(len(queries), 0)
    best = torch.empty(len(queries), 0, dtype=torch.long, device=device)
    offset = 0
    for block in blocks:
        block = block.to(device, torch.float32)
        found = [(chunk @ block.T).topk(min(depth, len(block))) for chunk in queries.split(BLOCK_QUERIES)]
        scores = torch.cat([best_scores, torch.cat([part.values for part in found])], dim=1)
        indices = torch.cat([best, torch.cat([part.indices for part in found]) + offset], dim=1)
        best_scores, kept = scores.topk(min(depth, scores.shape[1]))
        best = indices.gather(1, kept)
        offset += len(block)
    return best_scores.cpu(), best.cpu()


def search_faiss(
    queries: Tensor, blocks: Iterable[Tensor], num_documents: int, depth: int = RANKING_DEPTH
) -> tuple[Tensor, Tensor]:
    """Like `search_exact`, approximately: each query is compared with the documents of the nearest clusters alone.

    An inverted file of sqrt(N) clusters (k-means on a sample of 64 documents for each), its vectors in float16. A
    sixteenth of the clusters is searched, and 16 at least. More clusters would take longer to make than they save. An
    index of -1 fills a row up whose clusters hold fewer documents than `depth`. The blocks are gone through twice.
    """
    faiss = import_faiss()
    # faiss wants 39 documents a cluster at least.
    clusters = max(1, min(int(num_documents**0.5), num_documents // 39))
    index = faiss.index_factory(queries.shape[1], f"IVF{clusters},SQfp16", faiss.METRIC_INNER_PRODUCT)
    index.nprobe = max(16, clusters // 16)
    step = max(1, num_documents // (64 * clusters))
    index.train(torch.cat([block[::step] for block in blocks]).float().numpy())
    for block in tqdm(blocks, desc="Indexing", unit="block", leave=False):
        index.add(block.float().numpy())
    scores, indices = index.search(queries.float().numpy(), min(depth, num_documents))
    return torch.from_numpy(scores), torch.from_numpy(indices)


def choose_search(num_queries: int, num_documents: int, device: torch.device | str) -> str:
    """Exact search, or faiss where a CPU has many queries to search a large corpus for.

    To make the index, each document is compared with sqrt(N) centres, and k-means takes about as long again. Exact
    search compares each with the queries, so these have to be several times as many before an index pays. A GPU
    compares everything faster than a CPU makes the index.
    """
    pays = num_documents >= LARGE_CORPUS and num_queries >= 4 * num_documents**0.5
    return FAISS if pays and torch.device(device).type == "cpu" else EXACT


def import_faiss() -> Any:
    """faiss, or one sentence on how to get it."""
    return import_extra("faiss", f"the search of a large corpus, where it is not to be {EXACT},", "faiss")


class BM25Index:
    """Documents to be searched by all their words but English stop words (bm25s)."""

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


def dense_run(
    task: RetrievalTask, embedder: Embedder, documents: Iterable[Tensor], search: str, device: torch.device | str
) -> dict[str, dict[str, float]]:
    """The documents nearest to each query; their embeddings come in the task's order, in blocks `[n, H]`."""
    queries = embedder.queries(list(task.queries.values()))
    if search == FAISS:
        return _of_task(task, *search_faiss(queries, documents, len(task.documents), _depth(task)))
    return _of_task(task, *search_exact(queries, documents, _depth(task), device))


def bm25_run(task: RetrievalTask) -> dict[str, dict[str, float]]:
    """The best documents by BM25."""
    index = BM25Index(list(task.documents.values()))
    return _of_task(task, *index.search(list(task.queries.values()), _depth(task)))


def _depth(task: RetrievalTask) -> int:
    """Hits to ask for, so that `RANKING_DEPTH` are left without the query itself."""
    return RANKING_DEPTH + bool(task.queries_in_corpus)


def _of_task(task: RetrievalTask, scores: Any, indices: Any) -> dict[str, dict[str, float]]:
    """The run without hits on the query itself, see `RetrievalTask.queries_in_corpus`."""
    run = as_run(task.queries, list(task.documents), scores, indices)
    for query in task.queries_in_corpus:
        run[query].pop(query, None)
    return {query: dict(islice(hits.items(), RANKING_DEPTH)) for query, hits in run.items()}


def as_run(queries: Iterable[str], documents: Sequence[str], scores: Any, indices: Any) -> dict[str, dict[str, float]]:
    """A run by the ids of queries and documents, of scores and indices `[Q, depth]`, where an index of -1 is none."""
    return {
        query: {documents[index]: score for index, score in zip(row, row_scores, strict=True) if index >= 0}
        for query, row, row_scores in zip(queries, indices.tolist(), scores.tolist(), strict=True)
    }


def reciprocal_rank_fusion(*runs: Run, k: int = 60, depth: int = RANKING_DEPTH) -> dict[str, dict[str, float]]:
    """One run of several (Cormack, Clarke and Büttcher 2009): a document scores the sum of 1 / (k + its ranks).

    Ranks count from 1; a run that lacks a document adds nothing. Documents of equal score stand in trec_eval's order,
    in the runs and in what comes out, so that the same runs give the same one. The `depth` best documents of each query
    of any run stay, best first; k = 60 is the paper's.
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
