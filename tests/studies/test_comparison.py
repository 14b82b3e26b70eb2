"""A comparison trains what its recipe says, goes on where it was cut off, and reports what the cells hold."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import ROOT
from safetensors.torch import load_file

from retromae_hf.commands.main import main
from retromae_hf.studies import comparison as module
from retromae_hf.studies.comparison_report import conditions, draw, table
from retromae_hf.training.resuming.saving import SavingCallback

RECIPE = {
    "seeds": [0, 1],
    "reference": "mlm",
    "model": {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "pretraining": {
        "max_length": 16,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1,
        "dev_queries": 0,
    },
    "finetuning": {
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "disable_tqdm": True,
    },
    "objectives": {
        "mlm": {"decoding": "none"},
        "retromae": {},
        "tsdae": {"baseline": "tsdae"},
        "simcse": {"baseline": "simcse"},
        "mlm-retromae": {"start": "mlm", "max_steps": 1},
    },
}


@pytest.fixture
def recipe(tmp_path, beir, texts):
    shutil.copyfile(beir / "qrels" / "train.tsv", beir / "qrels" / "test.tsv")
    (tmp_path / "corpus.txt").write_text("\n".join(texts), encoding="utf-8")
    return RECIPE | {
        "dataset": str(tmp_path / "corpus.txt"),
        "finetuning_dataset": str(beir),
        "tasks": [str(beir)],
        "output_dir": str(tmp_path / "out"),
    }


def write(recipe, folder):
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return str(file)


def test_the_command_fills_every_cell_and_reports(recipe, tmp_path, capsys, monkeypatch):
    filled = []
    train_cell = module.train_cell
    monkeypatch.setattr(module, "train_cell", lambda *args: filled.append(args[1:]) or train_cell(*args))
    assert main(["compare", write(recipe, tmp_path)]) == 0
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    task = "beir"
    assert table(report, task) in capsys.readouterr().out
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 1000
    assert list(report["objectives"]) == ["untrained", *recipe["objectives"]]
    for name, row in report["objectives"].items():
        for stage in ("zero_shot", "finetuned"):
            measured = row[stage][task]["mrr@10"]
            assert len(measured["seeds"]) == 2
            assert measured["mean"] == pytest.approx(sum(measured["seeds"]) / 2)
            assert ("against_reference" in measured) == (name != "mlm")
        assert (row["tokens"] > 0) == (name != "untrained")

    # Cut off in the middle of the last cell: only that one is filled again.
    cell = tmp_path / "out" / "cells" / "mlm-retromae-1"
    (cell / "result.json").unlink()
    filled.clear()
    # And a task that is added is evaluated on what was trained.
    shutil.copytree(recipe["tasks"][0], tmp_path / "other")
    recipe["tasks"].append(str(tmp_path / "other"))
    assert main(["compare", write(recipe, tmp_path)]) == 0
    assert filled == [("mlm-retromae", 1)]
    again = json.loads((tmp_path / "out" / "results.json").read_text())
    for objective, row in again["objectives"].items():
        for stage in ("zero_shot", "finetuned"):
            assert row[stage]["other"] == row[stage]["beir"] == report["objectives"][objective][stage]["beir"]


def test_all_may_start_from_an_encoder_that_is_there(recipe, tmp_path, capsys, encoder_folder, monkeypatch):
    monkeypatch.setattr(module, "seconds_of", lambda state: float(state.max_steps))
    recipe |= {"model": {}, "seeds": [0], "reference": "untrained", "max_documents": 3}
    recipe["objectives"] = {
        "retromae": {},
        "averaged": {"start": "retromae", "baseline": "average"},
        "few-pairs": {"baseline": "none", "finetuning": {"max_steps": 2}},
        "longer": {"baseline": "longer"},
    }
    assert main(["compare", write(recipe, tmp_path), "--model_name_or_path", encoder_folder]) == 0
    told = capsys.readouterr().out
    assert "| as it is |" in told
    assert "differs from as it is" in told
    assert f"All start from {Path(encoder_folder).name}." in told
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["tasks"]["beir"]["num_documents"] == 3

    def weights(objective, stage="encoder"):
        return load_file(tmp_path / "out" / "cells" / f"{objective}-0" / stage / "model.safetensors")

    start = load_file(f"{encoder_folder}/model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    for objective in ("untrained", "few-pairs", "longer"):
        assert torch.equal(weights(objective)[name], start[name])
    assert torch.allclose(weights("averaged")[name], (weights("retromae")[name] + start[name]) / 2)
    # A step of each training takes a second here, and the slowest row two of pretraining and one of fine-tuning.
    rows = report["objectives"]
    seconds = [rows[name]["finetuning_seconds"] for name in ("untrained", "retromae", "few-pairs", "longer")]
    assert seconds == [1, 1, 2, 3]
    assert not (tmp_path / "out" / "tokenizer").exists()

    # What is measured needs its models no more.
    shutil.rmtree(tmp_path / "out" / "cells" / "retromae-0" / "finetuned")
    assert main(["compare", write(recipe, tmp_path), "--model_name_or_path", encoder_folder]) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == report


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "3 epochs in steps of 32 passages of at most 128 tokens, learning rate 0.0001"),
        ({"max_steps": 1500, "learning_rate": "1e-3"}, "1,500 steps of 32 passages of at most 128 tokens, learning"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_settings_that_a_recipe_leaves_out_are_told_with_their_defaults(changes, told, tmp_path):
    measured = {"mean": 0.5, "std": None}
    stages = {stage: {"task": {"mrr@10": measured}} for stage in ("zero_shot", "finetuned")}
    report = {
        "environment": {"device": "cpu", "threads": 1, "torch": "2.0"},
        "recipe": RECIPE | {"pretraining": changes, "finetuning": {}},
        "tasks": {"task": {"num_queries": 1, "num_documents": 2, "bm25": {"mrr@10": 0.5}}},
        "objectives": {"mlm": stages | {"seconds": 1, "tokens": 2, "logs": []}},
    }
    sentence = conditions(report, "task")
    assert told in sentence
    assert "fine-tuned: 3 epochs in steps of 128 pairs, learning rate 2e-05. cpu, 1 thread, torch 2.0." in sentence
    assert "mlm-retromae: 1 more from mlm" in sentence
    draw(report, tmp_path / "no-losses.png", "task")


def test_cells_of_another_recipe_are_not_mixed_in(recipe, tmp_path, capsys):
    recipe |= {"objectives": {"mlm": {"decoding": "none"}}, "seeds": [0]}
    assert main(["compare", write(recipe, tmp_path)]) == 0
    more_steps = recipe | {"pretraining": recipe["pretraining"] | {"max_steps": 3}}
    other_ratio = recipe | {"objectives": {"mlm": {"decoding": "none", "encoder_mask_ratio": 0.15}}}
    for changed, name in ((more_steps, "pretraining"), (other_ratio, "objective mlm")):
        assert main(["compare", write(changed, tmp_path)]) == 2
        assert f"differs in {name}; name another output_dir" in capsys.readouterr().err


def test_a_cell_that_a_signal_stops_goes_on_where_it_stopped(recipe, tmp_path, capsys, caplog, monkeypatch):
    recipe |= {"objectives": {"mlm": {"decoding": "none"}}, "seeds": [0]}
    recipe["finetuning"] = recipe["finetuning"] | {"max_steps": 2}
    asked = SavingCallback._all_stop

    def stop_in_the_first(saving, args, state):
        saving._asked = None if stopped else signal.SIGTERM
        stopped.append(state.global_step)
        return asked(saving, args, state)

    monkeypatch.setattr(SavingCallback, "_all_stop", stop_in_the_first)
    for stage in ("cells/untrained-0/finetuned-new", "cells/mlm-0/checkpoint"):
        stopped = []
        assert main(["compare", write(recipe, tmp_path)]) == 128 + signal.SIGTERM
        assert f"the same command goes on from checkpoint-1 in {tmp_path}/out/{stage}" in capsys.readouterr().err
    assert main(["compare", write(recipe, tmp_path)]) == 0
    assert [record.args[1] for record in caplog.records if "goes on from there" in record.msg] == ["checkpoint-1"] * 2
    result = json.loads((tmp_path / "out" / "cells" / "mlm-0" / "result.json").read_text())
    assert [entry["step"] for entry in result["logs"] if "loss" in entry] == [1, 2]
    assert list(tmp_path.glob("out/cells/*/*/checkpoint-*")) == []


def test_one_comparison_at_a_time_fills_a_folder_and_in_one_process(recipe, tmp_path, capsys, monkeypatch):
    (tmp_path / "out").mkdir()
    lock = f"import fcntl; file = open({str(tmp_path / 'out' / '_lock')!r}, 'a'); fcntl.lockf(file, fcntl.LOCK_EX)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{lock}; print('locked', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline()
        assert main(["compare", write(recipe, tmp_path)]) == 2
        assert f"another process trains in {tmp_path}/out at this moment" in capsys.readouterr().err
        other.communicate(b"\n")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["compare", write(recipe, tmp_path)]) == 2
    assert "compare works in one process" in capsys.readouterr().err


def test_all_start_from_the_same_weights(recipe):
    """With a learning rate of 0 every objective hands over the untrained encoder."""
    recipe["pretraining"] = recipe["pretraining"] | {"learning_rate": 0.0}
    recipe["seeds"] = [3]
    comparison = module.Comparison(**recipe)
    module.compare(comparison)
    untrained = load_file(comparison.cell("untrained", 3) / "encoder" / "model.safetensors")
    for objective in recipe["objectives"]:
        weights = load_file(comparison.cell(objective, 3) / "encoder" / "model.safetensors")
        for name in [name for name in untrained if "embeddings" in name or "encoder.layer" in name]:
            ours = weights[name] if name in weights else weights[name.removeprefix("bert.")]
            assert torch.equal(ours, untrained[name]), (objective, name)
        config = json.loads((comparison.cell(objective, 3) / "encoder" / "config.json").read_text())
        assert config["hidden_dropout_prob"] == config["attention_probs_dropout_prob"] == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "bert"}, "reference='bert' is unknown; choose one of untrained, mlm"),
        ({"seeds": []}, "seeds=0 must be at least 1"),
        ({"objectives": {"mlm": {"start": "later"}}}, "start='later' is none of those before it"),
        ({"objectives": {"mlm": {"baseline": "ict"}}}, "baseline='ict' is unknown; choose tsdae, simcse, none"),
        ({"objectives": {"mlm": {"decodin": "none"}}}, "objective mlm: unknown arguments: decodin"),
        ({"finetuning": {"objective": "triplet"}}, "objective='triplet' is unknown"),
        ({"colour": "red"}, "unknown arguments: colour"),
    ],
)
def test_a_bad_recipe_is_one_sentence(change, message, recipe, tmp_path, capsys):
    assert main(["compare", write(recipe | change, tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_a_recipe_must_hold_is_named(tmp_path, capsys):
    assert main(["compare", write({"dataset": "pydocs", "objectives": {}}, tmp_path)]) == 2
    assert "finetuning, finetuning_dataset, model, pretraining, seeds, tasks must be given" in capsys.readouterr().err


def test_the_command_wants_a_recipe(capsys):
    assert main(["compare", "--output_dir", "x"]) == 2
    assert "name a recipe" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cpu", "cpu-more", "gpu", "minilm", "minilm-more"])
def test_our_own_recipes_are_accepted(name):
    file = ROOT / "examples" / "recipes" / "compare" / f"compare-{name}.yaml"
    recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    for part in ("pretraining", "finetuning"):
        recipe[part]["use_cpu"] = True  # where these tests run
    module.Comparison(**recipe)


def test_at_equal_seconds_each_objective_makes_the_steps_that_they_allow(recipe, tmp_path, capsys, monkeypatch):
    speeds = {"mlm": [0.5, 9.0, 0.4], "retromae": [1.0, 0.8, 1.0], "sparse": [0.6, 0.7, 0.6]}
    trials = []

    def seconds_of(state):
        name = list(speeds)[len(trials) % len(speeds)]
        trials.append(name)
        return 10 * speeds[name][(len(trials) - 1) // len(speeds)]

    monkeypatch.setattr("retromae_hf.studies.comparison.pretrain", lambda *args: SimpleNamespace(state=args))
    monkeypatch.setattr("retromae_hf.studies.comparison.seconds_of", seconds_of)
    pretraining = {name: value for name, value in recipe["pretraining"].items() if name != "max_steps"}
    recipe |= {"seeds": [0], "max_seconds": 3, "pretraining": pretraining}
    recipe["objectives"] = {"mlm": {"decoding": "none"}, "retromae": {}, "sparse": {"decoder_label_ratio": 0.5}}
    assert main(["compare", write(recipe, tmp_path)]) == 0
    told = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {name: row["steps"] for name, row in report["objectives"].items()} == {
        "untrained": 0,
        "mlm": 6,  # the median of the turns, so that one which was held up does not count
        "retromae": 3,
        "sparse": 5,
    }
    assert trials == 3 * list(speeds)
    assert "| steps | seconds |" in told
    assert "the steps that take 3 seconds" in told
    assert table(report, "beir") in told
    # The plan is kept.
    assert main(["compare", write(recipe, tmp_path)]) == 0
    assert len(trials) == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "pretraining: max_steps cannot be told beside max_seconds"),
        ({"pretraining": {}}, "mlm-retromae: max_steps, start cannot be told beside max_seconds"),
        ({"pretraining": {}, "max_seconds": 0}, "max_seconds=0 must be above 0"),
    ],
)
def test_seconds_are_not_mixed_with_steps(recipe, tmp_path, capsys, changes, message):
    recipe["objectives"] = {name: recipe["objectives"][name] for name in ("mlm", "mlm-retromae")}
    assert main(["compare", write(recipe | {"max_seconds": 5} | changes, tmp_path)]) == 2
    assert message in capsys.readouterr().err
