"""Fine-tuning takes every kind of input, learns, resumes, and says what is wrong with its files."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from retromae_hf import RetroMAEError
from retromae_hf.arguments.finetuning import FinetuneArguments
from retromae_hf.checkpoints.loading import load_sentence_transformer
from retromae_hf.commands.main import main
from retromae_hf.training.training_rows import (
    fitted_rows,
    load_training_data,
    mine_with_bm25,
    mine_with_model,
    read_hard_negatives,
    read_training_data,
    shorten,
)

FAST = "--use_cpu --disable_tqdm true --per_device_train_batch_size 4 --save_strategy no --report_to none"


def write_lines(file, lines):
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_the_command_trains_from_mined_negatives_and_saves_what_it_was_told(encoder_folder, beir, tmp_path):
    output = tmp_path / "model"
    line = f"--model_name_or_path {encoder_folder} --dataset {beir} --output_dir {output} --max_steps 3 {FAST}"
    options = "--hard_negatives bm25 --num_negatives 2 --similarity dot --temperature 1 --query_prompt ask:"
    options += " --per_device_train_batch_size 2"
    assert main(["finetune", *line.split(), *options.split()]) == 0
    trained = SentenceTransformer(str(output))
    assert trained.similarity_fn_name == "dot"
    assert trained.prompts["query"] == "ask:"
    assert trained[1].pooling_mode == "cls"
    before = load_sentence_transformer(encoder_folder)
    assert not np.allclose(before.encode("the otter"), trained.encode("the otter"))


def test_numbers_that_are_not_finite_end_it_without_a_model(encoder_folder, beir, tmp_path, capsys):
    line = f"--model_name_or_path {encoder_folder} --dataset {beir} --output_dir {tmp_path}/model {FAST}"
    options = "--max_steps 4 --save_strategy steps --save_steps 1 --learning_rate 1e36 --warmup_steps 0"
    assert main(["finetune", *line.split(), *options.split()]) == 2
    error = capsys.readouterr().err
    assert "is not finite; the last whole checkpoint is" in error
    assert "max_skipped_batches" not in error
    assert not (tmp_path / "model" / "model.safetensors").exists()
    for file in tmp_path.glob("model/checkpoint-*/model.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())


@pytest.mark.parametrize("objective", ["kl", "margin_mse"])
def test_it_learns_the_order_of_a_teacher(objective, encoder_folder, beir, corpus, tmp_path):
    lines = [
        {"query_id": q, "positive_id": d, "negative_ids": ["plain", "d0" if d != "d0" else "d1"]}
        for q, (d,) in corpus.positives.items()
    ]
    negatives = write_lines(tmp_path / "negatives.jsonl", lines)
    scores = write_lines(tmp_path / "scores.jsonl", [[9.0, -3.0, 2.0]] * len(lines))
    output = tmp_path / "model"
    line = f"--model_name_or_path {encoder_folder} --dataset {beir} --output_dir {output} --max_steps 30 {FAST}"
    options = f"--objective {objective} --hard_negatives {negatives} --teacher_scores {scores} --num_negatives 2"
    more = "--similarity dot --temperature 1 --learning_rate 1e-3"
    assert main(["finetune", *line.split(), *options.split(), *more.split()]) == 0
    trained = SentenceTransformer(str(output))
    queries = trained.encode(list(corpus.queries.values()))
    documents = trained.encode(list(corpus.documents.values()))
    ours = (queries * documents[: len(queries)]).sum(1)
    assert (ours > queries @ documents[-1]).all()


def test_a_resumed_run_ends_where_the_uncut_one_does(encoder_folder, beir, tmp_path, monkeypatch):
    def weights(folder, *options):
        line = f"--model_name_or_path {encoder_folder} --dataset {beir} --output_dir {folder} {FAST}"
        save = "--max_steps 4 --save_strategy steps --save_steps 2 --mini_batch_size 2"
        mined = "--hard_negatives model --num_negatives 1 --per_device_train_batch_size 2"
        assert main(["finetune", *line.split(), *save.split(), *mined.split(), *options]) == 0
        return SentenceTransformer(str(folder)).state_dict()

    uncut = weights(tmp_path / "a")
    (tmp_path / "b").mkdir()
    for part in ("checkpoint-2", "_mined-negatives"):
        (tmp_path / "a" / part).rename(tmp_path / "b" / part)
    # What was mined is not mined again.
    monkeypatch.setattr("retromae_hf.training.training_rows.mined_rows", None)
    resumed = weights(tmp_path / "b", "--resume_from_checkpoint", "true")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in uncut.items())


def test_large_batches_in_small_pieces_have_the_same_loss(encoder_folder, beir, tmp_path):
    def first_loss(size):
        line = f"--model_name_or_path {encoder_folder} --dataset {beir} --output_dir {tmp_path / str(size)} {FAST}"
        more = f"--per_device_train_batch_size 8 --mini_batch_size {size} --max_steps 1 --logging_steps 1"
        assert main(["finetune", *line.split(), *more.split()]) == 0
        state = json.loads((tmp_path / str(size) / "trainer_state.json").read_text())
        return state["log_history"][0]["loss"]

    assert first_loss(2) == pytest.approx(first_loss(8), abs=1e-5)


def test_a_judged_corpus_gives_pairs(beir):
    pairs = load_training_data(FinetuneArguments("m", str(beir))).pairs()
    assert pairs[1] == {"query": "wolf asleep in a meadow", "positive": "The wolf sleeps in the meadow."}


def test_a_split_of_a_judged_corpus_is_its_qrels(beir):
    (beir / "qrels" / "train.tsv").rename(beir / "qrels" / "dev.tsv")
    assert len(load_training_data(FinetuneArguments("m", str(beir), dataset_split="dev")).pairs()) == 8
    with pytest.raises(RetroMAEError, match="dataset_config_name='small' is unknown"):
        load_training_data(FinetuneArguments("m", str(beir), "small", "dev"))


@pytest.mark.parametrize("miner", ["bm25", "model"])
def test_a_positive_is_never_mined_as_a_negative(miner, corpus, encoder_folder):
    corpus.positives["q0"].append("d1")
    pairs, documents = corpus.pairs(), list(corpus.documents.values())
    args = FinetuneArguments("m", "d", num_negatives=3, negative_depth=8, mini_batch_size=4)
    if miner == "bm25":
        mined = mine_with_bm25(args, pairs, documents, seed=0)
    else:
        mined = mine_with_model(args, pairs, documents, load_sentence_transformer(encoder_folder), seed=0)
    relevant = {
        corpus.queries[query]: {corpus.documents[one] for one in found} for query, found in corpus.positives.items()
    }
    assert len(mined)
    for row in mined:
        negatives = {row[f"negative_{number}"] for number in (1, 2, 3)}
        assert len(negatives) == 3
        assert not negatives & relevant[row["query"]]


def test_negatives_that_are_positives_are_dropped_and_counted(corpus, tmp_path, caplog):
    file = write_lines(
        tmp_path / "negatives.jsonl",
        [{"query_id": "q0", "negative_ids": ["d0", "d3", "d4"]}, {"query_id": "q1", "negative_ids": ["d1"]}],
    )
    with caplog.at_level(logging.WARNING):
        rows = read_hard_negatives(file, corpus, 2, seed=0)
    assert "2 negatives are positives of their query" in caplog.text
    assert {rows[0]["negative_1"], rows[0]["negative_2"]} == {corpus.documents["d3"], corpus.documents["d4"]}
    assert len(rows) == 1


def test_a_dropped_negative_takes_its_score_along(corpus, tmp_path):
    line = {"query_id": "q0", "positive_id": "d0", "negative_ids": ["d0", "d3", "d4"]}
    file = write_lines(tmp_path / "negatives.jsonl", [line])
    scores = write_lines(tmp_path / "scores.jsonl", [[9, 8.5, 1, 2]])
    rows = read_hard_negatives(file, corpus, 2, 0, scores)
    assert rows[0]["label"] == [9.0, 1.0, 2.0]
    assert rows[0]["negative_1"] == corpus.documents["d3"]


@pytest.mark.parametrize(
    ("negatives", "scores", "message"),
    [
        ([{"query_id": "q0", "positive_id": "d0", "negative_ids": ["d1"]}], [], "0 lines of scores for the 1 lines"),
        ([{"query_id": "q0", "positive_id": "d0", "negative_ids": ["d1"]}], [[1.0]], "line 1 must be a list of 2"),
        ([{"query_id": "q0", "positive_id": "d0", "negative_ids": ["x"]}], [[1, 2]], r"1 of 3 ids in .*\(x"),
        ([{"query_id": "q0", "positive_id": "d0", "negative_ids": ["d1"]}], [["a", 1]], "line 1 must be a list of 2"),
        ([{"query_id": "q0", "positive_id": "d3", "negative_ids": ["d1"]}], [[1, 2]], "'d3' is no positive of query"),
        ([{"query_id": "q0", "positive_id": "d0", "negative_ids": [["d1"]]}], [[1, 2]], "line 1 is not a JSON object"),
        ([{"query_id": "q0", "positive_id": "d0", "negative_ids": ["d1"]}], [[1, float("nan")]], "be a list of 2"),
    ],
)
def test_files_that_do_not_go_together_are_one_sentence(negatives, scores, message, corpus, tmp_path):
    file = write_lines(tmp_path / "negatives.jsonl", negatives)
    with pytest.raises(RetroMAEError, match=message):
        read_hard_negatives(file, corpus, 1, 0, write_lines(tmp_path / "scores.jsonl", scores))


def test_files_of_ids_may_have_a_byte_order_mark_and_blank_lines(corpus, tmp_path):
    line = json.dumps({"query_id": "q0", "positive_id": "d0", "negative_ids": ["d3"]})
    (tmp_path / "negatives.jsonl").write_text(f"\ufeff{line}\r\n\r\n", encoding="utf-8")
    (tmp_path / "scores.jsonl").write_text("\ufeff\n[2, 1]\n", encoding="utf-8")
    rows = read_hard_negatives(tmp_path / "negatives.jsonl", corpus, 1, 0, tmp_path / "scores.jsonl")
    assert rows["label"][:] == [[2.0, 1.0]]
    assert read_hard_negatives(tmp_path / "negatives.jsonl", corpus, 1, seed=0)["query"][:] == [corpus.queries["q0"]]


def test_texts_are_cut_behind_their_last_token(tokenizer, corpus):
    rows = corpus.pairs()
    cut = shorten(rows, tokenizer, {"query": 4, "positive": 32}, {"query": "", "positive": ""})
    assert cut["positive"][:] == rows["positive"][:]
    for before, after in zip(rows["query"][:], cut["query"][:], strict=True):
        assert before.startswith(after)
        assert tokenizer(after)["input_ids"] == tokenizer(before, truncation=True, max_length=4)["input_ids"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--num_negatives 9 --negative_depth 4", "negative_depth=4 leaves less"),
        ("--objective margin_mse", "margin_mse cannot reach a teacher's margins with cosines"),
    ],
)
def test_bad_options_are_one_sentence(options, message, capsys, tmp_path, beir, encoder_folder):
    line = f"--model_name_or_path {encoder_folder} --dataset {beir} --output_dir {tmp_path / 'out'} {FAST}"
    assert main(["finetune", *line.split(), *options.split()]) == 2
    assert message in capsys.readouterr().err


def test_rows_with_a_text_missing_are_dropped_and_counted(encoder_folder, tmp_path, caplog):
    rows = [("otter", "river"), (None, "river"), (" ", "x"), ("wolf", None)]
    file = write_lines(tmp_path / "rows.jsonl", [{"query": query, "pos": positive} for query, positive in rows])
    args = FinetuneArguments(model_name_or_path=encoder_folder, dataset=str(file), query_prompt="where is the ")
    with caplog.at_level(logging.WARNING):
        rows = read_training_data(args, seed=0).rows
    assert rows[:] == {"query": ["otter"], "positive": ["river"]}
    assert "3 rows have an empty query or a text missing" in caplog.text


def test_a_sample_of_the_rows_follows_from_the_seed(encoder_folder, tmp_path):
    lines = [{"query": f"otter {number}", "positive": f"river {number}"} for number in range(9)]
    file = write_lines(tmp_path / "rows.jsonl", lines)
    args = FinetuneArguments(encoder_folder, str(file), max_train_samples=3)
    model = load_sentence_transformer(encoder_folder)
    rows = read_training_data(args, 0).rows
    samples = [fitted_rows(args, rows, model, seed)["query"][:] for seed in (0, 0, 1)]
    assert [len(sample) for sample in samples] == [3, 3, 3]
    assert samples[0] == samples[1] != samples[2]
    assert len(fitted_rows(replace(args, max_train_samples=10), rows, model, 0)) == 9


def test_a_prompt_counts_towards_the_length(tokenizer):
    rows = Dataset.from_dict({"query": ["otter river meadow"]})
    cut, longer = (
        shorten(rows, tokenizer, {"query": 8}, {"query": prompt})["query"][0] for prompt in ("where is ", "")
    )
    assert longer.startswith(cut)
    assert len(cut) < len(longer)
