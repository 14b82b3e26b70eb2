"""A run that was cut anywhere ends, started again, exactly where an uncut one does."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from retromae_hf.commands.main import main
from retromae_hf.saved_checkpoints import (
    checkpoints,
    is_complete,
    last_complete_checkpoint,
    mark_complete,
    remove_incomplete,
)

SMALL = (
    "--use_cpu --disable_tqdm true --hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --vocab_size 200 "
    "--max_length 32 --per_device_train_batch_size 8 --gradient_accumulation_steps 2 --max_steps 12 --save_steps 4 "
    "--eval_steps 3"
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, texts):
    file = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    file.write_text("\n".join(texts), encoding="utf-8")
    return file


@pytest.fixture
def pretrain(corpus):
    def start(folder, extra=""):
        return main(f"pretrain --dataset {corpus} --output_dir {folder} {SMALL} {extra}".split())

    return start


@pytest.fixture(scope="module")
def uncut(tmp_path_factory, corpus):
    folder = tmp_path_factory.mktemp("uncut")
    assert main(f"pretrain --dataset {corpus} --output_dir {folder} {SMALL}".split()) == 0
    return load_file(folder / "model.safetensors")


def assert_equal_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    ended = load_file(folder / "model.safetensors")
    assert ended.keys() == weights.keys()
    assert [name for name in weights if not torch.equal(ended[name], weights[name])] == []


class CutError(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def at_step(monkeypatch):
    """Do something at the end of a step of the next run, or as a checkpoint is written."""

    def plan(step, action, event="on_step_end"):
        def act(self, args, state, control, **kwargs):
            if state.global_step == step:
                action(Path(args.output_dir))

        callback = type("Planned", (TrainerCallback,), {event: act})
        monkeypatch.setattr("retromae_hf.pretraining.HealthCallback", lambda *options: callback())

    return plan


def cut(folder):
    raise CutError


@pytest.fixture
def two_checkpoints(tmp_path):
    for step in (9, 10):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "inside").mkdir(parents=True)
        for name in ("model.safetensors", "inside/optimizer.pt"):
            (folder / name).write_bytes(b"0" * 100)
        mark_complete(folder, resumable=True)
    return tmp_path


def test_the_last_whole_checkpoint_is_found_by_its_number(two_checkpoints):
    (two_checkpoints / "checkpoint-11").mkdir()
    (two_checkpoints / "checkpoint-best").mkdir()
    assert last_complete_checkpoint(two_checkpoints).name == "checkpoint-10"
    assert last_complete_checkpoint(two_checkpoints / "nowhere") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "complete.json").unlink(),
        lambda folder: (folder / "complete.json").write_text('{"files"'),
        lambda folder: (folder / "inside" / "optimizer.pt").unlink(),
        lambda folder: os.truncate(folder / "model.safetensors", 99),
    ],
    ids=["no list", "half a list", "being deleted", "a short file"],
)
def test_a_damaged_checkpoint_is_told_from_a_whole_one(two_checkpoints, damage):
    damage(two_checkpoints / "checkpoint-10")
    assert last_complete_checkpoint(two_checkpoints).name == "checkpoint-9"
    assert [folder.name for folder in remove_incomplete(two_checkpoints)] == ["checkpoint-10"]
    assert [folder.name for folder in checkpoints(two_checkpoints)] == ["checkpoint-9"]


def test_half_a_checkpoint_is_never_gone_on_from(pretrain, at_step, tmp_path, uncut, monkeypatch):
    at_step(9, cut)
    with pytest.raises(CutError):
        pretrain(tmp_path)
    os.truncate(tmp_path / "checkpoint-8" / "model.safetensors", 1000)
    monkeypatch.undo()
    assert pretrain(tmp_path) == 0
    assert_equal_weights(tmp_path, uncut)
    assert all(is_complete(folder) for folder in checkpoints(tmp_path))


def test_a_run_cut_before_its_first_checkpoint_starts_again(pretrain, at_step, tmp_path, uncut, monkeypatch):
    at_step(2, cut)
    with pytest.raises(CutError):
        pretrain(tmp_path)
    monkeypatch.undo()
    assert pretrain(tmp_path) == 0
    assert_equal_weights(tmp_path, uncut)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_before_the_run_ends(pretrain, at_step, tmp_path, uncut, number, status, capsys, monkeypatch):
    before = signal.getsignal(number)
    at_step(5, lambda folder: os.kill(os.getpid(), number))
    assert pretrain(tmp_path) == status
    # The signal came behind the callback that looks for it, so that the next step was under way.
    assert f"stopped by {number.name} after step 6 of 12; the same command goes on" in capsys.readouterr().err
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-6"
    assert not (tmp_path / "model.safetensors").exists()
    assert signal.getsignal(number) == before
    monkeypatch.undo()
    assert pretrain(tmp_path) == 0
    assert_equal_weights(tmp_path, uncut)


def test_the_limit_never_takes_the_only_whole_checkpoint(pretrain, at_step, tmp_path, uncut, monkeypatch):
    monkeypatch.setattr("retromae_hf.saving.mark_complete", lambda folder, resumable: cut(folder))
    with pytest.raises(CutError):
        pretrain(tmp_path, "--save_total_limit 1")
    monkeypatch.undo()
    at_step(8, cut, "on_save")  # after the second was marked
    with pytest.raises(CutError):
        pretrain(tmp_path, "--save_total_limit 1")
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-8"]
    monkeypatch.undo()
    written = torch.save

    def cut_while_writing(value, file, *rest, **options):
        if "checkpoint-12" in str(file):
            raise CutError
        written(value, file, *rest, **options)

    monkeypatch.setattr(torch, "save", cut_while_writing)
    with pytest.raises(CutError):
        pretrain(tmp_path, "--save_total_limit 1")
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-8", "checkpoint-12"]
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-8"
    monkeypatch.undo()
    assert pretrain(tmp_path, "--save_total_limit 1") == 0
    assert_equal_weights(tmp_path, uncut)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-12"]


def test_a_full_disk_is_told_and_leaves_the_last_checkpoint(pretrain, tmp_path, uncut, capsys, monkeypatch):
    written = torch.save

    def full(value, file, *rest, **options):
        if "checkpoint-8" in str(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(value, file, *rest, **options)

    monkeypatch.setattr(torch, "save", full)
    assert pretrain(tmp_path) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "is full; the last whole checkpoint is" in error
    assert "checkpoint-4; make room, and the same command goes on" in error
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-4"]
    monkeypatch.undo()
    assert pretrain(tmp_path) == 0
    assert_equal_weights(tmp_path, uncut)


def test_other_errors_are_not_put_down_to_the_disk(pretrain, at_step, tmp_path):
    def fail(folder):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    at_step(8, fail)
    with pytest.raises(OSError, match="Input/output error"):
        pretrain(tmp_path)


def test_a_finished_run_stays_as_it_is(pretrain, tmp_path, uncut, capsys):
    assert pretrain(tmp_path) == 0
    (tmp_path / "model.safetensors").unlink()  # as if it had been cut before its last file
    assert pretrain(tmp_path) == 0
    assert_equal_weights(tmp_path, uncut)
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 12
    assert pretrain(tmp_path, "--learning_rate 5e-4") == 2
    error = capsys.readouterr().err
    assert "already holds a run with other arguments (learning_rate: 0.0001 there, 0.0005 here)" in error
    assert pretrain(tmp_path, "--max_steps 14 --resume_from_checkpoint true") == 0
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 14


def test_checkpoints_without_the_optimizer_cannot_be_gone_on_from(pretrain, tmp_path, capsys):
    assert pretrain(tmp_path, "--save_only_model true --max_steps 4") == 0
    assert is_complete(tmp_path / "checkpoint-4")
    assert pretrain(tmp_path, "--resume_from_checkpoint true") == 2
    assert "was written to its end with all that it takes to go on" in capsys.readouterr().err
