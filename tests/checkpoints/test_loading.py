"""One way to open a model: whole, in float32, wherever its encoder lies, and padded behind the text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Router, StaticEmbedding, Transformer
from transformers import AutoTokenizer, BertForMaskedLM, T5Config, T5EncoderModel

from retromae_hf import RetroMAEConfig, RetroMAEError, RetroMAEForPreTraining, RetroMAEModel, export_encoder
from retromae_hf.checkpoints.loading import load_checkpoint, load_config, load_sentence_transformer, load_tokenizer
from retromae_hf.commands.main import main
from retromae_hf.retrieval.embedders import load_embedder, model_fingerprint, model_identity

REVISION = "a" * 40


def change(file: Path, **fields) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def rewrite(file: Path, change) -> None:
    """Put other weights into a file: `change` of the old ones."""
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


@pytest.fixture
def plain(encoder_folder, tmp_path) -> Path:
    """A plain encoder that a test may break."""
    return shutil.copytree(encoder_folder, tmp_path / "plain")


@pytest.fixture
def nested(encoder_folder, tmp_path) -> Path:
    """The layout that sentence-transformers wrote for years: the encoder in a folder of its own."""
    folder = tmp_path / "nested"
    model = SentenceTransformer(modules=[Transformer(encoder_folder), Pooling(32, "mean"), Dense(32, 16)], device="cpu")
    model.save_pretrained(str(folder), create_model_card=False)
    (folder / "0_Transformer").mkdir()
    for file in [*folder.glob("*token*"), folder / "config.json", *folder.glob("sentence_*"), *folder.glob("*.saf*")]:
        file.rename(folder / "0_Transformer" / file.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


@pytest.fixture
def static(tokenizer, tmp_path) -> Path:
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=32)], device="cpu")
    model.save_pretrained(str(tmp_path / "static"), create_model_card=False)
    return tmp_path / "static"


@pytest.fixture
def router(encoder_folder, tokenizer, tmp_path) -> Path:
    """Queries by a table, documents by an encoder."""
    routes = [StaticEmbedding(tokenizer, embedding_dim=32)], [Transformer(encoder_folder), Pooling(32, "cls")]
    model = SentenceTransformer(modules=[Router.for_query_document(*routes)], device="cpu")
    model.save_pretrained(str(tmp_path / "router"), create_model_card=False)
    return tmp_path / "router"


def dtypes(folder: Path) -> set[torch.dtype]:
    """In which weights are stored."""
    return {weight.dtype for file in folder.rglob("*.safetensors") for weight in load_file(file).values()}


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_weights_are_float32_whatever_is_stored(stored, plain, nested, static, model, tokenizer, tmp_path):
    for file in (folder / name for folder in (plain, nested, static) for name in ("", "0_Transformer", "2_Dense")):
        if (file / "model.safetensors").exists():
            rewrite(file / "model.safetensors", lambda old: {name: one.to(stored) for name, one in old.items()})
        if (file / "config.json").exists() and file.name != "2_Dense":
            change(file / "config.json", dtype=str(stored).removeprefix("torch."))
    assert RetroMAEForPreTraining.from_encoder(str(plain)).dtype == torch.float32
    for folder in (plain, nested, static):
        loaded = load_sentence_transformer(str(folder), device="cpu")
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
        loaded.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
        assert dtypes(tmp_path / "saved") == {torch.float32}
        shutil.rmtree(tmp_path / "saved")
    model.to(stored).save_pretrained(tmp_path / "run")
    assert dtypes(tmp_path / "run") == {stored}
    for opened in (
        load_checkpoint(RetroMAEForPreTraining, str(tmp_path / "run")),
        RetroMAEModel.from_pretrained(tmp_path / "run"),
    ):
        assert {parameter.dtype for parameter in opened.parameters()} == {torch.float32}
    export_encoder(opened, tokenizer, tmp_path / "exported")
    assert dtypes(tmp_path / "exported") == {torch.float32}
    half = RetroMAEForPreTraining.from_pretrained(tmp_path / "run", dtype=stored)  # who asks for it gets it
    assert {parameter.dtype for parameter in half.parameters()} == {stored}


def test_a_configuration_that_names_half_precision_makes_no_new_model_of_it(plain):
    change(plain / "config.json", torch_dtype="float16", dtype=None)
    assert RetroMAEForPreTraining(RetroMAEConfig(encoder_config=load_config(str(plain)))).dtype == torch.float32
    wanted = BertForMaskedLM.from_pretrained(plain, dtype=torch.float32).bert.embeddings.word_embeddings.weight
    found = load_sentence_transformer(str(plain), device="cpu")[0].auto_model.embeddings.word_embeddings.weight
    assert torch.equal(found.cpu(), wanted)


def test_a_sentence_transformer_is_found_in_its_folder(nested, static, router, encoder_folder):
    plain = BertForMaskedLM.from_pretrained(encoder_folder)
    for folder in (nested, router):
        found = RetroMAEForPreTraining.from_encoder(str(folder)).encoder
        assert torch.equal(
            found.bert.encoder.layer[1].output.dense.weight, plain.bert.encoder.layer[1].output.dense.weight
        )
        assert (
            load_tokenizer(str(folder))("otter").input_ids
            == AutoTokenizer.from_pretrained(encoder_folder)("otter").input_ids
        )
    assert load_config(str(nested)).hidden_size == 32
    assert load_embedder(str(nested)).queries(["otter"]).shape == (1, 16)
    assert load_embedder(str(static)).queries(["otter"]).shape == (1, 32)
    routed = load_embedder(str(router))
    assert not torch.allclose(routed.queries(["otter"]), routed.documents(["otter"]))
    with pytest.raises(RetroMAEError, match="as in a static model; name a masked language model"):
        RetroMAEForPreTraining.from_encoder(str(static))


@pytest.mark.parametrize("kind", ["nested", "static", "router"])
def test_whatever_loads_is_fine_tuned(kind, request, tmp_path, one_thread):
    folder = request.getfixturevalue(kind)
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({"query": one, "positive": f"the {one} sleeps"}) + "\n" for one in ("fox", "wolf", "otter"))
    )
    line = f"finetune --model_name_or_path {folder} --dataset {tmp_path}/pairs.jsonl --output_dir {tmp_path}/out"
    line += " --use_cpu --max_steps 1 --warmup_steps 0 --per_device_train_batch_size 2 --disable_tqdm true"
    assert main(line.split()) == 0
    before, after = (load_embedder(str(one)).queries(["the fox sleeps"]) for one in (folder, tmp_path / "out"))
    assert not torch.equal(before, after)


def test_weights_that_are_missing_or_of_another_shape_are_named(plain, nested, model, tmp_path):
    model.save_pretrained(tmp_path / "run")
    inner = nested / "0_Transformer"
    for folder, load in (
        (plain, RetroMAEForPreTraining.from_encoder),
        (plain, load_sentence_transformer),
        (inner, lambda _: load_embedder(str(nested))),
        (tmp_path / "run", lambda name: load_checkpoint(RetroMAEForPreTraining, name)),
    ):
        file = folder / "model.safetensors"
        whole = file.read_bytes()
        rewrite(file, lambda old: {name: weight for name, weight in old.items() if "layer.1.output.dense" not in name})
        with pytest.raises(
            RetroMAEError, match=r"lacks 2 of its model's weights, \S*layer\.1\.output\.dense\.bias for one"
        ):
            load(str(folder))
        file.write_bytes(whole)
        rewrite(
            file,
            lambda old: {name: weight[:48] if weight.shape[:1] == (64,) else weight for name, weight in old.items()},
        )
        with pytest.raises(RetroMAEError, match=r"\S*0\.intermediate\.\S*bias has the shape \[48\] and should"):
            load(str(folder))
        file.write_bytes(whole)
        load(str(folder))


def test_a_shard_that_is_missing_is_named(plain):
    BertForMaskedLM.from_pretrained(plain).save_pretrained(plain, max_shard_size="20KB")
    (plain / "model.safetensors").unlink(missing_ok=True)
    RetroMAEForPreTraining.from_encoder(str(plain))
    next(plain.glob("model-00002*")).unlink()
    with pytest.raises(RetroMAEError, match="model-00002"):
        load_embedder(str(plain))


def test_nothing_is_said_of_weights_that_no_embedding_is_made_of(encoder_folder, nested, caplog, capsys):
    """A masked LM has no pooler, and an encoder of sentence-transformers no head."""
    caplog.set_level("INFO", "retromae_hf")
    load_embedder(encoder_folder)
    load_embedder(str(nested))
    said = [f"{encoder_folder} is a plain encoder, without modules.json: its embedding is the state of [CLS]"]
    assert [record.message for record in caplog.records if record.name.startswith("retromae_hf")] == said
    printed = "".join(capsys.readouterr())
    assert "REPORT" not in printed
    assert "not sharded" not in printed, "a plan for tensor parallelism"


def test_of_t5_the_encoder_is_enough(tokenizer, tmp_path):
    """It is what sentence-transformers takes of it, and saves."""
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_embedder(str(tmp_path)).queries(["otter"]).shape == (1, 32)


def test_texts_are_padded_behind_them(plain, nested, texts, model, tmp_path):
    """A tokenizer may be told otherwise; a model that pools the last token keeps to that."""
    expected = load_embedder(str(plain)).queries([*texts[:1], "otter"])
    change(plain / "tokenizer_config.json", padding_side="left")
    assert torch.equal(load_embedder(str(plain)).queries([*texts[:1], "otter"]), expected)
    assert load_tokenizer(str(plain)).padding_side == "right"
    left = AutoTokenizer.from_pretrained(plain)
    assert left.padding_side == "left"
    export_encoder(model, left, tmp_path / "exported")
    assert AutoTokenizer.from_pretrained(tmp_path / "exported").padding_side == "right"
    change(nested / "0_Transformer" / "tokenizer_config.json", padding_side="left")
    for mode, side in (("lasttoken", "left"), ("cls", "right"), (["mean", "cls"], "right")):
        change(nested / "1_Pooling" / "config.json", pooling_mode=mode)
        change(nested / "2_Dense" / "config.json", in_features=32 if isinstance(mode, str) else 64)
        if not isinstance(mode, str):
            rewrite(nested / "2_Dense" / "model.safetensors", lambda old: old | {"linear.weight": torch.zeros(16, 64)})
        assert load_sentence_transformer(str(nested), device="cpu").tokenizer.padding_side == side


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_labels": 10**9}, "num_labels=1000000000 is over 100,000"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers=1000000 is over 1,000"),
        ({"n_layers": 10**6}, "n_layers=1000000 is over"),
        ({"num_hidden_groups": 10**6}, "num_hidden_groups=1000000 is over"),
        ({"vocab_size": 10**12}, "vocab_size=1000000000000 is over"),
        ({"max_position_embeddings": 10**10}, "max_position_embeddings=10000000000 is over"),
        ({"text_config": {"num_labels": 10**9}}, "num_labels=1000000000 is over"),
        ({"hidden_size": 10**5 * 4}, r"embeddings.LayerNorm.bias has the shape \[32\] and should have \[400000\]"),
        ({"intermediate_size": 10**9}, r"has the shape \[64\] and should have \[1000000000\]"),
    ],
)
def test_sizes_that_would_take_all_memory_are_an_error(fields, message, plain, nested):
    for folder in (plain, nested / "0_Transformer"):
        change(folder / "config.json", **fields)
    for load in (RetroMAEForPreTraining.from_encoder, load_embedder):
        for folder in (plain, nested):
            with pytest.raises(RetroMAEError, match=message):
                load(str(folder))
    if "is over" in message:
        with pytest.raises(RetroMAEError, match=message):
            load_tokenizer(str(plain))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Puts a folder into the cache of a machine without a network, as someone/model."""

    def put(folder: Path, whole: bool = True) -> None:
        repository = tmp_path / "cache" / "models--someone--model"
        snapshot = shutil.copytree(folder, repository / "snapshots" / REVISION)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(REVISION)
        if whole:  # then the list of the repository's files is kept beside it
            files = [file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file()]
            listed = {"format_version": 1, "files": {name: {"size": 1, "blob_id": "b"} for name in files}}
            (repository / "trees").mkdir()
            (repository / "trees" / f"{REVISION}.json").write_text(json.dumps(listed))
        for constants in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
            monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "cache"))

    return put


