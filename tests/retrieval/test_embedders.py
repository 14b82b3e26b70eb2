"""Embedders of any model, and the embeddings of a corpus in files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from retromae_hf import RetroMAEError
from retromae_hf.checkpoints.loading import load_sentence_transformer
from retromae_hf.retrieval.embedders import (
    Embedder,
    embed,
    embed_to_shards,
    in_batches,
    load_embedder,
    model_identity,
)

TEXTS = [f"text {number}" for number in range(25)]


class Numbers:
    """Random embeddings that depend on the text alone; notes what it is asked for."""

    def __init__(self, fails_after=None):
        self.asked = []
        self.fails_after = fails_after

    def __call__(self, texts):
        if len(self.asked) == self.fails_after:
            raise KeyboardInterrupt
        self.asked.append(texts)
        return torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(int(t.split()[1]))) for t in texts])


def in_shards(texts, encode, folder, identity="model", size=10):
    return embed_to_shards(Embedder(encode, encode, identity=identity), texts, folder, size)


def test_embeddings_do_not_depend_on_the_batch(model, tokenizer, texts):
    together = embed(model, tokenizer, texts[:20], batch_size=20, progress=False)
    alone = torch.cat([embed(model, tokenizer, [text], progress=False) for text in texts[:20]])
    assert torch.allclose(together, alone, atol=1e-6)
    assert together.shape == (20, 32)


def test_a_batch_holds_texts_of_about_as_many_tokens_whatever_their_characters():
    texts = ["a.b(c)[d]{e}", "abcdefghijklmno " * 2, "one two", "(((((((((((((", "three four"]
    batches = []

    def encode(batch):
        batches.append(batch)
        return torch.tensor([[texts.index(text)] for text in batch])

    embeddings = in_batches(texts, encode, batch_size=2, progress=False)
    assert batches == [["(((((((((((((", "a.b(c)[d]{e}"], ["abcdefghijklmno " * 2, "one two"], ["three four"]]
    assert embeddings.tolist() == [[0.0], [1.0], [2.0], [3.0], [4.0]]


def test_a_model_is_in_training_again_when_its_embedding_failed(model, tokenizer):
    model.train()
    with pytest.raises(TypeError):
        embed(model, tokenizer, [None], progress=False)
    assert model.training


def test_a_model_is_searched_as_it_was_trained(encoder_folder, tmp_path):
    """By dot product where it says so, and with its prompts."""
    model = load_sentence_transformer(encoder_folder)
    model.similarity_fn_name = "dot"
    model.prompts = {"query": "the otter ", "document": ""}
    model.save_pretrained(str(tmp_path))
    embedder = load_embedder(str(tmp_path), progress=False)
    query, document = embedder.queries(["swims"])[0], embedder.documents(["the river"])[0]
    assert np.allclose(query, model.encode("the otter swims"), atol=1e-6)
    assert np.allclose(document, model.encode("the river"), atol=1e-6)
    assert document.norm() != pytest.approx(1)


def test_a_plain_encoder_is_pooled_as_it_is_fine_tuned(encoder_folder):
    embedder = load_embedder(encoder_folder, progress=False)
    states = load_sentence_transformer(encoder_folder).encode("the river", output_value="token_embeddings")
    assert np.allclose(embedder.documents(["the river"])[0], normalize(states[0], dim=0).cpu(), atol=1e-6)


def test_shards_hold_the_embeddings_in_order(tmp_path):
    shards = in_shards(TEXTS, Numbers(), tmp_path / "new")
    assert [len(shard) for shard in shards] == [10, 10, 5]
    assert len(shards) == 3
    assert torch.equal(torch.cat(list(shards)), Numbers()(TEXTS))


def test_a_killed_run_goes_on_with_the_shards_that_are_complete(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        in_shards(TEXTS, Numbers(fails_after=2), tmp_path)
    (tmp_path / f"{2:06d}-half-written.123").write_bytes(b"half")
    second = Numbers()
    shards = in_shards(TEXTS, second, tmp_path)
    assert second.asked == [TEXTS[20:]]
    assert torch.equal(torch.cat(list(shards)), Numbers()(TEXTS))


def test_stale_shards_are_not_used(tmp_path):
    in_shards(TEXTS, Numbers(), tmp_path)
    changed = [*TEXTS[:-1], "text 99"]
    again = Numbers()
    shards = in_shards(changed, again, tmp_path)
    assert again.asked == [changed[20:]]  # only where something changed
    assert torch.equal(torch.cat(list(shards)), Numbers()(changed))
    other_model = Numbers()
    in_shards(TEXTS, other_model, tmp_path, identity="another model")
    assert len(other_model.asked) == 3


def test_embeddings_that_are_not_numbers(tmp_path):
    with pytest.raises(RetroMAEError, match="embeddings with NaN or infinity"):
        in_shards(TEXTS, lambda texts: torch.full((len(texts), 8), torch.nan), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_broken_shard_is_named(tmp_path):
    shards = in_shards(TEXTS, Numbers(), tmp_path)
    shards.files[0].write_bytes(b"broken")
    with pytest.raises(RetroMAEError, match=rf"{shards.files[0].name} cannot be read; delete it"):
        list(shards)


def test_a_model_that_was_trained_on_has_another_identity(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    before = model_identity(str(tmp_path))
    assert load_embedder(str(tmp_path), progress=False).documents(["otter"]).shape == (1, 32)
    assert model_identity(str(tmp_path)) == before
    model.save_pretrained(tmp_path)
    assert model_identity(str(tmp_path)) != before
