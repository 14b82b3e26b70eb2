"""Span contrast against a slow float64 twin, and what the collator makes for it."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from retromae_hf import (
    DataCollatorForRetroMAE,
    RetroMAECallback,
    RetroMAEConfig,
    RetroMAEError,
    RetroMAEForPreTraining,
    tokenize_passages,
)
from retromae_hf.data.pairs import draw_spans
from retromae_hf.model.losses import contrast_logits


def plainly(embeddings, document_id, temperature):
    """The mean over the spans of -log of their partner's share, span by span."""
    spans = [one / one.norm() for one in embeddings]
    passages, total = len(document_id), 0.0
    for place, span in enumerate(spans):
        partner = (place + passages) % (2 * passages)
        scores = {}
        for other, candidate in enumerate(spans):
            same = document_id[other % passages] == document_id[place % passages]
            if other == partner or not same:
                scores[other] = torch.exp(span @ candidate / temperature)
        total -= torch.log(scores[partner] / sum(scores.values()))
    return total / len(spans)


def contrast(embeddings, document_id, temperature):
    return torch.nn.functional.cross_entropy(*contrast_logits(embeddings, document_id, temperature))


@settings(deadline=None, max_examples=30)
@given(
    document_id=st.lists(st.integers(-3, 3), min_size=1, max_size=6),
    size=st.integers(1, 9),
    temperature=st.floats(0.02, 2),
    seed=st.integers(0, 2**32),
)
def test_it_is_what_its_slow_twin_says(document_id, size, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(2 * len(document_id), size, dtype=torch.float64, generator=generator, requires_grad=True)
    documents = torch.tensor(document_id)
    ours, plain = contrast(embeddings, documents, temperature), plainly(embeddings, document_id, temperature)
    assert torch.allclose(ours, plain, rtol=1e-10, atol=1e-10)
    gradients = (torch.autograd.grad(loss, embeddings)[0] for loss in (ours, plain))
    assert torch.allclose(*gradients, rtol=1e-8, atol=1e-8)


def test_passages_of_one_document_alone_say_nothing():
    embeddings = torch.randn(6, 4)
    assert contrast(embeddings, torch.tensor([7, 7, 7]), 0.05) == 0


def test_spans_that_were_parted_are_told(model):
    with pytest.raises(RetroMAEError, match="4 rows are not the two spans of 3 passages each"):
        contrast(torch.randn(4, 2), torch.arange(3), 0.05)
    model.config.pair_objective = "contrast"
    with pytest.raises(RetroMAEError, match="several GPUs in one process"):
        RetroMAECallback().on_train_begin(SimpleNamespace(n_gpu=2), None, None, model, train_dataloader=None)


def test_bfloat16_autocast_does_not_touch_it():
    embeddings, documents = torch.randn(8, 16), torch.arange(4)
    expected = contrast(embeddings, documents, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert contrast(embeddings, documents, 0.05) == expected


def passages_of(tokenizer, texts, max_length=32):
    return list(tokenize_passages(Dataset.from_dict({"text": texts}), tokenizer, max_length))


def contrasting(encoder_config, **options):
    config = RetroMAEConfig(encoder_config=copy.deepcopy(encoder_config), pair_objective="contrast", **options)
    return RetroMAEForPreTraining(config).double().train()


@pytest.mark.parametrize("decoding", ["none", "basic", "condenser", "enhanced"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_it_stands_beside_every_objective(encoder_config, tokenizer, texts, decoding, pooling):
    options = {"contrast_loss_weight": 0.7, "contrast_temperature": 0.2, "decoding": decoding, "pooling": pooling}
    model = contrasting(encoder_config, **options)
    rows = passages_of(tokenizer, texts[:5])
    assert len({row["document_id"] for row in rows}) == 5 < len(rows), "some passages share a document"
    batch = DataCollatorForRetroMAE.from_config(tokenizer, model.config)(rows)
    output = model(**batch)
    states = model.encoder.base_model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    real = [state[: mask.sum()] for state, mask in zip(states, batch["attention_mask"], strict=True)]
    embeddings = [state[0] if pooling == "cls" else state.mean(0) for state in real]
    plain = plainly(embeddings, [row["document_id"] for row in rows], 0.2)
    assert torch.allclose(output.contrast_loss, plain, rtol=0, atol=1e-10)
    parts = [part for part in (output.mlm_loss, output.decoder_loss) if part is not None]
    assert torch.allclose(output.loss, sum(parts) + 0.7 * plain)


@pytest.mark.parametrize("decoding", ["enhanced", "condenser"])
def test_gradient_checkpointing_is_the_same_step_in_less_memory(encoder_config, tokenizer, texts, decoding):
    model = contrasting(encoder_config, decoding=decoding)
    batch = DataCollatorForRetroMAE.from_config(tokenizer, model.config)(passages_of(tokenizer, texts[:8]))

    def step():
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.numel()) or one, lambda one: one):
            loss = model(**batch).loss
        model.zero_grad()
        loss.backward()
        return sum(kept), loss.detach(), [one.grad.clone() for one in model.parameters() if one.grad is not None]

    kept, loss, gradients = step()
    model.gradient_checkpointing_enable()
    kept_less, same_loss, same_gradients = step()
    assert kept_less < kept / 1.2
    assert torch.equal(loss, same_loss)
    torch.testing.assert_close(gradients, same_gradients, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5), seed=st.integers(-(2**63), 2**63 - 1))
def test_spans_are_stretches_of_their_passage_between_its_ends(lengths, seed):
    rows = [
        {"input_ids": [-1, *range(length), -2], "word_ids": [0, *(1 + token // 2 for token in range(length)), 99]}
        for length in lengths
    ]
    seeds = torch.arange(len(rows)) + (seed if seed < 2**62 else seed - 2**62)
    spans, span_seeds = draw_spans(rows, seeds)
    assert len(spans) == len(span_seeds) == 2 * len(rows)
    assert len({int(one) for one in [*seeds, *span_seeds]}) == 3 * len(rows)
    for span, length in zip(spans, lengths * 2, strict=True):
        first, *tokens, last = span["input_ids"].tolist()
        assert (first, last) == (-1, -2)
        assert tokens == list(range(tokens[0], tokens[0] + len(tokens)))
        assert tokens[-1] < length
        assert max(length // 4, 1) <= len(tokens) <= max(length // 2, 1)
        assert span["word_ids"].tolist() == [0, *(1 + token // 2 for token in tokens), 99]
    again, same_seeds = draw_spans(rows[-1:], seeds[-1:])
    assert again[0]["input_ids"].tolist() == spans[len(rows) - 1]["input_ids"].tolist()
    assert int(same_seeds[1]) == int(span_seeds[-1])


def test_spans_change_with_the_epoch_and_not_with_the_batch(tokenizer, texts):
    rows = passages_of(tokenizer, texts[:6])
    collator = DataCollatorForRetroMAE(tokenizer, pair_objective="contrast", seed=3)
    collator.set_epoch(0)
    whole, part = collator(rows), collator(rows[2:4])
    passages = len(rows)
    for place in (0, 1):
        for half, of_whole in ((0, 0), (1, passages)):
            mask = part["attention_mask"][2 * half + place].bool()
            both = (part["input_ids"][2 * half + place][mask], whole["input_ids"][of_whole + 2 + place][: mask.sum()])
            assert torch.equal(*both)
    collator.set_epoch(1)
    assert not torch.equal(collator(rows)["attention_mask"].sum(1), whole["attention_mask"].sum(1))
    assert whole["document_id"].tolist() == [row["document_id"] for row in rows]
    lengths = whole["attention_mask"].sum(1)[:passages] - 2
    assert all(
        (row["length"] - 2) // 4 <= length <= max(math.ceil((row["length"] - 2) / 2), 1)
        for row, length in zip(rows, lengths.tolist(), strict=True)
    )
