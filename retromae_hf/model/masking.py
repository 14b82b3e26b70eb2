"""Every random draw of RetroMAE, as pure functions of integer seeds.

All of them come from one counter-based hash: a bit depends on `(seed, i, j)` alone and is computed in wrapping
integer arithmetic, so it is the same on CPU, on GPU and inside a compiled kernel, for any batch size, any amount of
padding and any number of workers or processes. There is no generator state to carry or to save.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""Label of a position that carries no loss (the convention of `torch.nn.functional.cross_entropy`)."""

LONG_PASSAGE = 1024
"""Tokens up to which a passage's visibility mask is made as a whole."""

# Rows 0, 1, 2 ... of the hash belong to the visibility mask; each other kind of draw has a negative row of its own.
CHOOSE, ACTION, REPLACEMENT = -1, -2, -3
DECODER_CHOOSE, DECODER_ACTION, DECODER_REPLACEMENT = -4, -5, -6
PAIR, PARTNER, CROPS, SPANS, ROWS = -7, -8, -9, -10, -11

_GOLDEN_RATIO = 0x9E3779B97F4A7C15


def _signed(value: int, bits: int) -> int:
    """`value`, an unsigned constant of `bits` bits, as the signed integer with the same bits."""
    return value - (1 << bits) if value >> (bits - 1) else value


def _xor_shift(x: Tensor, shift: int, bits: int) -> Tensor:
    """`x ^ (x >>> shift)`: torch's `>>` copies the sign, so the bits that it brings in are cleared."""
    return x ^ ((x >> shift) & ((1 << (bits - shift)) - 1))


def _mix32(x: Tensor) -> Tensor:
    """Bijective mixing of int32: "lowbias32" of C. Wellons' hash prospector (2018)."""
    x = _xor_shift(x, 16, 32) * _signed(0x7FEB352D, 32)
    x = _xor_shift(x, 15, 32) * _signed(0x846CA68B, 32)
    return _xor_shift(x, 16, 32)


