"""The README, the guides and the index of the examples keep what they promise."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from pathlib import Path

import publish
import pytest
import torch
from conftest import ROOT, write_beir
from sentence_transformers import SentenceTransformer
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForMaskedLM, BertConfig, BertForMaskedLM

from retromae_hf import export_encoder
from retromae_hf.commands.main import COMMANDS, main
from retromae_hf.model.families import BACKBONES
from retromae_hf.retrieval.evaluation import evaluate_model
from retromae_hf.retrieval.tasks import load_beir

EXAMPLES = ROOT / "examples"
PAGES = {file: file.read_text(encoding="utf-8") for file in (*publish.PAGES, EXAMPLES / "README.md")}
LINKED = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", EXAMPLES / "space/README.md"]
LINKED += sorted((ROOT / "model_cards").rglob("*.md"))

PYTHON = [block for page in PAGES.values() for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]
TRIED = {
    "trainer.train()": "test_its_example_runs",
    "evaluate.load(": "test_its_example_of_the_metric_runs",
    'AutoModel.from_pretrained("me/my-encoder")': "test_its_examples_of_the_hub_run",
    "AutoModelForPreTraining.from_pretrained(": "test_its_examples_of_the_hub_run",
    "compute_with_onnx(": "test_its_example_of_onnx_runs",
    "register_backbone(": "test_its_example_of_a_family_runs",
    "get_peft_model(": "test_its_example_of_adapters_runs",
}
"""What tells a piece of Python from the others, and the test that runs it."""


def example_with(call: str) -> str:
    """The piece of Python that makes a call."""
    assert call in TRIED
    (example,) = [block for block in PYTHON if call in block]
    return example


def run(example: str) -> dict:
    """Run a piece of Python and return its names."""
    names: dict = {}
    exec(compile(example, "a page", "exec"), names)
    return names


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(file: Path, page: str) -> list[str]:
    """The relative links of a page that lead nowhere."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page, flags=re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve()
        if not target.exists() or (anchor and anchor not in anchors(target.read_text("utf-8") if path else page)):
            broken.append(link)
    return broken


def test_its_figures_are_those_of_the_results_files():
    pages = {file: PAGES[file] for file in publish.PAGES}
    assert publish.fill(pages) == pages


@pytest.mark.parametrize("change", [("<!-- demo:", "<!-- "), ("<!-- demo:", "<!-- domo:")])
def test_a_block_that_is_lost_is_told(change):
    with pytest.raises(SystemExit, match="demo"):
        publish.fill({file: PAGES[file].replace(*change) for file in publish.PAGES})


def test_a_block_that_stands_twice_is_told():
    twice = {file: PAGES[file] for file in publish.PAGES} | {EXAMPLES / "README.md": PAGES[ROOT / "README.md"]}
    with pytest.raises(SystemExit, match="result"):
        publish.fill(twice)


def test_the_first_result_says_what_the_reports_show():
    tuned, scratch = (
        json.loads((ROOT / f"model_cards/{name}/results.json").read_text(encoding="utf-8"))
        for name in ("compare-minilm", "compare-cpu")
    )
    seeds = len(scratch["recipe"]["seeds"])
    scratch["objectives"]["retromae"]["finetuned"]["pydocs"]["mrr@10"] |= {"seeds": [0.0] * seeds, "mean": 0.9}
    tuned["objectives"]["retromae"]["finetuned"]["pydocs"]["mrr@10"]["mean"] = 0.99
    block = publish.first_result.block(tuned, scratch)
    assert f"RetroMAE reaches 0.900 where MLM reaches 0.236, and is ahead in 0 of {seeds} seeds" in block
    assert "Pretraining all-MiniLM-L6-v2 before fine-tuning it gives more" in block
    tuned["objectives"]["retromae"]["finetuned"]["pydocs"]["mrr@10"]["mean"] = 0.1
    assert "is better fine-tuned at once" in publish.first_result.block(tuned, scratch)


def test_the_readme_is_short_and_shows_the_case_that_the_method_is_for_first():
    page = PAGES[ROOT / "README.md"]
    assert len(page.splitlines()) <= 130
    parts = ["git clone", "trainer.train()", "retromae-hf adapt", "<!-- demo:", "<!-- result:", "nobody tuned"]
    parts += ["are tuned for retrieval already", "## Commands and guides", "## What you can rely on"]
    places = [page.index(part) for part in [*parts, "## What is not there yet", "make demo    #", "commands/   "]]
    assert places == sorted(places)
    assert len([line for line in example_with("trainer.train()").splitlines() if line]) == 10


def test_the_guides_are_short_and_begin_with_what_one_types():
    guides = [page for file, page in PAGES.items() if file.parent.name == "guides"]
    assert sum(len(page.split()) for page in guides) <= 10_000
    assert all(page.split("\n\n")[2].startswith("```console") for page in guides)


