"""Embeddings in shards, and the search for the nearest of them."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retromae_hf import RetroMAEError
from retromae_hf.retrieval.embedders import Embedder, embed, embed_to_shards, in_batches, load_embedder, model_identity
from retromae_hf.retrieval.rankings import LARGE_CORPUS, choose_search, import_faiss, search_exact, search_faiss

TEXTS = [f"text {number}" for number in range(25)]


class Encoder:
    """Random embeddings that depend on the text alone; notes what it is asked for."""

    def __init__(self, fails_after=None):
        self.asked = []
        self.fails_after = fails_after

    def __call__(self, texts):
        if len(self.asked) == self.fails_after:
            raise KeyboardInterrupt
        self.asked.append(texts)
        return torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(int(t.split()[1]))) for t in texts])


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


def test_ranking_is_by_dot_product():
    scores, indices = search_exact(
        torch.tensor([[1.0, 0.0]]), [torch.tensor([[0.0, 9.0], [5.0, 5.0], [0.1, 0.0]])], depth=5
    )
    assert indices.tolist() == [[1, 2, 0]]
    assert scores[0].tolist() == pytest.approx([5, 0.1, 0])


@settings(max_examples=40, deadline=None)
@given(
    queries=st.integers(1, 5),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    depth=st.integers(1, 50),
    seed=st.integers(0, 99),
)
def test_searching_blocks_is_searching_everything(queries, sizes, depth, seed):
    generator = torch.Generator().manual_seed(seed)
    asked = torch.randn(queries, 8, generator=generator)
    documents = torch.randn(sum(sizes), 8, generator=generator)
    scores, indices = search_exact(asked, documents.split(sizes), depth)
    expected = (asked @ documents.T).sort(dim=1, descending=True)
    assert torch.allclose(scores, expected.values[:, :depth], atol=1e-5)
    assert indices.tolist() == expected.indices[:, :depth].tolist()


def test_faiss_finds_nearly_what_exact_search_finds():
    pytest.importorskip("faiss", reason="faiss is not installed (pip install 'retromae-hf[faiss]')")
    centres = torch.randn(40, 1, 16)
    documents = (centres + 0.4 * torch.randn(40, 100, 16)).flatten(0, 1)
    queries = documents[::97] + 0.1 * torch.randn(len(documents[::97]), 16)
    blocks = documents.split(700)
    exact_scores, exact = search_exact(queries, blocks, depth=20)
    scores, found = search_faiss(queries, blocks, len(documents), depth=20)
    assert found.shape == exact.shape
    overlap = [len(set(a) & set(b)) / 20 for a, b in zip(exact.tolist(), found.tolist(), strict=True)]
    assert sum(overlap) / len(overlap) > 0.95
    assert torch.allclose(scores[:, 0], exact_scores[:, 0], rtol=2e-3)


def test_faiss_with_fewer_documents_than_asked_for():
    pytest.importorskip("faiss", reason="faiss is not installed (pip install 'retromae-hf[faiss]')")
    documents = torch.eye(4)
    scores, indices = search_faiss(documents[:2], [documents], 4, depth=100)
    assert indices[:, 0].tolist() == [0, 1]
    assert scores.shape == (2, 4)


def test_faiss_is_for_many_queries_in_a_large_corpus_on_a_cpu():
    assert choose_search(4000, LARGE_CORPUS, "cpu") == "faiss"
    assert choose_search(4000, LARGE_CORPUS, "cuda:1") == "exact"
    assert choose_search(4000, LARGE_CORPUS - 1, "cpu") == "exact"
    assert choose_search(300, LARGE_CORPUS, "cpu") == "exact"


def test_without_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(RetroMAEError, match=r"pip install 'retromae-hf\[faiss\]'"):
        import_faiss()


def test_shards_hold_the_embeddings_in_order(tmp_path):
    shards = embed_to_shards(Embedder(Encoder(), None, identity="model"), TEXTS, tmp_path / "new", shard_size=10)
    assert [len(shard) for shard in shards] == [10, 10, 5]
    assert len(shards) == 3
    assert torch.equal(torch.cat(list(shards)), Encoder()(TEXTS))


def test_a_killed_run_goes_on_with_the_shards_that_are_complete(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        embed_to_shards(Embedder(Encoder(fails_after=2), None, identity="model"), TEXTS, tmp_path, shard_size=10)
    (tmp_path / f"{2:06d}-half-written.123").write_bytes(b"half")
    second = Encoder()
    shards = embed_to_shards(Embedder(second, None, identity="model"), TEXTS, tmp_path, shard_size=10)
    assert second.asked == [TEXTS[20:]]
    assert torch.equal(torch.cat(list(shards)), Encoder()(TEXTS))


def test_stale_shards_are_not_used(tmp_path):
    embed_to_shards(Embedder(Encoder(), None, identity="model"), TEXTS, tmp_path, shard_size=10)
    changed = [*TEXTS[:-1], "text 99"]
    again = Encoder()
    shards = embed_to_shards(Embedder(again, None, identity="model"), changed, tmp_path, shard_size=10)
    assert again.asked == [changed[20:]]  # only where something changed
    assert torch.equal(torch.cat(list(shards)), Encoder()(changed))
    other_model = Encoder()
    embed_to_shards(Embedder(other_model, None, identity="another model"), TEXTS, tmp_path, shard_size=10)
    assert len(other_model.asked) == 3


def test_embeddings_that_are_not_numbers(tmp_path):
    with pytest.raises(RetroMAEError, match="embeddings with NaN or infinity"):
        embed_to_shards(
            Embedder(lambda texts: torch.full((len(texts), 8), torch.nan), None, identity="model"), TEXTS, tmp_path
        )
    assert not list(tmp_path.iterdir())


def test_a_broken_shard_is_named(tmp_path):
    shards = embed_to_shards(Embedder(Encoder(), None, identity="model"), TEXTS, tmp_path)
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
