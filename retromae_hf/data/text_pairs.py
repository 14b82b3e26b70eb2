"""Queries and positives made of text that has no queries: pairs to fine-tune on."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from functools import partial

import torch
from datasets import Dataset, Features, Value

from ..arguments.finetuning import PAIRS
from ..model.errors import RetroMAEError, check_choice
from .documents import check_text
from .draws import CROPS, draw_indices, passage_seeds
from .text import MIN_BODY_WORDS, MIN_QUERY_WORDS, split_first_sentence
from .words import spans_of_words

logger = logging.getLogger(__name__)

CROPPED_WORDS = 256
"""Words that both crops of a document come from at most: what is far apart in a book is not about the same."""
MIN_CROPPED_WORDS = MIN_QUERY_WORDS + MIN_BODY_WORDS

_FEATURES = Features({"query": Value("large_string"), "positive": Value("large_string")})


def pairs_from_text(documents: Dataset, kind: str, seed: int, told: bool = True) -> Dataset:
    """At most one pair of each document, in the documents' order; those that yield none are counted.

    Pairs follow from the texts (and, for crops, the seed) alone, not from the order of the documents or their names.
    Words are those of `spans_of_words`.

    Args:
        documents: the column `text`, and for titles `title`.
        kind: "first-sentence" (the first sentence -> the rest), "title" (-> the text without it in front) or "crop" (a
            random crop -> another one, each a tenth to a half of at most `CROPPED_WORDS` words in a row and at least
            `MIN_QUERY_WORDS`; they may overlap, as in Contriever, arXiv 2112.09118).
        seed: of the crops.
        told: whether to log how many there are, and what was left out.

    Returns:
        The columns `query` and `positive`.

    Raises:
        RetroMAEError: `kind` is unknown, there are no titles or they are no text, or no document is long enough.
    """
    check_choice("pairs", kind, PAIRS)
    if kind == "title":
        titles = documents.with_format("arrow")["title"][:] if "title" in documents.column_names else None
        if titles is None or titles.null_count == len(titles):
            raise RetroMAEError(
                "pairs=title needs a column 'title' that is not empty, which the text lacks; choose first-sentence or "
                "crop"
            )
        check_text("the text", "title", titles.type)
    make, columns, short = {
        "first-sentence": (
            _first_sentences,
            ["text"],
            f"no first sentence of {MIN_QUERY_WORDS} words with {MIN_BODY_WORDS} more",
        ),
        "title": (_titles, ["text", "title"], f"no title with {MIN_BODY_WORDS} words beside it"),
        "crop": (partial(_crops, seed=seed), ["text"], f"fewer than {MIN_CROPPED_WORDS} words"),
    }[kind]
    pairs = documents.select_columns(columns).map(
        _make_pairs,
        batched=True,
        input_columns=columns,
        fn_kwargs={"make": make},
        remove_columns=columns,
        features=_FEATURES,
        desc="Making pairs",
    )
    if not len(pairs):
        raise RetroMAEError(
            f"no document is long enough for pairs={kind}: all have {short}; give longer ones, or other pairs"
        )
    if told:
        logger.info(
            "%s pairs of %s documents; %s have %s and were left out",
            f"{len(pairs):,}",
            f"{len(documents):,}",
            f"{len(documents) - len(pairs):,}",
            short,
        )
    return pairs


def _make_pairs(*columns: list[str], make: Callable[..., Iterator[tuple[str, str]]]) -> dict[str, list[str]]:
    pairs = list(make(*columns))
    return {"query": [query for query, _ in pairs], "positive": [positive for _, positive in pairs]}


def _first_sentences(texts: list[str]) -> Iterator[tuple[str, str]]:
    for query, rest in map(split_first_sentence, texts):
        if len(spans_of_words(query)) >= MIN_QUERY_WORDS and len(spans_of_words(rest)) >= MIN_BODY_WORDS:
            yield query, rest


def _titles(texts: list[str], titles: list[str | None]) -> Iterator[tuple[str, str]]:
    for text, title in zip(texts, titles, strict=True):
        query = (title or "").strip()
        body = text.strip().removeprefix(query).strip()  # a title may stand in front of its text
        if query and len(spans_of_words(body)) >= MIN_BODY_WORDS:
            yield " ".join(query.split()), body


def _crops(texts: list[str], seed: int) -> Iterator[tuple[str, str]]:
    long_enough = [(text, spans) for text in texts if len(spans := spans_of_words(text)) >= MIN_CROPPED_WORDS]
    # A document is known by its text, so that its pair is the same wherever it stands, and in two copies.
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text, _ in long_enough]
    ids = torch.tensor([int.from_bytes(one, "big", signed=True) for one in digests], dtype=torch.int64)
    seeds = passage_seeds(seed, 0, ids)
    words = torch.tensor([len(spans) for _, spans in long_enough], dtype=torch.int64)
    window = words.clamp(max=CROPPED_WORDS)
    first = draw_indices(seeds, words - window + 1, CROPS, 0)
    shortest, longest = (window // 10).clamp(min=MIN_QUERY_WORDS), window // 2
    ends = []
    for number in (1, 3):
        length = shortest + draw_indices(seeds, longest - shortest + 1, CROPS, number)
        start = first + draw_indices(seeds, window - length + 1, CROPS, number + 1)
        ends.append(zip(start.tolist(), (start + length).tolist(), strict=True))
    for (text, spans), *crops in zip(long_enough, *ends, strict=True):
        query, positive = (text[spans[start][0] : spans[stop - 1][1]] for start, stop in crops)
        yield query, positive
