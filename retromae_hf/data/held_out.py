"""What is held out of a text or of rows, so that nothing is trained on it: plain data, of which tasks are made.

Every choice follows from the names or the texts themselves, so that it is the same in every run and on every machine.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any, NamedTuple

from datasets import Dataset

from ..arguments.finetuning import PAIRS
from ..arguments.pretraining import TextSource
from ..model.errors import RetroMAEError
from .documents import mix_documents, read_source, sample_documents
from .files import check_whole
from .pydocs import PYDOCS, load_pydocs
from .text import MIN_BODY_WORDS, MIN_QUERY_WORDS, split_first_sentence
from .text_pairs import pairs_from_text

TEST_QUERIES, DEV_QUERIES, SEARCHED_BODIES = 1000, 200, 10_000
"""Of pydocs: queries of the reported test, queries to watch while training, and bodies that are searched."""
TEXT_SHARE, STREAM_SHARE, PAIRS_SHARE = 10, 5, 5
"""One document of so many is held out at most: of a text, of the head of a stream, of a text that makes pairs."""
TRIED_DOCUMENTS = 1000
"""Documents that show which pairs a text yields."""
MIN_QUERIES = 30
"""Fewer tell one encoder from another by chance alone."""


@dataclass(frozen=True)
class HeldOut:
    """A text divided for pretraining and for a retrieval task of its own: first sentence -> body.

    Attributes:
        pretraining: documents to pretrain on (`name`, `text`). Of a held-out document only the body is there, and no
            held-out query stands anywhere in the text.
        queries: the held-out first sentences, by name.
        bodies: the bodies to search, by name, among them that of every query.
        paired: the documents that `pairs` are made of.
    """

    pretraining: Dataset
    queries: dict[str, str]
    bodies: dict[str, str]
    paired: Dataset

    @property
    def untouched(self) -> Dataset:
        """The documents of `pretraining` that no query was taken from, nor from another of that name."""
        names = self.pretraining["name"][:]
        return self.pretraining.select([index for index, name in enumerate(names) if name not in self.queries])

    @functools.cached_property
    def pairs(self) -> Dataset:
        """First sentences and bodies that are not held out (`query`, `body`), to fine-tune on."""
        split = [split_first_sentence(text) for text in _texts(self.paired)]
        return Dataset.from_dict({"query": [query for query, _ in split], "body": [body for _, body in split]})


def hold_out(documents: Dataset, queries: int, bodies: int = SEARCHED_BODIES) -> HeldOut:
    """Hold first sentences out of documents (`name`, `text`): so many at most, to be found among so many bodies.

    The choice follows from names and texts alone.
    """
    names = documents["name"][:]
    # A body that two documents share would make the one right answer ambiguous. Their digests do, and the texts are
    # read again where they are wanted, since all of them may not fit into memory.
    by_body: dict[bytes, int] = {}
    by_name: dict[str, int] = {}
    for index, text in enumerate(_texts(documents)):
        query, body = split_first_sentence(text)
        long_enough = len(query.split()) >= MIN_QUERY_WORDS and len(body.split()) >= MIN_BODY_WORDS
        if long_enough and by_body.setdefault(_digest(_fold(body)), index) == index:
            by_name.setdefault(names[index], index)  # overloads share a name too
    eligible = sorted(by_name.values(), key=lambda index: _digest(names[index], 8))
    candidates = eligible[: 3 * queries]
    split = {index: split_first_sentence(documents[index]["text"]) for index in candidates}
    unique = _only_once(_texts(documents), {index: split[index][0] for index in candidates})
    held_out = [index for index in candidates if index in unique][:queries]
    chosen = set(held_out)
    rest = [index for index in eligible if index not in chosen]
    others = rest[: max(bodies - len(held_out), 0)]
    split |= {index: split_first_sentence(documents[index]["text"]) for index in others if index not in split}
    return HeldOut(
        pretraining=documents.map(
            _replace_text,
            with_indices=True,
            input_columns="text",
            fn_kwargs={"replacements": {index: split[index][1] for index in held_out}},
            desc="Holding out queries",
        ),
        queries={names[index]: split[index][0] for index in held_out},
        bodies={names[index]: split[index][1] for index in held_out + others},
        paired=documents.select(rest),
    )


def load_held_out(text: TextSource, seed: int = 0) -> HeldOut:
    """A text without the first sentences that are held out of it; of pydocs always those of the reported test too.

    The seed draws where the text is of several sources with weights, or has `max_documents`.
    """
    if text.dataset == [PYDOCS]:
        held_out = _held_out_pydocs(text)
        return replace(held_out, pretraining=sample_documents(held_out.pretraining, text.max_documents, seed))
    parts = [
        (source, _held_out_pydocs(text).pretraining if source == PYDOCS else read_source(source, text))
        for source in text.dataset
    ]
    documents = mix_documents(parts, text.dataset_weights, text.max_documents, seed)
    return hold_out(_numbered(documents), min(text.dev_queries, len(documents) // TEXT_SHARE))


def hold_out_head(texts: list[str], queries: int) -> HeldOut:
    """The texts at the head of a stream, of which nothing is trained on: some are asked for, all are evaluated on."""
    return hold_out(_numbered(Dataset.from_dict({"text": texts})), min(queries, len(texts) // STREAM_SHARE))


def _numbered(documents: Dataset) -> Dataset:
    """Texts and titles, known by their numbers: other names need not be there, nor be those of one document."""
    known = documents.select_columns([name for name in documents.column_names if name in ("text", "title")])
    return known.add_column("name", [str(number) for number in range(len(known))])


def _held_out_pydocs(text: TextSource) -> HeldOut:
    check_whole(PYDOCS, text.dataset_config_name, text.dataset_split)
    return load_held_out_pydocs(text.preprocessing_num_workers)


_of_pydocs: list[HeldOut] = []


def load_held_out_pydocs(num_proc: int | None = None) -> HeldOut:
    """`load_pydocs`, divided; a process reads and divides it once, for pretraining and evaluation alike."""
    if not _of_pydocs:
        _of_pydocs.append(hold_out(load_pydocs(num_proc), TEST_QUERIES + DEV_QUERIES))
    return _of_pydocs[0]


def _replace_text(text: str, index: int, replacements: dict[int, str]) -> dict[str, str]:
    return {"text": replacements.get(index, text)}


def _texts(documents: Dataset) -> Iterator[str]:
    """The texts one after another, of which few are in memory."""
    for batch in documents.select_columns("text").iter(1000):
        yield from batch["text"]


def _digest(text: str, size: int = 16) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


def _fold(text: str) -> str:
    return " ".join(text.lower().split())


def _only_once(texts: Iterable[str], phrases: dict[int, str]) -> set[int]:
    """Which phrases stand exactly once in all the texts together, white space and case apart.

    A phrase is looked for where its first words stand, so that the texts are read once for all phrases.
    """
    starts: dict[tuple[str, ...], list[int]] = defaultdict(list)
    folded = {index: _fold(phrase) for index, phrase in phrases.items()}
    for index, phrase in folded.items():
        # The first and the last word may continue in the text ("(see" for "see"), so only inner words are a key.
        starts[tuple(phrase.split()[1 : MIN_QUERY_WORDS - 1])].append(index)
    counts: dict[int, int] = defaultdict(int)
    for text in texts:
        words = text.lower().split()
        found = starts.keys() & set(zip(*(words[offset:] for offset in range(MIN_QUERY_WORDS - 2)), strict=False))
        if found:
            joined = " ".join(words)
            for start in found:
                for index in starts[start]:
                    counts[index] += joined.count(folded[index])
    return {index for index in phrases if counts[index] == 1}


class Judged(NamedTuple):
    """Queries and documents by id, and the grades of the judged pairs, as `RetrievalTask` takes them."""

    queries: dict[str, str]
    documents: dict[str, str]
    qrels: dict[str, dict[str, int]]


def choose_pairs(documents: Dataset, seed: int) -> str:
    """The first kind of pairs that at least half of the documents yield, crops where none does.

    Text in lower case has no sentences that can be told apart, and much text has no titles.
    """
    tried = documents.select(_in_order(documents)[:TRIED_DOCUMENTS])
    for kind in PAIRS[:-1]:
        try:
            if 2 * len(pairs_from_text(tried, kind, seed, told=False)) >= len(tried):
                return kind
        except RetroMAEError:  # none at all, or no titles
            continue
    return PAIRS[-1]


def hold_out_pairs(documents: Dataset, kind: str, seed: int, queries: int, bodies: int) -> tuple[Judged, Dataset]:
    """Hold pairs out of documents (`text`, and for titles `title`), and all copies of the documents that make them.

    Args:
        documents: what is divided.
        kind: of the pairs, see `pairs_from_text`.
        seed: of the crops.
        queries: to hold out at most.
        bodies: documents to search at most: the positives of the queries, and of others, which are trained on.

    Raises:
        RetroMAEError: the text yields fewer than `MIN_QUERIES`.
    """
    order = _in_order(documents)
    count = min(queries, len(order) // PAIRS_SHARE)
    if count < MIN_QUERIES:
        raise RetroMAEError(
            f"{len(order)} different documents are too few to hold a task out of them; at least "
            f"{PAIRS_SHARE * MIN_QUERIES} are needed, to measure what training gives"
        )
    chosen = documents.select(order[:count])
    held_out = pairs_from_text(chosen, kind, seed, told=False)
    others = pairs_from_text(documents.select(order[count : max(bodies, count + 1)]), kind, seed, told=False)
    times = Counter(held_out["query"][:])
    ids = {text: f"d{number}" for number, text in enumerate(others["positive"][:], 1)}
    asked, qrels = {}, {}
    for number, (query, positive) in enumerate(zip(held_out["query"][:], held_out["positive"][:], strict=True), 1):
        if times[query] == 1 and positive not in ids:  # else there would be several right answers
            ids[positive] = f"h{number}"
            asked[f"q{number}"] = query
            qrels[f"q{number}"] = {f"h{number}": 1}
    if len(qrels) < MIN_QUERIES:
        raise RetroMAEError(
            f"the text yields {len(qrels)} queries to hold out, and at least {MIN_QUERIES} are needed to measure what "
            "training gives; give more text, longer documents or other pairs"
        )
    # Among equal scores the first documents may win, so the right ones must not lie together.
    searched = {ids[text]: text for text in in_random_order(ids)}
    digests = set(map(_digest, chosen["text"]))
    kept = [index for index, text in enumerate(documents["text"]) if _digest(text) not in digests]
    return Judged(asked, searched, qrels), documents.select(kept)


def _in_order(documents: Dataset) -> list[int]:
    """The documents that differ, in an order that follows from their texts."""
    digests: dict[bytes, int] = {}
    for index, text in enumerate(documents["text"]):
        digests.setdefault(_digest(text), index)
    return [digests[digest] for digest in sorted(digests)]


def in_random_order(names: Iterable[str]) -> list[str]:
    """Each once, in an order that is random and always the same."""
    return sorted(set(names), key=_digest)


def hold_out_queries(rows: Dataset, share: float) -> tuple[Judged, Dataset]:
    """Hold a share of the queries out of rows of `query`, `positive` and negatives, to be found among all positives.

    In the other rows none of their positives is a negative: another negative of the row takes its place.

    Raises:
        RetroMAEError: nothing would be left on one side.
    """
    queries = dict.fromkeys(rows["query"][:])
    count = round(share * len(queries))
    if not 0 < count < len(queries):
        raise RetroMAEError(f"a share of {share} of {len(queries)} queries leaves none on one side; take another one")
    chosen = set(in_random_order(queries)[:count])
    judged = judged_rows(rows, chosen)
    kept = rows.filter(lambda query: query not in chosen, input_columns="query")
    held_out = {judged.documents[document] for grades in judged.qrels.values() for document in grades}
    return judged, _without_negatives(kept, held_out.difference(kept["positive"][:]))


def _without_negatives(rows: Dataset, texts: Collection[str]) -> Dataset:
    """Rows in which none of the texts is a negative. A teacher's row that has one goes as a whole, for its scores."""
    names = [name for name in rows.column_names if name.startswith("negative_")]
    if not names:
        return rows

    def others(row: dict[str, Any]) -> list[str]:
        return [row[name] for name in names if row[name] not in texts]

    fewest = len(names) if "label" in rows.column_names else 1
    kept = rows.filter(lambda row: len(others(row)) >= fewest)
    return kept.map(lambda row: dict(zip(names, cycle(others(row)), strict=False)))


def judged_rows(rows: Dataset, queries: Collection[str]) -> Judged:
    """Some queries of rows of `query` and `positive`, to be found among the positives of all rows."""
    documents = {text: f"d{number}" for number, text in enumerate(in_random_order(rows["positive"][:]), 1)}
    asked = {text: f"q{number}" for number, text in enumerate(dict.fromkeys(queries), 1)}
    qrels: dict[str, dict[str, int]] = {}
    for query, positive in zip(rows["query"][:], rows["positive"][:], strict=True):
        if query in asked:
            qrels.setdefault(asked[query], {})[documents[positive]] = 1
    return Judged({name: text for text, name in asked.items()}, {name: text for text, name in documents.items()}, qrels)
