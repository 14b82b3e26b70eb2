"""The model computes RetroMAE's equations, keeps what it learned, and fits into Trainer."""

from __future__ import annotations

import math
import warnings

import pytest
import support
import torch
from conftest import features_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, gelu
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
)
from transformers.models.bert.modeling_bert import BertLayer

from retromae_hf import DataCollatorForRetroMAE, RetroMAEConfig, RetroMAEError, RetroMAEForPreTraining, RetroMAEModel
from retromae_hf.checkpoints.foreign import DECODER_MODULES
from retromae_hf.model.counting import labels_in_slots
from retromae_hf.model.decoder import DecoderLayer
from retromae_hf.model.families import DecoderShape
from retromae_hf.model.masking import IGNORE_INDEX, visibility_mask
from retromae_hf.model.modeling_retromae import DecoderInputs


@pytest.fixture
def batch(tokenizer, texts):
    collator = DataCollatorForRetroMAE(tokenizer, seed=0)
    collator.set_epoch(0)
    return collator(features_of(tokenizer, [texts[0], texts[1][:30], texts[2][:60], texts[3]]))


def decode_row_by_row(model, h, batch, visible):
    """Enhanced decoding as the paper writes it: one query at a time, and logits (section 3.3)."""
    embeddings, layer = model.encoder.bert.embeddings, model.decoder[0]
    heads, losses = layer.num_heads, []
    for b in range(len(h)):
        hidden = embeddings(batch["decoder_input_ids"][b : b + 1])[0]
        context = torch.cat([h[b : b + 1], hidden[1:]])
        for i, label in enumerate(batch["decoder_labels"][b].tolist()):
            if label == IGNORE_INDEX:
                continue
            query = h[b] + embeddings.position_embeddings.weight[i]
            seen = context[visible[b, i]]
            q = layer.query(query).view(heads, -1)
            k, v = layer.key(seen).view(len(seen), heads, -1), layer.value(seen).view(len(seen), heads, -1)
            scores = torch.einsum("hd,khd->hk", q, k) / math.sqrt(q.shape[1])
            attended = torch.einsum("hk,khd->hd", scores.softmax(1), v).flatten()
            state = layer.attention_norm(query + layer.attention_output(attended))
            state = layer.output_norm(state + layer.output(gelu(layer.intermediate(state))))
            losses.append(cross_entropy(model.encoder.cls(state[None]), torch.tensor([label])))
    return torch.stack(losses).mean()


def test_the_losses_are_the_papers(model, batch):
    model = model.double()
    output = model(**batch)
    plain = model.encoder(batch["input_ids"], batch["attention_mask"], labels=batch["labels"])
    h = model.encoder.bert(batch["input_ids"], batch["attention_mask"]).last_hidden_state[:, 0]
    lengths = batch["attention_mask"].sum(1)
    visible = visibility_mask(batch["visibility_seed"], lengths, 0.5, batch["input_ids"].shape[1])
    expected = decode_row_by_row(model, h, batch, visible)
    assert torch.allclose(output.mlm_loss, plain.loss, rtol=0, atol=1e-12)
    assert torch.allclose(output.decoder_loss, expected, rtol=0, atol=1e-12)
    assert torch.allclose(output.loss, plain.loss + expected, rtol=0, atol=1e-12)
    assert torch.equal(output.sentence_embedding, h)
    ours = torch.autograd.grad(output.loss, list(model.parameters()))
    theirs = torch.autograd.grad(plain.loss + expected, list(model.parameters()))
    for gradient, other in zip(ours, theirs, strict=True):
        assert torch.allclose(gradient, other, rtol=1e-9, atol=1e-12)


