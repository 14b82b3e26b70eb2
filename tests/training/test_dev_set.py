"""Fine-tuning is watched on a dev set, of which it has trained on nothing, and keeps its best checkpoint."""

from __future__ import annotations

import gzip
import json

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from transformers import TrainingArguments

from retromae_hf import RetroMAEError
from retromae_hf.arguments.finetuning import FinetuneArguments
from retromae_hf.commands.main import main
from retromae_hf.data.held_out import hold_out_queries, judged_rows
from retromae_hf.retrieval.embedders import load_embedder
from retromae_hf.retrieval.evaluation import evaluate_embedder
from retromae_hf.retrieval.tasks import load_beir
from retromae_hf.training.finetuning import make_loss, read_data
from retromae_hf.training.training_rows import mined_rows

FAST = "--use_cpu --disable_tqdm true --per_device_train_batch_size 2 --report_to none"


@pytest.fixture
def finetune(encoder_folder, tmp_path):
    def run(dataset, options, folder="model"):
        line = f"--model_name_or_path {encoder_folder} --dataset {dataset} --output_dir {tmp_path / folder} {FAST}"
        return main(["finetune", *line.split(), *options.split()])

    return run


@pytest.fixture
def beir(beir):
    """With judgments of a part of the queries as dev, so that another split gives other figures."""
    lines = (beir / "qrels/train.tsv").read_text().splitlines(keepends=True)
    (beir / "qrels/test.tsv").write_text("".join(lines))
    (beir / "qrels/dev.tsv").write_text("".join(lines[: len(lines) // 2]))
    return beir


def logs_of(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def test_a_folder_with_dev_judgments_is_watched_and_the_best_checkpoint_kept(finetune, beir, encoder_folder, tmp_path):
    assert finetune(beir, f"--eval_dataset {beir} --max_steps 4 --eval_steps 2 --learning_rate 1e-2") == 0
    state = json.loads((tmp_path / "model/trainer_state.json").read_text())
    measured = {entry["step"]: entry["eval_ndcg@10"] for entry in state["log_history"] if "eval_ndcg@10" in entry}
    assert measured.keys() == {0, 2, 4}
    task = load_beir(beir, split="dev")
    assert measured[0] == pytest.approx(evaluate_embedder(task, load_embedder(encoder_folder))["ndcg@10"])
    assert state["best_metric"] == max(measured[2], measured[4])
    kept = evaluate_embedder(task, load_embedder(str(tmp_path / "model")))["ndcg@10"]
    assert kept == pytest.approx(state["best_metric"])


def test_a_packed_folder_is_read_as_a_plain_one(finetune, beir, tmp_path):
    options = "--eval_dataset {} --max_steps 1 --eval_steps 1"
    assert finetune(beir, options.format(beir), "plain") == 0
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/dev.tsv"):
        (beir / f"{name}.gz").write_bytes(gzip.compress((beir / name).read_bytes()))
        (beir / name).unlink()
    assert finetune(beir, options.format(beir), "packed") == 0
    plain, packed = (
        [entry["eval_ndcg@10"] for entry in logs_of(tmp_path / folder) if "eval_ndcg@10" in entry]
        for folder in ("plain", "packed")
    )
    assert packed == plain


def test_it_stops_early_and_goes_on_where_it_was_cut(finetune, beir, tmp_path, caplog):
    options = "--eval_dataset 0.3 --early_stopping_patience 1 --eval_steps 1 --learning_rate 0 --max_steps 9"
    assert finetune(beir, options) == 0
    assert [entry["step"] for entry in logs_of(tmp_path / "model") if "eval_ndcg@10" in entry] == [0, 1, 2]
    assert "nDCG@10 is watched on" in caplog.text


def test_what_is_held_out_is_not_trained_on():
    rows = Dataset.from_dict(
        {
            "query": [f"query {number // 2}" for number in range(40)],
            "positive": [f"passage {number}" for number in range(40)],
        }
    )
    task, others = hold_out_queries(rows, 0.25)
    assert len(task.queries) == 5
    assert len(others) == 30
    assert not set(task.queries.values()) & set(others["query"][:])
    assert len(task.documents) == 40
    for query, text in task.queries.items():
        number = int(text.split()[1])
        assert {task.documents[one] for one in task.qrels[query]} == {
            f"passage {2 * number}",
            f"passage {2 * number + 1}",
        }
    assert hold_out_queries(rows.select(range(39, -1, -1)), 0.25)[0].queries.keys() == task.queries.keys()
    texts = rows["positive"][:]
    given = rows.add_column("negative_1", texts[1:] + texts[:1]).add_column("negative_2", ["other"] * 40)
    held_out = set(texts) - set(others["positive"])
    rest = hold_out_queries(given, 0.25)[1]
    assert len(rest) == 30
    assert not held_out & {*rest["negative_1"], *rest["negative_2"]}
    with pytest.raises(RetroMAEError, match=r"a share of 0.01 of 20 queries leaves none"):
        hold_out_queries(rows, 0.01)


def test_rows_are_a_dev_set_by_the_columns_that_are_named(finetune, tmp_path):
    rows = [{"heading": f"topic {n}", "body": f"all about topic {n}", "rest": f"else {n}"} for n in range(8)]
    for name, left_out in (("train", []), ("dev", ["rest"])):  # a dev set needs no negatives
        kept = [{column: text for column, text in row.items() if column not in left_out} for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in kept))
    columns = "--query_column heading --positive_column body --negative_columns rest --max_steps 2 --eval_steps 1"
    assert finetune(tmp_path / "train.jsonl", f"--eval_dataset {tmp_path / 'dev.jsonl'} {columns}") == 0
    assert "eval_ndcg@10" in logs_of(tmp_path / "model")[0]


@pytest.mark.parametrize("source", ["rows", "beir"])
def test_no_positive_of_a_held_out_query_is_a_negative_of_another(source, beir, encoder_folder, tmp_path):
    if source == "rows":
        lines = [{"query": f"where is otter {n}", "positive": f"the otter sleeps {n}"} for n in range(8)]
        (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    options = {"hard_negatives": "bm25", "num_negatives": 2, "eval_dataset": "0.4"}
    args = FinetuneArguments(encoder_folder, str(tmp_path / "rows.jsonl" if source == "rows" else beir), **options)
    data, task = read_data(args, 0)
    rows = mined_rows(args, data, SentenceTransformer(encoder_folder), 0)
    held_out = {task.documents[document] for found in task.qrels.values() for document in found}
    assert len(held_out) == len(task.queries) == 3
    assert not held_out & {text for row in rows for text in row.values()}


def test_a_document_of_several_queries_stands_once():
    rows = Dataset.from_dict({"query": ["a", "b", "a"], "positive": ["x", "x", "y"]})
    task = judged_rows(rows, ["a", "b"])
    assert sorted(task.documents.values()) == ["x", "y"]
    assert sorted(map(len, task.qrels.values())) == [1, 2]


def test_matryoshka_trains_the_first_numbers_too(finetune, beir, encoder_folder, tmp_path):
    model, training_args = SentenceTransformer(encoder_folder), TrainingArguments(tmp_path, use_cpu=True)
    loss = make_loss(FinetuneArguments("m", "d", matryoshka_dims=[32, 8]), training_args, model)
    assert isinstance(loss, MatryoshkaLoss)
    with pytest.raises(RetroMAEError, match="are more than the 32 numbers of an embedding"):
        make_loss(FinetuneArguments("m", "d", matryoshka_dims=[64]), training_args, model)
    assert finetune(beir, "--matryoshka_dims 32 8 --mini_batch_size 1 --max_steps 1 --logging_steps 1") == 0
    assert logs_of(tmp_path / "model")[0]["loss"] > 0


def test_prompts_are_flags_of_evaluate_too(encoder_folder, beir, tmp_path):
    results = tmp_path / "results.json"
    line = f"evaluate --model_name_or_path {encoder_folder} --dataset {beir} --output {results}"
    embeddings = f"--embeddings_dir {tmp_path / 'kept'}"
    measured = []
    for prompts in ([], ["--query_prompt", "query: ", "--passage_prompt", "the otter sleeps "]):
        assert main([*line.split(), *embeddings.split(), *prompts]) == 0
        measured.append(json.loads(results.read_text()))
    assert [one["tasks"]["beir"]["passage_prompt"] for one in measured] == [None, "the otter sleeps "]
    plain, prompted = (load_embedder(encoder_folder, passage_prompt=one) for one in (None, "the otter sleeps "))
    texts = ["a river", "a bridge"]
    assert torch.equal(prompted.documents(texts), plain.documents([f"the otter sleeps {text}" for text in texts]))
    assert torch.equal(prompted.queries(texts), plain.queries(texts))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("--early_stopping_patience 2", "give --eval_dataset too"),
        ("--eval_dataset 1.5", "must be between 0 and 1"),
        ("--eval_dataset 0.2 --metric_for_best_model f1", "metric_for_best_model='f1'"),
        ("--query_column no", "has no columns to choose from"),
        ("--query_column quest --dataset ROWS", "has no column quest; it has query, positive"),
        ("--pairs crop --query_column no", "leave query_column and the like out"),
        ("--matryoshka_dims 0", "matryoshka_dims=0"),
    ],
)
def test_what_cannot_be_is_one_sentence(finetune, beir, tmp_path, capsys, options, error):
    (tmp_path / "rows.jsonl").write_text('{"query": "q", "positive": "p"}\n')
    assert finetune(beir, f"{options.replace('ROWS', f'{tmp_path}/rows.jsonl')} --max_steps 1") == 2
    assert error in capsys.readouterr().err
