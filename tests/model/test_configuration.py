"""A configuration is checked value by value, whatever a file holds."""

from __future__ import annotations

import json

import pytest

from retromae_hf import RetroMAEConfig, RetroMAEError, RetroMAEForPreTraining
from retromae_hf.checkpoints.loading import load_config
from retromae_hf.model.errors import LONGEST_SENTENCE


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoding": 5}, "decoding=5 is unknown"),
        ({"num_decoder_layers": True}, "num_decoder_layers=True must be a whole number"),
        ({"num_decoder_layers": "1"}, "num_decoder_layers='1' must be a whole number"),
        ({"num_decoder_layers": 10**9}, "from 1 to 64"),
        ({"decoder_mask_ratio": float("nan")}, "decoder_mask_ratio=nan must lie"),
        ({"decoder_mask_ratio": 10**400}, "must lie between 0 and 1"),
        ({"mlm_loss_weight": "1"}, "mlm_loss_weight='1' must be 0 or"),
        ({"bow_loss_weight": True}, "bow_loss_weight=True must be 0 or"),
        ({"decoder_query": {}}, "decoder_query={} is unknown"),
        ({"pooling": "max"}, "pooling=.max. is unknown; choose one of cls, mean"),
        ({"pair_objective": []}, r"pair_objective=\[\] is unknown"),
        ({"encoder_config": "bert"}, "encoder_config is a str; give a configuration"),
        ({"encoder_config": {"model_type": "retromae"}}, "the model_type 'retromae', which is no encoder's"),
        ({"encoder_config": {"model_type": ["bert"]}}, "which is no encoder's"),
        ({"encoder_config": {"model_type": "bert", "hidden_size": "x"}}, "field 'hidden_size'"),
        ({"encoder_config": {"model_type": "bert", "vocab_size": 0}}, "encoder_config: vocab_size=0 must be"),
        ({"encoder_config": {"model_type": "bert", "num_labels": 10**12}}, "encoder_config: num_labels="),
        ({"num_labels": 10**12}, "num_labels belongs to a classifier"),
    ],
)
def test_a_wrong_value_is_named(fields, message, tmp_path):
    with pytest.raises(RetroMAEError, match=message):
        RetroMAEConfig(**fields)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "retromae", **fields}))
    with pytest.raises(RetroMAEError, match=message):
        load_config(str(tmp_path))
    with pytest.raises(RetroMAEError, match=message):
        RetroMAEConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("fields", [{"num_attention_heads": 7}, {"hidden_act": "nope"}, {"num_attention_heads": 0}])
def test_an_encoder_that_cannot_be_made(fields, encoder_config):
    config = RetroMAEConfig(encoder_config=encoder_config.to_dict() | fields)
    with pytest.raises(RetroMAEError, match="no bert encoder can be made of this configuration"):
        RetroMAEForPreTraining(config)


def test_a_message_is_one_line_whatever_it_quotes():
    with pytest.raises(RetroMAEError) as raised:
        RetroMAEConfig(decoding="a\nb\x1b[31m" + "c" * 9999)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < LONGEST_SENTENCE + 99
