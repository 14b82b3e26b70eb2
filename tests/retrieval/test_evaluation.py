"""Evaluating models on tasks, as the results show it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import ir_measures
import pytest
import torch
from conftest import ROOT, write_beir
from sentence_transformers import SentenceTransformer

from retromae_hf import RetroMAEError
from retromae_hf.commands.main import main
from retromae_hf.retrieval.embedders import Embedder, load_embedder
from retromae_hf.retrieval.evaluation import (
    evaluate_bm25,
    evaluate_embedder,
    evaluate_model,
    format_table,
    run_in_memory,
)
from retromae_hf.retrieval.measures import DEFAULT_MEASURES, MEASURE_NAMES, score_run
from retromae_hf.retrieval.rankings import RANKING_DEPTH, bm25_run, dense_run, reciprocal_rank_fusion
from retromae_hf.retrieval.tasks import RetrievalTask, load_beir, sampled, save_beir


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


def test_bm25_alone_and_what_the_results_tell_of_the_task(duplicates, zoo, tmp_path):
    results = evaluate_model(None, [duplicates, sampled(zoo, 50)], run_dir=tmp_path)
    assert (results["model"], results["fingerprint"], results["dtype"]) == ("bm25", None, None)
    entry, sample = results["tasks"].values()
    assert entry["measures"] == evaluate_bm25(duplicates)
    assert (entry["search"], entry["num_queries_in_corpus"]) == (None, 109)
    assert not {"bm25", "hybrid"} & entry.keys()
    rows = [line.split() for line in (tmp_path / "duplicates-bm25.trec").read_text().splitlines()]
    assert {query for query, _, document, *_ in rows if query == document} == {"d109"}
    assert (sample["num_queries"], sample["num_documents"], sample["max_documents"]) == (40, 50, 50)


def test_a_failed_evaluation_leaves_no_results(tmp_path, capsys):
    line = f"--model_name_or_path {tmp_path}/nowhere --dataset {write_beir(tmp_path / 'task')}"
    assert main(["evaluate", *line.split(), "--output", str(tmp_path / "results.json")]) == 2
    assert f"{tmp_path}/nowhere" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


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
    asked = []

    def evaluate(dtype: str) -> dict[str, Any]:
        embedder = load_embedder(encoder_folder, dtype=dtype)

        def noting(embed):
            return lambda texts: asked.append(len(texts)) or embed(texts)

        noted = replace(embedder, documents=noting(embedder.documents), queries=noting(embedder.queries))
        return evaluate_model(noted, [zoo], embeddings_dir=tmp_path)

    first, second, half = evaluate("float32"), evaluate("float32"), evaluate("bfloat16")
    assert asked == [120, 40, 40, 120, 40], "embeddings of another precision are others"
    assert len(list(tmp_path.glob("zoo/*.safetensors"))) == 2
    assert half["dtype"] == "bfloat16"
    assert first["tasks"]["zoo"]["measures"] == second["tasks"]["zoo"]["measures"]


TWO_PROCESSES = """
import sys
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
import retromae_hf.retrieval.evaluation, sentence_transformers  # once, before the processes are forked
from retromae_hf.commands.evaluate import main
from retromae_hf.retrieval.embedders import embed_to_shards

embed_to_shards.__defaults__ = (30,)  # documents a shard, so that both have some
config = LaunchConfig(1, 1, 2, run_id="evaluate", rdzv_backend="c10d", rdzv_endpoint="localhost:0")
config.start_method, config.max_restarts = "fork", 0
sys.exit(max(elastic_launch(config, main)(sys.argv[1:]).values()))
"""


def test_two_processes_share_the_embedding_and_find_the_same(mean_encoder, zoo, tmp_path):
    save_beir(zoo, tmp_path / "zoo")
    line = f"--model_name_or_path {mean_encoder} --dataset {tmp_path}/zoo --embeddings_dir {tmp_path}/embeddings"
    finished = subprocess.run(
        [sys.executable, "-c", TWO_PROCESSES, *line.split(), "--output", tmp_path / "results.json"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
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


def ranking(value: float, **other: float) -> dict[str, float]:
    """Measures, all of one value but for those that are given by the part of their names before the @."""
    return {name: other.get(name.partition("@")[0], value) for name in MEASURE_NAMES}


def paired(difference: float, p_value: float) -> dict[str, dict[str, float]]:
    return {name: {"difference": difference, "p_value": p_value} for name in MEASURE_NAMES}


def results(**others: Any) -> dict[str, Any]:
    entry = {"num_queries": 1000, "num_documents": 10000, "measures": ranking(0.5, mrr=0.7)}
    return {"model": "mine", "tasks": {"zoo": entry | {"seconds": {"embed": 40.0, "search": 2.0}} | others}}


def test_a_row_a_ranking_the_best_of_each_column_and_what_is_more_than_chance():
    table = format_table(
        results(
            bm25={"measures": ranking(0.4), "paired_test": paired(0.1, 0.01)},  # the model against BM25
            hybrid={"measures": ranking(0.6), "paired_test": paired(0.1, 0.01)},  # against the model
            seconds={"embed": 40.0, "search": 2.0, "bm25": 3.0, "hybrid": 0.5},
        )
    )
    assert table.splitlines() == [
        "zoo: 1,000 queries, 10,000 documents",
        "",
        "|             |    nDCG@10 |     MRR@10 | Recall@100 |    MAP@100 | seconds |",
        "|-------------|-----------:|-----------:|-----------:|-----------:|--------:|",
        "| mine        |   0.500    | **0.700**  |   0.500    |   0.500    |    42.0 |",
        "| BM25        |   0.400  - |   0.400  - |   0.400  - |   0.400  - |     3.0 |",
        "| both joined | **0.600**+ |   0.600  + | **0.600**+ | **0.600**+ |    45.5 |",
        "",
        "**: the best of its column. + and -: above and below the model by more than chance (paired randomisation "
        "test, p < 0.05).",
    ]


def test_chance_is_not_marked_and_a_model_alone_is_not_the_best_of_anything():
    beside = format_table(results(bm25={"measures": ranking(0.4), "paired_test": paired(0.1, 0.06)}))
    assert "| BM25 |   0.400    |" in beside
    alone = format_table(results())
    assert "**" not in alone
    assert "42.0 |" in alone.splitlines()[-1]


def test_bm25_as_the_model_and_a_sample():
    table = format_table(results(max_documents=10000, seconds={"bm25": 3.0}) | {"model": "bm25"})
    assert table.splitlines()[0] == "zoo: 1,000 queries, 10,000 documents, a sample (--max_documents 10000)"
    assert "| BM25 |" in table
    assert "3.0 |" in table.splitlines()[-1]