def _mix64(x: Tensor) -> Tensor:
    """Bijective mixing of int64: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    x = _xor_shift(x, 30, 64) * _signed(0xBF58476D1CE4E5B9, 64)
    x = _xor_shift(x, 27, 64) * _signed(0x94D049BB133111EB, 64)
    return _xor_shift(x, 31, 64)


def _low32(x: Tensor) -> Tensor:
    """The low 32 bits of an int64 tensor as int32 with the same bits (a plain cast is undefined when it overflows)."""
    low = x & 0xFFFFFFFF
    return torch.where(low > 0x7FFFFFFF, low - (1 << 32), low).to(torch.int32)


def random_bits(seed: Tensor, row: Tensor | int, column: Tensor) -> Tensor:
    """32 uniform random bits for every `(seed, row, column)`.

    Args:
        seed: int64, any shape that broadcasts with the others.
        row: int32 tensor or int; negative rows are the named draws of this module.
        column: int32 tensor.

    Returns:
        int32 of the broadcast shape, uniform over all 2^32 values.
    """
    # The key of a row is mixed in full before the column comes in, so that rows and seeds are independent streams.
    row_key = _mix32(_low32(seed) + row * _signed(0x9E3779B9, 32))
    row_key = _mix32(row_key ^ _low32(seed >> 32))
    return _mix32(row_key + column * _signed(0x85EBCA6B, 32))


def _below(bits: Tensor, probability: float) -> Tensor:
    """True for that share of uniform int32 bits."""
    if probability >= 1:
        return torch.ones_like(bits, dtype=torch.bool)
    return bits < min(round(probability * 2**32), 2**32 - 1) - 2**31


def draw_coins(seeds: Tensor) -> Tensor:
    """A fair coin for each seed, bool of the same shape: which of the two cases of a pair objective a passage is."""
    return _below(random_bits(seeds, PAIR, torch.zeros_like(seeds, dtype=torch.int32)), 0.5)


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


def _seed_tensor(value: int) -> Tensor:
    """Any Python integer, reduced modulo 2^64, as an int64 `[1]`."""
    return torch.tensor([_signed(value & (2**64 - 1), 64)])


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
    state = _mix64(_seed_tensor(run_seed + _GOLDEN_RATIO))
    state = _mix64(state + (epoch + 1 if isinstance(epoch, Tensor) else _seed_tensor(epoch + 1)))
    return _mix64(state.to(passage_ids.device) + passage_ids.to(torch.int64))


def is_visible(
    seed: Tensor, row: Tensor, column: Tensor, length: Tensor | int, ratio: float, word: Tensor | None = None
) -> Tensor:
    """Whether decoder row `row` may see column `column`, elementwise: see `visibility_mask`.

    All tensors broadcast; called with scalars it is the body of a FlexAttention `mask_mod`. `word` is the number of
    the column's word, where words are drawn as a whole.
    """
    sampled = _below(random_bits(seed, row, column if word is None else word), 1.0 - ratio)
    return ((column == 0) & (row != 0)) | (sampled & (column != row) & (column != 0) & (column < length))


def visibility_mask(
    seed: Tensor | int,
    length: Tensor | int,
    ratio: float,
    padded_length: int | None = None,
    word_ids: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """The position-specific attention mask of enhanced decoding (RetroMAE, section 3.3, equation 7).

    Row i sees a sample of (1 - `ratio`) of the passage's tokens, drawn for that row alone. It never sees itself. Every
    row but row 0 sees column 0, which holds the sentence embedding. Columns from `length` on (padding) are seen by
    none.

    Args:
        seed: one integer a passage, int64 `[B]`; or an int for one passage.
        length: tokens of each passage, special tokens included and padding excluded, int64 `[B]`; or an int.
        ratio: the decoder's mask ratio, the share of tokens that a row does *not* see.
        padded_length: L, the number of rows and columns; by default the longest `length` (on an accelerator, asking
            for the default waits for the device).
        word_ids: the number of each column's word, int32 `[B, L]` or `[L]`; a row then sees all tokens of a word or
            none of them, except that it never sees its own token.
        rows: the rows to make, integers `[R]`, or `[B, R]` where each passage has its own; by default all.

    Returns:
        bool `[B, R, L]`, True = visible; `[R, L]` where `seed` is an int.
    """
    seeds = seed if isinstance(seed, Tensor) else _seed_tensor(int(seed))
    lengths = torch.as_tensor(length, device=seeds.device).reshape(-1, 1, 1)
    if padded_length is None:
        padded_length = int(lengths.max())
    columns = torch.arange(padded_length, dtype=torch.int32, device=seeds.device)
    row_positions = (columns if rows is None else rows.to(torch.int32))[..., None]
    words = None if word_ids is None else word_ids.reshape(-1, 1, padded_length).to(torch.int32)
    visible = is_visible(seeds.reshape(-1, 1, 1), row_positions, columns, lengths, ratio, words)
    return visible if isinstance(seed, Tensor) else visible[0]


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
    drawn = candidates & _below(random_bits(seeds[:, None], ROWS, positions), ratio)
    most = max(int(drawn.sum(1).max()), 1)
    rows = torch.where(drawn, positions, length).sort(1).values[:, :most]
    return rows.masked_fill(rows == length, 0).to(torch.int64)


def corrupt_tokens(
    input_ids: Tensor,
    candidates: Tensor,
    seeds: Tensor,
    ratio: float,
    mask_token_id: int,
    replacement_ids: Tensor,
    streams: tuple[int, int, int] = (CHOOSE, ACTION, REPLACEMENT),
    word_ids: Tensor | None = None,
    mask_replace_prob: float = 0.8,
    random_replace_prob: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """BERT's corruption: of the chosen tokens 80 % become [MASK], 10 % a random token, 10 % stay (BERT, section 3.1).

    Args:
        input_ids: int64 `[B, L]`.
        candidates: bool `[B, L]`, True at the ordinary tokens, which alone may be chosen.
        seeds: int64 `[B]`, one a passage.
        ratio: probability that a candidate is chosen, each on its own.
        mask_token_id: id of [MASK].
        replacement_ids: int64 `[R]`, the ids that a random token is drawn from.
        streams: the three rows of the hash to draw from; a second, independent mask of the same passage takes others.
        word_ids: the number of each token's word, int32 `[B, L]`: words are chosen as a whole, and what becomes of
            their tokens is drawn for each token, as BERT's whole-word masking does.
        mask_replace_prob: share of the chosen tokens that become [MASK].
        random_replace_prob: share of the chosen tokens that become a random token; the others stay.

    Returns:
        The corrupted ids and the labels (the original id where a token was chosen, else -100), both int64 `[B, L]`.
    """
    positions = torch.arange(input_ids.shape[1], dtype=torch.int32, device=input_ids.device)
    # All three draws at once: batches are small, and what takes time is the number of operations.
    rows = torch.tensor(streams, dtype=torch.int32, device=input_ids.device)[:, None, None]
    columns = positions if word_ids is None else torch.stack([word_ids, *(2 * [positions.expand_as(word_ids)])])
    choices, actions, replacements = random_bits(seeds[:, None], rows, columns)
    chosen = candidates & _below(choices, ratio)
    labels = input_ids.masked_fill(~chosen, IGNORE_INDEX)
    masked = _below(actions, mask_replace_prob)
    corrupted = input_ids.masked_fill(chosen & masked, mask_token_id)
    replaced = chosen & ~masked & _below(actions, mask_replace_prob + random_replace_prob)
    random_ids = replacement_ids[(replacements & 0x7FFFFFFF) % len(replacement_ids)]
    return torch.where(replaced, random_ids, corrupted), labels