@pytest.mark.parametrize("file", LINKED, ids=lambda file: str(file.relative_to(ROOT)))
def test_its_links_lead_somewhere(file):
    assert broken_links(file, file.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_seen():
    page = "# The *one* page\n[a](#the-one-page) [b](#another) [c](missing.md) [d](https://example.org) `[e](code.md)`"
    assert broken_links(ROOT / "README.md", page) == ["#another", "missing.md"]


def test_the_guides_are_reached_from_the_readme_and_the_index():
    for guide in (EXAMPLES / "guides").glob("*.md"):
        assert f"(examples/guides/{guide.name}" in PAGES[ROOT / "README.md"]
        assert f"(guides/{guide.name})" in PAGES[EXAMPLES / "README.md"]


def test_the_index_names_every_example():
    listed = PAGES[EXAMPLES / "README.md"]
    there = {file.name for file in EXAMPLES.iterdir()} - {"README.md", "guides", "__pycache__"}
    assert [name for name in there if f"({name})" not in listed] == []


def test_every_piece_of_python_is_run_by_a_test():
    assert [block for block in PYTHON if sum(call in block for call in TRIED) != 1] == []
    assert all(test in globals() for test in TRIED.values())


def test_its_example_runs(encoder_folder, texts, tmp_path, monkeypatch):
    example = example_with("trainer.train()")
    monkeypatch.chdir(tmp_path)
    Path("texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    example = example.replace("bert-base-uncased", encoder_folder).replace("max_length=128", "max_length=32")
    run(example.replace('TrainingArguments("runs/mine"', 'TrainingArguments("runs/mine", use_cpu=True'))
    assert SentenceTransformer("runs/mine/encoder").encode("hello").shape == (32,)
    (state,) = Path("runs/mine").glob("checkpoint-*/trainer_state.json")
    assert json.loads(state.read_text())["global_step"] > 0


def test_its_example_of_the_metric_runs():
    example = example_with("evaluate.load(")
    measured = run(example.replace("metric.compute(", "measured = metric.compute("))["measured"]
    assert measured["mrr@10"] == 0.5
    assert measured["paired_test"]["mrr@10"]["difference"] == 0.5


def test_its_examples_of_the_hub_run(model, tokenizer, tmp_path, monkeypatch):
    # Names of repositories are folders here.
    monkeypatch.chdir(tmp_path)
    for each in (model, tokenizer):
        each.save_pretrained("me/my-checkpoint")
    export_encoder(model, tokenizer, "me/my-encoder")
    run(example_with('AutoModel.from_pretrained("me/my-encoder")'))
    run(example_with("AutoModelForPreTraining.from_pretrained("))


class MeadowConfig(BertConfig):
    model_type = "meadow"


class MeadowForMaskedLM(BertForMaskedLM):
    config_class = MeadowConfig

    @property
    def lm_head(self):
        transform = self.cls.predictions.transform
        return Namespace(dense=transform.dense, norm=transform.LayerNorm)


def test_its_example_of_adapters_runs(encoder_folder):
    model = run(example_with("get_peft_model(").replace("bert-base-uncased", encoder_folder))["model"]
    assert any("lora_A" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


def test_its_example_of_a_family_runs(encoder_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("retromae_hf.model.families.BACKBONES", dict(BACKBONES))
    AutoConfig.register("meadow", MeadowConfig)
    AutoModelForMaskedLM.register(MeadowConfig, MeadowForMaskedLM)
    sizes = {name: value for name, value in encoder_config.to_dict().items() if name != "model_type"}
    MeadowForMaskedLM(MeadowConfig(**sizes)).save_pretrained("me/meadow-base")
    model = run(example_with("register_backbone("))["model"]
    assert isinstance(model.encoder, MeadowForMaskedLM)
    assert model(torch.tensor([[2, 5, 6, 3]]), labels=torch.tensor([[-100, 5, -100, -100]])).loss > 0
    CONFIG_MAPPING._extra_content.pop("meadow")
    AutoModelForMaskedLM._model_mapping._extra_content.pop(MeadowConfig)


def test_its_example_of_onnx_runs(model, tokenizer, tmp_path, monkeypatch):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="the extra is not installed: pip install 'retromae-hf[onnx]'")
    from retromae_hf.checkpoints.onnx import export_onnx

    monkeypatch.chdir(tmp_path)
    export_onnx(export_encoder(model, tokenizer, "runs/mine/encoder"), "int8")
    names = run(example_with("compute_with_onnx("))
    assert names["model"].encode("hello").shape == (32,)


def test_its_results_are_in_the_schema_of_the_command(tmp_path):
    (block,) = re.findall(r"```json\n(.*?)```", PAGES[EXAMPLES / "guides/evaluating.md"], re.DOTALL)
    (told,) = json.loads(block)["tasks"].values()
    (written,) = evaluate_model("bm25", [load_beir(write_beir(tmp_path / "task"))])["tasks"].values()
    assert told.keys() - {"bm25", "hybrid"} == written.keys()
    assert told["missing_ids"].keys() == written["missing_ids"].keys()
    assert (
        told["measures"].keys()
        == told["bm25"]["measures"].keys()
        == told["hybrid"]["measures"].keys()
        == written["measures"].keys()
    )


def test_its_flags_exist(capsys):
    # of accelerate launch and torchrun, of examples, of hf upload and of tensorboard
    known = {"--num_processes", "--mixed_precision", "--config_file", "--standalone", "--nproc_per_node", "--folder"}
    known |= {"--exclude", "--logdir"}
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help-all"])
        known |= set(re.findall(r"--\w+", capsys.readouterr().out))
    for page in PAGES.values():
        assert set(re.findall(r"(?<![\w-])--\w+", re.sub(r"<!--.*?-->", "", page))) <= known
