"""Every known family of encoders: its four answers, training, and the way through save, load and export."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import features_of
from sentence_transformers import SentenceTransformer, SparseEncoder
from torch.nn.functional import linear
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
)

from retromae_hf import (
    DataCollatorForRetroMAE,
    RetroMAEConfig,
    RetroMAEError,
    RetroMAEForPreTraining,
    export_encoder,
    export_sparse_encoder,
    extend_positions,
    register_backbone,
)
from retromae_hf.arguments.pretraining import StartArguments
from retromae_hf.checkpoints.starting_model import load_model_and_tokenizer
from retromae_hf.model.families import BACKBONES, Backbone, backbone_for

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
# What a family calls otherwise, or is known for.
OTHERWISE = {
    "albert": {"embedding_size": 16},
    "electra": {"embedding_size": 16},
    "distilbert": {"hidden_dim": 64, "dropout": 0.0, "attention_dropout": 0.0},
    "deberta-v2": {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 24},
    "eurobert": {"attention_dropout": 0.0},
}


@pytest.fixture(scope="module")
def family_tokenizer(tokenizer) -> BertTokenizer:
    """[PAD] has the id 1, as in RoBERTa's vocabulary; the positions of MPNet and RoBERTa start behind it."""
    first, second, *others = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    vocabulary = {token: index for index, token in enumerate([second, first, *others])}
    return BertTokenizer(vocab=vocabulary, model_max_length=32)


