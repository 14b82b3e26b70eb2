"""An exported encoder as ONNX computes what PyTorch does, and sentence-transformers takes it."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import onnx_cost
import pytest
import torch
from conftest import write_beir
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModelForMaskedLM

from retromae_hf import RetroMAEError, export_encoder
from retromae_hf.checkpoints import onnx as onnx_export
from retromae_hf.checkpoints.onnx import ONNX_FILE, compute_with_onnx, export_onnx
from retromae_hf.commands.main import main

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason="the extra is not installed: pip install 'retromae-hf[onnx]'")

FAMILIES = {
    "bert": {},
    "roberta": {"type_vocab_size": 1},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
}


@pytest.fixture(scope="module")
def export(tokenizer, tmp_path_factory):
    """A function that gives the export of an encoder of a family, with its ONNX files."""

    @functools.cache
    def make(family: str) -> Path:
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        special = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
        vocabulary = {"vocab_size": len(tokenizer), "max_position_embeddings": 40, **special}
        config = AutoConfig.for_model(family, **sizes, **vocabulary, **FAMILIES[family])
        folder = tmp_path_factory.mktemp("onnx") / family
        export_encoder(AutoModelForMaskedLM.from_config(config), tokenizer, folder)
        export_onnx(folder, "int8")
        return folder

    return make


@pytest.fixture(params=FAMILIES)
def folder(request, export):
    return export(request.param)


def encode(folder, texts, file=None):
    """Embeddings by PyTorch, or from an ONNX file."""
    model = SentenceTransformer(str(folder), device="cpu")
    if file is not None:
        compute_with_onnx(model[0].auto_model, folder / file)
    return model.encode(texts, batch_size=4, convert_to_tensor=True)


def test_the_embeddings_are_those_of_pytorch(folder, texts):
    # Of several lengths, so that batches are padded, and beyond what the exporter saw.
    some = ["fox", *texts[:5], "The otter. " * 20]
    assert torch.allclose(encode(folder, some, ONNX_FILE), encode(folder, some), atol=1e-4)


def test_eight_bit_weights_are_near_and_smaller(folder, texts):
    exact, near = encode(folder, texts[:8]), encode(folder, texts[:8], "onnx/model_int8.onnx")
    assert not torch.equal(exact, near)
    assert torch.cosine_similarity(exact, near).min() > 0.99
    sizes = [(folder / "onnx" / f"{name}.onnx").stat().st_size for name in ("model_int8", "model")]
    assert sizes[0] < sizes[1]


def test_the_backend_of_sentence_transformers_loads_it(export, texts):
    # The newest optimum-onnx, 0.1.0, is for transformers below 4.58, which this package is not.
    reason = "there is no optimum-onnx for this transformers"
    pytest.importorskip("optimum.onnxruntime.modeling", reason=reason, exc_type=ImportError)
    folder = export("bert")
    theirs = SentenceTransformer(str(folder), backend="onnx", device="cpu").encode(texts[:5], convert_to_tensor=True)
    assert torch.allclose(theirs, encode(folder, texts[:5]), atol=1e-4)


def test_the_command_exports_and_evaluates_it(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for each in (model, tokenizer):
        each.save_pretrained("checkpoint")
    export = "export --model_name_or_path checkpoint --output_dir encoder --onnx true --quantize int8"
    assert main(export.split()) == 0
    write_beir(tmp_path / "task")
    measured = []
    for name in ("encoder", f"encoder/{ONNX_FILE}"):
        line = f"evaluate --model_name_or_path {name} --dataset task --output results.json --embeddings_dir embeddings"
        assert main(line.split()) == 0
        measured.append(json.loads(Path("results.json").read_text())["tasks"]["task"])
    assert measured[0]["measures"] == measured[1]["measures"]


def test_the_example_reports_what_it_costs(export, tmp_path, monkeypatch, capsys):
    encoder = export("bert")
    monkeypatch.setattr(onnx_cost, "export_onnx", lambda folder, quantize: None)  # it is there
    task, output = write_beir(tmp_path / "task"), tmp_path / "results" / "cost.json"
    onnx_cost.main([str(encoder), "--dataset", str(task), "--output", str(output)])
    report = json.loads(output.read_text())
    assert list(report["models"]) == ["PyTorch", "ONNX", "ONNX, int8"]
    assert onnx_cost.table(report) in capsys.readouterr().out


def test_an_export_that_computes_something_else_is_refused(model, tokenizer, tmp_path, monkeypatch):
    export_encoder(model, tokenizer, tmp_path)
    monkeypatch.setattr(torch.onnx, "export", lambda *unused, **options: None)
    monkeypatch.setattr(onnx_export, "_session", lambda file: None)
    monkeypatch.setattr(onnx_export, "_run", lambda session, **batch: torch.zeros(*batch["input_ids"].shape, 32))
    with pytest.raises(RetroMAEError, match=r"computes states .* away from PyTorch's, over 0.0001; do not use it"):
        export_onnx(tmp_path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--onnx true --quantize int4", "quantize='int4' is unknown; choose one of int8"),
        ("--quantize int8", "quantize is about the ONNX file; give --onnx true too, or leave it out"),
        ("--onnx true --sparse true", "only the dense encoder is exported to ONNX; leave out onnx or sparse"),
    ],
)
def test_flags_that_do_not_go_together(flags, said, tmp_path, capsys):
    assert main(f"export --model_name_or_path x --output_dir {tmp_path}/new {flags}".split()) == 2
    assert said in capsys.readouterr().err


def test_a_file_that_is_no_export_is_refused(tmp_path, capsys):
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    assert (
        main(f"evaluate --model_name_or_path {tmp_path}/model.onnx --dataset {write_beir(tmp_path / 'task')}".split())
        == 2
    )
    assert "is no ONNX file in an exported encoder's folder" in capsys.readouterr().err


def test_a_broken_file_is_refused(model, tokenizer, tmp_path, capsys):
    encoder = export_encoder(model, tokenizer, tmp_path / "encoder")
    (encoder / "onnx").mkdir()
    (encoder / ONNX_FILE).write_bytes(b"nothing")
    task = write_beir(tmp_path / "task")
    assert main(f"evaluate --model_name_or_path {encoder}/{ONNX_FILE} --dataset {task}".split()) == 2
    assert "holds no ONNX model that can be loaded" in capsys.readouterr().err
