"""The README keeps what it promises."""

from __future__ import annotations

import json
import re
from pathlib import Path

import publish
import pytest
from conftest import write_beir
from sentence_transformers import SentenceTransformer

from retromae_hf.commands.main import COMMANDS, main
from retromae_hf.evaluation import evaluate_model
from retromae_hf.retrieval_tasks import load_beir

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def example_with(call: str) -> str:
    """The piece of Python that makes a call."""
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if call in block]
    return example


def test_its_figures_are_those_of_the_results_files():
    assert publish.fill(README) == README


def test_its_example_runs(encoder_folder, texts, tmp_path, monkeypatch):
    example = example_with("trainer.train()")
    monkeypatch.chdir(tmp_path)
    Path("texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    example = example.replace("bert-base-uncased", encoder_folder).replace("max_length=128", "max_length=32")
    example = example.replace('TrainingArguments("runs/mine"', 'TrainingArguments("runs/mine", use_cpu=True')
    exec(compile(example, "README.md", "exec"), {})
    assert SentenceTransformer("runs/mine/encoder").encode("hello").shape == (32,)
    (state,) = Path("runs/mine").glob("checkpoint-*/trainer_state.json")
    assert json.loads(state.read_text())["global_step"] > 0


def test_its_example_of_the_metric_runs():
    example = example_with("evaluate.load(")
    variables: dict = {}
    exec(compile(example.replace("metric.compute(", "measured = metric.compute("), "README.md", "exec"), variables)
    assert variables["measured"]["mrr@10"] == 0.5
    assert variables["measured"]["paired_test"]["mrr@10"]["difference"] == 0.5


def test_its_results_are_in_the_schema_of_the_command(tmp_path):
    (block,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    (told,) = json.loads(block)["tasks"].values()
    (written,) = evaluate_model("bm25", [load_beir(write_beir(tmp_path / "task"))])["tasks"].values()
    assert told.keys() - {"bm25"} == written.keys()
    assert told["missing_ids"].keys() == written["missing_ids"].keys()
    assert told["measures"].keys() == told["bm25"]["measures"].keys() == written["measures"].keys()


def test_its_flags_exist(capsys):
    known = {"--num_processes", "--mixed_precision"}  # of accelerate launch
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        known |= set(re.findall(r"--\w+", capsys.readouterr().out))
    text = re.sub(r"<!--.*?-->", "", README)
    assert set(re.findall(r"(?<![\w-])--\w+", text)) <= known
