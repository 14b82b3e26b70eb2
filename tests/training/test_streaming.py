"""Pretraining on a stream: cut and resumed it ends as uncut, on any number of workers, and never waits for a shard."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, write_shards
from safetensors.torch import load_file

from retromae_hf.commands.main import main

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, CUT = 8, 3


@pytest.fixture
def corpus(tmp_path, texts):
    return write_shards(tmp_path / "corpus", texts, 2)


@pytest.fixture
def line(corpus, encoder_folder):
    sizes = "--hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2"
    return (
        f"pretrain --dataset {corpus} --tokenizer_name {encoder_folder} --streaming true --max_length 32 {sizes} "
        f"--max_steps {STEPS} --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --save_steps {CUT} "
        "--shuffle_buffer_size 20 --dev_queries 4 --eval_steps 4 --logging_steps 4 --learning_rate 1e-3 --use_cpu "
        "--disable_tqdm true"
    )


@pytest.fixture
def first_steps(line, tmp_path):
    assert run(f"{line} --output_dir {tmp_path}/run --max_steps {CUT}") == 0
    return tmp_path / "run"


def run(line: str) -> int:
    return main(line.split())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(folder: Path, other: Path) -> None:
    one, two = weights(folder), weights(other)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(("workers", "later"), [(0, 0), (2, 3)])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_cut_run_ends_as_an_uncut_one(line, tmp_path, workers, later, monkeypatch):
    # Asked for by the user, threads of the tokenizer in this process must not be waited for in forked workers.
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    uncut = tmp_path / "uncut"
    assert run(f"{line} --output_dir {uncut} --dataloader_num_workers {workers}") == 0
    assert any("eval_loss" in entry for entry in json.loads((uncut / "trainer_state.json").read_text())["log_history"])
    assert any(uncut.glob("_stream/lane-*.jsonl"))
    for bookmarks in {True, workers > 0}:  # which only save time
        cut = tmp_path / f"cut-{bookmarks}"
        shutil.copytree(uncut / f"checkpoint-{CUT}", cut / f"checkpoint-{CUT}")
        if bookmarks:
            shutil.copytree(uncut / "_stream", cut / "_stream")
        resumed = f"{line} --output_dir {cut} --resume_from_checkpoint true"
        assert run(f"{resumed} --dataloader_num_workers {later}") == 0
        assert_same(uncut, cut)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (f"--max_steps {STEPS}", "", "give --max_steps"),
        ("--tokenizer_name", "--config_name", "name one with --tokenizer_name"),
        ("--streaming true", "--streaming true --pair_objective nsp", "NSP draws its false successors"),
        ("--shuffle_buffer_size 20", "--shuffle_buffer_size 0", "shuffle_buffer_size=0 must be at least 1"),
        ("/corpus", "/one", "holds fewer than two documents"),
        ("/corpus", "/blank", "holds no passage to train on"),
    ],
)
def test_what_a_stream_cannot_do_is_one_sentence(line, tmp_path, capsys, old, new, message):
    write_shards(tmp_path / "one", ["One document. It has two sentences."], 1)
    write_shards(tmp_path / "blank", ["The fox.", *["  "] * 15], 1)
    assert run(f"{line.replace(old, new, 1)} --output_dir {tmp_path}/run") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_shard_that_breaks_in_a_worker_is_one_sentence(line, corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("retromae_hf.data.streams.HEAD_DOCUMENTS", 1)  # so that the second is not read before
    (corpus / "001.jsonl").write_text('{"text": "The fox')
    assert run(f"{line} --output_dir {tmp_path}/run --dataloader_num_workers 1") == 2
    (error,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("retromae-hf: error: ")]
    assert f"{corpus}/001.jsonl line 1 is not JSON" in error


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("--max_length 32", "--max_length 24", "another stream, which differs in max_length; resume it with"),
        ("batch_size 4", "batch_size 8", "a run of 8 passages a step, not 16"),
    ],
)
def test_a_run_is_not_resumed_on_another_stream(line, first_steps, capsys, old, new, message):
    resumed = f"{line} --output_dir {first_steps} --resume_from_checkpoint true"
    assert run(resumed.replace(old, new)) == 2
    assert message in capsys.readouterr().err


def test_as_many_passages_a_step_may_come_of_other_batches(line, first_steps):
    resumed = f"{line} --output_dir {first_steps} --resume_from_checkpoint true --max_steps {CUT + 1}"
    assert run(resumed.replace("batch_size 4", "batch_size 2").replace("steps 2", "steps 4")) == 0


def test_a_folder_of_the_users_stays(line, tmp_path):
    """Whatever it is called, only bookmarks go."""
    mine = tmp_path / "run" / "_stream" / "mine.jsonl"
    mine.parent.mkdir(parents=True)
    mine.write_text("{}")
    (mine.parent / "lane-00009.jsonl").write_text("")
    assert run(f"{line} --output_dir {tmp_path}/run --max_steps 1") == 0
    assert mine.exists()
    assert not (mine.parent / "lane-00009.jsonl").exists()


TWO_PROCESSES = """
import json, os, sys
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from retromae_hf.commands import pretrain
from retromae_hf.data.streams import PassageStream
import retromae_hf.training.pretraining  # once, before the processes are forked

def run(folder, arguments):
    original, asked = PassageStream.__getitem__, []
    def noted(self, index):
        passage = original(self, index)
        asked.append((index, passage["epoch"], int(passage["passage_id"])))
        return passage
    PassageStream.__getitem__ = noted
    status = pretrain.main(arguments)
    open(f"{folder}/rank-{os.environ['RANK']}.json", "w").write(json.dumps(asked))
    sys.exit(status)

config = LaunchConfig(1, 1, 2, run_id="stream", rdzv_backend="c10d", rdzv_endpoint="localhost:0")
config.start_method, config.max_restarts = "fork", 0
elastic_launch(config, run)(sys.argv[1], sys.argv[2:])
"""


def test_two_processes_and_fewer_documents_than_readers(line, tmp_path):
    """One shard is empty, the other has five documents, so that a reader finds nothing in some passes."""
    corpus = tmp_path / "small"
    corpus.mkdir()
    (corpus / "a.jsonl").write_text("".join(json.dumps({"text": f"The fox number {n}."}) + "\n" for n in range(6)))
    (corpus / "b.jsonl").write_text(json.dumps({"text": None}) + "\n")
    arguments = line.replace(str(tmp_path / "corpus"), str(corpus)).split()[1:]
    launched = subprocess.run(
        [sys.executable, "-c", TWO_PROCESSES, tmp_path, *arguments, "--output_dir", tmp_path / "run"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert launched.returncode == 0, launched.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == STEPS * 2 * 4
    indices = sorted(index for rank in ranks for index, _, _ in rank)
    assert indices == list(range(STEPS * 2 * 4 * 2))
    seen = [tuple(passage) for rank in ranks for _, *passage in rank]
    assert len(set(seen)) == len(seen), "no passage comes twice in a pass"
