"""The examples that no other test runs do what they say, from the command line's arguments, offline and in small."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import benchmark
import choosing
import compiling
import demo
import demo_encoder
import finetune_classifier
import finetune_contrastive
import finetune_distillation
import fresh_layers
import from_scratch
import from_scratch_report
import gpu_report
import padding
import pytest
import small_model
import soak
import stream_memory
import torch
from conftest import ROOT, sentences, write_beir
from datasets import Dataset
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForSequenceClassification, pipeline

from retromae_hf import export_encoder
from retromae_hf.data.held_out import hold_out
from retromae_hf.model.errors import RetroMAEError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def encoder(encoder_folder, tmp_path) -> str:
    model, tokenizer = (auto.from_pretrained(encoder_folder) for auto in (AutoModelForMaskedLM, AutoTokenizer))
    return str(export_encoder(model, tokenizer, tmp_path / "encoder"))


@pytest.fixture
def documents(texts) -> Dataset:
    names = [f"{'zoo' if row % 3 else 'farm'}.name{row}" for row in range(len(texts))]
    return Dataset.from_dict({"name": names, "text": texts})


@pytest.fixture
def teacher(encoder_config, tokenizer, tmp_path) -> str:
    config = BertConfig(**encoder_config.to_dict() | {"num_labels": 1})
    BertForSequenceClassification(config).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    return str(tmp_path / "teacher")


def moved(before: str, after: str) -> bool:
    weights = [dict(SentenceTransformer(folder, device="cpu").named_parameters()) for folder in (before, after)]
    return any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_contrastive(encoder, documents, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(finetune_contrastive, "load_held_out_pydocs", lambda: hold_out(documents, 4, 20))
    finetune_contrastive.main([encoder, "--steps", "2", "--output_dir", str(tmp_path / "out")])
    assert moved(encoder, str(tmp_path / "out"))
    assert f"--model_name_or_path {tmp_path / 'out'}" in capsys.readouterr().out


def test_distillation(encoder, teacher, documents, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune_distillation, "load_held_out_pydocs", lambda: hold_out(documents, 4, 20))
    options = ["--teacher", teacher, "--steps", "2", "--output_dir", str(tmp_path / "out")]
    finetune_distillation.main([encoder, *options])
    assert moved(encoder, str(tmp_path / "out"))


def test_classifier(encoder, documents, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(finetune_classifier, "load_pydocs", lambda: documents)
    finetune_classifier.main([encoder, "--steps", "2", "--output_dir", str(tmp_path / "out")])
    assert "over 2 packages" in capsys.readouterr().out
    classify = pipeline("text-classification", str(tmp_path / "out"), device="cpu")
    assert classify("The quick fox jumps.")[0]["label"] in ("zoo", "farm")


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("finetune_*.py")))
def test_an_example_can_be_read_in_one_sitting(example):
    assert len(example.read_text(encoding="utf-8").splitlines()) < 60


@pytest.fixture
def small_pydocs(documents, monkeypatch):
    monkeypatch.setattr("retromae_hf.data.held_out.TEST_QUERIES", 15)
    monkeypatch.setattr("retromae_hf.data.held_out.DEV_QUERIES", 5)
    for user in ("data.documents", "data.held_out"):
        monkeypatch.setattr(f"retromae_hf.{user}.load_pydocs", lambda num_proc: documents)
    monkeypatch.setattr("retromae_hf.data.held_out._of_pydocs", [])


def test_encoders_from_scratch(small_pydocs, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="the extra is not installed: pip install 'retromae-hf[plot]'")
    monkeypatch.chdir(tmp_path)
    smaller = {"VOCAB_SIZE": 200, "MAX_LENGTH": 32, "PRETRAINING_STEPS": 12, "FINETUNING_STEPS": 2, "PROCESSES": 1}
    for name, value in smaller.items():
        monkeypatch.setattr(from_scratch, name, value)
    monkeypatch.setitem(from_scratch.FINETUNING, "per_device_train_batch_size", 8)
    from_scratch.main()
    assert torch.backends.cuda.flash_sdp_enabled()  # as it was, for whoever comes next in this process
    report = json.loads(Path("runs/from-scratch/results.json").read_text())
    assert [len(report["results"][row]) for row in ("untrained", "mlm", "retromae")] == [2, 2, 2]
    shown = capsys.readouterr().out
    assert from_scratch_report.table(report) in shown
    assert from_scratch_report.searches(report) in shown
    assert len(report["searches"]) == shown.count("$ retromae-hf search") == 3
    assert Path("runs/from-scratch/curves.png").is_file()


def test_the_demo(encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (Path(encoder) / "training.json").unlink()  # which makes it one that others have tuned
    monkeypatch.setenv("DEMO_ENCODER", encoder)
    monkeypatch.setattr(demo, "MINUTES", 0.5)
    package = tmp_path / "torch"
    package.mkdir()
    functions = [f"def f{n}():\n    '''{text}'''\n" for n, text in enumerate(sentences(160))]
    (package / "functional.py").write_text("".join([*functions, "def _private():\n    '''Not one that is shown.'''"]))
    monkeypatch.setattr(demo.torch, "__file__", str(package / "__init__.py"))
    assert demo.main() == 0
    report, shown = json.loads(Path("runs/demo/results.json").read_text()), capsys.readouterr().out
    assert f"from {encoder}" in shown
    assert report["table"] in shown
    assert report["table"] in demo.table(report)
    assert demo.answers(report) in shown
    text = Path("runs/demo/torch.jsonl").read_text()
    assert text.count("torch.functional.f") == 160
    assert "_private" not in text


def test_the_demos_encoder_is_checked(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(RetroMAEError) as raised:
        demo_encoder.checked(tmp_path)
    assert demo_encoder.SHA256 in str(raised.value)
    assert hashlib.sha256(b"other weights").hexdigest() in str(raised.value)


def test_a_missing_package_of_the_demo_is_one_sentence(monkeypatch):
    monkeypatch.setattr(demo_encoder, "PACKAGE", "no_such_package")
    with pytest.raises(RetroMAEError, match=r"pip install 'retromae-hf\[demo\]'"):
        demo_encoder.demo_encoder()


def test_fresh_layers_are_new_and_the_others_stay(encoder, tmp_path):
    fresh_layers.main(encoder, "1", str(tmp_path / "fresh"))
    folders = encoder, str(tmp_path / "fresh")
    before, after = (dict(SentenceTransformer(one, device="cpu").named_parameters()) for one in folders)
    # The checkpoint has no pooler, so that it is a new one each time.
    names = [name for name in before if "pooler" not in name]
    changed = {name for name in names if not torch.equal(before[name], after[name])}
    assert changed
    assert all("layer.1." in name for name in changed)  # the last of two


STAND_IN = """
import os, sys, time
from pathlib import Path
import numpy
from safetensors.numpy import save_file

