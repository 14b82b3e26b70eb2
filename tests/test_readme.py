"""The README keeps what it promises."""

from __future__ import annotations

import json
import re
from pathlib import Path

import publish
import pytest
from sentence_transformers import SentenceTransformer

from retromae_hf.commands.main import COMMANDS, main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_its_figures_are_those_of_the_results_files():
    assert publish.fill(README) == README


def test_its_example_runs(encoder_folder, texts, tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    example = example.replace("bert-base-uncased", encoder_folder).replace("max_length=128", "max_length=32")
    example = example.replace('TrainingArguments("runs/mine"', 'TrainingArguments("runs/mine", use_cpu=True')
    exec(compile(example, "README.md", "exec"), {})
    assert SentenceTransformer("runs/mine/encoder").encode("hello").shape == (32,)
    (state,) = Path("runs/mine").glob("checkpoint-*/trainer_state.json")
    assert json.loads(state.read_text())["global_step"] > 0


def test_its_flags_exist(capsys):
    known = {"--num_processes", "--mixed_precision"}  # of accelerate launch
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        known |= set(re.findall(r"--\w+", capsys.readouterr().out))
    text = re.sub(r"<!--.*?-->", "", README)
    assert set(re.findall(r"(?<![\w-])--\w+", text)) <= known
