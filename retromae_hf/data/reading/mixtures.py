"""Texts of several sources as one, each with its share, or a part of them that is always the same."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from datasets import Dataset, Features, Value, concatenate_datasets

from ...model.errors import RetroMAEError
from ...model.masking import passage_seeds

logger = logging.getLogger(__name__)

TEXT = Features({"text": Value("large_string")})


def mix_documents(
    documents: Sequence[tuple[str, Dataset]],
    weights: Sequence[float] | None,
    max_documents: int | None,
    seed: int,
) -> Dataset:
    """The documents of several sources, one source behind the other; `Trainer` shuffles them as one.

    Args:
        documents: of each source its name and its documents, with the column `text`.
        weights: of each source its share of the documents, in any unit. The source that has too few for its share is
            taken whole, and the others are as large as their shares then; nothing is there twice. None takes all.
        max_documents: how many at most, drawn by the seed; None for all.
        seed: of what is drawn.

    Returns:
        The column `text`.

    Raises:
        RetroMAEError: a share is so small that it holds no document.
    """
    parts = [part.select_columns("text") for _, part in documents]
    if len(parts) > 1:
        parts = [part.cast(TEXT) for part in parts]
    if weights is None:
        return sample_documents(concatenate_datasets(parts), max_documents, seed)
    shares = [weight / sum(weights) for weight in weights]
    total = min(len(part) / share for part, share in zip(parts, shares, strict=True))
    total = total if max_documents is None else min(total, max_documents)
    counts = [round(share * total) for share in shares]
    for (name, part), count in zip(documents, counts, strict=True):
        if not count:
            raise RetroMAEError(f"the share of {name} in {round(total)} documents is none; give it a larger weight")
        logger.info("%s of the %s documents of %s", f"{count:,}", f"{len(part):,}", name)
    return concatenate_datasets(
        [sample_documents(part, count, seed) for part, count in zip(parts, counts, strict=True)]
    )


def sample_documents(documents: Dataset, count: int | None, seed: int) -> Dataset:
    """So many documents at most, in their order: always the same of the same text and seed; None for all."""
    if count is None or count >= len(documents):
        return documents
    drawn = passage_seeds(seed, 0, torch.arange(len(documents))).argsort()[:count]
    return documents.select(drawn.sort().values.numpy())
