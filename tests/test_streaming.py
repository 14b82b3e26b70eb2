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
from safetensors.torch import load_file
from test_streams import write_shards

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


def run(line: str) -> int:
    return main(line.split())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(folder: Path, other: Path) -> None:
    one, two = weights(folder), weights(other)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(("workers", "later"), [(0, 0), (2, 2), (2, 3)])
def test_a_cut_run_ends_as_an_uncut_one(line, tmp_path, workers, later):
    uncut, cut = tmp_path / "uncut", tmp_path / "cut"
    assert run(f"{line} --output_dir {uncut} --dataloader_num_workers {workers}") == 0
    assert any("eval_loss" in entry for entry in json.loads((uncut / "trainer_state.json").read_text())["log_history"])
    cut.mkdir()
    shutil.copytree(uncut / f"checkpoint-{CUT}", cut / f"checkpoint-{CUT}")
    shutil.copytree(uncut / "stream", cut / "stream")
    resumed = f"{line} --output_dir {cut} --resume_from_checkpoint true"
    assert run(f"{resumed} --dataloader_num_workers {later}") == 0
    assert_same(uncut, cut)
    shutil.rmtree(cut / "stream")  # without the bookmarks it only takes longer
    if later == workers:
        shutil.copy(uncut / f"checkpoint-{CUT}/model.safetensors", cut / "model.safetensors")
        assert (
            run(
                f"{line} --output_dir {cut} --resume_from_checkpoint {cut}/checkpoint-{CUT}"
                f" --dataloader_num_workers {later}"
            )
            == 0
        )
        assert_same(uncut, cut)


TWO_PROCESSES = """
import sys, torch
from retromae_hf.commands import pretrain
from retromae_hf.passage_stream import PassageStream
original, asked = PassageStream.__getitem__, []
def noted(self, index):
    passage = original(self, index)
    asked.append((index, passage["epoch"], int(passage["passage_id"])))
    return passage
PassageStream.__getitem__ = noted
status = pretrain.main(sys.argv[2:])
import json, os
open(f"{sys.argv[1]}/rank-{os.environ['RANK']}.json", "w").write(json.dumps(asked))
sys.exit(status)
"""


def test_two_processes_and_fewer_documents_than_readers(line, tmp_path):
    """One shard is empty, the other has five documents, so that a reader finds nothing in some passes."""
    corpus = tmp_path / "small"
    corpus.mkdir()
    (corpus / "a.jsonl").write_text("".join(json.dumps({"text": f"The fox number {n}."}) + "\n" for n in range(6)))
    (corpus / "b.jsonl").write_text(json.dumps({"text": None}) + "\n")
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    arguments = line.replace(str(tmp_path / "corpus"), str(corpus)).split()[1:]
    launched = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
        + [str(tmp_path), *arguments, "--output_dir", str(tmp_path / "run"), "--ddp_backend", "gloo"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert launched.returncode == 0, launched.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == STEPS * 2 * 4
    indices = sorted(index for rank in ranks for index, _, _ in rank)
    assert indices == list(range(STEPS * 2 * 4 * 2))
    seen = [tuple(passage) for rank in ranks for _, *passage in rank]
    assert len(set(seen)) == len(seen), "no passage comes twice in a pass"