def test_basic_decoding_by_hand():
    """A decoder small enough to follow with pencil and paper, for three passages of [CLS], two tokens and [SEP].

    The embeddings' norm is set to zero, so every token is (0, 0). Scores are zero too, so every row takes the mean of
    h, 0, 0 and 0: (1, 0) for h = (4, 0), and its norm is (1, -1); for h = (0, 4) it is (-1, 1). The feed-forward adds
    nothing and the head leaves the signs alone. Token 2's weights are (log 3 / 2, -log 3 / 2), all others' zero, so
    that its logit among four tokens is log 3 or -log 3, its probability 3 / 6 or (1/3) / (10/3).
    """
    config = BertConfig(vocab_size=4, hidden_size=2, num_hidden_layers=1, num_attention_heads=1, intermediate_size=2)
    model = RetroMAEForPreTraining(RetroMAEConfig(encoder_config=config, decoding="basic")).double().eval()
    layer, head, identity = model.decoder[0], model.encoder.cls.predictions, torch.eye(2, dtype=torch.float64)
    with torch.no_grad():
        model.encoder.bert.embeddings.LayerNorm.weight.zero_()
        for linear in (layer.query, layer.key, layer.intermediate, layer.output):
            linear.weight.zero_()
        for linear in (layer.value, layer.attention_output, head.transform.dense):
            linear.weight.copy_(identity)
        model.get_input_embeddings().weight.zero_()
        model.get_input_embeddings().weight[2] = torch.tensor([math.log(3) / 2, -math.log(3) / 2])
    h = torch.tensor([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([[-100, 2, -100, -100], [-100, -100, 2, -100], [-100, 1, 2, -100]])
    states, targets = model.decode(h, DecoderInputs(torch.full((3, 4), 3), labels))
    assert targets.tolist() == [2, 2, 1, 2]
    assert torch.allclose(states, torch.tensor([[1.0, -1], [-1, 1], [1, -1], [1, -1]], dtype=torch.float64))
    expected = (math.log(2) + math.log(10) + math.log(6) + math.log(2)) / 4
    assert model.token_loss(states, targets).item() == pytest.approx(
        expected, abs=1e-8
    )  # a norm divides by the root of 1 + 1e-12


def test_a_condenser_reads_the_late_cls_and_the_middle_layers_tokens(encoder_config, tokenizer, texts):
    """Condenser (section 3.2), with transformers' own BERT layer and logits."""
    config = RetroMAEConfig(encoder_config=encoder_config, decoding="condenser", num_decoder_layers=2)
    model = RetroMAEForPreTraining(config).double().eval()
    collator = DataCollatorForRetroMAE.from_config(tokenizer, config, seed=0)
    collator.set_epoch(0)
    batch = collator(features_of(tokenizer, [*texts[:4], "The fox slept."]))
    assert set(batch) == {"input_ids", "attention_mask", "labels", "label_slots", "passage_id"}
    output = model(**batch)

    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    hidden = model.encoder.bert(**inputs, output_hidden_states=True).hidden_states
    state = torch.cat([hidden[-1][:, :1], hidden[1][:, 1:]], dim=1)  # of two layers the first is the early half
    mask = (1.0 - batch["attention_mask"][:, None, None].double()) * torch.finfo(torch.float64).min
    for ours in model.decoder:
        theirs = BertLayer(BertConfig(**encoder_config.to_dict(), attn_implementation="eager")).double().eval()
        theirs.load_state_dict(
            {
                f"{module}.{parameter}": tensor
                for module, name in DECODER_MODULES.items()
                for parameter, tensor in getattr(ours, name).state_dict().items()
            }
        )
        state = theirs(state, mask)
        state = state[0] if isinstance(state, tuple) else state
    labels = batch["labels"].flatten()
    head_loss = cross_entropy(model.encoder.cls(state).flatten(0, 1), labels)
    late_loss = model.encoder(**inputs, labels=batch["labels"]).loss
    assert torch.allclose(output.decoder_loss, head_loss, rtol=0, atol=1e-9)
    assert torch.allclose(output.mlm_loss, late_loss, rtol=0, atol=1e-9)
    assert torch.allclose(output.loss, head_loss + late_loss, rtol=0, atol=1e-9)


@pytest.mark.parametrize("decoding", ["enhanced", "basic", "condenser"])
@pytest.mark.parametrize("layers", [1, 2])
def test_padding_changes_nothing(encoder_config, tokenizer, texts, decoding, layers):
    config = RetroMAEConfig(encoder_config=encoder_config, decoding=decoding, num_decoder_layers=layers)
    model = RetroMAEForPreTraining(config).double().eval()
    losses = []
    for multiple in (1, 16):
        collator = DataCollatorForRetroMAE.from_config(tokenizer, config, seed=0, pad_to_multiple_of=multiple)
        collator.set_epoch(0)
        losses.append(model(**collator(features_of(tokenizer, texts[:5], 24))).loss)
    assert torch.allclose(*losses, rtol=0, atol=1e-12)


def test_basic_decoding_reads_the_passage_through_the_embedding_only(encoder_config, tokenizer, texts):
    """Position 0 of the decoder's input is the sentence embedding: the token there does not matter."""
    config = RetroMAEConfig(encoder_config=encoder_config, decoding="basic")
    model = RetroMAEForPreTraining(config).eval()
    collator = DataCollatorForRetroMAE.from_config(tokenizer, config, seed=0)
    collator.set_epoch(0)
    batch = collator(features_of(tokenizer, texts[:3]))
    before = model(**batch).decoder_loss
    batch["decoder_input_ids"][:, 0] = 17
    assert torch.equal(before, model(**batch).decoder_loss)


def loss_and_gradients(model, batch):
    torch.manual_seed(0)
    loss = model(**batch).loss
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("block", [7, 64])
@pytest.mark.parametrize("objective", ["retromae", "whole-word", "dupmae"])
def test_attention_by_blocks_is_attention(objective, block, monkeypatch):
    model, batch, _ = support.prepare(objective, "bert", support.new_tokenizer())
    model = model.double()
    plain = loss_and_gradients(model, batch)
    monkeypatch.setattr("retromae_hf.model.modeling_retromae.LONG_PASSAGE", 1)
    monkeypatch.setattr("retromae_hf.model.decoder.BLOCK_ROWS", block)
    for tensor, expected in zip(loss_and_gradients(model, batch), plain, strict=True):
        assert torch.allclose(tensor, expected, rtol=0, atol=1e-12)


def test_attention_by_blocks_keeps_no_mask_of_all_rows(monkeypatch):
    layer = DecoderLayer(DecoderShape(32, 4, 64, "gelu", 0.0, 0.0))
    queries, context = torch.randn(1, 40, 32, requires_grad=True), torch.randn(1, 50, 32)
    monkeypatch.setattr("retromae_hf.model.decoder.BLOCK_ROWS", 8)
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda kind: kept.append(kind.shape) or kind, lambda kind: kind):
        layer.attend(queries, context, lambda start, stop: torch.ones(1, stop - start, 50, dtype=torch.bool))
    assert kept
    assert not [shape for shape in kept if shape[-1:] == (50,)]


def test_a_block_computed_once_more_drops_out_the_same(monkeypatch):
    model, batch, _ = support.prepare("retromae", "bert", support.new_tokenizer())
    model = model.double().train()
    model.decoder[0].attention_dropout = 0.3
    monkeypatch.setattr("retromae_hf.model.modeling_retromae.LONG_PASSAGE", 1)
    monkeypatch.setattr("retromae_hf.model.decoder.BLOCK_ROWS", 7)
    twice = loss_and_gradients(model, batch)
    monkeypatch.setattr("retromae_hf.model.decoder.checkpoint", lambda attend, *args, use_reentrant: attend(*args))
    for tensor, expected in zip(twice, loss_and_gradients(model, batch), strict=True):
        assert torch.allclose(tensor, expected, rtol=0, atol=1e-12)


def test_a_row_does_not_depend_on_its_own_token_nor_on_hidden_ones(model, batch):
    """Change a token: only the rows that may see its column change."""
    visible = visibility_mask(
        batch["visibility_seed"], batch["attention_mask"].sum(1), 0.5, batch["input_ids"].shape[1]
    )
    h = torch.randn(4, 32)
    arguments = {name: batch[name] for name in ("decoder_labels", "attention_mask", "visibility_seed")}
    before, _ = model.decode(h, DecoderInputs(batch["decoder_input_ids"], **arguments))
    changed = batch["decoder_input_ids"].clone()
    changed[:, 5] = (changed[:, 5] + 1) % 100
    after, _ = model.decode(h, DecoderInputs(changed, **arguments))
    rows = (batch["decoder_labels"] != IGNORE_INDEX).nonzero()
    differs = (before != after).any(1)
    assert differs.any()
    for (passage, row), different in zip(rows.tolist(), differs.tolist(), strict=True):
        assert different == visible[passage, row, 5].item()


def test_a_row_that_sees_nothing_makes_no_nan(model, batch):
    size = batch["input_ids"].shape[1]
    output = model(**batch, decoder_visibility=torch.zeros(4, size, size, dtype=torch.bool))
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_given_visibility_overrides_the_drawn_one(model, batch):
    lengths, size = batch["attention_mask"].sum(1), batch["input_ids"].shape[1]
    drawn = visibility_mask(batch["visibility_seed"], lengths, 0.5, size)
    same = model(**batch, decoder_visibility=drawn)
    other = model(**batch, decoder_visibility=visibility_mask(batch["visibility_seed"] + 1, lengths, 0.5, size))
    assert same.loss == model(**batch).loss != other.loss


def test_without_a_seed_the_mask_follows_torchs_generator(model, batch):
    del batch["visibility_seed"]
    torch.manual_seed(5)
    first, second = model(**batch).loss, model(**batch).loss
    torch.manual_seed(5)
    assert first == model(**batch).loss != second


def test_no_labels_no_losses(model, batch):
    output = model(batch["input_ids"], batch["attention_mask"])
    assert output.loss is output.mlm_loss is output.decoder_loss is None
    assert output.sentence_embedding.shape == (4, 32)


@pytest.mark.parametrize("decoding", ["enhanced", "basic", "condenser", "none"])
def test_the_sentence_embedding_may_be_the_mean_of_the_real_tokens(encoder_config, batch, decoding, tmp_path):
    """In place of [CLS] everywhere: the decoder is given it, whatever stands in the padding."""
    config = RetroMAEConfig(encoder_config=encoder_config, pooling="mean", decoding=decoding)
    model = RetroMAEForPreTraining(config).eval()
    states = model.encode(batch["input_ids"], batch["attention_mask"])
    expected = torch.stack([rows[:n].mean(0) for rows, n in zip(states, batch["attention_mask"].sum(1), strict=True)])
    if decoding != "enhanced":
        batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    output = model(**batch)
    assert torch.allclose(output.sentence_embedding, expected, atol=1e-6)
    if decoding == "enhanced":
        lengths, size = batch["attention_mask"].sum(1), batch["input_ids"].shape[1]
        visible = visibility_mask(batch["visibility_seed"], lengths, 0.5, size)
        assert torch.allclose(output.decoder_loss, decode_row_by_row(model, expected, batch, visible), atol=1e-5)
    model.save_pretrained(tmp_path)
    again = RetroMAEModel.from_pretrained(tmp_path).eval()
    assert torch.allclose(again(batch["input_ids"], batch["attention_mask"]).pooler_output, expected, atol=1e-6)


def test_weights_of_the_losses(encoder_config, batch):
    model = RetroMAEForPreTraining(RetroMAEConfig(encoder_config=encoder_config, mlm_loss_weight=0.25)).eval()
    output = model(**batch)
    assert torch.allclose(output.loss, 0.25 * output.mlm_loss + output.decoder_loss)


@pytest.mark.parametrize("decoding", ["enhanced", "basic", "condenser", "none"])
def test_a_checkpoint_restores_identical_losses(encoder_config, tokenizer, texts, tmp_path, decoding):
    config = RetroMAEConfig(encoder_config=encoder_config, decoding=decoding, num_decoder_layers=2)
    model = RetroMAEForPreTraining(config).eval()
    collator = DataCollatorForRetroMAE.from_config(tokenizer, config, seed=0)
    collator.set_epoch(0)
    batch = collator(features_of(tokenizer, texts[:4]))
    model.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    for auto_class in (RetroMAEForPreTraining, AutoModelForPreTraining):
        again = auto_class.from_pretrained(tmp_path).eval()
        assert isinstance(again, RetroMAEForPreTraining)
        assert again(**batch).loss == model(**batch).loss
        assert again.get_output_embeddings().weight is again.get_input_embeddings().weight


def test_auto_classes_find_the_encoder_alone(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(encoder, RetroMAEModel)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), RetroMAEConfig)
    output = encoder(batch["input_ids"], batch["attention_mask"])
    assert torch.equal(output.pooler_output, model(batch["input_ids"], batch["attention_mask"]).sentence_embedding)


