"""Searches the documentation in this Python environment by sentence embedding."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from datasets.config import HF_CACHE_HOME
from safetensors.torch import load_file, save_file
from torch import Tensor

from .dense_search import rank
from .embedders import Embedder, load_embedder, model_identity
from .pydocs import load_pydocs


@dataclass(frozen=True)
class SearchResult:
    """A documented name, the line of its documentation that matches best, and the cosine with the question."""

    name: str
    line: str
    score: float


def search(
    name_or_path: str,
    questions: list[str],
    top: int = 5,
    batch_size: int = 64,
    num_proc: int | None = None,
    trust_remote_code: bool = False,
) -> list[list[SearchResult]]:
    """The `top` public names whose documentation is nearest to each question.

    The documentation is embedded once for a model and an environment, and kept beside the Hugging Face caches.
    """
    embedder = load_embedder(name_or_path, batch_size, trust_remote_code=trust_remote_code)
    documents = public_documents(load_pydocs(num_proc))
    embeddings = _embeddings(name_or_path, embedder, documents)
    queries = embedder.queries(questions)
    scores, indices = rank(queries, embeddings, top)
    return [
        [
            SearchResult(documents[index]["name"], best_line(embedder, query, documents[index]["text"]), score)
            for index, score in zip(row_indices, row_scores, strict=True)
        ]
        for query, row_indices, row_scores in zip(queries, indices.tolist(), scores.tolist(), strict=True)
    ]


def format_results(results: list[SearchResult]) -> str:
    """Results for the terminal, two lines each: score and name, and the line that matches."""
    return "\n".join(f"{result.score:.3f}  {result.name}\n       {result.line}" for result in results)


def public_documents(documents: Dataset) -> Dataset:
    """The documents of names that no leading underscore marks as private."""
    public = [index for index, name in enumerate(documents["name"]) if "._" not in f".{name}"]
    return documents.select(public)


def best_line(embedder: Embedder, query: Tensor, text: str) -> str:
    """The line of a text whose embedding is nearest to a query's, `[H]`."""
    lines = [line.strip() for line in text.splitlines() if len(line.split()) > 2] or [text.strip()]
    _, index = rank(query[None], embedder.documents(lines), 1)
    return lines[int(index)]


def _embeddings(name_or_path: str, embedder: Embedder, documents: Dataset) -> Tensor:
    """Embeddings of the documents, from the cache where they are there."""
    key = hashlib.blake2b(f"unit length {model_identity(name_or_path)}".encode(), digest_size=16)
    for text in documents["text"]:
        key.update(text.encode())
    file = Path(HF_CACHE_HOME) / "retromae_hf" / f"{key.hexdigest()}.safetensors"
    if file.is_file():
        return load_file(file)["embeddings"].float()
    embeddings = embedder.documents(documents["text"][:])
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(f".{os.getpid()}")
    save_file({"embeddings": embeddings.to(torch.float16)}, aside)
    aside.rename(file)  # another search never sees half a file
    return embeddings
