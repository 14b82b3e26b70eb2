"""Mines hard negatives: documents that a search takes for relevant and that are not."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

from datasets import Dataset

from ...model.errors import RetroMAEError, in_one_sentence
from ...retrieval.rankings import BM25Index

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

SCORES_AT_A_TIME = 2**28
"""Similarities held at once while mining, 1 GiB of them."""


def drawn_places(available: int, count: int, draw: random.Random) -> list[int]:
    """The places of `count` negatives among so many, in their order; of too few all are taken, and some twice."""
    if available >= count:
        return sorted(draw.sample(range(available), count))
    return [*range(available), *draw.choices(range(available), k=count - available)]


def mine_with_model(
    pairs: Dataset,
    documents: list[str],
    model: SentenceTransformer,
    count: int,
    depth: int,
    batch_size: int,
    seed: int,
) -> Dataset:
    """`count` negatives a row, drawn from the `depth` documents nearest to the query by the model itself.

    With an encoder that was fine-tuned once this is the second round of ANCE (arXiv 2007.00808). The mining is
    sentence-transformers' own, which knows the positives of every query. It compares by cosine, whatever the model.

    Args:
        pairs: the columns `query` and `positive`.
        documents: what to search.
        model: the embedder.
        count: negatives a row.
        depth: documents to draw from.
        batch_size: texts a batch.
        seed: of the draw.

    Returns:
        The rows that have enough negatives, maybe none, with the columns `query`, `positive`, `negative_1` ...
    """
    from sentence_transformers.util import mine_hard_negatives

    state = random.getstate()
    random.seed(seed)  # its draws come from Python's own generator
    try:
        with in_one_sentence("no hard negatives can be mined"):
            mined = mine_hard_negatives(
                pairs,
                model,
                corpus=documents,
                range_max=depth,
                num_negatives=count,
                sampling_strategy="random",
                output_format="n-tuple",
                batch_size=batch_size,
                faiss_batch_size=max(SCORES_AT_A_TIME // len(documents), 1),  # without faiss too
                verbose=False,
            )
    finally:
        random.setstate(state)
    return mined


def mine_with_bm25(pairs: Dataset, documents: list[str], count: int, depth: int, seed: int) -> Dataset:
    """The same from the `depth` documents that BM25 (bm25s, English stop words) finds."""
    documents = list(dict.fromkeys(documents))
    positives: dict[str, set[str]] = {}
    told = list(zip(pairs["query"][:], pairs["positive"][:], strict=True))
    for query, positive in told:
        positives.setdefault(query, set()).add(positive)
    queries = list(positives)
    _, found = BM25Index(documents).search(queries, depth)
    draw = random.Random(seed)
    negatives: dict[str, list[str]] = {}
    for query, places in zip(queries, found.tolist(), strict=True):
        wrong = [documents[place] for place in places if place >= 0]
        wrong = [document for document in wrong if document not in positives[query]]
        if len(wrong) >= count:
            negatives[query] = draw.sample(wrong, count)
    rows = [(query, positive, *negatives[query]) for query, positive in told if query in negatives]
    names = ["query", "positive", *(f"negative_{number}" for number in range(1, count + 1))]
    return Dataset.from_dict({name: [row[place] for row in rows] for place, name in enumerate(names)})


def checked(mined: Dataset, pairs: Dataset, count: int) -> Dataset:
    """Mined rows, of which there are some; how many of the pairs got none is said.

    Raises:
        RetroMAEError: none has any.
    """
    if len(mined) == 0:
        raise RetroMAEError(f"no query has {count} hard negatives; lower num_negatives or raise negative_depth")
    if len(mined) < len(pairs):
        logger.warning(
            "%d of %d rows have fewer than %d negatives and were dropped", len(pairs) - len(mined), len(pairs), count
        )
    return mined