sys.path.insert(0, ROOT)
from retromae_hf.training.saving import last_complete_checkpoint, mark_complete

goes_on, output = sys.argv[1] == "goes-on", Path(sys.argv[-1])
output.mkdir(exist_ok=True)
last = last_complete_checkpoint(output) if goes_on else None
step, weight = (int(last.name.split("-")[1]), float((last / "weight").read_text())) if last else (0, os.getpid() % 97)
weight = weight if last or not goes_on else 0.0
for step in range(step + 1, 41):
    time.sleep(0.05)
    weight = 0.5 * weight + step
    folder = output / f"checkpoint-{step}"
    folder.mkdir(exist_ok=True)
    (folder / "weight").write_text(repr(weight))
    mark_complete(folder, resumable=True)
save_file({"weight": numpy.array([weight])}, output / "model.safetensors")
"""
"""A run of `soak` without the training: its weights hang on every step, and on its process where it does not go on."""


@pytest.mark.parametrize(("behaviour", "status"), [("goes-on", 0), ("begins-anew", 1)])
def test_the_soak_tells_a_run_that_goes_on_from_one_that_does_not(behaviour, status, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("stand_in.py").write_text(STAND_IN.replace("ROOT", repr(str(ROOT))))
    monkeypatch.setattr(soak, "SCENARIOS", {"a stand-in": f"{tmp_path / 'stand_in.py'} {behaviour}"})
    assert soak.main(["--kills", "1"]) == status
    (result,) = json.loads(Path("runs/soak.json").read_text())
    assert result["cuts"] == 1
    assert result["as_uncut"] is (status == 0)
    assert "| a stand-in | 1 |" in capsys.readouterr().out


def test_the_memory_of_a_stream(tmp_path, monkeypatch, capsys):
    # In this process: others would take seconds to start, and only peaks of processes of their own can be compared.
    monkeypatch.setattr(stream_memory, "in_a_process", stream_memory.measure)
    monkeypatch.setattr(stream_memory, "BUFFER_SIZE", 100)
    output = tmp_path / "memory.json"
    stream_memory.main(["--sizes", "1", "2", "--readers", "8", "--output", str(output)])
    report = json.loads(output.read_text())
    assert report["small"]["passages"] == report["large"]["passages"] > report["base"]["passages"] == 0
    assert stream_memory.table(report) in capsys.readouterr().out


def test_the_gpu_report_runs_to_its_end_with_tiny_shapes(tmp_path, monkeypatch, documents, capsys):
    monkeypatch.setattr(benchmark, "VOCAB_SIZE", 300)
    monkeypatch.setattr(gpu_report, "VOCAB_SIZE", 300)
    monkeypatch.setattr(gpu_report, "load_pydocs", lambda: documents)
    monkeypatch.setattr(benchmark, "measure_matmul", lambda setting: 1e9)
    monkeypatch.setattr(benchmark, "measure_memory", lambda setting, length: {})
    output = tmp_path / "out" / "report.json"
    gpu_report.main(["--tiny", "--device", "cpu", "--rounds", "1", "--output", str(output)])
    report = json.loads(output.read_text())
    assert gpu_report.table(report) in capsys.readouterr().out
    missing = [name for name, part in report["parts"].items() if "refused" in part]
    assert all("flash" in name or "flex" in name or "Liger" in name for name in missing), missing
    assert report["parts"]["waits"] == {"waits": 0}
    assert report["parts"]["step 16"]["tokens_per_second"].keys() == {"retromae", "mlm"}
    assert report["parts"]["ModernBERT 64, sdpa"]["utilisation"] > 0
    random, grouped = (
        report["parts"][f"Trainer 32, {order}"]["padding_share"] for order in ("in random order", "grouped by length")
    )
    assert grouped <= random


def test_the_choice_is_told_by_what_was_measured():
    tuned, crops, scratch = (
        json.loads((ROOT / f"model_cards/{name}/results.json").read_text())
        for name in ("compare-minilm", "compare-minilm-shift", "compare-cpu")
    )
    tuned["objectives"]["untrained"]["finetuned"]["pydocs"]["mrr@10"]["mean"] = 0.987
    crops["objectives"]["longer"]["finetuning_seconds"] = 7 * crops["objectives"]["untrained"]["finetuning_seconds"]
    table = choosing.choices(tuned, scratch, crops)
    assert "0.987 fine-tuned" in table
    assert "in 7 times the seconds" in table
    rows = choosing.normal(scratch).splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:6]] == ["100", "600", "1,100", "1,500"]


def test_a_small_model_is_made_by_the_commands_and_goes_on(texts, tmp_path, monkeypatch, capsys):
    for settings in (small_model.PRETRAINING, small_model.FINETUNING):
        monkeypatch.setitem(settings, "per_device_train_batch_size", 2)
    for name, value in {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 200}.items():
        monkeypatch.setitem(small_model.ENCODER, name, value)
    corpus, folder = tmp_path / "corpus.txt", tmp_path / "small"
    corpus.write_text("\n".join(f"{text} {sentences(number)}" for number, text in enumerate(texts)))
    options = f"--dataset {corpus} --task {write_beir(tmp_path / 'task')} --steps 2 --folder {folder}".split()
    small_model.main(options)
    report = json.loads((folder / "results.json").read_text())
    files = [folder / "encoder/model.safetensors", folder / "encoder/onnx/model_int8.onnx"]
    assert report["bytes"] == sum(file.stat().st_size for file in files)
    assert {tensor.dtype for tensor in load_file(files[0]).values()} == {torch.float16}
    assert SentenceTransformer(str(folder / "encoder"), device="cpu").encode("hello").shape == (32,)
    assert "MRR" in (folder / "encoder/README.md").read_text()
    assert "| BM25 | | task |" in capsys.readouterr().out
    before = files[0].read_bytes()
    small_model.main(options)
    assert files[0].read_bytes() == before
    monkeypatch.setattr(small_model, "LARGEST", 10)
    with pytest.raises(SystemExit, match="more than"):
        small_model.main(options)


def test_compiling_is_told_beside_the_plain_step():
    report = json.loads((ROOT / "model_cards/benchmark/compiling.json").read_text())
    report["rows"] = report["rows"][:1]
    report["rows"][0] |= {"graphs": 7, "first_step_seconds": 12.4, "seconds": {"plain": 2.0, "compiled": 3.0}}
    assert compiling.table(report).splitlines()[2:] == ["| 128 | 7 | 12 | 3.000 | 2.000 | 1.50 |"]
    assert "6 layers x 384" in compiling.conditions(report)


def test_padding_is_counted():
    assert padding.share_of_padding([1, 4, 2, 2], [0, 1, 2, 3], 2) == pytest.approx(3 / 12)
    for row in padding.measure(2000)["rows"]:
        assert row["padding_share"]["grouped"] < row["padding_share"]["random"] < 1
