"""Several processes train as one does, and end as one when something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import process_runs
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from conftest import ROOT
from datasets import Dataset, load_from_disk
from transformers import AutoModel, AutoTokenizer

from retromae_hf import (
    DataCollatorForRetroMAE,
    RetroMAEConfig,
    RetroMAEForPreTraining,
    export_encoder,
    tokenize_passages,
)
from retromae_hf.commands import common, pretrain
from retromae_hf.model.counting import counts_of

CONFIGURATIONS = ROOT / "examples" / "accelerate"
EQUAL, WITH_FOUR = process_runs.EQUAL, process_runs.WITH_FOUR
PARTS = ("loss", "mlm_loss", "decoder_loss", "bow_loss", "pair_loss")


def start(*command):
    """The exit status and what was written of Python with these arguments."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    line = [sys.executable, *map(str, command)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def start_folder(tmp_path_factory, texts, tokenizer, encoder_config) -> Path:
    """Passages of many lengths and a model to start with, single and in pairs."""
    folder = tmp_path_factory.mktemp("processes")
    documents = Dataset.from_dict({"text": [text[: 40 + 3 * index] for index, text in enumerate(texts[:44])]})
    torch.manual_seed(0)
    kinds = {
        "passages": {},
        "pairs": {"bow_loss_weight": 0.1, "pair_objective": "sop"},
        "spans": {"pair_objective": "contrast"},
    }
    for kind, config in kinds.items():
        tokenize_passages(documents, tokenizer, 32, pairs=kind == "pairs").save_to_disk(folder / kind)
        model = RetroMAEForPreTraining(RetroMAEConfig(encoder_config=encoder_config, **config))
        model.save_pretrained(folder / kind / "model")
        tokenizer.save_pretrained(folder / kind / "model")
    return folder


@pytest.fixture(scope="module")
def runs(start_folder):
    """Every run with one, two and some with four processes."""
    status, errors = start(process_runs.__file__, start_folder)
    assert status == 0, errors[-3000:]
    (start_folder / "errors.log").write_text(errors)
    for name in EQUAL:
        process_runs.run(start_folder, name)
    return start_folder


def noted(folder, name, world_size):
    return [json.loads((folder / f"{name}-{world_size}-{rank}.json").read_text()) for rank in range(world_size)]


PAIRS_OF_RUNS = [*((name, 2) for name in EQUAL), *((name, 4) for name in WITH_FOUR)]


@pytest.mark.parametrize(("name", "world_size"), PAIRS_OF_RUNS)
def test_the_losses_at_every_step_are_those_of_one_process(runs, name, world_size):
    (alone,), together = noted(runs, name, 1), noted(runs, name, world_size)
    parts = [part for part in (*PARTS, "contrast_loss") if part in alone["logs"][0]]
    assert len(parts) == {"dupmae-sop": 5, "contrast": 4}.get(name, 3)
    for expected, entry in zip(alone["logs"], together[0]["logs"], strict=True):
        for part in parts:
            # Trainer sums its log in float32, whose neighbours lie 1e-6 apart where the loss is about 10.
            tolerance = {"rel": 1e-6} if name == "single-precision" else {"abs": 1e-6}
            assert entry[part] == pytest.approx(expected[part], **tolerance), (entry["step"], part)


@pytest.mark.parametrize(("name", "world_size"), PAIRS_OF_RUNS)
def test_the_weights_at_the_end_are_those_of_one_process(runs, name, world_size):
    tolerance = 1e-5 if name == "single-precision" else 1e-10
    assert_same_weights(runs / f"{name}-1", runs / f"{name}-{world_size}", tolerance)


def assert_same_weights(one, other, tolerance):
    models = [RetroMAEForPreTraining.from_pretrained(folder, dtype="auto") for folder in (one, other)]
    for (name, weight), expected in zip(models[1].named_parameters(), models[0].parameters(), strict=True):
        assert weight.dtype == expected.dtype
        assert torch.allclose(weight, expected, rtol=0, atol=tolerance), name


def test_all_processes_get_the_same_measures(runs):
    """Otherwise they would disagree on the best checkpoint, and wait for each other when one saves it."""
    first, second = noted(runs, "retromae", 2)
    assert first["watched"] == second["watched"]
    assert "eval_embedding_gap" in first["watched"][0]


