"""A comparison trains what its recipe says, goes on where it was cut off, and reports what the cells hold."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import ANIMALS, ROOT, TEXTS
from safetensors.torch import load_file

from retromae_hf.commands.main import main
from retromae_hf.retrieval.tasks import RetrievalTask, load_beir, save_beir
from retromae_hf.studies import comparison as module
from retromae_hf.studies.comparison_report import MEASURES, conditions, draw, summarise, table
from retromae_hf.training.run_folder import lock_folder
from retromae_hf.training.saving import SavingCallback

SHORT_RUN = {"per_device_train_batch_size": 4, "learning_rate": 1e-3, "use_cpu": True, "disable_tqdm": True}
RECIPE = {
    "seeds": [0],
    "reference": "mlm",
    "model": {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "pretraining": SHORT_RUN | {"max_length": 16, "max_steps": 2, "logging_steps": 1, "dev_queries": 0},
    "finetuning": SHORT_RUN | {"max_steps": 1},
    "objectives": {"mlm": {"decoding": "none"}, "retromae": {}},
}
FIVE = RECIPE["objectives"] | {
    "tsdae": {"baseline": "tsdae"},
    "simcse": {"baseline": "simcse"},
    "mlm-retromae": {"start": "mlm", "max_steps": 1},
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict:
    """A text to pretrain on, and a collection to fine-tune and evaluate on."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "corpus.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    queries = {f"q{place}": f"{animal} asleep in a meadow" for place, animal in enumerate(ANIMALS)}
    documents = {f"d{place}": f"The {animal} sleeps in the meadow." for place, animal in enumerate(ANIMALS)}
    task = RetrievalTask("zoo", queries, documents, {query: {query.replace("q", "d"): 1} for query in queries})
    for split in ("train", "test"):
        save_beir(task, folder / "zoo", split)
    zoo = str(folder / "zoo")
    return {"dataset": str(folder / "corpus.txt"), "finetuning_dataset": zoo, "tasks": [zoo]}


@pytest.fixture
def recipe(sources, tmp_path) -> dict:
    return RECIPE | sources | {"output_dir": str(tmp_path / "out")}


def write(recipe, folder) -> str:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def compared(sources, tmp_path_factory) -> SimpleNamespace:
    """A whole comparison, in which every objective hands over the weights that it got: its learning rate is 0."""
    folder = tmp_path_factory.mktemp("compared")
    pretraining = RECIPE["pretraining"] | {"learning_rate": 0.0}
    recipe = RECIPE | sources | {"objectives": FIVE, "pretraining": pretraining, "output_dir": str(folder / "out")}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["compare", write(recipe, folder)]) == 0
    report = json.loads((folder / "out" / "results.json").read_text())
    return SimpleNamespace(recipe=recipe, out=folder / "out", report=report, printed=printed.getvalue())


def test_the_command_fills_every_cell_and_reports(compared):
    assert table(compared.report, "zoo") in compared.printed
    assert (compared.out / "comparison.png").stat().st_size > 1000
    assert list(compared.report["objectives"]) == ["untrained", *FIVE]
    for name, row in compared.report["objectives"].items():
        for stage in ("zero_shot", "finetuned"):
            assert ("against_reference" in row[stage]["zoo"]["mrr@10"]) == (name != "mlm")
        assert (row["tokens"] > 0) == (name != "untrained")


def test_all_start_from_the_same_weights(compared):
    untrained = load_file(compared.out / "cells/untrained-0/encoder/model.safetensors")
    for objective in FIVE:
        encoder = compared.out / f"cells/{objective}-0/encoder"
        weights = load_file(encoder / "model.safetensors")
        for name in [name for name in untrained if "embeddings" in name or "encoder.layer" in name]:
            ours = weights[name] if name in weights else weights[name.removeprefix("bert.")]
            assert torch.equal(ours, untrained[name]), (objective, name)
        config = json.loads((encoder / "config.json").read_text())
        assert config["hidden_dropout_prob"] == config["attention_probs_dropout_prob"] == 0.0


