"""Which columns of other people's rows are the query, the positive, the negatives and a teacher's scores."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from ...model.errors import RetroMAEError

logger = logging.getLogger(__name__)

_TEXTS = "(passage|document|doc|ctx|context|text|sentence)s?"
ROLES = {
    "other": r"\w*ids?\d*|\w*idx|\w*index\w*|docno|unnamed\w*|label_\w+|lang(uage)?|source|type|prompt|instruction|url"
    "|split|domain|dataset|task|category",
    "positive scores": r"pos(itive)?s?_?scores?",
    "negative scores": r"neg(ative)?s?_?scores?",
    "label": r"((gold|relevance|similarity|relatedness|teacher)_)?(label|score)s?|similarity|relevance|relevant|grade"
    "|duplicate|is_(duplicate|relevant|positive|paraphrase|match|similar|answer|correct|selected)",
    "query": r"((search|user)_)?(query|queries|anchor|question|q)s?(_text)?",
    "positive": rf"(pos|positive)s?(_{_TEXTS})?|(passage|document|doc|context|paragraph|response)s?(_text)?"
    "|answer(_text)?",
    "negative": rf"(hard_?)?neg(ative)?s?(_{_TEXTS})?_?\d*",
    "pair": "(sentence|sent|text|question|query|title|caption|passage|document|post|body)_?[012ab]",
}
"""What a column is by its name, the first that fits; names are compared in lower case, words joined by "_"."""

KNOWN = (
    "query (or anchor, question), positive (or pos, passage, document, answer, context), negative (or neg, negatives, "
    "negative_1 ...) and label"
)


def role_of(column: str) -> str | None:
    """What a column's name says that it is, one of `ROLES`; None where it says nothing."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|\W+", "_", column.strip()).lower()
    return next((role for role, names in ROLES.items() if re.fullmatch(names, words)), None)


@dataclass(frozen=True)
class Columns:
    """Which columns of some rows are what.

    Attributes:
        query: a text.
        positive: a text, or a list of texts, each of which makes a row.
        negatives: texts or lists of texts.
        label: of a pair or a tuple: 0 or 1, a margin, or a list of scores.
        scores: a teacher's scores of the positives and of the negatives.
    """

    query: str
    positive: str
    negatives: list[str]
    label: str | None
    scores: list[str]


def find_columns(source: str, rows: Dataset, named: Mapping[str, str] | None = None) -> Columns:
    """Go by the names of the columns, and say what becomes of each.

    `sentence1` and `sentence2`, and what is numbered likewise, are a pair in that order. Two columns of text whose
    names say nothing are a pair in their own order, and one beside a query or a positive is the other: that is a guess,
    and said to be one.

    Args:
        source: what to call the rows in messages.
        rows: with any columns.
        named: what the user says that columns are, "query", "positive" or "negative" by their names; no other column
            is one then.

    Raises:
        RetroMAEError: there is no such column, or the names contradict each other or do not tell which is the query
            and which the positive.
    """
    found: dict[str | None, list[str]] = {role: [] for role in (*ROLES, None)}
    named = named or {}
    if absent := named.keys() - set(rows.column_names):
        raise RetroMAEError(
            f"{source} has no column {', '.join(sorted(absent))}; it has {', '.join(rows.column_names)}"
        )
    for name in rows.column_names:
        role = named.get(name) or role_of(name)
        found["other" if name not in named and role in named.values() else role].append(name)
    for role in ("query", "positive", "label", "positive scores", "negative scores"):
        if len(found[role]) > 1:
            raise RetroMAEError(
                f"{source} has several columns for the {role}, {', '.join(found[role])}; leave all but one out"
            )
    missing = [role for role in ("query", "positive") if not found[role]]
    unknown = [name for name in found[None] if _is_text(rows.features[name])]
    paired = len(missing) == len(found["pair"]) == 2
    texts = sorted(found["pair"]) if paired else found["pair"] + unknown
    if missing and len(missing) != len(texts):
        made = "; or make pairs of the text alone with --pairs first-sentence" if len(missing) == 2 else ""
        raise RetroMAEError(
            f"the columns of {source}, {', '.join(rows.column_names)}, do not tell the {' and the '.join(missing)} "
            f"(ids are no text); name them {KNOWN}{made}"
        )
    found |= {role: [name] for role, name in zip(missing, texts, strict=False)}
    scores = found["positive scores"] + found["negative scores"]
    label = next(iter(found["label"]), None)
    columns = Columns(
        found["query"][0], found["positive"][0], found["negative"], label, scores[:2] if scores[1:] else []
    )
    taken = [columns.query, columns.positive, *columns.negatives, label, *columns.scores]
    left_out = [name for name in rows.column_names if name not in taken]
    told = f"{source}: the query is {columns.query!r}, the positive {columns.positive!r}"
    told += f", negatives {', '.join(map(repr, columns.negatives))}" if columns.negatives else ""
    told += f"; not used: {', '.join(map(repr, left_out))}" if left_out else ""
    if missing and not paired:
        logger.warning("%s; this is a guess, names that tell are %s", told, KNOWN)
    else:
        logger.info("%s", told)
    return columns


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string", "string_view")
