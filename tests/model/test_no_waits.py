"""A step never waits for the device: torch's device "meta" raises wherever the host would read a value."""

from __future__ import annotations

import pytest
import support
import torch
from transformers import CONFIG_MAPPING

from retromae_hf import DataCollatorForRetroMAE
from retromae_hf.model.families import BACKBONES

FAMILIES = [family for family in BACKBONES if family in CONFIG_MAPPING]
CASES = [
    *((objective, "bert", 64) for objective in support.RECIPES),
    *(("retromae", family, 64) for family in FAMILIES),
    *((objective, "bert", 1500) for objective in ("retromae", "whole-word", "dupmae")),  # attention by blocks
]


@pytest.fixture(scope="module")
def support_tokenizer():
    return support.new_tokenizer()


@pytest.mark.parametrize(("objective", "family", "length"), dict.fromkeys(CASES))
def test_no_step_waits(objective, family, length, support_tokenizer, monkeypatch):
    monkeypatch.setattr(support, "MAX_LENGTH", length)
    monkeypatch.setattr(support, "SENTENCES", [" ".join(support.SENTENCES * (1 + length // 100)), *support.SENTENCES])
    model, padded, _ = support.prepare(objective, family, support_tokenizer)
    model = model.to("meta").train()
    assert padded["attention_mask"].shape[1] >= length // 4  # a span has a quarter of its passage at least
    for batch in (padded, {name: part for name, part in padded.items() if name != "attention_mask"}):
        model(**{name: part.to("meta") for name, part in batch.items()}).loss.backward()


def test_a_wait_would_be_seen(support_tokenizer):
    model, batch, _ = support.prepare("retromae", "bert", support_tokenizer)
    with pytest.raises(RuntimeError, match="meta tensors"):
        model.to("meta").encoder.base_model(*(batch[name].to("meta") for name in ("input_ids", "attention_mask")))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_mask_is_that_of_transformers(family, implementation, support_tokenizer):
    """The states of a padded batch as the family makes them of a mask of two dimensions, bit for bit."""
    model, batch, _ = support.prepare("mlm", family, support_tokenizer)
    model = model.double().eval()
    model.encoder.set_attn_implementation(implementation)
    ids, mask = batch["input_ids"].long(), batch["attention_mask"].long()
    mask[0, 20:] = 0
    expected = model.encoder.base_model(ids, attention_mask=mask).last_hidden_state
    assert torch.equal(model.encode(ids, mask)[mask.bool()], expected[mask.bool()])
    whole, alone = model.encode(ids, mask)[0, :20], model.encode(ids[:1, :20])[0]
    assert torch.allclose(whole, alone, rtol=0, atol=1e-10)


def test_the_collator_leaves_out_a_mask_of_ones(model, tokenizer):
    whole = {"input_ids": [2, *range(5, 25), 3]}
    collator = DataCollatorForRetroMAE(tokenizer, seed=0)
    batch = collator([whole, whole])
    assert "attention_mask" not in batch
    padded = DataCollatorForRetroMAE(tokenizer, seed=0, pad_to_multiple_of=16)
    ours = model.double()
    for one in (collator, padded):
        one.set_epoch(0)
    one, other = (ours(**make([whole | {"passage_id": 1}])) for make in (collator, padded))
    assert torch.allclose(one.loss, other.loss, rtol=0, atol=1e-12)
