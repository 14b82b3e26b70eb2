"""What is drawn for each passage: its seed in an epoch, and from that seed all else, as pure functions of integers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..model.masking import IGNORE_INDEX, below, random_bits, seed_tensor, signed, xor_shift

# Rows 0, 1, 2 ... of the hash belong to the visibility mask; each kind of draw here has a negative row of its own.
CHOOSE, ACTION, REPLACEMENT = -1, -2, -3
DECODER_CHOOSE, DECODER_ACTION, DECODER_REPLACEMENT = -4, -5, -6
PAIR, PARTNER, CROPS, SPANS, ROWS = -7, -8, -9, -10, -11

_GOLDEN_RATIO = 0x9E3779B97F4A7C15


def _mix64(x: Tensor) -> Tensor:
    """Bijective mixing of int64: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    x = xor_shift(x, 30, 64) * signed(0xBF58476D1CE4E5B9, 64)
    x = xor_shift(x, 27, 64) * signed(0x94D049BB133111EB, 64)
    return xor_shift(x, 31, 64)


def passage_seeds(run_seed: int, epoch: int | Tensor, passage_ids: Tensor) -> Tensor:
    """The one seed of each passage, from which all its draws in this epoch come.

    Args:
        run_seed: seed of the run.
        epoch: number of the pass over the data, from 0; or of each passage's, int64 `[B]`.
        passage_ids: int64 `[B]`, any stable identifiers.

    Returns:
        int64 `[B]`.
    """
    # Each part is mixed in full before the next one is added, so that (epoch 1, passage 2) is not (2, 1).
    state = _mix64(seed_tensor(run_seed + _GOLDEN_RATIO))
    state = _mix64(state + (epoch + 1 if isinstance(epoch, Tensor) else seed_tensor(epoch + 1)))
    return _mix64(state.to(passage_ids.device) + passage_ids.to(torch.int64))


def draw_coins(seeds: Tensor) -> Tensor:
    """A fair coin for each seed, bool of the same shape: which of the two cases of a pair objective a passage is."""
    return below(random_bits(seeds, PAIR, torch.zeros_like(seeds, dtype=torch.int32)), 0.5)


def draw_indices(seeds: Tensor, sizes: Tensor, draw: int = PARTNER, number: int = 0) -> Tensor:
    """An index below each of `sizes`, both int64 of one shape.

    Args:
        seeds: one a passage or document.
        sizes: at least 1 each.
        draw: `PARTNER`, the passage that lends another its second segment, `CROPS`, where those of a document lie, or
            `SPANS`, where those of a passage lie.
        number: of the draw among those of a kind.
    """
    bits = random_bits(seeds, draw, torch.full_like(seeds, number, dtype=torch.int32))
    return (bits.to(torch.int64) & 0xFFFFFFFF) % sizes


def draw_rows(candidates: Tensor, seeds: Tensor, ratio: float) -> Tensor:
    """The decoder's rows that are computed where not all are, each candidate with the probability `ratio`.

    Args:
        candidates: bool `[B, L]`, True at the tokens that can be rebuilt, of which position 0 is none.
        seeds: int64 `[B]`, one a passage.
        ratio: share of the candidates, in (0, 1).

    Returns:
        int64 `[B, R]`, positions in ascending order; 0 where a passage has fewer than the others.
    """
    length = candidates.shape[1]
    positions = torch.arange(length, dtype=torch.int32, device=candidates.device)
    drawn = candidates & below(random_bits(seeds[:, None], ROWS, positions), ratio)
    most = max(int(drawn.sum(1).max()), 1)
    rows = torch.where(drawn, positions, length).sort(1).values[:, :most]
    return rows.masked_fill(rows == length, 0).to(torch.int64)


class Corruption(NamedTuple):
    """What becomes of the chosen tokens: [MASK], a random one of `replacement_ids` (int64 `[R]`), or they stay."""

    mask_token_id: int
    replacement_ids: Tensor
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1


def corrupt_tokens(
    input_ids: Tensor,
    candidates: Tensor,
    seeds: Tensor,
    ratio: float,
    corruption: Corruption,
    streams: tuple[int, int, int] = (CHOOSE, ACTION, REPLACEMENT),
    word_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """BERT's corruption: of the chosen tokens 80 % become [MASK], 10 % a random token, 10 % stay (BERT, section 3.1).

    Args:
        input_ids: int64 `[B, L]`.
        candidates: bool `[B, L]`, True at the ordinary tokens, which alone may be chosen.
        seeds: int64 `[B]`, one a passage.
        ratio: probability that a candidate is chosen, each on its own.
        corruption: what becomes of a chosen token.
        streams: the three rows of the hash to draw from; a second, independent mask of the same passage takes others.
        word_ids: the number of each token's word, int32 `[B, L]`: words are chosen as a whole, and what becomes of
            their tokens is drawn for each token, as BERT's whole-word masking does.

    Returns:
        The corrupted ids and the labels (the original id where a token was chosen, else -100), both int64 `[B, L]`.
    """
    positions = torch.arange(input_ids.shape[1], dtype=torch.int32, device=input_ids.device)
    # All three draws at once: batches are small, and what takes time is the number of operations.
    rows = torch.tensor(streams, dtype=torch.int32, device=input_ids.device)[:, None, None]
    columns = positions if word_ids is None else torch.stack([word_ids, *(2 * [positions.expand_as(word_ids)])])
    choices, actions, replacements = random_bits(seeds[:, None], rows, columns)
    chosen = candidates & below(choices, ratio)
    labels = input_ids.masked_fill(~chosen, IGNORE_INDEX)
    mask_token_id, replacement_ids, mask_share, random_share = corruption
    masked = below(actions, mask_share)
    corrupted = input_ids.masked_fill(chosen & masked, mask_token_id)
    replaced = chosen & ~masked & below(actions, mask_share + random_share)
    random_ids = replacement_ids[(replacements & 0x7FFFFFFF) % len(replacement_ids)]
    return torch.where(replaced, random_ids, corrupted), labels
