"""One folder that loads everywhere, with the pooling written down."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from retromae_hf import RetroMAEError, RetroMAEForPreTraining, RetroMAEModel, export_encoder, export_sparse_encoder
from retromae_hf.commands.main import main
from retromae_hf.data.disk import folder_written_aside, vacant
from retromae_hf.publishing.record import read_record
from retromae_hf.retrieval.embedders import embed, load_embedder


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


@pytest.fixture
def sentences(encoder_folder, tmp_path):
    """A retriever as people publish them: the mean, unit length, prompts and a length of its own."""
    parts = [Transformer(encoder_folder), Pooling(32, "mean"), Normalize()]
    prompts = {"query": "Find: ", "document": "Read: ", "topic": "About: "}
    model = SentenceTransformer(
        modules=parts, prompts=prompts, default_prompt_name="topic", similarity_fn_name="dot", device="cpu"
    )
    model.save_pretrained(str(tmp_path / "sentences"), create_model_card=False)
    (tmp_path / "sentences" / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24}))
    return tmp_path / "sentences"


def test_what_a_folder_says_of_its_embeddings_holds_through_a_checkpoint_and_its_export(sentences, tmp_path, texts):
    checkpoint = tmp_path / "run"
    RetroMAEForPreTraining.from_encoder(str(sentences)).save_pretrained(checkpoint)
    AutoTokenizer.from_pretrained(sentences).save_pretrained(checkpoint)
    loaded = RetroMAEForPreTraining.from_pretrained(checkpoint)
    export_encoder(loaded, AutoTokenizer.from_pretrained(checkpoint), tmp_path / "encoder")
    before, after = (SentenceTransformer(str(tmp_path / name), device="cpu") for name in ("sentences", "encoder"))
    assert [type(part) for part in after] == [Transformer, Pooling, Normalize]
    for name in ("prompts", "default_prompt_name", "similarity_fn_name", "max_seq_length"):
        assert getattr(after, name) == getattr(before, name)
    for way in ("encode", "encode_query", "encode_document"):
        was, is_now = (getattr(model, way)(texts[:5], convert_to_tensor=True) for model in (before, after))
        assert torch.allclose(was, is_now, atol=1e-6)
    embedder = load_embedder(str(checkpoint))
    assert torch.allclose(
        embedder.queries(texts[:5]), before.encode_query(texts[:5], convert_to_tensor=True), atol=1e-6
    )
    described = read_record(tmp_path / "encoder")["model"]
    assert (described["pooling"], described["similarity"], described["max_length"]) == ("mean", "cosine", 24)
    assert described["prompts"] == {"query": "Find: ", "document": "Read: "}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode": ["cls", "max"]}, "cls+max"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "mean+max"),
        ({"pooling_mode": "mean", "include_prompt": False}, "mean without the prompt"),
    ],
)
def test_a_folders_pooling_is_taken_or_refused_unless_another_is_named(config, told, sentences):
    (file,) = sentences.glob("*_Pooling/config.json")
    file.write_text(json.dumps(config))
    assert RetroMAEForPreTraining.from_encoder(str(sentences), pooling="cls").config.pooling == "cls"
    if told in ("cls", "mean"):
        assert RetroMAEForPreTraining.from_encoder(str(sentences)).config.pooling == told
    else:
        refusal = re.escape(f"makes its embeddings by {told} pooling") + ".* choose --pooling cls or --pooling mean"
        with pytest.raises(RetroMAEError, match=refusal):
            RetroMAEForPreTraining.from_encoder(str(sentences))


def test_an_export_pools_as_the_model_does_unless_told_otherwise(encoder_folder, tokenizer, tmp_path):
    model = RetroMAEForPreTraining.from_encoder(encoder_folder, pooling="mean")
    for told, expected in ((None, "mean"), ("cls", "cls")):
        folder = export_encoder(model, tokenizer, tmp_path / str(told), pooling=told)
        assert SentenceTransformer(str(folder), device="cpu")[1].pooling_mode == expected
    folder = export_encoder(model.encoder, tokenizer, tmp_path / "plain")
    assert SentenceTransformer(str(folder), device="cpu")[1].pooling_mode == "cls"


def test_modules_that_are_left_out_are_told(sentences, tmp_path, caplog):
    model = SentenceTransformer(str(sentences), device="cpu")
    model.append(Dense(32, 8))
    model.save_pretrained(str(tmp_path / "dense"), create_model_card=False)
    RetroMAEForPreTraining.from_encoder(str(tmp_path / "dense"))
    assert "the encoder is taken without the modules behind it: Dense" in caplog.text


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


def killed(*unused, **ignored):
    raise KeyboardInterrupt


def test_an_export_that_is_killed_leaves_nothing_that_loads_and_is_repeated(model, tokenizer, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    line = f"export --model_name_or_path {tmp_path}/run --output_dir {tmp_path}/encoder"
    with monkeypatch.context() as patched:
        patched.setattr("retromae_hf.publishing.export.write_export_card", killed)
        patched.setattr("retromae_hf.data.disk.shutil.rmtree", lambda *unused, **ignored: None)  # nobody clears up
        assert main(line.split()) == 130
    assert (tmp_path / "encoder" / ".unfinished").is_dir()
    with pytest.raises((OSError, ValueError)):
        SentenceTransformer(str(tmp_path / "encoder"))
    assert main(line.split()) == 0
    assert SentenceTransformer(str(tmp_path / "encoder"))[1].pooling_mode == "cls"
    assert read_record(tmp_path / "encoder")["name"] == f"{tmp_path.name}-encoder"
    assert not (tmp_path / "encoder" / ".unfinished").exists()
    assert main(line.split()) == 2, "a whole one is not written over"


def test_writing_a_folder_can_be_repeated_where_it_was_killed_between_two_of_its_files(tmp_path, monkeypatch):
    rename, renamed = Path.rename, []

    def killed_at_the_second(file, target):
        if renamed:
            killed()
        renamed.append(rename(file, target))

    def write():
        with folder_written_aside(tmp_path / "encoder") as aside:
            (aside / "1_Pooling").mkdir()
            (aside / "1_Pooling" / "config.json").write_text("{}")
            (aside / "model.safetensors").write_text("weights")

    monkeypatch.setattr(Path, "rename", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        write()
    monkeypatch.undo()
    assert [one.name for one in renamed] == ["1_Pooling"]
    assert vacant(tmp_path / "encoder")
    write()
    assert not vacant(tmp_path / "encoder")
    assert {one.name for one in (tmp_path / "encoder").iterdir()} == {"1_Pooling", "model.safetensors"}


def test_half_of_what_export_encoder_writes_does_not_load(model, tokenizer, tmp_path, monkeypatch):
    """Not with the mean over the tokens either, which sentence-transformers takes where nothing is said."""
    monkeypatch.setattr(type(model.encoder), "save_pretrained", lambda encoder, folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_encoder(model, tokenizer, tmp_path / "encoder")
    assert json.loads((tmp_path / "encoder" / "1_Pooling" / "config.json").read_text())["pooling_mode_cls_token"]
    assert (tmp_path / "encoder" / "modules.json").is_file()


def test_one_of_several_processes_exports(model, tokenizer, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    export = f"export --model_name_or_path {tmp_path}/run --output_dir {tmp_path}/encoder"
    for rank, there in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        assert main(export.split()) == 0
        assert (tmp_path / "encoder").exists() == there
    card = tmp_path / "encoder" / "README.md"
    card.unlink()
    for rank, there in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        assert main(["card", str(tmp_path / "encoder")]) == 0
        assert card.exists() == there
