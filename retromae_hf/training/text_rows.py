"""Which columns of other people's rows are the query, the positive, the negatives and a teacher's scores."""

from __future__ import annotations

import json
import logging
import math
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, List, Value

from ..data.files import numbered_lines
from ..data.text import titled
from ..model.errors import RetroMAEError, in_one_sentence

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


def role_of(column: str) -> str | None:
    """What a column's name says that it is, one of `ROLES`; None where it says nothing."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|\W+", "_", column.strip()).lower()
    return next((role for role, names in ROLES.items() if re.fullmatch(names, words)), None)


@dataclass(frozen=True)
class Columns:
    """Which columns of some rows are what."""

    query: str
    positive: str  # a text, or a list of texts, each of which makes a row
    negatives: list[str]  # texts or lists of texts
    label: str | None  # of a pair or a tuple: 0 or 1, a margin, or a list of scores
    scores: list[str]  # a teacher's, of the positives and of the negatives


def find_columns(source: str, rows: Dataset, named: Mapping[str, str] | None = None) -> Columns:
    """Go by the names of the columns, and log what becomes of each; what they do not tell is refused.

    `named` is what the user says that columns are, "query", "positive" or "negative"; no other column is one then.
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
    if not found["query"] and not found["positive"] and len(found["pair"]) == 2:
        found["query"], found["positive"] = ([name] for name in sorted(found["pair"]))
    for role in ("query", "positive", "label", "positive scores", "negative scores"):
        if len(found[role]) > 1:
            raise RetroMAEError(
                f"{source} has several columns for the {role}, {', '.join(found[role])}; leave all but one out"
            )
    if missing := [role for role in ("query", "positive") if not found[role]]:
        made = ", or make pairs of the text alone with --pairs first-sentence" if len(missing) == 2 else ""
        raise RetroMAEError(
            f"the columns of {source}, {', '.join(rows.column_names)}, do not tell the {' and the '.join(missing)} "
            f"(ids are no text); name them with {' and '.join(f'--{role}_column' for role in missing)}{made}"
        )
    scores = found["positive scores"] + found["negative scores"]
    label = next(iter(found["label"]), None)
    columns = Columns(
        found["query"][0], found["positive"][0], found["negative"], label, scores if len(scores) == 2 else []
    )
    taken = [columns.query, columns.positive, *columns.negatives, label, *columns.scores]
    left_out = [name for name in rows.column_names if name not in taken]
    negatives = f", negatives {', '.join(map(repr, columns.negatives))}" if columns.negatives else ""
    unused = f"; not used: {', '.join(map(repr, left_out))}" if left_out else ""
    logger.info("%s: the query is %r, the positive %r%s%s", source, columns.query, columns.positive, negatives, unused)
    return columns


# Of a column that is no text: numbers (ids, labels), and lists that a .csv file holds as Python writes them.
_NO_TEXT = re.compile(r"\s*([-+]?\d+([.,]\d+)*|\[\s*['\"{].*[}'\"]\s*\])\s*", re.DOTALL)


def read_tsv(file: Path) -> Dataset:
    """A .tsv file of query, positive and negatives; a first line that names its columns is a header.

    Text is taken as it stands: there are no quotes, and "NA" is a word.
    """
    first: list[str] = []
    total = 0
    with in_one_sentence(f"{file} cannot be read"):
        for number, cells in _tsv_lines(file):
            first, total = first or cells, total + 1
            if len(cells) != len(first):
                raise RetroMAEError(f"{file} line {number} has not the {len(first)} columns of the first line")
        header = _is_header(first)
        if len(first) < 2 or total <= header:
            raise RetroMAEError(
                f"{file} holds no rows of two columns; give lines of query and positive, with a tab between"
            )
        names = tuple(first if header else ["query", "positive", *negative_names(len(first) - 2)])
        state = file.stat()
        # With what tells one state of a file from the next, for the cache goes by these arguments.
        options = {"file": str(file), "names": names, "skip": header, "state": (state.st_size, state.st_mtime_ns)}
        features = Features(dict.fromkeys(names, Value("large_string")))
        return Dataset.from_generator(_tsv_rows, features=features, gen_kwargs=options, split="train")


def negative_names(count: int) -> list[str]:
    return [f"negative_{number}" for number in range(1, count + 1)]


def drawn_places(available: int, count: int, draw: random.Random) -> list[int]:
    """The places of `count` negatives among so many, in their order; of too few all are taken, and some twice."""
    if available >= count:
        return sorted(draw.sample(range(available), count))
    return [*range(available), *draw.choices(range(available), k=count - available)]


def _is_header(cells: list[str]) -> bool:
    roles = [None if len(cell.split()) > 2 else role_of(cell) for cell in cells]
    tells = not {"query", "positive", "pair"}.isdisjoint(roles) or set(roles) == {"other"}
    return tells and 2 * roles.count(None) <= len(cells) == len(set(cells))


