"""A retrieval task held out of any text: pairs of some documents, which nothing is trained on."""

from __future__ import annotations

import hashlib
from collections import Counter

from datasets import Dataset

from ...arguments.finetuning import PAIRS
from ...data.text_pairs import pairs_from_text
from ...model.errors import RetroMAEError
from ...retrieval.tasks import RetrievalTask

TRIED_DOCUMENTS = 1000
"""Documents that show which pairs a text yields."""
MIN_QUERIES = 30
"""Fewer tell one encoder from another by chance alone."""
HELD_OUT_SHARE = 5
"""One document of so many is held out at most."""


def choose_pairs(documents: Dataset, seed: int) -> str:
    """The first kind of pairs that at least half of the documents yield, crops where none does.

    Text in lower case has no sentences that can be told apart, and much text has no titles.
    """
    tried = documents.select(_order(documents)[:TRIED_DOCUMENTS])
    for kind in PAIRS[:-1]:
        try:
            if 2 * len(pairs_from_text(tried, kind, seed, told=False)) >= len(tried):
                return kind
        except RetroMAEError:  # none at all, or no titles
            continue
    return PAIRS[-1]


def hold_out_pairs(
    documents: Dataset, kind: str, seed: int, queries: int, bodies: int
) -> tuple[RetrievalTask, Dataset]:
    """Divide documents into a task and what may be trained on. The choice follows from the texts alone.

    Args:
        documents: the column `text`, and for titles `title`.
        kind: of the pairs, see `pairs_from_text`.
        seed: of the crops.
        queries: to hold out at most, of a fifth of the documents at most.
        bodies: documents of the task at most: the positives of its queries, and of others, which are trained on.

    Returns:
        The task "held-out", and the documents without those of its queries, their copies included.

    Raises:
        RetroMAEError: the text yields fewer than `MIN_QUERIES`.
    """
    order = _order(documents)
    count = min(queries, len(order) // HELD_OUT_SHARE)
    if count < MIN_QUERIES:
        raise RetroMAEError(
            f"{len(order)} different documents are too few to hold a task out of them; at least "
            f"{HELD_OUT_SHARE * MIN_QUERIES} are needed, to measure what training gives"
        )
    held_out = pairs_from_text(documents.select(order[:count]), kind, seed, told=False)
    searched_too = documents.select(order[count : max(bodies, count + 1)])
    others = pairs_from_text(searched_too, kind, seed, told=False)["positive"][:]
    times, documents_of = Counter(held_out["query"][:]), {text: f"d{number}" for number, text in enumerate(others, 1)}
    queries_of, qrels = {}, {}
    for number, (query, positive) in enumerate(zip(held_out["query"][:], held_out["positive"][:], strict=True), 1):
        if times[query] == 1 and positive not in documents_of:  # else there would be several right answers
            documents_of[positive] = f"h{number}"
            queries_of[f"q{number}"] = query
            qrels[f"q{number}"] = {f"h{number}": 1}
    if len(qrels) < MIN_QUERIES:
        raise RetroMAEError(
            f"the text yields {len(qrels)} queries to hold out, and at least {MIN_QUERIES} are needed to measure what "
            "training gives; give more text, longer documents or other pairs"
        )
    # Among equal scores the first documents may win, so the right ones must not lie together.
    searched = {documents_of[text]: text for text in sorted(documents_of, key=_digest)}
    chosen = {_digest(text) for text in documents.select(order[:count])["text"][:]}
    kept = [index for index, text in enumerate(documents["text"]) if _digest(text) not in chosen]
    return RetrievalTask("held-out", queries_of, searched, qrels), documents.select(kept)


def _order(documents: Dataset) -> list[int]:
    """The documents that differ, in an order that follows from their texts."""
    digests: dict[bytes, int] = {}
    for index, text in enumerate(documents["text"]):
        digests.setdefault(_digest(text), index)
    return [digests[digest] for digest in sorted(digests)]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
