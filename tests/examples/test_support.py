"""Every objective trains every family, and what it learned survives saving, loading and export."""

from __future__ import annotations

import json

import pytest
import support
from conftest import ROOT

from retromae_hf.model.families import BACKBONES

PAIRS = dict.fromkeys(
    [
        *((objective, model_type) for objective in support.RECIPES for model_type in ("bert", "modernbert")),
        *((objective, model_type) for objective in ("retromae", "cocondenser") for model_type in BACKBONES),
    ]
)
"""Every objective and every family; `make support` tries all pairs, and publishes what came of them."""


@pytest.fixture(scope="module")
def support_tokenizer():
    return support.new_tokenizer()


@pytest.mark.parametrize(("objective", "model_type"), PAIRS)
def test_it_trains_and_comes_back(objective, model_type, support_tokenizer):
    result = support.attempt(objective, model_type, support_tokenizer)
    assert result["works"], result


def test_all_pairs_are_published_and_work():
    published = json.loads((ROOT / "model_cards/support.json").read_text(encoding="utf-8"))
    found = {(one["objective"], one["model_type"]): one["works"] for one in published}
    assert found == {(objective, family): True for family in BACKBONES for objective in support.RECIPES}


def test_a_lost_decoder_would_be_seen(support_tokenizer, monkeypatch, tmp_path):
    model, batch, _ = support.prepare("retromae", "bert", support_tokenizer)
    other, _, _ = support.prepare("retromae", "bert", support_tokenizer)
    other.encoder = model.encoder
    monkeypatch.setattr(support.RetroMAEForPreTraining, "from_pretrained", lambda folder: other)
    assert support.through_a_checkpoint(model.eval(), batch, str(tmp_path)) > support.TOLERANCE


def test_a_pair_that_fails_is_shown(support_tokenizer):
    result = support.attempt("mlm", "bert", support_tokenizer) | {"objective": "mlm", "model_type": "bert"}
    told = support.summary([result | {"works": False}, result | {"objective": "retromae"}])
    assert told.startswith("mlm with bert FAILS\n1 of 2 pairs")
