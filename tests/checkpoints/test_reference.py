"""The figures of the released implementation come out here."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, XLMRobertaConfig, XLMRobertaForMaskedLM
from transformers.models.bert.modeling_bert import BertLayer

from retromae_hf import RetroMAEError, load_reference_checkpoint
from retromae_hf.checkpoints.foreign import DECODER_MODULES

# The two released objectives.
OBJECTIVES = {"retromae": {}, "dupmae": {"decoder_query": "embedded", "bow_loss_weight": 0.1}}


@pytest.fixture(scope="module")
def expected(reference_folder):
    return json.loads((reference_folder / "expected.json").read_text())


def losses_of(model, batch):
    return model(
        input_ids=batch["encoder_input_ids"],
        attention_mask=batch["attention_mask"],
        labels=batch["encoder_labels"],
        decoder_input_ids=batch["input_ids"],
        decoder_labels=batch["decoder_labels"],
        decoder_visibility=batch["decoder_visible"].bool(),
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_and_gradients_agree_with_the_released_code(reference_folder, expected, objective):
    model = load_reference_checkpoint(
        reference_folder / "weights.safetensors", BertConfig(**expected["config"]), **OBJECTIVES[objective]
    )
    output = losses_of(model, load_file(reference_folder / "batch.safetensors"))
    parts = {"total": "loss", "encoder_mlm": "mlm_loss", "decoder": "decoder_loss", "bag_of_words": "bow_loss"}
    for name, part in parts.items():
        if name in expected[objective]:
            assert abs(output[part].item() - expected[objective][name]) < 1e-9, name
        else:
            assert part not in output
    output.loss.backward()
    norms = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}
    assert len(norms) == len(expected[f"{objective}_grad_norm"])
    for name, norm in expected[f"{objective}_grad_norm"].items():
        # The gradient of a key's bias is 0 but for rounding: softmax does not change when all scores shift.
        assert norms[our_name(name)] == pytest.approx(norm, rel=1e-7, abs=1e-15), name


def our_name(name: str) -> str:
    if name.startswith("lm."):
        return "encoder." + name.removeprefix("lm.")
    module, _, parameter = name.removeprefix("c_head.").rpartition(".")
    return f"decoder.0.{DECODER_MODULES[module]}.{parameter}"


@pytest.fixture
def released_layout(model):
    """This package's tiny model in the released layout."""
    back = {ours: theirs for theirs, ours in DECODER_MODULES.items()}
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("encoder."):
            state["lm." + name.removeprefix("encoder.")] = tensor.clone()
        else:
            module, parameter = name.removeprefix("decoder.0.").split(".")
            state[f"c_head.{back[module]}.{parameter}"] = tensor.clone()
    return state


def test_a_state_dict_a_file_and_a_folder_are_alike(released_layout, model, encoder_config, tmp_path):
    released_layout["lm.bert.embeddings.position_ids"] = torch.arange(32)[None]  # as old versions wrote it
    save_file(released_layout, tmp_path / "model.safetensors")
    for source in (released_layout, tmp_path / "model.safetensors", str(tmp_path)):
        loaded = load_reference_checkpoint(source, encoder_config)
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name


def test_the_tied_projection_may_be_left_out(released_layout, model, encoder_config):
    for name in ("lm.cls.predictions.decoder.weight", "lm.cls.predictions.decoder.bias"):
        del released_layout[name]
    loaded = load_reference_checkpoint(released_layout, encoder_config)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert torch.equal(loaded.get_output_embeddings().bias, model.get_output_embeddings().bias)


def test_an_xlm_roberta_checkpoint_of_the_successor():
    """Its decoder rebuilds what the successor's equations say, written here one query at a time with BERT's layer."""
    config = XLMRobertaConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=34,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    encoder, layer = XLMRobertaForMaskedLM(config).double().eval(), BertLayer(config).double().eval()
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *layer.parameters()):
            parameter += 0.1 * torch.randn_like(parameter)  # norms and biases that are not those of a new model
    embeddings = encoder.roberta.embeddings
    weights = {f"lm.{name}": tensor for name, tensor in encoder.state_dict().items()}
    weights |= {f"c_head.{name}": tensor for name, tensor in layer.state_dict().items()}
    weights |= {f"decoder_embeddings.{name}": tensor for name, tensor in embeddings.state_dict().items()}
    weights["lm.roberta.embeddings.position_ids"] = torch.arange(34)[None]
    model = load_reference_checkpoint(weights, config)

    ids = torch.randint(5, 60, (2, 12))
    ids[:, 0], ids[:, -1] = 0, 2
    labels = ids.masked_fill(ids <= 2, -100)
    visible = torch.rand(2, 12, 12) < 0.5
    visible[:, :, 0] = True
    output = model(ids, labels=labels, decoder_input_ids=ids, decoder_labels=labels, decoder_visibility=visible)

    h = encoder.roberta(ids).last_hidden_state[:, :1]
    context = torch.cat([h, embeddings(input_ids=ids)[:, 1:]], dim=1)
    queries = embeddings(inputs_embeds=h.expand_as(context))
    attention, losses = layer.attention.self, []
    for b, i in (labels != -100).nonzero().tolist():
        seen = context[b, visible[b, i]]
        q = attention.query(queries[b, i]).view(4, 8)
        k, v = (projection(seen).view(-1, 4, 8) for projection in (attention.key, attention.value))
        shares = (torch.einsum("hd,khd->hk", q, k) / 8**0.5).softmax(1)
        attended = torch.einsum("hk,khd->hd", shares, v).flatten()
        state = layer.attention.output(attended[None], queries[b, i][None])
        state = layer.output(layer.intermediate(state), state)
        losses.append(torch.nn.functional.cross_entropy(encoder.lm_head(state), labels[b, i][None]))
    assert torch.allclose(output.decoder_loss, torch.stack(losses).mean(), rtol=0, atol=1e-9)
    assert torch.allclose(output.mlm_loss, encoder(ids, labels=labels).loss, rtol=0, atol=1e-9)


def test_what_does_not_fit_is_refused(released_layout, encoder_config, tmp_path):
    with pytest.raises(RetroMAEError, match="does not exist"):
        load_reference_checkpoint(tmp_path / "nothing.safetensors", encoder_config)
    (tmp_path / "pickle.bin").write_bytes(b"\x80\x04not a checkpoint")
    with pytest.raises(RetroMAEError, match="not a safetensors file"):
        load_reference_checkpoint(tmp_path / "pickle.bin", encoder_config)
    with pytest.raises(RetroMAEError, match="missing"):
        load_reference_checkpoint(
            {name: tensor for name, tensor in released_layout.items() if name.startswith("lm.")}, encoder_config
        )
    with pytest.raises(RetroMAEError, match="do not fit"):
        load_reference_checkpoint(released_layout, BertConfig(**encoder_config.to_diff_dict() | {"hidden_size": 64}))