def _tsv_lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    return ((number, line.rstrip("\r\n").split("\t")) for number, line in numbered_lines(file))


def _tsv_rows(file: str, names: tuple[str, ...], skip: bool, state: tuple[int, int]) -> Iterator[dict[str, str]]:
    for number, (_, cells) in enumerate(_tsv_lines(Path(file))):
        if number >= skip:
            yield dict(zip(names, cells, strict=True))


def uniform_rows(
    source: str,
    rows: Dataset,
    num_negatives: int,
    objective: str,
    seed: int,
    columns: Mapping[str, str] | None = None,
) -> Dataset:
    """Rows of `query`, `positive`, `negative_1` ... and, where the objective has a teacher, `label`: a score a passage.

    Each positive of a row makes one. Of more negatives than are wanted some are drawn, which depends on the seed and
    the place of the row alone; where no row has as many, all get the most that one has. Of a shorter list some come
    twice, but not for a teacher: such a row is left out, as is one that has none. A text that is missing is None.
    """
    found = find_columns(source, rows, columns)
    teacher = None if objective == "contrastive" else objective
    if teacher is None:
        rows = _matching(source, rows, found)
    elif (found.label is None) == (not found.scores):
        raise RetroMAEError(
            f"objective={objective} needs a teacher's scores; give teacher_scores, or rows with either a column label "
            "or pos_scores and neg_scores"
        )
    elif not found.negatives:
        raise RetroMAEError(f"objective={objective} compares passages of a query; give rows with negatives")
    if not len(rows):
        raise RetroMAEError(f"{source} holds no rows to train on; give some of query and positive that match")
    read = rows.map(
        _Reader(source, found, teacher),
        batched=True,
        with_indices=True,
        remove_columns=rows.column_names,
        features=_READ,
        desc="Reading rows",
    )
    if dropped := pc.sum(read.data.column("dropped")).as_py():
        logger.warning("%s: %d negatives are positives of their row and were dropped", source, dropped)
    lengths = pc.list_value_length(read.data.column("negatives")).to_pylist()
    longest = max(lengths, default=0)
    count = min(num_negatives, longest)
    if short := sum(length < count for length in lengths):
        kept = [place for place, length in enumerate(lengths) if length >= (count if teacher else 1)]
        read = read.select(kept)
        left_out = len(lengths) - len(kept)
        message = "%s: %d rows have fewer than %d negatives: %d were left out, in %d some come twice"
        logger.warning(message, source, short, count, left_out, short - left_out)
    if longest > count > 0:
        logger.info("%s: of up to %d negatives of a row %d are drawn (num_negatives)", source, longest, count)
    names = ["query", "positive", *negative_names(count)]
    features = Features(dict.fromkeys(names, Value("large_string")))
    if teacher:
        features["label"] = List(Value("float64"))
    drawn = read.map(
        _draw,
        batched=True,
        with_indices=True,
        fn_kwargs={"count": count, "seed": seed, "teacher": teacher},
        remove_columns=["negatives", "scores", "dropped"],
        features=features,
        desc="Drawing negatives",
    )
    for name in names:
        if len(drawn) and all(text is None or _NO_TEXT.fullmatch(text) for text in drawn[name]):
            raise RetroMAEError(
                f"the {name} of {source} is no text but {drawn[name][0]!r} and the like; give the texts themselves, or "
                "ids with a folder in BEIR's layout"
            )
    return drawn


def _draw(batch: dict[str, list], places: list[int], count: int, seed: int, teacher: str | None) -> dict[str, list]:
    negatives, labels = [], []
    for found, scores, place in zip(batch["negatives"], batch["scores"], places, strict=True):
        chosen = drawn_places(len(found), count, random.Random(f"{seed} {place}"))
        negatives.append([found[one] for one in chosen])
        labels.append([scores[0], *(scores[1 + one] for one in chosen)])
    columns = dict(zip(negative_names(count), map(list, zip(*negatives, strict=True)), strict=True))
    return columns | ({"label": labels} if teacher else {})


def _matching(source: str, rows: Dataset, columns: Columns) -> Dataset:
    """The rows whose label is not 0; that of rows with negatives is a teacher's."""
    label = columns.label
    if label is None:
        return rows
    feature = rows.features[label]
    zero_matches = isinstance(feature, ClassLabel) and feature.names[1:2] == ["not_entailment"]
    values = [_parsed(value) for value in rows[label][:]]
    if not zero_matches and all(value in (0, 1) for value in values):
        kept = [place for place, value in enumerate(values) if value == 1]
        message = "%s: of %d rows %d have 1 for %r and are pairs that match; the %d others were left out"
        logger.warning(message, source, len(values), len(kept), label, len(values) - len(kept))
        return rows.select(kept)
    if not columns.negatives:
        wrong = next((value for value in values if value not in (0, 1)), values[0])
        raise RetroMAEError(
            f"{source} has {wrong!r} for {label!r}, which does not tell whether a pair matches (1) or not (0); keep "
            "those that match, and leave that column out"
        )
    logger.info("%s: %r is a teacher's and has no part in objective=contrastive", source, label)
    return rows


