"""Searching an index: by the model, and by both rankings joined."""

from __future__ import annotations

import os
import sys
import time

import pytest
import torch
from datasets import Dataset

from retromae_hf import RetroMAEError
from retromae_hf.retrieval.embedders import Embedder
from retromae_hf.retrieval.rankings import BM25Index, reciprocal_rank_fusion
from retromae_hf.retrieval.search import SearchIndex, format_results, load_index

TEXTS = ["the otter swims", "bells ring", "the wolf and the otter sleep", "a tower of bells"]
PLACES = torch.eye(4)[[1, 0, 2, 3]]
"""A model for which every text lies at a place of its own, and a question where the bells ring."""

NEARNESS = torch.tensor([0.9, 0.5, 0.3, 0.1])


def embed(texts: list[str]) -> torch.Tensor:
    return torch.stack([PLACES[TEXTS.index(text)] if text in TEXTS else NEARNESS for text in texts])


def index_of(words: BM25Index | None) -> SearchIndex:
    documents = Dataset.from_dict({"name": ["swim", "ring", "sleep", "tower"], "text": TEXTS})
    return SearchIndex(Embedder(embed, embed), documents, embed(TEXTS), words)


def test_the_model_alone_scores_by_nearness():
    (found,) = index_of(None).search(["an otter"], top=3)
    assert [(one.name, one.line) for one in found] == [
        ("ring", "bells ring"), ("swim", "the otter swims"), ("sleep", TEXTS[2])
    ]  # fmt: skip
    assert format_results(found[:1]) == "0.900  ring\n       bells ring"


def test_both_rankings_joined_say_of_which_ranks_a_score_is_made():
    (found, other) = index_of(BM25Index(TEXTS)).search(["an otter", "tower"], top=3)
    dense = {"1": 0.9, "0": 0.5, "2": 0.3, "3": 0.1}
    joined = reciprocal_rank_fusion({"q": dense}, {"q": {"0": 2.0, "2": 1.0}})["q"]
    assert [one.score for one in found] == list(joined.values())[:3]
    assert [one.ranks for one in found] == [
        {"model": 2, "BM25": 1}, {"model": 3, "BM25": 2}, {"model": 1, "BM25": None}
    ]  # fmt: skip
    assert format_results(found).splitlines()[::2] == [
        "0.033  swim  (ranks: model 2, BM25 1)",
        "0.032  sleep  (ranks: model 3, BM25 2)",
        "0.016  ring  (ranks: model 1, BM25 -)",
    ]
    assert other[0].name == "tower"


def test_a_missing_bm25s_is_told_before_anything_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(RetroMAEError, match=r"BM25 needs the package bm25s; pip install 'retromae-hf\[retrieval\]'"):
        load_index("no model", "no corpus", hybrid=True)


def test_embeddings_that_no_search_has_used_for_a_month_go(encoder_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("retromae_hf.retrieval.search.HF_CACHE_HOME", tmp_path)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    load_index(encoder_folder, str(tmp_path / "texts.txt"))
    (embedded,) = (tmp_path / "retromae_hf" / "embeddings").iterdir()
    old, recent = embedded.with_name("old.safetensors"), embedded.with_name("recent.safetensors")
    for file, days in ((old, 40), (recent, 20), (embedded, 40)):
        file.touch()
        os.utime(file, (time.time() - days * 86400,) * 2)
    load_index(encoder_folder, str(tmp_path / "texts.txt"))
    assert {file.name for file in embedded.parent.iterdir()} == {embedded.name, "recent.safetensors"}


def test_documents_are_called_by_their_docid(encoder_folder, tmp_path):
    """As Tevatron's corpora name them, also in a data set that `save_to_disk` wrote."""
    Dataset.from_dict({"docid": ["a7", "b9"], "text": TEXTS[:2]}).save_to_disk(tmp_path / "corpus")
    assert load_index(encoder_folder, str(tmp_path / "corpus")).documents["name"][:] == ["a7", "b9"]
