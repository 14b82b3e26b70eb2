"""Retrieval measures on cases that can be counted by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from retromae_hf import RetroMAEError
from retromae_hf.evaluation import embed, evaluate_bm25, evaluate_embedder, load_beir, load_task, rank, score_run


def write_beir(folder: Path, qrels: str = "query-id\tcorpus-id\tscore\nq1\td1\t1\n") -> Path:
    (folder / "qrels").mkdir(parents=True)
    documents = [
        {"_id": "d1", "title": "Rivers", "text": "The otter swims in the river."},
        {"_id": "d2", "text": "The wolf sleeps in the meadow."},
        {"_id": "d3", "text": "Bells ring in the tower."},
    ]
    queries = [{"_id": "q1", "text": "otter river"}, {"_id": "q2", "text": "nobody judged this"}]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels" / "test.tsv").write_text(qrels)
    return folder


def test_measures_by_hand():
    qrels = {"a": {"x": 1, "y": 2}, "b": {"z": 1}, "c": {"w": 1}}
    run = {"a": {"x": 2.0, "y": 1.0}, "b": {"k": 1.0}}
    measured = score_run(qrels, run)
    gain = 1 + 2 / math.log2(3)
    ideal = 2 + 1 / math.log2(3)
    assert measured["ndcg@10"] == pytest.approx(gain / ideal / 3)
    assert measured["mrr@10"] == pytest.approx(1 / 3)
    assert measured["recall@100"] == pytest.approx(1 / 3)


def test_ranking_is_by_cosine():
    scores, indices = rank(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 9.0], [5.0, 5.0], [0.1, 0.0]]), depth=5)
    assert indices.tolist() == [[2, 1, 0]]
    assert scores[0, 0] == pytest.approx(1)


def test_a_perfect_embedder_scores_1_and_collapse_is_not_rewarded(tmp_path):
    task = load_beir(write_beir(tmp_path / "task"))
    perfect = {"otter river": 0, "Rivers The otter swims in the river.": 0}
    eye = torch.eye(4)
    measured = evaluate_embedder(task, lambda texts: torch.stack([eye[perfect.get(text, 1)] for text in texts]))
    assert measured == {"ndcg@10": 1.0, "mrr@10": 1.0, "recall@100": 1.0}


def test_beir_layout(tmp_path):
    task = load_task(str(write_beir(tmp_path / "task")))
    assert task.queries == {"q1": "otter river"}
    assert task.documents["d1"] == "Rivers The otter swims in the river."
    assert task.qrels == {"q1": {"d1": 1}}
    assert evaluate_bm25(task)["mrr@10"] == 1.0


def test_a_header_may_be_left_out(tmp_path):
    assert load_beir(write_beir(tmp_path / "task", "q1\td1\t1\nq1\td2\t2\n")).qrels == {"q1": {"d1": 1, "d2": 2}}


def test_bad_tasks_are_one_sentence(tmp_path):
    with pytest.raises(RetroMAEError, match=r"corpus\.jsonl does not exist"):
        load_task(str(tmp_path / "absent"))
    with pytest.raises(RetroMAEError, match=r"test\.tsv line 2"):
        load_beir(write_beir(tmp_path / "qrels", "query-id\tcorpus-id\tscore\nq1 d1 1\n"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.jsonl", b'{"_id": "d1"}\n', r"corpus\.jsonl line 1 is not"),
        ("corpus.jsonl", b'\n{"_id": "d1", "text": ["a"]}\n', r"corpus\.jsonl line 2 is not"),
        ("corpus.jsonl", b"", r"corpus\.jsonl holds no documents"),
        ("corpus.jsonl", '{"_id": "d1", "text": "déjà"}\n'.encode("latin-1"), r"corpus\.jsonl is not UTF-8"),
        ("queries.jsonl", b'{"_id": "q1", "text": null}\n', r"queries\.jsonl line 1 is not"),
        ("queries.jsonl", b'{"_id": "q9", "text": "another"}\n', r"test\.tsv judges no query"),
        ("qrels/test.tsv", b"", r"test\.tsv judges no query"),
        ("qrels/test.tsv", b"query-id\tcorpus-id\tscore\nq1\td9\t1\n", r"test\.tsv judges no query"),
        ("qrels/test.tsv", b"q1 0 d1 1\nq1 0 d2 1\n", r"test\.tsv line 2 is not"),
        ("qrels/test.tsv", b"query-id\tcorpus-id\tscore\nq1\td1\tgood\n", r"test\.tsv line 2 is not"),
    ],
)
def test_a_broken_file_is_named(tmp_path, file, content, message):
    broken = write_beir(tmp_path / "task")
    (broken / file).write_bytes(content)
    with pytest.raises(RetroMAEError, match=message):
        load_beir(broken)


def test_text_that_is_none_after_all(tmp_path):
    task = write_beir(tmp_path / "task")
    (task / "corpus.jsonl").write_text('{"_id": "d1", "text": "\\ud800"}\n{"_id": "d2", "text": ""}\n')
    assert load_beir(task).documents == {"d1": "?", "d2": ""}
    with pytest.raises(RetroMAEError, match="BM25 finds no words"):
        evaluate_bm25(load_beir(task))


def test_embeddings_do_not_depend_on_the_batch(model, tokenizer, texts):
    together = embed(model, tokenizer, texts[:20], batch_size=20, progress=False)
    alone = torch.cat([embed(model, tokenizer, [text], progress=False) for text in texts[:20]])
    assert torch.allclose(together, alone, atol=1e-6)
    assert together.shape == (20, 32)


def test_bm25_reaches_its_known_figures():
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the public test collections are not at hand (no ../shared/data)")
    for name, expected in (("cranfield", 0.337), ("med", 0.667)):
        assert evaluate_bm25(load_beir(folder / name))["ndcg@10"] == pytest.approx(expected, abs=5e-4)