def test_from_encoder_keeps_the_encoder(encoder_folder, batch):
    model = RetroMAEForPreTraining.from_encoder(encoder_folder, decoder_mask_ratio=0.7).eval()
    plain = BertForMaskedLM.from_pretrained(encoder_folder).eval()
    assert model.config.decoder_mask_ratio == 0.7
    expected = plain(batch["input_ids"], batch["attention_mask"], labels=batch["labels"]).loss
    assert torch.allclose(model(**batch).mlm_loss, expected, atol=1e-6)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_resized_vocabulary_is_kept(model, batch, tmp_path):
    model.resize_token_embeddings(256)
    assert model.config.vocab_size == 256
    model.save_pretrained(tmp_path)
    again = RetroMAEForPreTraining.from_pretrained(tmp_path).eval()
    assert again.get_output_embeddings().weight.shape == (256, 32)
    assert again(**batch).loss == model.eval()(**batch).loss


def test_gradient_checkpointing_gives_the_same_gradients(model, batch):
    model.train()
    gradients = []
    for enabled in (False, True):
        if enabled:
            model.gradient_checkpointing_enable()  # the name that both supported ends of transformers know
        gradients.append(torch.autograd.grad(model(**batch).loss, list(model.parameters())))
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_bad_input_is_one_sentence(model, batch, encoder_config, tmp_path):
    with pytest.raises(RetroMAEError, match="40 tokens do not fit the encoder's 32 positions"):
        model(torch.ones(1, 40, dtype=torch.int64))
    with pytest.raises(RetroMAEError, match="decoder_labels need decoder_input_ids"):
        model(batch["input_ids"], decoder_labels=batch["decoder_labels"])
    with pytest.raises(RetroMAEError, match="decoder_visibility has shape"):
        model(**batch, decoder_visibility=torch.ones(4, 3, 3, dtype=torch.bool))
    with pytest.raises(RetroMAEError, match="pair_objective=None has no labels"):
        model(**batch, pair_labels=torch.zeros(4))
    without = RetroMAEForPreTraining(RetroMAEConfig(encoder_config=encoder_config, decoding="none"))
    with pytest.raises(RetroMAEError, match="no decoder"):
        without(**batch)
    model.save_pretrained(tmp_path)
    with pytest.raises(RetroMAEError, match="is a RetroMAE checkpoint"):
        RetroMAEForPreTraining.from_encoder(tmp_path)
    model.encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(RetroMAEError, match="start from the encoder's checkpoint"):
        RetroMAEForPreTraining.from_pretrained(tmp_path / "encoder")
    with pytest.raises(RetroMAEError, match=r"type 'gpt2' are not supported; known types: albert, bert"):
        RetroMAEForPreTraining(RetroMAEConfig(encoder_config={"model_type": "gpt2"}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"decoding": "fancy"},
        {"decoder_mask_ratio": 1.0},
        {"decoder_mask_ratio": 0},
        {"num_decoder_layers": 0},
        {"mlm_loss_weight": -1.0},
        {"decoder_query": "other"},
        {"bow_loss_weight": -0.1},
        {"bow_loss_weight": 0.1, "decoding": "basic"},
        {"pair_objective": "next"},
        {"contrast_loss_weight": -1},
        {"contrast_temperature": 0},
        {"encoder_config": {"hidden_size": 32}},
    ],
)
def test_a_bad_configuration_names_its_field(wrong):
    with pytest.raises(RetroMAEError, match=next(iter(wrong))):
        RetroMAEConfig(**wrong)


