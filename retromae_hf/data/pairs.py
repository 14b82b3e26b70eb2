"""Pairs of segments for the pair objectives: NSP (BERT, section 3.1) and SOP (ALBERT, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..model.errors import RetroMAEError
from .draws import SPANS, draw_coins, draw_indices, passage_seeds
from .passages import Frame

Row = dict[str, Any]
SEGMENT_COLUMNS = ("input_ids", "token_type_ids", "word_ids")
REMEDY = "make them with tokenize_passages(..., pairs=True)"


class PairMaker:
    """Makes of each passage of two segments the true pair or, for half of the seeds, the false one.

    NSP: the second segment is the successor (label 0) or the second segment of a passage of another document (label 1).
    SOP: the segments are in order (label 0) or swapped (label 1). What happens to a passage, and which passage lends
    it a segment, depends on its seed alone.

    Args:
        objective: "nsp" or "sop".
        tokenizer: the one that the passages were made with.
        partners: for NSP, the passages to draw from, `tokenize_passages(..., pairs=True)`.

    Raises:
        RetroMAEError: NSP without passages of at least two documents to draw from.
    """

    def __init__(self, objective: str, tokenizer: PreTrainedTokenizerBase, partners: Dataset | None):
        self.objective = objective
        self.frame = Frame.of(tokenizer, pairs=True)
        if objective != "nsp":
            return
        if partners is None:
            raise RetroMAEError("pair_objective='nsp' needs pair_partners, the passages to draw false successors from")
        if missing := {"input_ids", "token_type_ids", "document_id"} - set(partners.column_names):
            raise RetroMAEError(f"pair_partners lack the columns {', '.join(sorted(missing))}; {REMEDY}")
        self._partners = partners.select_columns([name for name in SEGMENT_COLUMNS if name in partners.column_names])
        documents = np.asarray(partners.with_format("numpy")["document_id"][:])
        # By document, so that those of one document are one stretch, which a draw can leap over.
        self._order = np.argsort(documents, kind="stable")
        self._documents = documents[self._order]
        if len(documents) == 0 or self._documents[0] == self._documents[-1]:
            raise RetroMAEError("pair_objective='nsp' needs passages of at least two documents; give more text")

    def __call__(self, features: Sequence[Mapping[str, Any]], seeds: Tensor) -> tuple[list[Row], Tensor]:
        """Make the pairs.

        Args:
            features: one mapping a passage with `input_ids`, `token_type_ids` and, where there are any, `word_ids`;
                for NSP also `document_id`.
            seeds: int64 `[B]`, one a passage.

        Returns:
            The passages' `input_ids`, `token_type_ids` and `word_starts` (where there were words), as lists, and the
            labels, int64 `[B]`.
        """
        labels = draw_coins(seeds)
        pairs = [self._segments(feature) for feature in features]
        if self.objective == "nsp":
            for place, segment in self._drawn_segments(features, seeds, labels).items():
                pairs[place] = (pairs[place][0], segment)
        else:
            for place in labels.nonzero().squeeze(1).tolist():
                pairs[place] = pairs[place][::-1]
        return [self._join(first, second) for first, second in pairs], labels.to(torch.int64)

    def _drawn_segments(
        self, features: Sequence[Mapping[str, Any]], seeds: Tensor, false_pairs: Tensor
    ) -> dict[int, Row]:
        """The second segments that come from elsewhere, by their place in the batch."""
        places = false_pairs.nonzero().squeeze(1)
        if len(places) == 0:
            return {}
        if "document_id" not in features[0]:
            raise RetroMAEError(f"pair_objective='nsp' needs the column document_id; {REMEDY}")
        documents = np.array([int(features[place]["document_id"]) for place in places.tolist()])
        start, stop = (np.searchsorted(self._documents, documents, side) for side in ("left", "right"))
        own = stop - start
        drawn = draw_indices(seeds[places], torch.from_numpy(len(self._order) - own)).numpy()
        drawn = self._order[drawn + np.where(drawn >= start, own, 0)]
        found = self._partners[drawn.tolist()]
        rows = [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
        return {place: self._segments(row)[1] for place, row in zip(places.tolist(), rows, strict=True)}

    def _segments(self, row: Mapping[str, Any]) -> tuple[Row, Row]:
        """Ids and, where there are any, word starts of both segments."""
        types = row.get("token_type_ids")
        first_length = 0 if types is None else len(types) - int(np.sum(types))
        if types is None or first_length == len(types):
            raise RetroMAEError(f"pair_objective={self.objective!r} needs passages of two segments; {REMEDY}")
        parts = [self.frame.segments(np.asarray(row["input_ids"]).tolist(), first_length)]
        names = ["input_ids"]
        if "word_ids" in row:
            starts = np.diff(np.asarray(row["word_ids"]), prepend=-1) != 0
            parts.append(self.frame.segments(starts.tolist(), first_length))
            names.append("word_starts")
        first, second = (dict(zip(names, segment, strict=True)) for segment in zip(*parts, strict=True))
        return first, second

    def _join(self, first: Row, second: Row) -> Row:
        joined: Row = {
            "input_ids": self.frame.tokens(first["input_ids"], second["input_ids"]),
            "token_type_ids": self.frame.token_types(first["input_ids"], second["input_ids"]),
        }
        if "word_starts" in first:
            joined["word_starts"] = self.frame.word_starts(first["word_starts"], second["word_starts"])
        return joined


def draw_spans(rows: Sequence[Row], seeds: Tensor) -> tuple[list[Row], Tensor]:
    """Draw two spans of each passage, independently, so that they may overlap: a quarter to a half of its tokens each.

    Args:
        rows: B passages, each with columns of its tokens, one special token at either end.
        seeds: int64 `[B]`, all that the spans depend on.

    Returns:
        2B rows, the first span of every passage and then the second ones, and a seed for each, int64 `[2B]`.
    """
    tokens = torch.tensor([len(row["input_ids"]) - 2 for row in rows])
    shortest, longest = (tokens // 4).clamp(min=1), (tokens // 2).clamp(min=1)
    spans: list[Row] = []
    for number in (0, 2):
        lengths = shortest + draw_indices(seeds, longest - shortest + 1, SPANS, number)
        starts = 1 + draw_indices(seeds, tokens - lengths + 1, SPANS, number + 1)
        spans += map(_span, rows, starts.tolist(), (starts + lengths).tolist())
    return spans, torch.cat([passage_seeds(number, 0, seeds) for number in (0, 1)])


def _span(row: Row, start: int, stop: int) -> Row:
    """Some of a passage's tokens between its special ones."""
    places = np.r_[0, start:stop, len(row["input_ids"]) - 1]
    return {name: np.asarray(values)[places] for name, values in row.items() if name != "document_id"}
