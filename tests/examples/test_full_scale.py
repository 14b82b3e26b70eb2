"""The full-scale recipes, which are not run here: every argument is right, and the estimate is what was counted."""

from __future__ import annotations

import gzip
import importlib
import json
import re
import shlex

import benchmark
import full_scale
import full_scale_data
import publish
import pytest
import yaml
from conftest import ROOT
from datasets import Dataset

from retromae_hf import load_documents
from retromae_hf.commands.main import COMMANDS
from retromae_hf.training.training_rows import JudgedCorpus, read_hard_negatives

DOES = {
    "pretrain": "training.pretraining.pretrain",
    "finetune": "training.finetuning.finetune",
    "evaluate": "retrieval.tasks.load_tasks",
}


class _ParsedError(Exception):
    pass


def parsed(command, argv, monkeypatch):
    """What a command would start with."""
    module = importlib.import_module(f"retromae_hf.commands.{command}")

    def stop(*arguments, **_):
        raise _ParsedError(arguments)

    monkeypatch.setattr(f"retromae_hf.{DOES[command]}", stop)
    with pytest.raises(_ParsedError) as started:
        module.main(argv)
    return started.value.args[0]


def lines_of(name):
    """The command lines in a recipe's opening comment."""
    return re.findall(r"^#   (.*)", full_scale.RECIPES[name].read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", full_scale.RECIPES)
def test_its_own_lines_launch_it(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    launched = 0
    for line in lines_of(name):
        first, *words = shlex.split(line)
        if first == "python":
            assert (ROOT / words[0]).is_file()
            continue
        if first == "accelerate":
            assert words[:4] == ["launch", "--num_processes", "8", "-m"]
            command = words[4].removeprefix("retromae_hf.commands.")
            words = words[5:]
        else:
            command = words.pop(0)
        assert command in COMMANDS
        if command == "export":
            continue  # without a recipe
        assert (ROOT / words[0]).samefile(full_scale.RECIPES[name])
        words[0] = str(ROOT / words[0])
        options = [] if command == "evaluate" else ["--use_cpu"]  # so that bf16 is no matter of this machine's
        recipe = yaml.safe_load(full_scale.RECIPES[name].read_text(encoding="utf-8"))
        arguments = parsed(command, [*words, *options], monkeypatch)
        if command == "evaluate":
            assert arguments[0][0].startswith("data/beir/")
        else:
            for key, value in recipe.items():
                (found,) = (getattr(one, key) for one in arguments if hasattr(one, key))
                assert found == ([value] if isinstance(found, list) else type(found)(value)), key
        launched += 1
    assert launched


def test_they_follow_on_each_other():
    """What a recipe starts from is what another one, or an export in its comment, leaves behind."""
    recipes = {name: yaml.safe_load(file.read_text(encoding="utf-8")) for name, file in full_scale.RECIPES.items()}
    left = {"bert-base-uncased", *(recipe.get("output_dir") for recipe in recipes.values())}
    left |= {line.split()[-1] for name in recipes for line in lines_of(name) if "retromae-hf export" in line}
    assert {recipe["model_name_or_path"] for recipe in recipes.values()} <= left


def test_the_page_is_what_was_counted():
    assert len(full_scale.RECIPES) == len(list((ROOT / "examples/recipes/full-scale").iterdir())) == 7
    assert (ROOT / "model_cards/recipes.md").read_text(encoding="utf-8") == publish.recipes_page()
    counted = json.loads((ROOT / "model_cards/full-scale.json").read_text(encoding="utf-8"))
    assert {name: row | {"flops_per_row": None} for name, row in counted.items()} == {
        name: row | {"flops_per_row": None} for name, row in full_scale.stages().items()
    }


def test_the_count_by_hand(monkeypatch, one_thread):
    hidden, inner, layers, length, vocabulary = 32, 64, 2, 10, 300
    shape = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": inner}
    monkeypatch.setitem(benchmark.SHAPES, "base", shape)
    monkeypatch.setattr(benchmark, "VOCAB_SIZE", vocabulary)
    projections = 2 * length * (4 * hidden * hidden + 2 * hidden * inner)
    attention = 2 * 2 * length * length * hidden
    forward = layers * (projections + attention)
    assert full_scale.encoder_flops(length, backward=False) == forward
    # The backward pass has two products for every one, and a fused attention makes the scores anew.
    assert 3 * forward <= full_scale.encoder_flops(length) <= 3 * forward + layers * attention // 2
    assert full_scale.cached_flops(length) == full_scale.encoder_flops(length) + forward
    # The decoder predicts all tokens but two, the encoder about a third of them.
    heads = 3 * 2 * (length - 2) * hidden * vocabulary
    assert full_scale.pretraining_flops(length) > full_scale.encoder_flops(length) + heads
    row = {"step": "kl", "texts": {"4": 1, "10": 3}, "rows": 10, "epochs": 2}
    assert full_scale.flops_of(row) == full_scale.encoder_flops(4) + 3 * full_scale.encoder_flops(10)
    row["flops_per_row"] = full_scale.PEAK_FLOPS * full_scale.SUSTAINED * 360
    assert full_scale.hours(row) == pytest.approx(2.0)


def test_the_negatives_are_those_that_the_command_reads(tmp_path):
    found = {
        "qid": 7,
        "pos": [{"pid": 1, "ce-score": 9.0}, {"pid": 2, "ce-score": 5.0}],
        "neg": {
            "bm25": [{"pid": 3, "ce-score": 4.0}, {"pid": 4, "ce-score": -8.0}],
            "x": [{"pid": 5, "ce-score": 1.0}],
        },
    }
    with gzip.open(tmp_path / "msmarco-hard-negatives.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(one) + "\n" for one in (found, {"qid": 8, "pos": [], "neg": {}}))
    full_scale_data.main(["msmarco", "--folder", str(tmp_path)])
    corpus = JudgedCorpus({"7": "ask"}, {str(number): f"d{number}" for number in range(1, 6)}, {"7": ["1", "2"]})

    def negatives(name, count):
        rows = read_hard_negatives(tmp_path / f"{name}.jsonl", corpus, count, seed=0)
        return {rows[0][f"negative_{number}"] for number in range(1, count + 1)}

    assert negatives("negatives-bm25", 2) == {"d3", "d4"}
    assert negatives("negatives-all", 2) == {"d4", "d5"}  # d3 is too near to a positive
    scored = read_hard_negatives(tmp_path / "negatives-scored.jsonl", corpus, 3, 0, tmp_path / "scores.jsonl")
    assert scored[0] == {
        "query": "ask",
        "positive": "d1",
        "negative_1": "d3",
        "negative_2": "d5",
        "negative_3": "d4",
        "label": [9.0, 4.0, 1.0, -8.0],
    }


def test_sentences_become_documents(monkeypatch, tmp_path):
    monkeypatch.setattr(full_scale_data, "SENTENCES", 2)
    rows = Dataset.from_dict({"id": [0, 1, 2], "text": ["A fox.", "A wolf.", "An otter."]})
    monkeypatch.setattr(full_scale_data, "load_dataset", lambda *_, **__: rows)
    full_scale_data.main(["general", "--folder", str(tmp_path)])
    assert full_scale_data.joined(rows)["text"][:] == ["A fox. A wolf.", "An otter."]
    loaded = load_documents(tmp_path)["text"][:]
    assert sorted(loaded) == sorted(["A fox. A wolf.", "An otter.", "A fox.", "A wolf.", "An otter."])


@pytest.mark.parametrize("recipe", sorted((ROOT / "examples/recipes/long").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_recipes_for_long_texts_are_read(recipe, monkeypatch):
    (words,) = (line.split()[5:] for line in recipe.read_text().splitlines() if "commands.pretrain" in line)
    assert (ROOT / words[-1]).samefile(recipe)
    arguments = parsed("pretrain", [str(recipe), "--use_cpu"], monkeypatch)
    known = {name: value for one in arguments for name, value in vars(one).items()}
    assert (known["max_length"], known["gradient_checkpointing"], known["decoding"]) == (8192, True, "enhanced")