def test_an_accumulated_step_is_that_of_one_large_batch(runs):
    """Two batches of 2 passages in each of two processes, and 8 passages in one."""
    (alone,), together = noted(runs, "retromae", 1), noted(runs, "accumulated", 2)
    for part in ("loss", "mlm_loss", "decoder_loss"):
        expected = [entry[part] for entry in alone["logs"]]
        assert [entry[part] for entry in together[0]["logs"]] == pytest.approx(expected, abs=1e-6)
    assert_same_weights(runs / "retromae-1", runs / "accumulated-2", 1e-10)


def test_the_counts_of_a_step_make_batches_of_any_size_one_batch(start_folder):
    """All five losses, for 3 passages and 5 others as for 8."""
    folder = start_folder / "pairs"
    model = RetroMAEForPreTraining.from_pretrained(folder / "model").double().train()
    collator = DataCollatorForRetroMAE.from_config(
        AutoTokenizer.from_pretrained(folder / "model"), model.config, seed=0
    )
    collator.set_epoch(0)
    rows = list(load_from_disk(str(folder)).select(range(8)))
    batches = [collator(rows[:3]), collator(rows[3:])]
    counts = torch.stack([counts_of(batch) for batch in batches])
    whole, parts = model(**collator(rows)), [model(**batch, step_counts=counts) for batch in batches]
    for name in PARTS:
        assert torch.allclose((parts[0][name] + parts[1][name]) / 2, whole[name], rtol=0, atol=1e-12), name


