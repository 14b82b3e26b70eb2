"""Every example of fine-tuning runs from the command line's arguments, offline, and moves the encoder's weights."""

from __future__ import annotations

from pathlib import Path

import finetune_classifier
import finetune_contrastive
import finetune_distillation
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForSequenceClassification, pipeline

from retromae_hf import export_encoder
from retromae_hf.pydocs import hold_out

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


@pytest.mark.parametrize("example", sorted((Path(__file__).parents[1] / "examples").glob("finetune_*.py")))
def test_an_example_can_be_read_in_one_sitting(example):
    assert len(example.read_text(encoding="utf-8").splitlines()) < 60
