"""Searches a corpus by sentence embedding: the documentation in this Python environment, or any other."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from datasets.config import HF_CACHE_HOME
from torch import Tensor

from ..data.documents import load_documents
from ..data.files import NAME_COLUMNS
from ..data.pydocs import PYDOCS
from .embedders import Embedder, EmbeddingShards, embed_to_shards, load_embedder
from .measures import Run
from .rankings import (
    BLOCK_DOCUMENTS,
    RANKING_DEPTH,
    BM25Index,
    as_run,
    best_first,
    import_bm25s,
    reciprocal_rank_fusion,
    search_exact,
)

KEPT_DAYS = 30
"""How long embeddings of a corpus are kept that no search uses."""


@dataclass(frozen=True)
class SearchResult:
    """A document's name, the line of it that matches best, and the score of the document for the question.

    Attributes:
        ranks: by the names of the rankings that are joined, those whose reciprocals the score is the sum of, None where
            a ranking lacks the document; empty where the score is the model's.
        text: the whole document.
    """

    name: str
    line: str
    score: float
    ranks: dict[str, int | None] = field(default_factory=dict)
    text: str = ""


@dataclass(frozen=True)
class SearchIndex:
    """Documents with their embeddings, to be asked any number of questions.

    Attributes:
        embedder: the model.
        documents: the columns `name` and `text`.
        embeddings: `[N, H]`.
        words: BM25's index of the same documents, to join its ranking with the model's; None searches by the model.
    """

    embedder: Embedder
    documents: Dataset
    embeddings: Tensor
    words: BM25Index | None = None

    def search(self, questions: list[str], top: int = 5) -> list[list[SearchResult]]:
        """The `top` documents that are nearest to each question, or that both rankings together put first."""
        queries = self.embedder.queries(questions)
        depth = top if self.words is None else max(top, RANKING_DEPTH)
        numbers = [str(number) for number in range(max(len(questions), len(self.documents)))]
        numbered = partial(as_run, numbers[: len(questions)], numbers)
        found = numbered(*search_exact(queries, self.embeddings.split(BLOCK_DOCUMENTS), depth))
        rankings: dict[str, Run] = {}
        if self.words is not None:
            rankings = {"model": found, "BM25": numbered(*self.words.search(questions, depth))}
            found = reciprocal_rank_fusion(*rankings.values(), depth=top)
        results = []
        for question, query in zip(found, queries, strict=True):
            ranked = {name: best_first(run[question]) for name, run in rankings.items()}
            results.append(
                [
                    SearchResult(
                        name=(document := self.documents[int(index)])["name"],
                        line=best_line(self.embedder, query, document["text"]),
                        score=score,
                        ranks={name: hits.index(index) + 1 if index in hits else None for name, hits in ranked.items()},
                        text=document["text"],
                    )
                    for index, score in found[question].items()
                ]
            )
        return results


def load_index(
    name_or_path: str,
    dataset: str = PYDOCS,
    batch_size: int | None = None,
    num_proc: int | None = None,
    trust_remote_code: bool = False,
    hybrid: bool = False,
) -> SearchIndex:
    """The documents of a corpus with their embeddings by a model.

    They are embedded once for a model and a state of the corpus, and kept beside the Hugging Face caches as long as
    they are used. Of "pydocs" these are the public names alone. With `hybrid` BM25's ranking is joined to the model's.
    """
    if hybrid:
        import_bm25s()
    embedder = load_embedder(name_or_path, batch_size, progress=False, trust_remote_code=trust_remote_code)
    documents = load_documents(dataset, num_proc=num_proc)
    if dataset == PYDOCS:  # without the names that a leading underscore marks as private
        public = [index for index, name in enumerate(documents["name"]) if "._" not in f".{name}"]
        documents = documents.select(public)
    else:
        documents = _named(documents)
    texts = documents["text"][:]
    words = BM25Index(texts) if hybrid else None
    folder = Path(HF_CACHE_HOME) / "retromae_hf" / "embeddings"
    shards = embed_to_shards(embedder, texts, folder)
    _remove_unused(folder, shards)
    return SearchIndex(embedder, documents, torch.cat(list(shards)), words)


def _named(documents: Dataset) -> Dataset:
    """Any documents as the columns `name` and `text`."""
    column = next((column for column in NAME_COLUMNS if column in documents.column_names), None)
    named = [None] * len(documents) if column is None else documents[column]
    names = [str(name) if name else f"document {number}" for number, name in enumerate(named, 1)]
    return Dataset.from_dict({"name": names, "text": documents["text"][:]})


def _remove_unused(folder: Path, used: EmbeddingShards) -> None:
    """Note that these files were used today, and delete those that no search has used for long."""
    for file in used.files:
        os.utime(file)
    for file in folder.glob("*.safetensors"):
        if file.stat().st_mtime < time.time() - KEPT_DAYS * 24 * 3600:
            file.unlink(missing_ok=True)


def best_line(embedder: Embedder, query: Tensor, text: str) -> str:
    """The line of a text whose embedding is nearest to a query's, `[H]`."""
    lines = [line.strip() for line in text.splitlines() if len(line.split()) > 2] or [text.strip()]
    _, index = search_exact(query[None], [embedder.documents(lines)], 1)
    return lines[int(index)]


def format_results(results: list[SearchResult]) -> str:
    """Results for the terminal, two lines each: score, name and joined ranks, and the line that matches."""
    lines = []
    for result in results:
        ranks = ", ".join(f"{name} {'-' if rank is None else rank}" for name, rank in result.ranks.items())
        lines.append(f"{result.score:.3f}  {result.name}{f'  (ranks: {ranks})' if ranks else ''}\n       {result.line}")
    return "\n".join(lines)