@pytest.mark.parametrize(("name", "world_size"), PAIRS_OF_RUNS)
def test_every_step_sees_the_same_passages_under_the_same_masks(runs, name, world_size):
    """The seed of a row decides what the decoder sees; tokens and labels show what the encoder does."""
    (alone,), together = noted(runs, name, 1), noted(runs, name, world_size)
    for rank in together:
        assert len(rank["batches"]) == len(alone["batches"])
    for step, batch in enumerate(alone["batches"]):
        shares = [rank["batches"][step] for rank in together]
        rows = process_runs.GLOBAL_BATCH * (2 if name == "contrast" else 1)  # two spans of each passage
        assert {len(share) for share in shares} == {rows // world_size}
        assert sorted(row for share in shares for row in share) == sorted(batch)


@pytest.mark.parametrize(
    ("name", "world_size", "passages", "steps"), [("uneven", 2, 21, 3), ("tiny", 2, 3, 2), ("tiny", 4, 3, 2)]
)
def test_a_last_batch_that_is_short_is_filled_up_for_every_process(runs, name, world_size, passages, steps):
    """Nobody waits for a process that has no passage: those of the beginning are seen once more."""
    together = noted(runs, name, world_size)
    for rank in together:
        assert [len(batch) for batch in rank["batches"]] == [process_runs.GLOBAL_BATCH // world_size] * steps
    seen = {row[0] for rank in together for batch in rank["batches"] for row in batch}
    assert len(seen) == passages * (2 if name == "tiny" else 1)  # seeds are new in every epoch


def test_a_sharded_run_saves_resumes_and_exports_what_the_others_do(runs):
    """FSDP2, the model in shares over two processes, through accelerate as on GPUs."""
    options = f"--config_file {CONFIGURATIONS / 'fsdp2.yaml'} --num_processes 2 --mixed_precision no"
    launch = f"-m accelerate.commands.launch {options} --main_process_port 0".split()
    status, errors = start(*launch, process_runs.__file__, runs, "sharded", "sharded-resumed")
    assert status == 0, errors[-3000:]
    assert "returned a view" not in errors
    for name in ("sharded", "sharded-resumed"):
        assert_same_weights(runs / "retromae-2", runs / f"{name}-2", 1e-10)
        sharded, whole = noted(runs, name, 2)[0], noted(runs, "retromae", 2)[0]
        logs = [entry["loss"] for entry in sharded["logs"]]
        assert logs == pytest.approx([entry["loss"] for entry in whole["logs"]], abs=1e-6)
        assert len(sharded["watched"]) >= 2
        for entry, expected in zip(sharded["watched"], whole["watched"], strict=True):
            assert {"eval_ndcg@10", "eval_embedding_gap"} <= entry.keys()
            assert entry == pytest.approx(expected, abs=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(runs / "retromae-2")
    states = []
    for name in ("retromae", "sharded"):
        model = RetroMAEForPreTraining.from_pretrained(runs / f"{name}-2")
        export_encoder(model, tokenizer, runs / f"{name}-encoder")
        encoder = AutoModel.from_pretrained(runs / f"{name}-encoder").eval()
        with torch.no_grad():
            states.append(encoder(**tokenizer("the otter sleeps", return_tensors="pt")).last_hidden_state)
    assert torch.allclose(*states, atol=1e-6)


def test_the_others_stop_when_a_process_is_killed_or_hangs_or_gets_bad_input(runs):
    """A hang ends after `ddp_timeout`, with a message that says so; bad input is told once by all together."""
    failures, errors = json.loads((runs / "failures.json").read_text()), (runs / "errors.log").read_text()
    assert failures.keys() == {"four", "stuck", "bad input"}
    assert not [*runs.glob("killed-4-*.json"), *runs.glob("stuck-2-*.json")]
    assert failures["bad input"] == {"0": 2}
    assert "Timed out waiting 4000ms" in errors, errors[-3000:]
    assert errors.count("retromae-hf: error:") == 1, errors[-3000:]
    assert "missing.jsonl" in errors.split("retromae-hf: error:")[1].split("\n")[0]


@pytest.mark.parametrize(("rank", "waits"), [(0, []), (3, [common.FIRST_WORD_SECONDS])])
def test_what_the_first_process_does_not_find_wrong_another_one_tells_later(rank, waits, monkeypatch, capsys):
    waited = []
    monkeypatch.setattr(common.time, "sleep", waited.append)
    monkeypatch.setenv("RANK", str(rank))
    assert pretrain.main(["--dataset", "pydocs", "--output_dir", "x", "--encoder_mask_ratio", "2"]) == 2
    assert "encoder_mask_ratio=2.0" in capsys.readouterr().err
    assert waited == waits


def test_the_slurm_script_hands_the_signal_on_and_queues_the_job_again(tmp_path):
    """With stand-ins for Slurm's commands and for the launcher, which has work for two turns."""
    stand_ins = {
        "srun": 'shift; export SLURM_NODEID=1; exec "$@"',
        "scontrol": f'echo "$@" >> {tmp_path}/told',
        "accelerate": f"""echo "$@" >> {tmp_path}/launched
            trap 'touch {tmp_path}/half; exit 143' TERM
            test -e {tmp_path}/half || while true; do sleep 0.05; done""",
    }
    for name, script in stand_ins.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "5", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_NODELIST": "n[1-2]"}
    environment = os.environ | job | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MAIN_HOST": "n1"}
    command = ["bash", CONFIGURATIONS / "slurm.sh", CONFIGURATIONS / "ddp.yaml", "--dataset", "a b"]
    first = subprocess.Popen(command, env=environment)
    while not (tmp_path / "launched").exists():
        time.sleep(0.05)
    first.terminate()
    assert first.wait(20) == 0
    assert (tmp_path / "told").read_text() == "requeue 5\n"
    assert subprocess.run(command, env=environment, timeout=20).returncode == 0
    first_launch, second_launch = (tmp_path / "launched").read_text().splitlines()
    assert first_launch == second_launch
    assert "--machine_rank 1 --main_process_ip n1" in first_launch
    assert "--num_machines 2 --num_processes 8" in first_launch
    assert first_launch.endswith("-m retromae_hf.commands.pretrain --dataset a b")


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("ddp", DistributedType.MULTI_GPU),
        ("fsdp2", DistributedType.FSDP),
        ("deepspeed-zero2", DistributedType.DEEPSPEED),
        ("deepspeed-zero3", DistributedType.DEEPSPEED),
    ],
)
def test_accelerate_takes_the_configurations(file, kind):
    path = str(CONFIGURATIONS / f"{file}.yaml")
    config = load_config_from_file(path)
    assert config.distributed_type == kind
    options = ["--num_machines", "2", "--num_processes", "16", "--machine_rank", "1", "--main_process_ip", "host"]
    args = launch_command_parser().parse_args(["--config_file", path, *options, "-m", "retromae_hf.commands.pretrain"])
    args.nondefault = []
    args, _, _ = _validate_launch_command(args)
    assert (args.num_machines, args.num_processes, int(args.machine_rank)) == (2, 16, 1)
    known = {action.dest for action in launch_command_parser()._actions}
    for section, prefix in ((config.fsdp_config, "fsdp_"), (config.deepspeed_config, "")):
        assert {key if key.startswith(prefix) else prefix + key for key in section} <= known