@pytest.mark.parametrize("kind", ["nested", "static", "router", "plain"])
def test_a_model_of_the_hub_is_that_of_its_folder(kind, request, cache):
    folder = request.getfixturevalue(kind)
    if kind == "plain":
        change(folder / "config.json", auto_map={"AutoConfig": "own.Config"})
    cache(folder)
    assert model_identity("someone/model") == f"someone/model {REVISION}"
    assert model_fingerprint("someone/model") == model_fingerprint(str(folder))
    of_hub, of_folder = (load_embedder(name).queries(["otter"]) for name in ("someone/model", str(folder)))
    assert torch.equal(of_hub, of_folder)
    if kind != "static":
        model = RetroMAEForPreTraining.from_encoder("someone/model")
        assert model.config.hidden_size == load_config("someone/model").hidden_size == 32
        assert model.encoder.name_or_path == model.config.encoder_config._name_or_path == "someone/model"
        assert load_tokenizer("someone/model")("otter").input_ids


def test_what_other_programs_left_in_the_cache_may_be_a_part(nested, cache):
    """Of a sentence-transformers model `AutoModel` fetches the encoder alone, which does not say how it is pooled."""
    cache(nested / "0_Transformer", whole=False)
    for load in (load_embedder, RetroMAEForPreTraining.from_encoder, load_tokenizer, load_config):
        with pytest.raises(RetroMAEError, match=r"^someone/model holds no model .* with: hf download someone/model$"):
            load("someone/model")