def _parsed(value: Any) -> Any:
    """What a text says that is JSON, as lists and truth are in a .csv file; any other value as it is."""
    try:
        return json.loads({"True": "true", "False": "false"}.get(value, value)) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


_READ = Features(
    {
        "query": Value("large_string"),
        "positive": Value("large_string"),
        "negatives": List(Value("large_string")),
        "scores": List(Value("float64")),  # of the positive and the negatives
        "dropped": Value("int64"),  # negatives that are positives
    }
)


@dataclass(frozen=True)
class _Reader:
    """Reads a batch of rows into those of `_READ`, one for each positive."""

    source: str
    columns: Columns
    teacher: str | None

    def __call__(self, batch: dict[str, list[Any]], places: list[int]) -> dict[str, list[Any]]:
        rows = ({name: values[number] for name, values in batch.items()} for number in range(len(places)))
        read = [one for row, place in zip(rows, places, strict=True) for one in self.rows_of(row, place + 1)]
        return {name: [one[name] for one in read] for name in _READ}

    def rows_of(self, row: dict[str, Any], number: int) -> Iterator[dict[str, Any]]:
        query = self.text(row[self.columns.query], self.columns.query, number)
        positives = self.texts(row, self.columns.positive, number)
        negatives = [text for name in self.columns.negatives for text in self.texts(row, name, number)]
        of_positives, of_negatives = [0.0] * len(positives), [0.0] * len(negatives)
        if self.teacher and all(text is not None for text in (query, *positives)):
            of_positives, of_negatives = self.scores(row, number, len(positives), len(negatives))
        scored = {text: score for text, score in zip(positives, of_positives, strict=True) if text is not None}
        found = {text: score for text, score in zip(negatives, of_negatives, strict=True) if text is not None}
        kept = {text: score for text, score in found.items() if text not in scored}
        for place, (positive, score) in enumerate(scored.items() or [(None, 0.0)]):
            yield {
                "query": query,
                "positive": positive,
                "negatives": list(kept),
                "scores": [score, *kept.values()],
                "dropped": 0 if place else len(found) - len(kept),
            }

    def texts(self, row: dict[str, Any], column: str, number: int) -> list[str | None]:
        """The texts of a column in a row, itself or those of a list, also of Tevatron's passages; None for a blank."""
        listed = isinstance(row[column], str) and row[column].startswith(('["', '[{"'))
        found = _parsed(row[column]) if listed else row[column]  # where a file has both lists and texts
        return [self.text(one, column, number) for one in (found if isinstance(found, list) else [found])]

    def text(self, found: Any, column: str, number: int) -> str | None:
        if isinstance(found, dict) and isinstance(found.get("text"), str):
            found = titled(found.get("title") or "", found["text"])
        if not isinstance(found, str | None):
            raise RetroMAEError(
                f"{self.source} row {number} has {found!r} for {column!r}, which is no text; give texts"
            )
        return found if found and found.strip() else None

    def scores(self, row: dict[str, Any], number: int, *counts: int) -> tuple[list[float], list[float]]:
        """A teacher's scores of so many positives and negatives of a row; where it has margins, the positive's is 0."""
        if self.columns.scores:
            of_positives, of_negatives = (read_scores(row[name]) for name in self.columns.scores)
        else:
            scores = read_scores(row[str(self.columns.label)])
            if self.teacher == "margin_mse" and len(scores) == counts[1]:
                scores = [0.0, *(-margin for margin in scores)]
            of_positives, of_negatives = scores[:1], scores[1:]
        if (len(of_positives), len(of_negatives)) != counts:
            margins = ", or as many margins as negatives" if self.teacher == "margin_mse" else ""
            raise RetroMAEError(
                f"{self.source} row {number} does not fit objective={self.teacher}, which takes a score for each of "
                f"its {counts[0]} positives and {counts[1]} negatives{margins}"
            )
        return of_positives, of_negatives


def read_scores(found: Any) -> list[float]:
    """A score or a list of scores as numbers; none where one is no number, or not a finite one."""
    found = _parsed(found)
    scores = found if isinstance(found, list) else [found]
    numbers = all(isinstance(score, int | float) and math.isfinite(score) for score in scores)
    return list(map(float, scores)) if numbers else []