def test_what_is_missing_is_filled_and_a_new_task_measured_on_what_was_trained(compared, tmp_path, monkeypatch):
    out = shutil.copytree(compared.out, tmp_path / "out")
    (out / "cells/mlm-retromae-0/result.json").unlink()  # as if cut off in the middle of the last cell
    shutil.copytree(compared.recipe["tasks"][0], tmp_path / "other")
    recipe = compared.recipe | {"tasks": [*compared.recipe["tasks"], str(tmp_path / "other")], "output_dir": str(out)}
    filled = []
    train_cell = module.train_cell
    monkeypatch.setattr(module, "train_cell", lambda *args: filled.append(args[1:]) or train_cell(*args))
    assert main(["compare", write(recipe, tmp_path)]) == 0
    assert filled == [("mlm-retromae", 0)]
    again = json.loads((out / "results.json").read_text())
    for objective, row in again["objectives"].items():
        for stage in ("zero_shot", "finetuned"):
            assert row[stage]["other"] == row[stage]["zoo"] == compared.report["objectives"][objective][stage]["zoo"]


def test_cells_of_another_recipe_are_not_mixed_in(compared, tmp_path, capsys):
    more_steps = compared.recipe | {"pretraining": compared.recipe["pretraining"] | {"max_steps": 3}}
    other_ratio = compared.recipe | {"objectives": {"mlm": {"decoding": "none", "encoder_mask_ratio": 0.15}}}
    for changed, name in ((more_steps, "pretraining"), (other_ratio, "objective mlm")):
        assert main(["compare", write(changed, tmp_path)]) == 2
        assert f"differs in {name}; name another output_dir" in capsys.readouterr().err


def test_all_may_start_from_an_encoder_that_is_there(recipe, tmp_path, capsys, encoder_folder, monkeypatch):
    monkeypatch.setattr(module, "seconds_of", lambda state: float(state.max_steps))
    recipe |= {"model": {}, "reference": "untrained", "max_documents": 3}
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
    assert report["tasks"]["zoo"]["num_documents"] == 3

    def weights(objective):
        return load_file(tmp_path / "out" / "cells" / f"{objective}-0" / "encoder" / "model.safetensors")

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


def test_a_cell_that_a_signal_stops_goes_on_where_it_stopped(recipe, tmp_path, capsys, caplog, monkeypatch):
    recipe |= {"objectives": {"mlm": {"decoding": "none"}}}
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


def hold(folder, locked, done):
    with lock_folder(folder):
        locked.set()
        done.wait(60)


def test_one_comparison_at_a_time_fills_a_folder_and_in_one_process(recipe, tmp_path, capsys, monkeypatch):
    (tmp_path / "out").mkdir()
    processes = multiprocessing.get_context("fork")
    locked, done = processes.Event(), processes.Event()
    other = processes.Process(target=hold, args=(tmp_path / "out", locked, done))
    other.start()
    assert locked.wait(60)
    assert main(["compare", write(recipe, tmp_path)]) == 2
    assert f"another process trains in {tmp_path}/out at this moment" in capsys.readouterr().err
    done.set()
    other.join()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["compare", write(recipe, tmp_path)]) == 2
    assert "compare works in one process" in capsys.readouterr().err


def report_of(recipe, reciprocal_ranks: dict[str, list[list[float]]]) -> dict:
    """The report of cells with these values of every measure, by objective, seed and query."""
    comparison = module.Comparison(**recipe)
    for objective, by_seed in reciprocal_ranks.items():
        for seed, values in zip(comparison.seeds, by_seed, strict=True):
            by_query = {f"q{place}": value for place, value in enumerate(values)}
            stage = {"zoo": dict.fromkeys(MEASURES, by_query)}
            counts = {"seconds": 1.0 + seed, "finetuning_seconds": 1.0, "steps": 2, "tokens": 3_000_000, "logs": []}
            comparison.cell(objective, seed).mkdir(parents=True)
            result = json.dumps(counts | {"zero_shot": stage, "finetuned": stage})
            (comparison.cell(objective, seed) / "result.json").write_text(result)
    return summarise(comparison, {"zoo": load_beir(recipe["tasks"][0])})


