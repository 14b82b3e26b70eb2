"""The two spans of a passage that span contrast is about (Contriever, arXiv 2112.09118, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..model.masking import SPANS, draw_indices, passage_seeds
from .segment_pairs import Row


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