def test_a_pooling_that_is_not_in_the_cache_is_not_another_one(nested, cache):
    (nested / "1_Pooling" / "config.json").unlink()
    cache(nested, whole=False)
    with pytest.raises(RetroMAEError, match="someone/model makes its embeddings by unknown pooling"):
        RetroMAEForPreTraining.from_encoder("someone/model")


def test_a_pickle_of_the_hub_is_refused_by_its_name(plain, cache):
    (plain / "model.safetensors").rename(plain / "pytorch_model.bin")
    cache(plain)
    for load in (RetroMAEForPreTraining.from_encoder, load_embedder):
        with pytest.raises(RetroMAEError, match=r"a pickle such .* with: retromae-hf convert someone/model FOLDER"):
            load("someone/model")


@pytest.mark.parametrize(("kind", "place"), [("nested", "0_Transformer"), ("router", "query_0_StaticEmbedding")])
@pytest.mark.parametrize("told_by", [model_identity, model_fingerprint])
def test_a_model_differs_by_weights_in_its_folders_too(kind, place, told_by, request):
    folder = request.getfixturevalue(kind)
    before = told_by(str(folder))
    rewrite(folder / place / "model.safetensors", lambda old: {name: -one for name, one in old.items()})
    assert told_by(str(folder)) != before
