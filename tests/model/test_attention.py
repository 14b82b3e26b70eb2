"""The implementation of attention that is asked for is the one that computes, from every entrance."""

from __future__ import annotations

import copy
from unittest.mock import patch

import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from retromae_hf import DataCollatorForRetroMAE, RetroMAEConfig, RetroMAEError, RetroMAEForPreTraining
from retromae_hf.arguments.pretraining import StartArguments
from retromae_hf.checkpoints.loading import load_sentence_transformer
from retromae_hf.checkpoints.starting_model import load_model_and_tokenizer
from retromae_hf.model.encoders import use_attention
from retromae_hf.retrieval.embedders import load_embedder


@pytest.fixture
def calls():
    """How often sdpa was asked for; eager has no entry there."""
    noted = []
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def noting(*args, **kwargs):
        noted.append(args[0])
        return plain(*args, **kwargs)

    with patch.dict(ALL_ATTENTION_FUNCTIONS._global_mapping, sdpa=noting):
        yield noted


def test_every_entrance_takes_it(encoder_folder, model, tokenizer, texts, tmp_path, calls):
    rows = tokenizer(texts[:3], truncation=True, max_length=32)["input_ids"]
    batch = DataCollatorForRetroMAE(tokenizer)([{"input_ids": row} for row in rows])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    losses = {}
    for name in ("eager", "sdpa"):
        models = [
            RetroMAEForPreTraining.from_pretrained(tmp_path, attn_implementation=name),
            RetroMAEForPreTraining.from_encoder(encoder_folder, attn_implementation=name),
            *(
                load_model_and_tokenizer(StartArguments(source, attn_implementation=name), texts, 32)[0]
                for source in (str(tmp_path), encoder_folder)
            ),
        ]
        for one in models:
            one.eval()(**batch)
            assert len(calls) == (2 if name == "sdpa" else 0), "two layers of the encoder"
            calls.clear()
        losses[name] = models[0].eval()(**batch).loss
        for source in (str(tmp_path), encoder_folder):
            calls.clear()
            embeddings = load_embedder(source, attn_implementation=name).documents(texts[:3])
            assert bool(calls) == (name == "sdpa")
            assert torch.allclose(embeddings, load_embedder(source).documents(texts[:3]), atol=1e-5)
        calls.clear()
    assert torch.allclose(*losses.values())


def test_what_cannot_run_is_told_in_one_sentence(encoder_config, encoder_folder):
    model = RetroMAEForPreTraining(RetroMAEConfig(encoder_config=copy.deepcopy(encoder_config)))
    for name in ("flash_attention_3", "quick"):
        with pytest.raises(RetroMAEError, match=rf"attn_implementation={name} cannot be used: [^\n]*$"):
            use_attention(model, name)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    other = RetroMAEForPreTraining(RetroMAEConfig(encoder_config=AutoConfig.for_model("mpnet", **sizes)))
    with pytest.raises(RetroMAEError, match=r"=sdpa is not there for encoders of type 'mpnet', .* as eager; leave"):
        use_attention(other, "sdpa")
    use_attention(other, "eager")
    encoder = load_sentence_transformer(encoder_folder)
    with pytest.raises(RetroMAEError, match="attn_implementation=quick cannot be used"):
        use_attention(encoder, "quick")
