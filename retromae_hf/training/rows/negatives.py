"""Mines hard negatives: documents that a search takes for relevant and that are not."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

from datasets import Dataset, concatenate_datasets

from ...arguments.finetuning import FinetuneArguments
from ...model.errors import RetroMAEError, in_one_sentence
from ...retrieval.rankings import search_bm25

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


def mine(
    args: FinetuneArguments,
    pairs: Dataset,
    documents: list[str],
    own: set[tuple[str, str]],
    model: SentenceTransformer,
    seed: int,
) -> Dataset:
    """The pairs that have enough hard negatives among documents, with the columns `query`, `positive`, `negative_1` ...

    `own` are queries and documents that are no answer to them and no negative either.
    """
    # Miners keep a query's positives from its negatives, so for as long as they work these are some.
    columns = {"query": [query for query, _ in sorted(own)], "positive": [document for _, document in sorted(own)]}
    known = concatenate_datasets([pairs, Dataset.from_dict(columns, features=pairs.features)])
    if args.hard_negatives == "bm25":
        found = mine_with_bm25(args, known, documents, seed)
    else:
        found = mine_with_model(args, known, documents, model, seed)
    mined = found.filter(lambda *pair: pair not in own, input_columns=["query", "positive"])
    count = args.num_negatives
    if len(mined) == 0:
        raise RetroMAEError(f"no query has {count} hard negatives; lower num_negatives or raise negative_depth")
    if len(mined) < len(pairs):
        logger.warning(
            "%d of %d rows have fewer than %d negatives and were dropped", len(pairs) - len(mined), len(pairs), count
        )
    return mined


def mine_with_model(
    args: FinetuneArguments, pairs: Dataset, documents: list[str], model: SentenceTransformer, seed: int
) -> Dataset:
    """Negatives drawn from the `negative_depth` documents nearest to the query by the model itself.

    With an encoder that was fine-tuned once this is the second round of ANCE (arXiv 2007.00808). The mining is
    sentence-transformers' own, which knows the positives of every query. It compares by cosine, whatever the model.
    """
    from sentence_transformers.util import mine_hard_negatives

    state = random.getstate()
    random.seed(seed)  # its draws come from Python's own generator
    try:
        with in_one_sentence("no hard negatives can be mined"):
            return mine_hard_negatives(
                pairs,
                model,
                corpus=documents,
                range_max=args.negative_depth,
                num_negatives=args.num_negatives,
                sampling_strategy="random",
                output_format="n-tuple",
                batch_size=args.mini_batch_size,
                faiss_batch_size=max(SCORES_AT_A_TIME // len(documents), 1),  # without faiss too
                verbose=False,
            )
    finally:
        random.setstate(state)


def mine_with_bm25(args: FinetuneArguments, pairs: Dataset, documents: list[str], seed: int) -> Dataset:
    """The same from the documents that BM25 (bm25s, English stop words) finds."""
    documents = list(dict.fromkeys(documents))
    positives: dict[str, set[str]] = {}
    told = list(zip(pairs["query"][:], pairs["positive"][:], strict=True))
    for query, positive in told:
        positives.setdefault(query, set()).add(positive)
    _, found = search_bm25(list(positives), documents, args.negative_depth)
    draw = random.Random(seed)
    negatives: dict[str, list[str]] = {}
    for query, places in zip(positives, found.tolist(), strict=True):
        wrong = [documents[place] for place in places if place >= 0]
        wrong = [document for document in wrong if document not in positives[query]]
        if len(wrong) >= args.num_negatives:
            negatives[query] = draw.sample(wrong, args.num_negatives)
    rows = [(query, positive, *negatives[query]) for query, positive in told if query in negatives]
    names = ["query", "positive", *(f"negative_{number}" for number in range(1, args.num_negatives + 1))]
    return Dataset.from_dict({name: [row[place] for row in rows] for place, name in enumerate(names)})
