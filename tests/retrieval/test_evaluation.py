"""Evaluating models on tasks, as the results show it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ir_measures
import numpy as np
import pytest
import torch
from conftest import ROOT, write_beir
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize

from retromae_hf import RetroMAEError
from retromae_hf.checkpoints.loading import load_sentence_transformer
from retromae_hf.retrieval.embedders import Embedder, load_embedder
from retromae_hf.retrieval.evaluation import evaluate_bm25, evaluate_embedder, evaluate_model, run_in_memory
from retromae_hf.retrieval.measures import DEFAULT_MEASURES, score_run
from retromae_hf.retrieval.rankings import RANKING_DEPTH, bm25_run, dense_run, reciprocal_rank_fusion
from retromae_hf.retrieval.tasks import RetrievalTask, load_beir, sampled


@pytest.fixture(scope="module")
def mean_encoder(encoder_folder, tmp_path_factory) -> str:
    """The untrained encoder's [CLS] states are all but the same; means over the tokens are not."""
    folder = str(tmp_path_factory.mktemp("mean"))
    SentenceTransformer(encoder_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def zoo(texts) -> RetrievalTask:
    """The second sentence of a text asks for the text; there are two texts for each."""
    documents = {f"d{number}": text for number, text in enumerate(texts)}
    queries = {f"q{number}": text.split("! ")[1] for number, text in enumerate(texts[:40])}
    return RetrievalTask("zoo", queries, documents, {query: {query.replace("q", "d"): 1} for query in queries})


def write_zoo(folder: Path, zoo: RetrievalTask) -> Path:
    (folder / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", zoo.documents), ("queries", zoo.queries)):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"_id": i, "text": t}) + "\n" for i, t in rows.items())
        )
    judged = [f"{query}\t{document}\t1" for query, row in zoo.qrels.items() for document in row]
    (folder / "qrels" / "test.tsv").write_text("\n".join(judged))
    return folder


def test_a_perfect_embedder_scores_1_and_collapse_is_not_rewarded(tmp_path):
    task = load_beir(write_beir(tmp_path / "task"))
    perfect = {"otter river": 0, "Rivers The otter swims in the river.": 0}
    eye = torch.eye(4)

    def embed(texts):
        return torch.stack([eye[perfect.get(text, 1)] for text in texts])

    measured = evaluate_embedder(task, Embedder(embed, embed))
    assert measured == dict.fromkeys(DEFAULT_MEASURES, 1.0)


def test_results_have_the_documented_schema(encoder_folder, zoo):
    results = evaluate_model(load_embedder(encoder_folder), [zoo], bm25=True)
    assert results.keys() == {"schema", "model", "fingerprint", "dtype", "tasks"}
    assert (results["schema"], results["model"], results["dtype"]) == (1, encoder_folder, "float32")
    entry = results["tasks"]["zoo"]
    assert entry["measures"] == pytest.approx(evaluate_embedder(zoo, load_embedder(encoder_folder)))
    assert entry["bm25"]["measures"] == evaluate_bm25(zoo)
    tested = entry["bm25"]["paired_test"]["ndcg@10"]
    assert tested["difference"] == pytest.approx(entry["measures"]["ndcg@10"] - entry["bm25"]["measures"]["ndcg@10"])
    assert 0 < tested["p_value"] <= 1
    joined = reciprocal_rank_fusion(run_in_memory(zoo, load_embedder(encoder_folder)), bm25_run(zoo))
    assert entry["hybrid"]["measures"] == pytest.approx(score_run(zoo.qrels, joined))
    tested = entry["hybrid"]["paired_test"]["map@100"]
    assert tested["difference"] == pytest.approx(entry["hybrid"]["measures"]["map@100"] - entry["measures"]["map@100"])
    assert entry["seconds"].keys() == {"embed", "search", "bm25", "hybrid"}
    del entry["measures"], entry["bm25"], entry["hybrid"], entry["seconds"]
    assert entry == {
        "num_queries": 40,
        "num_documents": 120,
        "query_prompt": None,
        "passage_prompt": None,
        "max_documents": None,
        "num_unjudged_queries": 0,
        "missing_ids": {"num_judgments": 0, "queries": [], "documents": []},
        "num_queries_in_corpus": 0,
        "benchmark": None,
        "search": "exact",
    }
    assert json.loads(json.dumps(results)) == results


@pytest.fixture(scope="module")
def duplicates(zoo) -> RetrievalTask:
    """Every query is a document too, and asks for the one behind it; the last is judged for itself."""
    queries = dict(list(zoo.documents.items())[:110])
    ids = list(zoo.documents)
    qrels = {query: {ids[place + 1]: 1} for place, query in enumerate(queries)}
    return RetrievalTask("duplicates", queries, zoo.documents, qrels | {ids[109]: {ids[109]: 1}})


@pytest.mark.parametrize("model", ["dense", "faiss", "bm25"])
def test_a_query_that_is_a_document_does_not_find_itself_unless_it_is_judged_for_that(mean_encoder, duplicates, model):
    if model == "bm25":
        run = bm25_run(duplicates)
    elif model == "faiss":
        pytest.importorskip("faiss", reason="faiss is not installed (pip install 'retromae-hf[faiss]')")
        embedder = load_embedder(mean_encoder)
        blocks = embedder.documents(list(duplicates.documents.values())).split(64)
        run = dense_run(duplicates, embedder, blocks, model, "cpu")
    else:
        run = run_in_memory(duplicates, load_embedder(mean_encoder))
    *others, judged = run
    assert not [query for query in others if query in run[query]]
    assert next(iter(run[judged])) == judged
    assert {len(hits) for hits in run.values()} == {RANKING_DEPTH}


def test_the_results_and_the_runs_on_file_say_so(duplicates, tmp_path):
    entry = evaluate_model(None, [duplicates], run_dir=tmp_path)["tasks"]["duplicates"]
    assert entry["num_queries_in_corpus"] == 109
    rows = [line.split() for line in (tmp_path / "duplicates-bm25.trec").read_text().splitlines()]
    assert {query for query, _, document, *_ in rows if query == document} == {"d109"}
    assert entry["measures"]["mrr@10"] == evaluate_bm25(duplicates)["mrr@10"]


def test_bm25_as_the_model(zoo):
    results = evaluate_model(None, [zoo])
    assert results["tasks"]["zoo"]["measures"] == evaluate_bm25(zoo)
    assert results["tasks"]["zoo"]["search"] is None
    assert not {"bm25", "hybrid"} & results["tasks"]["zoo"].keys()


def test_results_of_a_sample_say_so(zoo):
    entry = evaluate_model(None, [sampled(zoo, 50)])["tasks"]["zoo"]
    assert (entry["num_queries"], entry["num_documents"], entry["max_documents"]) == (40, 50, 50)


def test_a_document_without_a_word_of_the_query_is_no_hit(tmp_path):
    task = load_beir(write_beir(tmp_path / "task"))
    assert {query: list(hits) for query, hits in bm25_run(task).items()} == {"q1": ["d1"]}


def test_faiss_gives_nearly_the_same(mean_encoder, zoo):
    pytest.importorskip("faiss", reason="faiss is not installed (pip install 'retromae-hf[faiss]')")
    results = evaluate_model(load_embedder(mean_encoder), [zoo], search="faiss")["tasks"]["zoo"]
    assert results["search"] == "faiss"
    assert results["measures"] == pytest.approx(evaluate_embedder(zoo, load_embedder(mean_encoder)), abs=0.02)


def test_runs_on_file_score_the_same(encoder_folder, zoo, tmp_path):
    entry = evaluate_model(load_embedder(encoder_folder), [zoo], bm25=True, run_dir=tmp_path)["tasks"]["zoo"]
    for kind, expected in {"dense": entry, "bm25": entry["bm25"], "hybrid": entry["hybrid"]}.items():
        file = tmp_path / f"zoo-{kind}.trec"
        run: dict[str, dict[str, float]] = {}
        for row in ir_measures.read_trec_run(str(file)):
            run.setdefault(row.query_id, {})[row.doc_id] = row.score
        assert score_run(zoo.qrels, run) == expected["measures"]
        assert re.fullmatch(r"q0 Q0 d\d+ 1 \S+ \S+", file.read_text().splitlines()[0])


def test_an_id_that_a_run_cannot_hold(zoo, tmp_path):
    spaced = RetrievalTask("spaced", {"a query": "otter"}, zoo.documents, {"a query": {"d1": 1}})
    with pytest.raises(RetroMAEError, match="spaced has the query id 'a query', which a TREC run cannot hold"):
        evaluate_model(None, [zoo, spaced], run_dir=tmp_path)
    assert not list(tmp_path.iterdir())  # before anything is computed


def test_a_second_evaluation_embeds_no_document_again(encoder_folder, zoo, tmp_path):
    first = evaluate_model(load_embedder(encoder_folder), [zoo], embeddings_dir=tmp_path)
    assert len(list(tmp_path.glob("zoo/*.safetensors"))) == 1
    asked = []

    def noting(embedder):
        def noted(embed):
            return lambda texts: asked.append(len(texts)) or embed(texts)

        return replace(embedder, documents=noted(embedder.documents), queries=noted(embedder.queries))

    second = evaluate_model(noting(load_embedder(encoder_folder)), [zoo], embeddings_dir=tmp_path)
    assert asked == [40]  # the queries
    asked.clear()
    half = evaluate_model(noting(load_embedder(encoder_folder, dtype="bfloat16")), [zoo], embeddings_dir=tmp_path)
    assert half["dtype"] == "bfloat16"
    assert sum(asked) == 160, "embeddings of another precision are others"
    assert first["tasks"]["zoo"]["measures"] == second["tasks"]["zoo"]["measures"]


def test_two_processes_share_the_embedding_and_find_the_same(mean_encoder, zoo, tmp_path):
    folder = write_zoo(tmp_path / "zoo", zoo)
    # 30 documents a shard, so that both have some.
    program = (
        "import sys, retromae_hf.retrieval.embedders as shards\n"
        "shards.embed_to_shards.__defaults__ = (30,)\n"
        "from retromae_hf.commands.evaluate import main\n"
        "sys.exit(main())\n"
    )
    (tmp_path / "evaluate_small.py").write_text(program)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(tmp_path / "evaluate_small.py"), "--model_name_or_path", mean_encoder, "--dataset", str(folder)]
    command += ["--embeddings_dir", str(tmp_path / "embeddings"), "--output", str(tmp_path / "results.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("zoo: 40 queries") == 1
    assert len(list((tmp_path / "embeddings" / "zoo").glob("*.safetensors"))) == 4
    results = json.loads((tmp_path / "results.json").read_text())
    expected = evaluate_model(load_embedder(mean_encoder), [zoo])["tasks"]["zoo"]
    assert results["tasks"]["zoo"]["measures"] == pytest.approx(expected["measures"])


def test_bm25_reaches_its_known_figures():
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the public test collections are not at hand (no ../shared/data)")
    for name, expected in (("cranfield", 0.337), ("med", 0.667)):
        assert evaluate_bm25(load_beir(folder / name))["ndcg@10"] == pytest.approx(expected, abs=5e-4)


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
