"""What a new objective, family, command or kind of corpus has to touch, as CONTRIBUTING.md lists it."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
import yaml
from conftest import ROOT
from transformers import TrainingArguments

from retromae_hf import RetroMAEConfig, RetroMAEPreTrainingOutput
from retromae_hf.arguments.pretraining import MODEL_OPTIONS, StartArguments, TextSource
from retromae_hf.commands.common import EXAMPLES, RUN
from retromae_hf.commands.main import COMMANDS, main
from retromae_hf.data.files import FILE_KINDS
from retromae_hf.model.configuration_retromae import DECODINGS, DEFAULT_DECODING, PAIR_OBJECTIVES
from retromae_hf.model.families import BACKBONES
from retromae_hf.publishing import model_card
from retromae_hf.publishing.record import LOGGED
from retromae_hf.training.callbacks import COMPONENTS

RECIPES = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in (ROOT / "examples/recipes").glob("*.yaml")]


def help_of(arguments: type, name: str) -> str:
    return next(one.metadata["help"] for one in fields(arguments) if one.name == name)


@pytest.mark.parametrize("decoding", DECODINGS)
def test_a_decoding_mode_has_a_recipe_a_name_in_the_card_and_its_help(decoding):
    assert decoding in {recipe.get("decoding", DEFAULT_DECODING) for recipe in RECIPES}
    assert decoding in model_card.DECODINGS
    assert decoding in help_of(StartArguments, "decoding")


@pytest.mark.parametrize("objective", PAIR_OBJECTIVES)
def test_a_pair_objective_has_a_recipe_a_name_in_the_card_and_its_help(objective):
    assert objective in {recipe.get("pair_objective") for recipe in RECIPES}
    assert objective in model_card.PAIRS
    assert objective in help_of(StartArguments, "pair_objective")


def test_a_part_of_the_loss_is_logged_and_kept_in_the_record():
    parts = {one.name for one in fields(RetroMAEPreTrainingOutput)} - {"loss", "sentence_embedding"}
    assert parts == set(COMPONENTS) <= set(LOGGED)


def test_an_option_of_the_model_is_a_flag_and_a_field():
    assert set(MODEL_OPTIONS) <= {one.name for one in fields(StartArguments)} & RetroMAEConfig().to_dict().keys()


@pytest.mark.parametrize("family", BACKBONES)
def test_a_family_is_named_in_the_help(family):
    assert f"{family}," in help_of(StartArguments, "config_name").replace(")", ",")


def test_a_command_is_a_file_and_a_line_in_the_list():
    shared = {"__init__", "common", "help", "main"}
    assert {file.stem for file in (ROOT / "retromae_hf/commands").glob("*.py")} - shared == set(COMMANDS)
    assert EXAMPLES.keys() == COMMANDS.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_begins_with_an_example_of_what_it_lists(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert f"example:\n  retromae-hf {command} {EXAMPLES[command]}" in shown
    listed = set(re.findall(r"^  --(\w+)", shown, re.MULTILINE))
    assert {word[2:] for word in EXAMPLES[command].split() if word.startswith("--")} <= listed


def test_the_help_of_a_run_tells_the_defaults():
    known = {one.name: one.default for one in fields(TrainingArguments)}
    assert RUN.keys() <= known.keys()
    for name, told in RUN.items():
        if match := re.search(r"default: (\d+)", told):
            assert float(match[1]) == known[name]


@pytest.mark.parametrize("ending", FILE_KINDS)
def test_a_kind_of_corpus_is_named_in_the_help(ending):
    assert ending in help_of(TextSource, "dataset")


def test_the_lowest_versions_that_are_tried_are_those_that_are_allowed():
    """`make test-lowest` installs tests/lowest.txt; torch's is the build at hand."""
    tried = dict(line.split("==") for line in (ROOT / "tests/lowest.txt").read_text().splitlines() if "==" in line)
    allowed = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', (ROOT / "pyproject.toml").read_text()))
    of_tools = {"torch", "mypy", "ruff", "setuptools"}
    of_other_extras = {"pretense", "datatrove", "orjson", "zstandard", "gradio", "playwright", "beir"}
    assert tried.keys() == allowed.keys() - of_tools - of_other_extras
    for name, version in tried.items():
        assert re.fullmatch(rf"{re.escape(allowed[name])}(\.0)*", version), name
