"""Properties of every random draw."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retromae_hf.data.draws import (
    DECODER_ACTION,
    DECODER_CHOOSE,
    DECODER_REPLACEMENT,
    Corruption,
    corrupt_tokens,
    passage_seeds,
)
from retromae_hf.model.masking import IGNORE_INDEX, is_visible, random_bits, visibility_mask

SEEDS = st.integers(-(2**63), 2**63 - 1)
RATIOS = st.floats(0.05, 0.95)
MASK, FIRST_ORDINARY, VOCABULARY = 4, 5, 100
CORRUPTION = Corruption(MASK, torch.arange(FIRST_ORDINARY, VOCABULARY))


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, length=st.integers(2, 80), padding=st.integers(0, 20), ratio=RATIOS)
def test_a_row_sees_column_0_and_never_itself_nor_padding(seed, length, padding, ratio):
    visible = visibility_mask(seed, length, ratio, length + padding)
    assert visible.shape == (length + padding, length + padding)
    assert not visible.diagonal().any()
    assert visible[1:, 0].all()
    assert not visible[:, length:].any()


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(SEEDS, st.integers(2, 40)), min_size=1, max_size=6), ratio=RATIOS)
def test_a_batch_gives_the_same_bits_as_its_passages_one_by_one(rows, ratio):
    seeds, lengths = (torch.tensor(column) for column in zip(*rows, strict=True))
    size = int(lengths.max()) + 3
    batch = visibility_mask(seeds, lengths, ratio, size)
    for passage, (seed, length) in zip(batch, rows, strict=True):
        assert torch.equal(passage, visibility_mask(seed, length, ratio, size))
        assert torch.equal(passage[:length, :length], visibility_mask(seed, length, ratio))


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, row=st.integers(0, 63), column=st.integers(0, 63), ratio=RATIOS)
def test_a_bit_alone_is_the_bit_of_the_mask(seed, row, column, ratio):
    """What a compiled attention kernel asks for, one element at a time."""
    alone = is_visible(
        torch.tensor(seed),
        torch.tensor(row, dtype=torch.int32),
        torch.tensor(column, dtype=torch.int32),
        torch.tensor(64),
        ratio,
    )
    assert alone == visibility_mask(seed, 64, ratio)[row, column]


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.7])
def test_the_visible_share_is_one_minus_the_ratio(ratio):
    passages, length = 400, 48
    visible = visibility_mask(torch.arange(passages), torch.full((passages,), length), ratio)
    free = visible[:, 1:, 1:][:, ~torch.eye(length - 1, dtype=torch.bool)]
    sigma = math.sqrt(ratio * (1 - ratio) / free.numel())
    assert abs(free.float().mean() - (1 - ratio)) < 3 * sigma


def test_rows_columns_and_seeds_are_drawn_apart():
    visible = visibility_mask(torch.arange(3000), torch.full((3000,), 12), 0.5)
    bits = visible[:, 1:, 1:].flatten(1).float()
    bits = bits[:, bits.std(0) > 0]
    correlation = torch.corrcoef(bits.T).fill_diagonal_(0)
    assert correlation.abs().max() < 5.5 / math.sqrt(3000)


def lowbias32(x: int) -> int:
    x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
    x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
    return x ^ (x >> 16)


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, row=st.integers(-6, 8191), column=st.integers(0, 8191))
def test_the_bits_are_those_of_the_hash_in_plain_integers(seed, row, column):
    """Written once more without tensors: a change of the hash would change every resumed run."""
    key = lowbias32((seed + row * 0x9E3779B9) % 2**32)
    key = lowbias32(key ^ ((seed >> 32) % 2**32))
    expected = lowbias32((key + column * 0x85EBCA6B) % 2**32)
    bits = random_bits(torch.tensor(seed), row, torch.tensor(column, dtype=torch.int32))
    assert bits.item() % 2**32 == expected


def test_passage_seeds_are_pinned():
    seeds = passage_seeds(42, 3, torch.tensor([0, 1, 2**60])).tolist()
    assert seeds == [8073035343330343896, 5701324906936050144, -2045397829800116055]


def test_seeds_differ_by_run_epoch_and_passage():
    ids = torch.arange(1000)
    seeds = torch.cat([passage_seeds(run, epoch, ids) for run in (0, 1, -1) for epoch in (0, 1, 2)])
    assert seeds.unique().numel() == 9000


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, length=st.integers(1, 60), ratio=RATIOS)
def test_corruption_touches_chosen_ordinary_tokens_only(seed, length, ratio):
    ids = torch.randint(0, VOCABULARY, (2, length))
    candidates = ids >= FIRST_ORDINARY
    seeds = torch.tensor([seed, seed ^ 1])
    corrupted, labels = corrupt_tokens(ids, candidates, seeds, ratio, CORRUPTION)
    chosen = labels != IGNORE_INDEX
    assert not (chosen & ~candidates).any()
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(corrupted[~chosen], ids[~chosen])
    assert ((corrupted[chosen] == MASK) | (corrupted[chosen] >= FIRST_ORDINARY)).all()


def test_corruption_has_berts_shares():
    ids = torch.randint(FIRST_ORDINARY, VOCABULARY, (2000, 100))
    every = torch.ones_like(ids, dtype=torch.bool)
    corrupted, labels = corrupt_tokens(ids, every, torch.arange(2000), 0.3, CORRUPTION)
    chosen = labels != IGNORE_INDEX
    count = chosen.sum()
    assert abs(chosen.float().mean() - 0.3) < 3 * math.sqrt(0.3 * 0.7 / ids.numel())
    masked = (corrupted[chosen] == MASK).float().mean()
    assert abs(masked - 0.8) < 3 * math.sqrt(0.8 * 0.2 / count)
    # A random token is by chance the old one once in 95 draws.
    kept = (corrupted[chosen] == ids[chosen]).float().mean()
    expected = 0.1 + 0.1 / (VOCABULARY - FIRST_ORDINARY)
    assert abs(kept - expected) < 3 * math.sqrt(expected * (1 - expected) / count)


def test_the_decoders_mask_is_independent_of_the_encoders():
    ids = torch.randint(FIRST_ORDINARY, VOCABULARY, (2000, 50))
    every, seeds = torch.ones_like(ids, dtype=torch.bool), torch.arange(2000)
    _, first = corrupt_tokens(ids, every, seeds, 0.5, CORRUPTION)
    streams = (DECODER_CHOOSE, DECODER_ACTION, DECODER_REPLACEMENT)
    _, second = corrupt_tokens(ids, every, seeds, 0.5, CORRUPTION, streams)
    both = ((first != IGNORE_INDEX) & (second != IGNORE_INDEX)).float().mean()
    assert abs(both - 0.25) < 3 * math.sqrt(0.25 * 0.75 / ids.numel())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_bits():
    seeds, lengths = torch.arange(64) * 7919 - 5, torch.randint(2, 200, (64,))
    assert torch.equal(
        visibility_mask(seeds, lengths, 0.5, 200), visibility_mask(seeds.cuda(), lengths.cuda(), 0.5, 200).cpu()
    )