def test_a_report_has_means_over_the_seeds_and_tests_them_against_the_reference(recipe):
    recipe |= {"seeds": [0, 1], "objectives": {"mlm": {}}}
    better = {"mlm": [[0.0] * 8, [0.2] * 8], "untrained": [[0.5] * 8, [0.9] * 8]}
    report = report_of(recipe, better)
    measured = report["objectives"]["untrained"]["finetuned"]["zoo"]["mrr@10"]
    assert (measured["mean"], measured["seeds"]) == (pytest.approx(0.7), pytest.approx([0.5, 0.9]))
    assert measured["std"] == pytest.approx(0.2 * 2**0.5)
    assert measured["against_reference"]["difference"] == pytest.approx(0.6)
    assert measured["against_reference"]["p_value"] == pytest.approx(2 / 2**8)
    assert report["objectives"]["untrained"]["seconds"] == 1.5
    assert table(report, "zoo").splitlines() == [
        "| objective | zero-shot MRR@10 | fine-tuned MRR@10 | seconds | million tokens |",
        "|---|---:|---:|---:|---:|",
        "| untrained | 0.700 ± 0.283 * | 0.700 ± 0.283 * | 2 + 1 | 3.0 |",
        "| mlm | 0.100 ± 0.141 | 0.100 ± 0.141 | 2 + 1 | 3.0 |",
        f"| BM25 | {report['tasks']['zoo']['bm25']['mrr@10']:.3f} | | | |",
    ]


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
        "recipe": RECIPE | {"objectives": FIVE, "pretraining": changes, "finetuning": {}},
        "tasks": {"task": {"num_queries": 1, "num_documents": 2, "bm25": {"mrr@10": 0.5}}},
        "objectives": {"mlm": stages | {"seconds": 1, "tokens": 2, "logs": []}},
    }
    sentence = conditions(report, "task")
    assert told in sentence
    assert "fine-tuned: 3 epochs in steps of 128 pairs, learning rate 2e-05. cpu, 1 thread, torch 2.0." in sentence
    assert "mlm-retromae: 1 more from mlm" in sentence
    draw(report, tmp_path / "no-losses.png", "task")


def test_at_equal_seconds_each_objective_makes_the_steps_that_they_allow(recipe, monkeypatch):
    speeds = {"mlm": [0.5, 9.0, 0.4], "retromae": [1.0, 0.8, 1.0], "sparse": [0.6, 0.7, 0.6]}
    trials = []

    def seconds_of(state):
        name = list(speeds)[len(trials) % len(speeds)]
        trials.append(name)
        return 10 * speeds[name][(len(trials) - 1) // len(speeds)]

    monkeypatch.setattr(module, "pretrain", lambda *args: SimpleNamespace(state=args))
    monkeypatch.setattr(module, "seconds_of", seconds_of)
    pretraining = {name: value for name, value in recipe["pretraining"].items() if name != "max_steps"}
    recipe |= {"max_seconds": 3, "pretraining": pretraining}
    recipe["objectives"] = FIVE | {"sparse": {"decoder_label_ratio": 0.5}}
    recipe["objectives"] = {name: recipe["objectives"][name] for name in speeds}
    comparison = module.Comparison(**recipe)
    comparison.folder.mkdir()
    for _ in range(2):  # the second time the plan is kept
        module.plan_steps(comparison)
        # The median of the turns, so that one which was held up does not count.
        assert comparison.steps == {"mlm": 6, "retromae": 3, "sparse": 5}
        assert trials == 3 * list(speeds)
    assert comparison.arguments("sparse", 0).training.max_steps == 5
    report = report_of(recipe, {name: [[0.5] * 8] for name in ("untrained", *speeds)})
    assert "| steps | seconds |" in table(report, "zoo")
    assert "the steps that take 3 seconds" in conditions(report, "zoo")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": []}, "seeds=0 must be at least 1"),
        ({"finetuning": {"objective": "triplet"}}, "objective='triplet' is unknown"),
        ({"pretraining": {}, "max_seconds": 5}, "mlm-retromae: max_steps, start cannot be told beside max_seconds"),
        ({"max_seconds": 0}, "max_seconds=0 must be above 0"),
    ],
)
def test_a_bad_recipe_is_one_sentence(change, message, recipe, tmp_path, capsys):
    recipe["objectives"] = {name: FIVE[name] for name in ("mlm", "mlm-retromae")}
    assert main(["compare", write(recipe | change, tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["cpu", "cpu-more", "gpu", "minilm", "minilm-more"])
def test_our_own_recipes_are_accepted(name):
    file = ROOT / "examples" / "recipes" / "compare" / f"compare-{name}.yaml"
    recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    for part in ("pretraining", "finetuning"):
        recipe[part]["use_cpu"] = True  # where these tests run
    module.Comparison(**recipe)
