"""A sampled share of the decoder's rows: the same loss as without the other rows' labels, drawn by the seeds."""

from __future__ import annotations

import pytest
import support
import torch
from conftest import features_of
from hypothesis import given, settings
from hypothesis import strategies as st

from retromae_hf import DataCollatorForRetroMAE, RetroMAEError
from retromae_hf.data.draws import draw_rows
from retromae_hf.model.counting import counts_of
from retromae_hf.model.masking import IGNORE_INDEX

RATIO = 0.4


def sampled(objective, family="bert"):
    """A model in float64, a batch with a share of the rows, and one in which the other rows have lost their labels."""
    model, whole, _ = support.prepare(objective, family, support.new_tokenizer())
    candidates = whole["decoder_labels"] != IGNORE_INDEX
    rows = draw_rows(candidates, whole["visibility_seed"], RATIO)
    kept = torch.zeros_like(candidates).scatter(1, rows, True) & candidates
    for name in ("label_slots", "decoder_label_slots"):
        whole.pop(name, None)
    fewer = whole | {"decoder_labels": whole["decoder_labels"].masked_fill(~kept, IGNORE_INDEX)}
    return model.double(), whole | {"decoder_rows": rows}, fewer


def gradients(model, batch):
    torch.manual_seed(0)
    output = model(**batch)
    return [output.loss.detach(), *torch.autograd.grad(output.loss, list(model.parameters()), allow_unused=True)]


@pytest.mark.parametrize("family", ["bert", "modernbert", "deberta-v2"])
@pytest.mark.parametrize("objective", ["retromae", "whole-word"])
@pytest.mark.parametrize("long", [False, True])
def test_the_loss_is_that_of_the_rows_that_are_left(objective, family, long, monkeypatch):
    if long:
        monkeypatch.setattr("retromae_hf.model.modeling_retromae.LONG_PASSAGE", 1)
        monkeypatch.setattr("retromae_hf.model.decoder.BLOCK_ROWS", 3)
    model, batch, fewer = sampled(objective, family)
    assert batch["decoder_rows"].shape[1] < batch["decoder_labels"].shape[1] - 1
    for ours, expected in zip(gradients(model, batch), gradients(model, fewer), strict=True):
        assert ours is expected is None or torch.allclose(ours, expected, rtol=0, atol=1e-11)


def test_a_given_visibility_and_embedded_queries_go_with_it():
    model, batch, fewer = sampled("dupmae")
    length = batch["decoder_labels"].shape[1]
    visible = torch.rand(len(batch["decoder_rows"]), length, length) < 0.5
    ours, expected = (model(**one, decoder_visibility=visible) for one in (batch, fewer))
    assert torch.allclose(ours.decoder_loss, expected.decoder_loss, rtol=0, atol=1e-12)
    whole = {name: part for name, part in batch.items() if name != "decoder_rows"}
    assert ours.bow_loss == model(**whole).bow_loss != expected.bow_loss  # the bag holds all tokens none the less


def test_other_rows_are_not_computed(monkeypatch):
    model, batch, _ = sampled("retromae")
    seen = []
    attend = model.decoder[0].attend
    monkeypatch.setattr(model.decoder[0], "attend", lambda rows, *args: seen.append(rows.shape) or attend(rows, *args))
    model(**batch)
    assert seen[0][:2] == batch["decoder_rows"].shape


@given(st.integers(1, 40), st.floats(0.05, 0.95), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_rows_are_candidates_in_ascending_order(length, ratio, seed):
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.rand(5, length, generator=generator) < 0.7
    candidates[:, 0] = False
    rows = draw_rows(candidates, torch.arange(5) + seed, ratio)
    for passage, allowed in zip(rows.tolist(), candidates, strict=True):
        drawn = [position for position in passage if position]
        assert drawn == sorted(set(drawn)) == passage[: len(drawn)]
        assert all(allowed[position] for position in drawn)


def test_every_token_is_drawn_with_the_ratio():
    candidates = torch.ones(4000, 20, dtype=torch.bool)
    candidates[:, 0] = False
    rows = draw_rows(candidates, torch.arange(4000), RATIO)
    share = torch.bincount(rows.flatten(), minlength=20)[1:] / 4000
    assert (share - RATIO).abs().max() < 5 * (RATIO * (1 - RATIO) / 4000) ** 0.5


def test_the_collator_draws_them_anew_in_every_epoch(tokenizer, texts):
    collator = DataCollatorForRetroMAE(tokenizer, seed=1, decoder_label_ratio=RATIO)
    features = features_of(tokenizer, texts)
    batches = []
    for epoch in (0, 0, 1):
        collator.set_epoch(epoch)
        batches.append(collator(features))
    first, again, other = (batch["decoder_rows"] for batch in batches)
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)
    assert batches[0]["decoder_label_slots"].shape[1] == (first != 0).sum() == counts_of(batches[0])[1]
    plain = DataCollatorForRetroMAE(tokenizer, seed=1)
    plain.set_epoch(0)
    for name, tensor in plain(features).items():
        assert name == "decoder_label_slots" or torch.equal(batches[0][name], tensor)


def test_no_step_waits():
    model, batch, _ = sampled("retromae")
    count = int((batch["decoder_rows"] != 0).sum())
    batch |= {name: torch.empty(len(batch["input_ids"]), count, 0) for name in ("label_slots", "decoder_label_slots")}
    model.to("meta").train()(**{name: part.to("meta") for name, part in batch.items()}).loss.backward()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoder_label_ratio": 0.0}, "decoder_label_ratio=0.0 must lie between 0 and 1"),
        ({"decoder_label_ratio": 1.5}, "decoder_label_ratio=1.5 must lie between 0 and 1"),
        ({"decoder_label_ratio": 0.5, "decoding": "basic"}, "decoder_label_ratio=0.5 is for decoding='enhanced'"),
    ],
)
def test_errors(tokenizer, arguments, message):
    with pytest.raises(RetroMAEError, match=message):
        DataCollatorForRetroMAE(tokenizer, **arguments)
