"""Searches a corpus by sentence embedding: the documentation in this Python environment, or any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets.config import HF_CACHE_HOME
from torch import Tensor

from ..data.documents import load_documents
from ..data.pydocs import PYDOCS
from .embedders import Embedder, embed_to_shards, load_embedder, model_identity
from .rankings import RANKING_DEPTH, BM25Index, best_first, import_bm25s, rank, reciprocal_rank_fusion

NAME_COLUMNS = ("name", "title", "_id", "id")


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
        runs = {"model": _run(*rank(queries, self.embeddings, depth))}
        found = runs["model"]
        if self.words is not None:
            runs["BM25"] = _run(*self.words.search(questions, depth))
            found = reciprocal_rank_fusion(*runs.values(), depth=top)
        return [
            [
                SearchResult(
                    (document := self.documents[int(index)])["name"],
                    best_line(self.embedder, query, document["text"]),
                    score,
                    {} if self.words is None else {name: _rank_in(run[number], index) for name, run in runs.items()},
                    document["text"],
                )
                for index, score in found[number].items()
            ]
            for number, query in zip(found, queries, strict=True)
        ]


def _run(scores: Any, indices: Any) -> dict[str, dict[str, float]]:
    """Scores and indices `[Q, depth]` as a run, by the numbers of question and document; an index of -1 is none."""
    return {
        str(number): {str(index): score for index, score in zip(row, row_scores, strict=True) if index >= 0}
        for number, (row, row_scores) in enumerate(zip(indices.tolist(), scores.tolist(), strict=True))
    }


def _rank_in(hits: Mapping[str, float], document: str) -> int | None:
    """A document's rank among a question's hits, from 1; None where it is not among them."""
    return best_first(hits).index(document) + 1 if document in hits else None


def load_index(
    name_or_path: str,
    dataset: str = PYDOCS,
    batch_size: int | None = None,
    num_proc: int | None = None,
    trust_remote_code: bool = False,
    hybrid: bool = False,
) -> SearchIndex:
    """The documents of a corpus with their embeddings by a model.

    They are embedded once for a model and a state of the corpus, and kept beside the Hugging Face caches, see
    `embed_to_shards`.

    Args:
        name_or_path: anything that `load_embedder` takes.
        dataset: what `load_documents` takes. Of "pydocs", the public names alone. A document is called what its
            column `name`, `title`, `_id` or `id` says, else by its number.
        batch_size: texts a batch; None: `texts_a_batch`.
        num_proc: processes to read the corpus with.
        trust_remote_code: whether code that comes with the model may run.
        hybrid: whether to join the model's ranking with that of BM25, see `reciprocal_rank_fusion`.

    Raises:
        RetroMAEError: model or corpus cannot be read, or bm25s is wanted and missing.
    """
    if hybrid:
        import_bm25s()
    embedder = load_embedder(name_or_path, batch_size, progress=False, trust_remote_code=trust_remote_code)
    documents = load_documents(dataset, num_proc=num_proc)
    documents = public_documents(documents) if dataset == PYDOCS else named_documents(documents)
    texts = documents["text"][:]
    words = BM25Index(texts) if hybrid else None
    folder = Path(HF_CACHE_HOME) / "retromae_hf" / "embeddings"
    shards = embed_to_shards(texts, embedder.documents, model_identity(name_or_path), folder)
    return SearchIndex(embedder, documents, torch.cat(list(shards)), words)


def format_results(results: list[SearchResult]) -> str:
    """Results for the terminal, two lines each: score and name, and the line that matches.

    Behind the name stand the ranks whose reciprocals the score is the sum of, where it is.
    """
    return "\n".join(
        f"{result.score:.3f}  {result.name}{_told(result.ranks)}\n       {result.line}" for result in results
    )


def _told(ranks: Mapping[str, int | None]) -> str:
    told = ", ".join(f"{name} {'-' if rank is None else rank}" for name, rank in ranks.items())
    return f"  (ranks: {told})" if told else ""


def public_documents(documents: Dataset) -> Dataset:
    """The documents of names that no leading underscore marks as private."""
    public = [index for index, name in enumerate(documents["name"]) if "._" not in f".{name}"]
    return documents.select(public)


def named_documents(documents: Dataset) -> Dataset:
    """Any documents as the columns `name` and `text`."""
    column = next((column for column in NAME_COLUMNS if column in documents.column_names), None)
    named = [None] * len(documents) if column is None else documents[column]
    names = [str(name) if name else f"document {number}" for number, name in enumerate(named, 1)]
    return Dataset.from_dict({"name": names, "text": documents["text"][:]})


def best_line(embedder: Embedder, query: Tensor, text: str) -> str:
    """The line of a text whose embedding is nearest to a query's, `[H]`."""
    lines = [line.strip() for line in text.splitlines() if len(line.split()) > 2] or [text.strip()]
    _, index = rank(query[None], embedder.documents(lines), 1)
    return lines[int(index)]
