"""Rankings: the nearest by dot product and by words, several joined, and what stands in files."""

from __future__ import annotations

import sys

import pytest
import torch
from conftest import write_beir
from hypothesis import given, settings
from hypothesis import strategies as st

from retromae_hf import RetroMAEError
from retromae_hf.retrieval.rankings import (
    LARGE_CORPUS,
    RANKING_DEPTH,
    bm25_run,
    choose_search,
    import_faiss,
    reciprocal_rank_fusion,
    search_exact,
    search_faiss,
)
from retromae_hf.retrieval.tasks import load_beir


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
    with pytest.raises(
        RetroMAEError, match=r"not to be exact, needs the package faiss; pip install 'retromae-hf\[faiss\]'"
    ):
        import_faiss()


def test_a_document_without_a_word_of_the_query_is_no_hit(tmp_path):
    task = load_beir(write_beir(tmp_path / "task"))
    assert {query: list(hits) for query, hits in bm25_run(task).items()} == {"q1": ["d1"]}


def test_a_document_scores_the_sum_of_its_reciprocal_ranks_whatever_the_scores_were():
    dense = {"q": {"a": 0.9, "b": 0.8, "c": 0.1}}
    words = {"q": {"c": 31.0, "a": 7.0}, "only here": {"a": 1.0}}
    joined = reciprocal_rank_fusion(dense, words)
    assert list(joined["q"]) == ["a", "c", "b"]
    assert joined["q"] == pytest.approx({"a": 1 / 61 + 1 / 62, "c": 1 / 63 + 1 / 61, "b": 1 / 62})
    assert joined["only here"] == pytest.approx({"a": 1 / 61})


def test_equal_scores_stand_in_trec_evals_order_whatever_order_they_come_in():
    one = {"q": {"a": 1.0, "b": 1.0}}
    same = {"q": {"b": 1.0, "a": 1.0}}
    assert reciprocal_rank_fusion(one) == reciprocal_rank_fusion(same)
    assert list(reciprocal_rank_fusion(one)["q"]) == ["b", "a"]
    crossed = reciprocal_rank_fusion({"q": {"a": 2.0, "b": 1.0}}, {"q": {"b": 2.0, "a": 1.0}})
    assert list(crossed["q"]) == ["b", "a"]


def test_what_comes_out_is_as_deep_as_any_ranking():
    first = {"q": {f"a{number}": -float(number) for number in range(RANKING_DEPTH)}}
    second = {"q": {f"b{number}": -float(number) for number in range(RANKING_DEPTH)}}
    joined = reciprocal_rank_fusion(first, second)["q"]
    assert len(joined) == RANKING_DEPTH
    assert reciprocal_rank_fusion(first, second, depth=9)["q"] == dict(list(joined.items())[:9])
    assert set(joined) == {f"{run}{number}" for run in "ab" for number in range(RANKING_DEPTH // 2)}
