"""What a row of enhanced decoding sees, and the hash that every random draw of RetroMAE comes from.

The hash is counter-based: a bit depends on `(seed, i, j)` alone and is computed in wrapping integer arithmetic, so it
is the same on CPU, on GPU and inside a compiled kernel, for any batch size, any amount of padding and any number of
workers or processes. There is no generator state to carry or to save. What `data/` draws is in its `draws.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""Label of a position that carries no loss (the convention of `torch.nn.functional.cross_entropy`)."""

LONG_PASSAGE = 1024
"""Tokens up to which a passage's visibility mask is made as a whole."""


def signed(value: int, bits: int) -> int:
    """`value`, an unsigned constant of `bits` bits, as the signed integer with the same bits."""
    return value - (1 << bits) if value >> (bits - 1) else value


def xor_shift(x: Tensor, shift: int, bits: int) -> Tensor:
    """`x ^ (x >>> shift)`: torch's `>>` copies the sign, so the bits that it brings in are cleared."""
    return x ^ ((x >> shift) & ((1 << (bits - shift)) - 1))


def _mix32(x: Tensor) -> Tensor:
    """Bijective mixing of int32: "lowbias32" of C. Wellons' hash prospector (2018)."""
    x = xor_shift(x, 16, 32) * signed(0x7FEB352D, 32)
    x = xor_shift(x, 15, 32) * signed(0x846CA68B, 32)
    return xor_shift(x, 16, 32)


def _low32(x: Tensor) -> Tensor:
    """The low 32 bits of an int64 tensor as int32 with the same bits (a plain cast is undefined when it overflows)."""
    low = x & 0xFFFFFFFF
    return torch.where(low > 0x7FFFFFFF, low - (1 << 32), low).to(torch.int32)


def random_bits(seed: Tensor, row: Tensor | int, column: Tensor) -> Tensor:
    """32 uniform random bits for every `(seed, row, column)`.

    Args:
        seed: int64, any shape that broadcasts with the others.
        row: int32 tensor or int: a row of the visibility mask, or a negative number for another kind of draw.
        column: int32 tensor.

    Returns:
        int32 of the broadcast shape, uniform over all 2^32 values.
    """
    # The key of a row is mixed in full before the column comes in, so that rows and seeds are independent streams.
    row_key = _mix32(_low32(seed) + row * signed(0x9E3779B9, 32))
    row_key = _mix32(row_key ^ _low32(seed >> 32))
    return _mix32(row_key + column * signed(0x85EBCA6B, 32))


def below(bits: Tensor, probability: float) -> Tensor:
    """True for that share of uniform int32 bits."""
    if probability >= 1:
        return torch.ones_like(bits, dtype=torch.bool)
    return bits < min(round(probability * 2**32), 2**32 - 1) - 2**31


def seed_tensor(value: int) -> Tensor:
    """Any Python integer, reduced modulo 2^64, as an int64 `[1]`."""
    return torch.tensor([signed(value & (2**64 - 1), 64)])


def is_visible(
    seed: Tensor, row: Tensor, column: Tensor, length: Tensor | int, ratio: float, word: Tensor | None = None
) -> Tensor:
    """Whether decoder row `row` may see column `column`, elementwise: see `visibility_mask`.

    All tensors broadcast; called with scalars it is the body of a FlexAttention `mask_mod`. `word` is the number of
    the column's word, where words are drawn as a whole.
    """
    sampled = below(random_bits(seed, row, column if word is None else word), 1.0 - ratio)
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
    seeds = seed if isinstance(seed, Tensor) else seed_tensor(int(seed))
    lengths = torch.as_tensor(length, device=seeds.device).reshape(-1, 1, 1)
    if padded_length is None:
        padded_length = int(lengths.max())
    columns = torch.arange(padded_length, dtype=torch.int32, device=seeds.device)
    row_positions = (columns if rows is None else rows.to(torch.int32))[..., None]
    words = None if word_ids is None else word_ids.reshape(-1, 1, padded_length).to(torch.int32)
    visible = is_visible(seeds.reshape(-1, 1, 1), row_positions, columns, lengths, ratio, words)
    return visible if isinstance(seed, Tensor) else visible[0]