@settings(max_examples=100, deadline=None)
@given(
    chosen=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4),
    left_over=st.integers(0, 5),
)
def test_slots_find_the_labels_that_counting_finds(chosen, left_over):
    chosen = torch.tensor(chosen).flatten()
    labels = torch.where(chosen, torch.arange(len(chosen)) + 5, IGNORE_INDEX)
    expected = chosen.nonzero().squeeze(1)
    positions, found = labels_in_slots(labels, len(expected) + left_over)
    assert torch.equal(positions[: len(expected)], expected)
    assert torch.equal(found[: len(expected)], labels[expected])
    assert (found[len(expected) :] == IGNORE_INDEX).all()
    assert len(found) == len(positions) == len(expected) + left_over


def test_too_few_slots_are_an_error_not_a_wrong_loss(model, batch):
    with pytest.raises(RuntimeError, match="more labels than slots"):
        labels_in_slots(torch.tensor([7, 8, -100]), 1)
    # Where counting is free it is done, so that labels may be changed behind the collator.
    batch["labels"] = batch["decoder_labels"]
    counted = {name: tensor for name, tensor in batch.items() if not name.endswith("slots")}
    assert torch.equal(model(**batch).loss, model(**counted).loss)


@pytest.mark.parametrize("objective", ["retromae", "basic", "dupmae", "nsp"])
def test_slots_that_are_left_over_change_nothing(objective, monkeypatch):
    model, batch, _ = support.prepare(objective, "bert", support.new_tokenizer())
    model = model.double().eval()
    plain = loss_and_gradients(model, batch)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # where slots are used on a CPU
    for left_over in (0, 37):
        for name in ("label_slots", "decoder_label_slots"):
            if name in batch:
                batch[name] = torch.empty(len(batch["labels"]), batch[name].shape[1] + left_over, 0)
        for tensor, expected in zip(loss_and_gradients(model, batch), plain, strict=True):
            assert torch.allclose(tensor, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("objective", ["retromae", "basic", "dupmae", "mlm", "nsp", "bowdpr", "retromae-contrast"])
def test_a_compiled_step_is_one_graph(objective):
    model, batch, _ = support.prepare(objective, "bert", support.new_tokenizer())
    explained = torch._dynamo.explain(model.train())(**batch)
    torch._dynamo.reset()
    assert explained.graph_break_count == 0, explained.break_reasons


@pytest.mark.parametrize("objective", ["retromae", "dupmae"])
def test_a_compiled_step_is_the_plain_one_and_compiles_twice_at_most(objective):
    """Once for the first shapes and once for all others, whatever the lengths and the number of labels."""
    model, batch, _ = support.prepare(objective, "bert", support.new_tokenizer())
    model = model.double()
    compiled = torch.compile(model, backend="aot_eager")
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    length = batch["input_ids"].shape[1]
    for cut in (0, 6, 9):
        shorter = {
            name: part[:, : length - cut].contiguous() if part.dim() == 2 else part for name, part in batch.items()
        }
        for labels, slots in (("labels", "label_slots"), ("decoder_labels", "decoder_label_slots")):
            count = int((shorter[labels] != IGNORE_INDEX).sum())
            shorter[slots] = torch.empty(len(shorter[labels]), count, 0)
        plain = loss_and_gradients(model, shorter)
        model.zero_grad()
        loss = compiled(**shorter).loss
        loss.backward()
        for tensor, expected in zip([loss, *(p.grad for p in model.parameters())], plain, strict=True):
            assert torch.allclose(tensor, expected, rtol=0, atol=1e-12)
    assert graphs["unique_graphs"] - before <= 2
    torch._dynamo.reset()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("objective", ["retromae", "basic", "mlm"])
def test_nothing_waits_for_a_gpu_inside_a_step(objective):
    model, batch, _ = support.prepare(objective, "bert", support.new_tokenizer())
    batch = {name: tensor.cuda() for name, tensor in batch.items() if name != "attention_mask"}
    model = model.cuda().train()
    model(**batch).loss.backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(**batch).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_losses(model, batch):
    model = model.double()
    expected = model(**batch)
    output = model.cuda()(**{name: tensor.cuda() for name, tensor in batch.items()})
    for name in ("mlm_loss", "decoder_loss"):
        assert torch.allclose(getattr(output, name).cpu(), getattr(expected, name), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"decoding": "enhanced"}, "decoding='enhanced' and its batches no decoder_labels"),
        ({"decoding": "basic"}, "decoding='basic' and its batches no decoder_labels"),
        ({"decoding": "none", "pair_objective": "sop"}, "pair_objective='sop' and its batches no pair_labels"),
        ({"decoding": "none"}, ""),
        ({"decoding": "condenser"}, ""),
    ],
)
def test_batches_that_train_only_a_part_of_the_objective_are_warned_of(encoder_config, tokenizer, texts, config, said):
    """Those of the collator for BERT's masked language modelling, for example."""
    model = RetroMAEForPreTraining(RetroMAEConfig(encoder_config=encoder_config, **config))
    batch = DataCollatorForLanguageModeling(tokenizer)([{"input_ids": tokenizer(texts[0])["input_ids"][:32]}])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.eval()(**batch)
        assert not caught
        model.train()(**batch)
    assert [said in str(warning.message) for warning in caught] == [True] * bool(said)