@pytest.fixture(params=BACKBONES)
def encoder_config(request, family_tokenizer):
    if request.param not in CONFIG_MAPPING:
        pytest.skip(f"this version of transformers has no {request.param}")
    special = {"pad_token_id": 1, "bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
    arguments = {**SIZES, "vocab_size": len(family_tokenizer), **special, **OTHERWISE.get(request.param, {})}
    return AutoConfig.for_model(request.param, **arguments)


@pytest.fixture
def batch(family_tokenizer, texts):
    def make(config):
        collator = DataCollatorForRetroMAE.from_config(family_tokenizer, config, seed=0)
        collator.set_epoch(0)
        return collator(features_of(family_tokenizer, [*texts[:7], "the fox"]))

    return make


def model_of(encoder_config, **config) -> RetroMAEForPreTraining:
    torch.manual_seed(0)
    return RetroMAEForPreTraining(RetroMAEConfig(encoder_config=encoder_config, **config))


def is_tied(encoder_config) -> bool:
    return encoder_config.model_type not in ("rembert", "eurobert")


def test_the_answers_are_what_the_encoder_itself_computes(encoder_config, batch):
    model = model_of(encoder_config).eval()
    inputs = {name: tensor for name, tensor in batch(model.config).items() if name in ("input_ids", "attention_mask")}
    real = inputs["attention_mask"].bool()
    plain = model.encoder(**inputs, output_hidden_states=True)
    states = model.encode(**inputs)
    logits = linear(
        model.backbone.head_features(model.encoder, states), *model.backbone.output_projection(model.encoder)
    )
    assert torch.allclose(logits[real], plain.logits[real], atol=1e-6)
    embedded = model.backbone.embed(model.encoder, inputs["input_ids"])
    assert torch.allclose(embedded[real], plain.hidden_states[0][real], atol=1e-6)


def test_positions_are_those_of_the_tokens(encoder_config, batch):
    model = model_of(encoder_config).eval()
    positions = model.backbone.position_embeddings(model.encoder, 5)
    if positions is None:
        assert model.decoder_positions.weight.shape == (40, 32)
        return
    assert positions.shape == (5, 32)
    # Without its table an encoder embeds one token alike at every position.
    ids = torch.full((1, 5), 9)
    table = model.encoder.base_model.embeddings.position_embeddings.weight
    with torch.no_grad():
        table.zero_()
        table[model.backbone.position_offset(encoder_config) + 3].normal_()
    embedded = model.backbone.embed(model.encoder, ids)[0]
    assert [torch.allclose(row, embedded[0]) for row in embedded] == [True, True, True, False, True]
    moved = model.backbone.position_embeddings(model.encoder, 5)
    assert moved.any(dim=1).tolist() == [False, False, False, True, False]


def test_a_checkpoint_stays_tied_and_opens_as_an_encoder(encoder_config, batch, tmp_path):
    model = model_of(encoder_config).eval()
    inputs = batch(model.config)
    model.save_pretrained(tmp_path)
    again = RetroMAEForPreTraining.from_pretrained(tmp_path).eval()
    assert torch.equal(again(**inputs).loss, model(**inputs).loss)
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == is_tied(encoder_config)
    plain = AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(
        plain(inputs["input_ids"], inputs["attention_mask"]).pooler_output, model(**inputs).sentence_embedding
    )


@pytest.mark.parametrize("method", ["tile", "interpolate"])
def test_more_positions(encoder_config, batch, tmp_path, method):
    model = model_of(encoder_config).eval()
    backbone, config = model.backbone, model.config.encoder_config
    before = backbone.max_positions(config)
    inputs = batch(model.config)
    positions = backbone.position_embeddings(model.encoder, before)
    table = model.decoder_positions.weight if positions is None else positions
    known = table.detach().clone()
    loss = model(**inputs).loss
    extend_positions(model, 3 * before, method)
    table = (
        model.decoder_positions.weight if positions is None else backbone.position_embeddings(model.encoder, 3 * before)
    )
    assert backbone.max_positions(config) == 3 * before
    assert len(table) == 3 * before
    if method == "tile":
        assert torch.equal(table, known.repeat(3, 1))
        assert torch.equal(model(**inputs).loss, loss)  # a passage of the old length notices nothing
    else:
        assert torch.allclose(table[[0, -1]], known[[0, -1]])
        assert torch.allclose(table[1], known[0] + (known[1] - known[0]) * (before - 1) / (3 * before - 1), atol=1e-6)
    ids = torch.randint(5, 90, (2, 3 * before))
    longer = {"input_ids": ids, "labels": ids, "decoder_input_ids": ids, "decoder_labels": ids}
    longer["visibility_seed"] = torch.arange(2)
    model.save_pretrained(tmp_path)
    again = RetroMAEForPreTraining.from_pretrained(tmp_path).eval()
    assert again.config.encoder_config.position_extension == {"from": before, "to": 3 * before, "method": method}
    assert torch.equal(again(**longer).loss, model(**longer).loss)
    with pytest.raises(RetroMAEError, match="no fewer than"):
        extend_positions(model, before, method)
    with pytest.raises(RetroMAEError, match="extend_positions='stretch'"):
        extend_positions(model, 9 * before, "stretch")


def test_extended_positions_are_exported(encoder_config, family_tokenizer, texts, tmp_path):
    model = model_of(encoder_config).eval()
    extend_positions(model, 96)
    family_tokenizer.model_max_length = 96
    try:
        export_encoder(model, family_tokenizer, tmp_path)
    finally:
        family_tokenizer.model_max_length = 32
    encoder = SentenceTransformer(str(tmp_path), device="cpu")
    assert encoder.max_seq_length == 96
    inputs = family_tokenizer(" ".join(texts), truncation=True, max_length=96, return_tensors="pt")
    ours = model.encode(inputs["input_ids"])[:, 0]
    assert torch.allclose(encoder.encode([" ".join(texts)], convert_to_tensor=True), ours, atol=1e-6)
    assert AutoConfig.from_pretrained(tmp_path).position_extension["to"] == 96


def test_export_loads_everywhere(encoder_config, family_tokenizer, texts, tmp_path):
    model = model_of(encoder_config).eval()
    export_encoder(model, family_tokenizer, tmp_path)
    inputs = family_tokenizer(texts[:4], padding=True, truncation=True, max_length=32, return_tensors="pt")
    ours = model.encode(inputs["input_ids"], inputs["attention_mask"])[:, 0]
    kept = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    theirs = AutoModel.from_pretrained(tmp_path).eval()(**kept).last_hidden_state[:, 0]
    assert torch.allclose(theirs, ours, atol=1e-6)
    sentences = SentenceTransformer(str(tmp_path), device="cpu").encode(texts[:4], convert_to_tensor=True)
    assert torch.allclose(sentences, ours, atol=1e-6)
    masked = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert torch.allclose(masked(**kept).logits, model.encoder(**kept).logits, atol=1e-6)
    sparse = SparseEncoder(str(export_sparse_encoder(model, family_tokenizer, tmp_path / "sparse")), device="cpu")
    logits = model.encoder(**kept).logits * kept["attention_mask"][..., None]
    weights = sparse.encode(texts[:4], convert_to_tensor=True).to_dense()
    assert torch.allclose(weights, logits.clamp(min=0).amax(1).log1p(), atol=1e-6)


def test_starting_from_a_checkpoint_keeps_its_weights(encoder_config, family_tokenizer, batch, tmp_path):
    encoder = AutoModelForMaskedLM.from_config(encoder_config).eval()
    encoder.save_pretrained(tmp_path)
    model = RetroMAEForPreTraining.from_encoder(str(tmp_path)).eval()
    inputs = batch(model.config)
    kept = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(model.encoder(**kept).logits, encoder(**kept).logits)


def test_an_encoder_without_a_head_gets_a_new_one(encoder_config, batch, tmp_path, caplog):
    """One sentence says so; a part of the encoder or of its head that is missing is an error."""
    plain = AutoModelForMaskedLM.from_config(encoder_config).eval()
    plain.base_model.save_pretrained(tmp_path / "bare")
    model = RetroMAEForPreTraining.from_encoder(str(tmp_path / "bare")).eval()
    inputs = {name: tensor for name, tensor in batch(model.config).items() if name in ("input_ids", "attention_mask")}
    assert torch.equal(model.encode(**inputs), plain.base_model(**inputs).last_hidden_state)
    assert [record.message for record in caplog.records] == ["the encoder has no MLM head; a new one is trained"]
    trained = set(model.encoder.base_model.parameters())
    assert {name for name, one in model.named_parameters() if one not in trained} == model.new_parameters
    weights = plain.state_dict()
    inside = [name for name in weights if name.startswith(plain.base_model_prefix)]
    of_encoder = min(name for name in inside if "ayer" in name)
    of_head = [name for name in weights if name not in inside and weights[name].dim() == 2]
    # A head of one weight is there as a whole or not at all.
    for name in (of_encoder, *(of_head[:1] if len(of_head) > 1 else [])):
        plain.save_pretrained(tmp_path / "part", state_dict={one: weights[one] for one in weights if one != name})
        with pytest.raises(RetroMAEError, match=f"lacks 1 of its model's weights, {name} for one"):
            RetroMAEForPreTraining.from_encoder(str(tmp_path / "part"))


def test_tokens_that_were_added_go_the_whole_way(encoder_config, batch, family_tokenizer, tmp_path):
    AutoModelForMaskedLM.from_config(encoder_config).save_pretrained(tmp_path / "encoder")
    tokenizer = copy.deepcopy(family_tokenizer)
    tokenizer.add_tokens(["zorgblatt", "quux"])
    tokenizer.save_pretrained(tmp_path / "encoder")
    started = StartArguments(str(tmp_path / "encoder"), resize_token_embeddings=True)
    model, _ = load_model_and_tokenizer(started, [], 32)
    assert model.config.vocab_size == len(tokenizer) == encoder_config.vocab_size + 2
    with pytest.raises(RetroMAEError, match="make room for tokens that you added to it with --resize_token_embeddings"):
        load_model_and_tokenizer(StartArguments(str(tmp_path / "encoder")), [], 32)
    inputs = batch(model.config)
    inputs["input_ids"][0, 1] = inputs["labels"][0, 1] = inputs["decoder_labels"][0, 1] = len(tokenizer) - 1
    loss = model.eval()(**inputs).loss
    assert loss.isfinite()
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again, _ = load_model_and_tokenizer(StartArguments(str(tmp_path / "saved")), [], 32)
    assert torch.equal(again.eval()(**inputs).loss, loss)
    export_encoder(model, tokenizer, tmp_path / "exported")
    kept = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    exported = AutoModelForMaskedLM.from_pretrained(tmp_path / "exported").eval()
    assert torch.equal(exported(**kept).logits, model.encoder(**kept).logits)


@pytest.mark.parametrize("legacy", [True, False])
def test_resizing_the_vocabulary_keeps_it_tied(encoder_config, legacy, batch):
    if not legacy and encoder_config.model_type != "deberta-v2":
        pytest.skip("DeBERTa alone has two heads")
    encoder_config.legacy = legacy
    model = model_of(encoder_config)
    model.resize_token_embeddings(encoder_config.vocab_size + 8)
    weight, bias = model.backbone.output_projection(model.encoder)
    assert (weight is model.get_input_embeddings().weight) == is_tied(encoder_config)
    assert len(weight) == model.config.vocab_size
    assert bias is None or len(bias) == model.config.vocab_size
    assert model(**batch(model.config)).loss.isfinite()


def test_dupmae_where_the_embedding_has_the_hidden_size(encoder_config, batch):
    options = {"decoder_query": "embedded", "bow_loss_weight": 0.1}
    if backbone_for(encoder_config).embedding_size(encoder_config) != encoder_config.hidden_size:
        with pytest.raises(RetroMAEError, match="use decoder_query='sum'"):
            model_of(encoder_config, **options)
        return
    model = model_of(encoder_config, **options)
    output = model(**batch(model.config))
    output.loss.backward()
    assert output.loss.isfinite()
    assert output.bow_loss > 0


def test_deberta_with_a_position_table_and_smaller_embeddings(family_tokenizer, batch):
    """Its embedding module projects by itself, so the decoder's positions must go the same way, once."""
    options = {**SIZES, **OTHERWISE["deberta-v2"], "position_biased_input": True, "embedding_size": 16}
    config = AutoConfig.for_model("deberta-v2", vocab_size=len(family_tokenizer), pad_token_id=1, **options)
    model = model_of(config)
    positions = model.backbone.position_embeddings(model.encoder, 5)
    embeddings = model.encoder.base_model.embeddings
    assert torch.allclose(positions, embeddings.embed_proj(embeddings.position_embeddings.weight[:5]))
    inputs = batch(model.config)
    assert model.backbone.embed(model.encoder, inputs["input_ids"]).shape == (*inputs["input_ids"].shape, 32)
    model(**inputs).loss.backward()
    assert embeddings.position_embeddings.weight.grad.abs().sum() > 0


class MeadowConfig(BertConfig):
    model_type = "meadow"


class MeadowModel(BertModel):
    config_class = MeadowConfig


class MeadowForMaskedLM(BertForMaskedLM):
    config_class = MeadowConfig


class MeadowBackbone(Backbone):
    title = "Meadow"


@pytest.fixture
def meadow(monkeypatch):
    """A family of a user's own, known to transformers and, here, to the package."""
    monkeypatch.setattr("retromae_hf.model.families.BACKBONES", dict(BACKBONES))
    AutoConfig.register("meadow", MeadowConfig)
    AutoModelForMaskedLM.register(MeadowConfig, MeadowForMaskedLM)
    AutoModel.register(MeadowConfig, MeadowModel)
    yield
    CONFIG_MAPPING._extra_content.pop("meadow")
    for auto in (AutoModelForMaskedLM, AutoModel):
        auto._model_mapping._extra_content.pop(MeadowConfig)


def test_a_family_of_ones_own(meadow, family_tokenizer, batch, tmp_path):
    sizes = {**SIZES, "vocab_size": len(family_tokenizer), "pad_token_id": 1}
    with pytest.raises(RetroMAEError, match=r"'meadow' are not supported; .* can be added with register_backbone"):
        model_of(MeadowConfig(**sizes))
    register_backbone("meadow", MeadowBackbone())
    model = model_of(MeadowConfig(**sizes))
    inputs = batch(model.config)
    model(**inputs).loss.backward()
    model.eval().save_pretrained(tmp_path / "checkpoint")
    again = RetroMAEForPreTraining.from_pretrained(tmp_path / "checkpoint").eval()
    assert torch.equal(again(**inputs).loss, model(**inputs).loss)
    folder = export_encoder(model, family_tokenizer, tmp_path / "encoder")
    plain = AutoModelForMaskedLM.from_pretrained(folder)
    assert isinstance(plain, MeadowForMaskedLM)
    with pytest.raises(RetroMAEError, match="'meadow' are known already"):
        register_backbone("meadow", MeadowBackbone())
    with pytest.raises(RetroMAEError, match="takes an instance of a Backbone"):
        register_backbone("hills", MeadowBackbone)


def test_a_family_without_cls_is_pooled_by_the_mean(family_tokenizer, tmp_path):
    config = AutoConfig.for_model("eurobert", **SIZES, vocab_size=len(family_tokenizer), pad_token_id=1)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    assert RetroMAEForPreTraining.from_encoder(str(tmp_path)).config.pooling == "mean"
    assert RetroMAEForPreTraining.from_encoder(str(tmp_path), pooling="cls").config.pooling == "cls"
