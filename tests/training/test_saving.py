"""A run that was cut anywhere ends, started again, exactly where an uncut one does."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

from retromae_hf.commands.main import main
from retromae_hf.training.saving import (
    SavingCallback,
    checkpoints,
    is_complete,
    last_complete_checkpoint,
    mark_complete,
    remove_beyond,
    remove_incomplete,
    step_of,
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
def uncut_folder(tmp_path_factory, corpus):
    folder = tmp_path_factory.mktemp("uncut")
    assert main(f"pretrain --dataset {corpus} --output_dir {folder} {SMALL}".split()) == 0
    return folder


@pytest.fixture(scope="module")
def uncut(uncut_folder):
    return load_file(uncut_folder / "model.safetensors")


@pytest.fixture
def finished(uncut_folder, tmp_path):
    """A run that has reached its end, to do with as one likes."""
    return shutil.copytree(uncut_folder, tmp_path / "finished")


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
        monkeypatch.setattr("retromae_hf.training.trainer.HealthCallback", lambda *options: callback())

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


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "complete.json").unlink(),
        lambda folder: (folder / "complete.json").write_text('{"files"'),
        lambda folder: (folder / "complete.json").write_text('["files"]'),
        lambda folder: (folder / "inside" / "optimizer.pt").unlink(),
        lambda folder: os.truncate(folder / "model.safetensors", 99),
        lambda folder: flip_a_bit(folder / "inside" / "optimizer.pt"),
    ],
    ids=["no list", "half a list", "no such list", "being deleted", "a short file", "a flipped bit"],
)
def test_a_damaged_checkpoint_is_told_from_a_whole_one(two_checkpoints, damage, request):
    (two_checkpoints / "checkpoint-best").mkdir()
    assert last_complete_checkpoint(two_checkpoints, read=True).name == "checkpoint-10"
    damage(two_checkpoints / "checkpoint-10")
    assert last_complete_checkpoint(two_checkpoints, read=True).name == "checkpoint-9"
    if "bit" not in request.node.name:
        assert [folder.name for folder in remove_incomplete(two_checkpoints)] == ["checkpoint-10"]
        assert [folder.name for folder in checkpoints(two_checkpoints)] == ["checkpoint-9"]


def test_a_run_goes_on_with_the_data_that_it_began_with(pretrain, finished, corpus, uncut, capsys):
    shutil.rmtree(finished / "checkpoint-12")
    text = corpus.read_text(encoding="utf-8")
    corpus.write_text(text.replace("fox", "cat"), encoding="utf-8")
    for line in ("", "--resume_from_checkpoint true"):
        assert pretrain(finished, line) == 2
        assert "checkpoint-8 is of a run on other data" in capsys.readouterr().err
    corpus.write_text(text, encoding="utf-8")  # at another time
    assert pretrain(finished) == 0
    assert_equal_weights(finished, uncut)


def test_a_resumed_run_tokenises_nothing_again(pretrain, finished, monkeypatch):
    shutil.rmtree(finished / "checkpoint-12")
    monkeypatch.setattr("retromae_hf.data.passages._encode", cut)
    assert pretrain(finished) == 0


def test_a_run_goes_on_with_as_many_processes_and_passages_a_step(pretrain, finished, capsys):
    run = json.loads((finished / "_run.json").read_text())
    (finished / "_run.json").write_text(json.dumps(run | {"world_size": 2}))
    assert pretrain(finished) == 2
    assert "with other arguments (world_size: 2 there, 1 here)" in capsys.readouterr().err
    (finished / "_run.json").write_text(json.dumps(run | {"world_size": 2, "passages_a_step": 32}))
    assert pretrain(finished, "--resume_from_checkpoint true") == 2
    assert "a run of 32 passages a step, not 16" in capsys.readouterr().err


def test_what_is_being_overwritten_never_goes_on(pretrain, finished, uncut, capsys, monkeypatch):
    """Killed while it deletes: no checkpoint of the old run counts, and no model of it is left to be exported."""
    monkeypatch.setattr("retromae_hf.training.run_folder.shutil.rmtree", cut)
    with pytest.raises(CutError):
        pretrain(finished, "--overwrite_output_dir true")
    monkeypatch.undo()
    assert steps_of(finished) == [4, 8, 12]
    assert main(["export", "--model_name_or_path", str(finished), "--output_dir", str(finished / "encoder")]) == 2
    assert not any((finished / name).exists() for name in ("model.safetensors", "config.json"))
    for line in ("true", f"{finished}/checkpoint-8"):
        assert pretrain(finished, f"--resume_from_checkpoint {line}") == 2
        assert "written to its end" in capsys.readouterr().err
    assert pretrain(finished) == 0
    assert_equal_weights(finished, uncut)


def test_a_run_does_not_overwrite_the_model_that_it_starts_from(pretrain, finished, capsys):
    assert pretrain(finished, f"--overwrite_output_dir true --model_name_or_path {finished}") == 2
    assert "that is to be overwritten; name another output folder" in capsys.readouterr().err
    assert (finished / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rng_state.pth", b"[1]", "an optimizer, scheduler or generator state that is broken"),
        ("optimizer.pt", b"half", "an optimizer, scheduler or generator state that is broken"),
        ("trainer_state.json", b'{"global_step": "one"}', "a broken trainer_state.json"),
    ],
)
def test_a_broken_state_that_no_list_tells_of_is_one_sentence(pretrain, finished, name, content, message, capsys):
    (finished / "checkpoint-8" / "complete.json").unlink()
    (finished / "_run.json").unlink()
    (finished / "checkpoint-8" / name).write_bytes(content)
    assert pretrain(finished, f"--resume_from_checkpoint {finished}/checkpoint-8") == 2
    told = capsys.readouterr().err
    assert f"checkpoint-8 has {message}" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("step", [2, 9])
def test_half_a_checkpoint_is_never_gone_on_from(pretrain, at_step, tmp_path, uncut, monkeypatch, step):
    """Nor does a run that was cut before its first one."""
    at_step(step, cut)
    with pytest.raises(CutError):
        pretrain(tmp_path)
    if step == 9:
        os.truncate(tmp_path / "checkpoint-8" / "model.safetensors", 1000)
    monkeypatch.undo()
    assert pretrain(tmp_path) == 0
    assert_equal_weights(tmp_path, uncut)
    assert all(is_complete(folder) for folder in checkpoints(tmp_path))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_before_the_run_ends(pretrain, at_step, tmp_path, uncut, number, status, capsys, monkeypatch):
    # A process that a shell has started in the background ignores Ctrl-C, and so does the run then.
    inherited = signal.signal(number, before := signal.default_int_handler)
    at_step(5, lambda folder: os.kill(os.getpid(), number))
    assert pretrain(tmp_path) == status
    # The signal came behind the callback that looks for it, so that the next step was under way.
    assert f"stopped by {number.name} after step 6 of 12; the same command goes on" in capsys.readouterr().err
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-6"
    assert not (tmp_path / "model.safetensors").exists()
    assert signal.signal(number, inherited) == before
    monkeypatch.undo()
    assert pretrain(tmp_path) == 0
    assert_equal_weights(tmp_path, uncut)


def test_the_limit_never_takes_the_only_whole_checkpoint(pretrain, at_step, tmp_path, uncut, monkeypatch):
    monkeypatch.setattr("retromae_hf.training.saving.mark_complete", lambda folder, resumable: cut(folder))
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
    (tmp_path / "checkpoint-4" / "optimizer.pt").unlink()  # and while it deleted one
    assert pretrain(tmp_path) == 0
    assert steps_of(tmp_path) == [8, 12]
    assert_equal_weights(tmp_path, uncut)
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 12
    assert pretrain(tmp_path, "--learning_rate 5e-4") == 2
    error = capsys.readouterr().err
    assert "already holds a run with other arguments (learning_rate: 0.0001 there, 0.0005 here)" in error
    assert pretrain(tmp_path, "--max_steps 14 --resume_from_checkpoint true") == 0
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 14


def steps_of(folder):
    return [step_of(one) for one in checkpoints(folder)]


def terminate(folder):
    os.kill(os.getpid(), signal.SIGTERM)


def test_only_checkpoints_are_deleted_in_a_folder(pretrain, tmp_path):
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-notes.txt").write_text("mine")
    assert pretrain(tmp_path, "--max_steps 1") == 0
    assert pretrain(tmp_path, "--max_steps 2 --overwrite_output_dir true") == 0
    assert steps_of(tmp_path) == [2]
    assert (tmp_path / "checkpoint-best").is_dir()
    assert (tmp_path / "checkpoint-notes.txt").read_text() == "mine"


def test_the_limit_does_not_count_what_a_run_leaves_behind_that_goes_back(pretrain, at_step, finished, capsys):
    at_step(5, terminate)
    assert pretrain(finished, f"--resume_from_checkpoint {finished}/checkpoint-4 --save_total_limit 1") == 143
    assert "the same command with --resume_from_checkpoint true goes on from checkpoint-6" in capsys.readouterr().err
    assert last_complete_checkpoint(finished).name == "checkpoint-6"


def test_the_best_and_the_newest_checkpoint_are_beyond_no_limit(tmp_path):
    for step in (2, 4, 6, 8, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        mark_complete(tmp_path / f"checkpoint-{step}", resumable=True)
    (tmp_path / "checkpoint-9").mkdir()
    for limit, left in ((None, [2, 4, 6, 8, 9, 10]), (3, [2, 8, 9, 10]), (2, [2, 9, 10]), (1, [2, 9, 10])):
        remove_beyond(tmp_path, limit, "elsewhere/checkpoint-2")
        assert steps_of(tmp_path) == left


def test_checkpoints_of_a_plain_trainer_are_gone_on_from_where_they_are_named_and_kept(pretrain, finished, uncut):
    for file in [finished / "_run.json", *finished.glob("checkpoint-*/complete.json")]:
        file.unlink()
    assert pretrain(finished) == 2
    assert pretrain(finished, f"--resume_from_checkpoint {finished}/checkpoint-8") == 0
    assert steps_of(finished) == [4, 8, 12]
    assert_equal_weights(finished, uncut)


def test_a_named_checkpoint_is_looked_at(pretrain, finished, tmp_path, uncut, capsys):
    mark_complete(finished / "checkpoint-4", resumable=False)  # as with save_only_model
    assert pretrain(tmp_path / "new", f"--resume_from_checkpoint {finished}/checkpoint-4") == 2
    assert "checkpoint-4 has no optimizer state (save_only_model)" in capsys.readouterr().err
    assert pretrain(tmp_path / "new", f"--resume_from_checkpoint {finished}/checkpoint-8") == 0
    assert_equal_weights(tmp_path / "new", uncut)
    optimizer = finished / "checkpoint-8" / "optimizer.pt"
    for harm, told in ((flip_a_bit, "is damaged in optimizer.pt"), (Path.unlink, "or some of it is gone; resume from")):
        harm(optimizer)
        assert pretrain(finished, f"--resume_from_checkpoint {finished}/checkpoint-8") == 2
        assert told in capsys.readouterr().err


def test_a_run_that_goes_on_elsewhere_spares_the_run_that_is_there(pretrain, finished, tmp_path, capsys):
    other = shutil.copytree(finished, tmp_path / "other")
    line = f"--learning_rate 3e-4 --resume_from_checkpoint {finished}/checkpoint-4"
    assert pretrain(other, line) == 2
    assert "already holds a run with other arguments (learning_rate" in capsys.readouterr().err


def test_a_run_whose_checkpoints_have_no_optimizer_says_so(pretrain, at_step, tmp_path, capsys, monkeypatch):
    at_step(5, terminate)
    assert pretrain(tmp_path, "--save_only_model true") == 143
    assert "checkpoint-6 in" in (error := capsys.readouterr().err)
    assert "has no optimizer state (save_only_model), so that the run cannot go on" in error
    monkeypatch.undo()
    assert pretrain(tmp_path, "--save_only_model true") == 2  # it would delete them
    assert "already holds a run; start anew with --overwrite_output_dir" in capsys.readouterr().err
    assert pretrain(tmp_path, "--save_only_model true --resume_from_checkpoint true") == 2
    assert "was written to its end with all that it takes to go on" in capsys.readouterr().err
    assert steps_of(tmp_path) == [4, 6]
    for status in (0, 2):
        assert pretrain(tmp_path / "none", "--save_strategy no --max_steps 2") == status
    assert "already holds a run; start anew with --overwrite_output_dir, or name" in capsys.readouterr().err


BEST = "--load_best_model_at_end true --metric_for_best_model eval_loss"


def test_a_finished_run_keeps_its_best_model(pretrain, tmp_path):
    best = f"{BEST} --max_steps 8 --eval_steps 4 --greater_is_better true"  # the first: the loss falls
    assert pretrain(tmp_path, best) == 0
    weights = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert_equal_weights(tmp_path, weights)
    assert pretrain(tmp_path, best) == 0
    assert_equal_weights(tmp_path, weights)
    published = [file for file in tmp_path.rglob("*") if file.is_file() and not file.name.startswith("_")]
    assert [file.name for file in published if str(tmp_path).encode() in file.read_bytes()] == []
    assert not any(tmp_path.rglob("training_args.bin"))


def test_a_resumed_run_knows_its_best_checkpoint(pretrain, at_step, tmp_path, monkeypatch):
    best = f"{BEST} --max_steps 8 --eval_steps 2 --save_steps 2 --greater_is_better true --save_total_limit 1"
    at_step(5, cut)
    with pytest.raises(CutError):
        pretrain(tmp_path, best)
    monkeypatch.undo()
    assert steps_of(tmp_path) == [2, 4]
    weights = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert pretrain(tmp_path, best) == 0
    assert steps_of(tmp_path) == [2, 8]
    assert_equal_weights(tmp_path, weights)


@pytest.mark.parametrize("step", [5, 13])
def test_a_signal_within_an_epoch_brings_no_evaluation_of_its_own(pretrain, at_step, tmp_path, step):
    """An epoch has 14 steps: the run stops within one and at the end of one."""
    at_step(step, terminate)
    epochs = f"{BEST} --max_steps -1 --num_train_epochs 2 --eval_strategy epoch --save_strategy epoch"
    assert pretrain(tmp_path, epochs) == 143
    last = last_complete_checkpoint(tmp_path)
    assert last.name == f"checkpoint-{step + 1}"
    state = json.loads((last / "trainer_state.json").read_text())
    evaluated = [entry["step"] for entry in state["log_history"] if "eval_loss" in entry]
    assert evaluated == ([0, 14] if step == 13 else [0])
    assert state["best_global_step"] == (14 if step == 13 else None)


def test_a_signal_saves_where_only_the_best_is_saved(pretrain, at_step, tmp_path):
    at_step(5, terminate)
    best = "--save_strategy best --eval_steps 3 --metric_for_best_model eval_loss --greater_is_better true"
    assert pretrain(tmp_path, best) == 143
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-6"


def test_one_run_at_a_time_trains_in_a_folder(pretrain, tmp_path, capsys):
    hold = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); input()"
    command = [sys.executable, "-c", hold, tmp_path / "_lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert pretrain(tmp_path, "--max_steps 2") == 2
        assert f"another process trains in {tmp_path} at this moment" in capsys.readouterr().err
        other.kill()
    assert pretrain(tmp_path, "--max_steps 2") == 0


def test_a_run_killed_while_it_notes_its_arguments_can_be_started_again(pretrain, at_step, tmp_path, monkeypatch):
    at_step(5, cut)
    with pytest.raises(CutError):
        pretrain(tmp_path)
    monkeypatch.setattr(Path, "write_text", lambda self, text, **options: self.write_bytes(b"{") and cut(self))
    with pytest.raises(CutError):
        pretrain(tmp_path)
    monkeypatch.undo()
    assert json.loads((tmp_path / "_run.json").read_text())["max_steps"] == 12
    assert pretrain(tmp_path) == 0


def test_a_file_system_that_cannot_flush_is_borne(two_checkpoints, monkeypatch):
    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    number = errno.EINVAL
    mark_complete(two_checkpoints / "checkpoint-10", resumable=True)
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        mark_complete(two_checkpoints / "checkpoint-10", resumable=True)


def test_a_second_signal_leaves_the_handlers_of_the_program(monkeypatch):
    def mine(number, frame):
        pass

    old = signal.signal(signal.SIGINT, mine)
    try:
        saving = SavingCallback()
        args = Namespace(output_dir="nowhere", should_save=False, save_total_limit=None)
        saving.on_train_begin(args, TrainerState(), TrainerControl())
        terminate(None)
        terminate(None)
        assert signal.getsignal(signal.SIGINT) == mine
        saving.stop_listening()
        assert signal.getsignal(signal.SIGINT) == mine
    finally:
        saving.stop_listening()
        signal.signal(signal.SIGINT, old)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("step", "event"), [(1, "on_step_end"), (5, "on_step_end"), (6, "on_prediction_step")])
def test_a_signal_to_all_processes_spares_the_loaders_workers(pretrain, at_step, finished, tmp_path, step, event):
    """In a new run, in one that goes on in the midst of an epoch, whose loader skips batches, and in an evaluation."""

    def terminate_workers(folder):
        workers = [str(worker.pid) for worker in psutil.Process().children()]
        subprocess.run(["kill", *workers], check=True)  # torch tells a parent's signal from others
        time.sleep(0.1)

    at_step(step, terminate_workers, event)
    line = "--max_steps 7 --dataloader_num_workers 1 --per_device_eval_batch_size 2 --dev_queries 0"
    if step == 1:
        assert pretrain(tmp_path / "new", line) == 0
    else:
        assert pretrain(finished, f"{line} --resume_from_checkpoint {finished}/checkpoint-4") == 0


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_that_an_error_leaves_behind_end_with_the_process(pretrain, at_step, finished):
    """When a process ends, Python does this to its daemons, and waits for them."""
    at_step(5, cut)
    line = f"--max_steps 7 --dataloader_num_workers 1 --resume_from_checkpoint {finished}/checkpoint-4"
    with pytest.raises(CutError) as error:  # whose frames hold the loader
        pretrain(finished, line)
    left = multiprocessing.active_children()
    assert left, error
    for worker in left:
        worker.terminate()
        worker.join(5)
        assert worker.exitcode == 0


def test_one_model_alone_is_put_on_the_device(pretrain, tmp_path, monkeypatch):
    """The arguments are tried out on a single weight, not on a copy, which would stay where the model is to be."""
    placed, place = [], Trainer._move_model_to_device
    monkeypatch.setattr(
        Trainer, "_move_model_to_device", lambda self, model, device: placed.append(model) or place(self, model, device)
    )
    assert pretrain(tmp_path, "--max_steps 1") == 0
    assert [type(model).__name__ for model in placed] == ["Linear", "RetroMAEForPreTraining"]
