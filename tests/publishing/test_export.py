"""One folder that loads everywhere, with the pooling written down."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from sentence_transformers import SentenceTransformer, SparseEncoder
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from retromae_hf import RetroMAEError, RetroMAEModel, export_encoder, export_sparse_encoder
from retromae_hf.retrieval.embedders import embed


@pytest.fixture
def folder(model, tokenizer, tmp_path):
    return export_encoder(model, tokenizer, tmp_path / "encoder")


def test_every_loader_gives_the_same_embeddings(folder, model, tokenizer, texts):
    ours = embed(model, tokenizer, texts[:9], progress=False)
    theirs = SentenceTransformer(str(folder)).encode(texts[:9], convert_to_tensor=True).cpu()
    batch = AutoTokenizer.from_pretrained(folder)(
        texts[:9], padding=True, truncation=True, max_length=32, return_tensors="pt"
    )
    with torch.no_grad():
        plain = AutoModel.from_pretrained(folder).eval()(**batch).last_hidden_state[:, 0]
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.allclose(ours, plain, atol=1e-6)


def test_the_masked_lm_head_is_kept(folder, model, tokenizer, texts):
    batch = tokenizer(texts[:3], padding=True, truncation=True, max_length=32, return_tensors="pt")
    with torch.no_grad():
        loaded = AutoModelForMaskedLM.from_pretrained(folder).eval()(**batch).logits
        assert torch.allclose(loaded, model.encoder(**batch).logits, atol=1e-6)


def test_long_texts_are_cut_where_the_encoder_ends(folder, texts):
    encoder = SentenceTransformer(str(folder))
    assert encoder.max_seq_length == 32
    assert encoder.encode([" ".join(texts)]).shape == (1, 32)


def test_mean_pooling_is_written_down_too(model, tokenizer, tmp_path, texts):
    folder = export_encoder(model, tokenizer, tmp_path / "mean", pooling="mean")
    batch = tokenizer(texts[:1], truncation=True, max_length=32, return_tensors="pt")
    mean = model.encode(batch["input_ids"]).mean(1)
    theirs = SentenceTransformer(str(folder)).encode(texts[:1], convert_to_tensor=True).cpu()
    assert torch.allclose(theirs, mean, atol=1e-6)


def test_the_lexical_half_is_a_sparse_encoder(model, tokenizer, tmp_path, texts):
    folder = export_sparse_encoder(model, tokenizer, tmp_path / "sparse")
    encoder = SparseEncoder(str(folder))
    assert encoder.max_seq_length == 32
    batch = tokenizer(texts[:5], padding=True, truncation=True, max_length=32, return_tensors="pt")
    with torch.no_grad():
        logits = model.encoder(**batch).logits.masked_fill(batch["attention_mask"][..., None] == 0, float("-inf"))
    pooled = logits.amax(1).clamp(min=0).log1p()
    theirs = encoder.encode(texts[:5], convert_to_tensor=True).to_dense().cpu()
    assert theirs.shape == (5, len(tokenizer))
    assert torch.allclose(theirs, pooled, atol=1e-6)
    few = SparseEncoder(str(folder), max_active_dims=7).encode(texts[:1], convert_to_tensor=True).to_dense().cpu()
    assert torch.equal(few[0].nonzero().squeeze(1), pooled[0].topk(7).indices.sort().values)


def test_a_baseline_and_the_encoder_alone_are_exported_alike(folder, model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "checkpoint")
    for source in (model.encoder, RetroMAEModel.from_pretrained(tmp_path / "checkpoint")):
        other = export_encoder(source, tokenizer, tmp_path / type(source).__name__)
        assert (other / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_it_loads_where_this_package_is_not_installed(folder):
    code = (
        "import sys; sys.modules['retromae_hf'] = None\n"
        "from transformers import AutoModel, AutoModelForMaskedLM\n"
        "from sentence_transformers import SentenceTransformer\n"
        f"folder = {str(folder)!r}\n"
        "AutoModel.from_pretrained(folder); AutoModelForMaskedLM.from_pretrained(folder)\n"
        "print(SentenceTransformer(folder).encode('hello').shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(32,)", done.stderr


def test_an_unknown_pooling_is_refused(model, tokenizer, tmp_path):
    with pytest.raises(RetroMAEError, match="pooling='max' is unknown; choose one of cls, mean"):
        export_encoder(model, tokenizer, tmp_path, pooling="max")
