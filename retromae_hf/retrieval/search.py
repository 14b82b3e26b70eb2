"""Searches a corpus by sentence embedding: the documentation in this Python environment, or any other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from datasets.config import HF_CACHE_HOME
from torch import Tensor

from ..data.sources import load_documents
from .embedders import Embedder, load_embedder, model_identity
from .embedding_shards import embed_to_shards
from .nearest import rank

PYDOCS = "pydocs"
NAME_COLUMNS = ("name", "title", "_id", "id")


@dataclass(frozen=True)
class SearchResult:
    """A document's name, the line of it that matches best, and the score of the document for the question."""

    name: str
    line: str
    score: float


@dataclass(frozen=True)
class SearchIndex:
    """Documents with their embeddings, to be asked any number of questions.

    Attributes:
        embedder: the model.
        documents: the columns `name` and `text`.
        embeddings: `[N, H]`.
    """

    embedder: Embedder
    documents: Dataset
    embeddings: Tensor

    def search(self, questions: list[str], top: int = 5) -> list[list[SearchResult]]:
        """The `top` documents that are nearest to each question."""
        queries = self.embedder.queries(questions)
        scores, indices = rank(queries, self.embeddings, top)
        return [
            [
                SearchResult(
                    self.documents[index]["name"],
                    best_line(self.embedder, query, self.documents[index]["text"]),
                    score,
                )
                for index, score in zip(row_indices, row_scores, strict=True)
            ]
            for query, row_indices, row_scores in zip(queries, indices.tolist(), scores.tolist(), strict=True)
        ]


def load_index(
    name_or_path: str,
    dataset: str = PYDOCS,
    batch_size: int = 64,
    num_proc: int | None = None,
    trust_remote_code: bool = False,
) -> SearchIndex:
    """The documents of a corpus with their embeddings by a model.

    They are embedded once for a model and a state of the corpus, and kept beside the Hugging Face caches, see
    `embed_to_shards`.

    Args:
        name_or_path: anything that `load_embedder` takes.
        dataset: what `load_documents` takes. Of "pydocs", the public names alone. A document is called what its
            column `name`, `title`, `_id` or `id` says, else by its number.
        batch_size: texts a batch.
        num_proc: processes to read the corpus with.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        RetroMAEError: model or corpus cannot be read.
    """
    embedder = load_embedder(name_or_path, batch_size, progress=False, trust_remote_code=trust_remote_code)
    documents = load_documents(dataset, num_proc=num_proc)
    documents = public_documents(documents) if dataset == PYDOCS else named_documents(documents)
    folder = Path(HF_CACHE_HOME) / "retromae_hf" / "embeddings"
    shards = embed_to_shards(documents["text"][:], embedder.documents, model_identity(name_or_path), folder)
    return SearchIndex(embedder, documents, torch.cat(list(shards)))


def format_results(results: list[SearchResult]) -> str:
    """Results for the terminal, two lines each: score and name, and the line that matches."""
    return "\n".join(f"{result.score:.3f}  {result.name}\n       {result.line}" for result in results)


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
