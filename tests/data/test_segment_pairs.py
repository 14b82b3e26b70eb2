"""Pairs of segments for NSP and SOP."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from conftest import TEXTS
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from retromae_hf import (
    DataCollatorForRetroMAE,
    RetroMAEConfig,
    RetroMAEError,
    RetroMAEForPreTraining,
    chinese_segmenter,
    tokenize_passages,
)
from retromae_hf.data.pairs import PairMaker
from retromae_hf.data.passages import Frame, _pair_up
from retromae_hf.data.tokenizers import train_tokenizer
from retromae_hf.model.masking import IGNORE_INDEX

MANY = [" ".join(TEXTS[start : start + 4]) for start in range(0, len(TEXTS), 4)]


@pytest.fixture(scope="module")
def pairs(tokenizer):
    return tokenize_passages(Dataset.from_dict({"text": MANY}), tokenizer, 48, pairs=True)


def segments_of(row, tokenizer):
    ids, types = row["input_ids"], row["token_type_ids"]
    first, second = [[i for i, t in zip(ids, types, strict=True) if t == which] for which in (0, 1)]
    return first[1:-1], second[:-1]


def joined(tokenizer, first, second):
    return [tokenizer.cls_token_id, *first, tokenizer.sep_token_id, *second, tokenizer.sep_token_id]


def collate(tokenizer, passages, objective, epoch=0, rows=None, **kwargs):
    partners = {"pair_partners": passages} if objective == "nsp" else {}
    collator = DataCollatorForRetroMAE(tokenizer, pair_objective=objective, seed=1, **partners, **kwargs)
    collator.set_epoch(epoch)
    return collator(list(passages) if rows is None else rows)


def unmasked(batch, row):
    """A passage of the batch as it was before corruption, without padding."""
    ids = torch.where(batch["labels"][row] == IGNORE_INDEX, batch["input_ids"][row], batch["labels"][row])
    return ids[batch["attention_mask"][row].bool()].tolist() if "attention_mask" in batch else ids.tolist()


def test_a_pair_is_two_consecutive_segments_with_their_segment_ids(pairs, tokenizer):
    documents: dict[int, list[int]] = {}
    for row in pairs:
        first, second = segments_of(row, tokenizer)
        assert first
        assert second
        assert row["input_ids"] == joined(tokenizer, first, second)
        assert row["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)
        assert row["length"] == len(row["input_ids"]) <= 48
        documents.setdefault(row["document_id"], []).extend(first + second)
    # Every token of every document is in one pair, in order.
    assert list(documents.values()) == tokenizer(MANY, add_special_tokens=False)["input_ids"]
    assert list(pairs["passage_id"]) == sorted(set(pairs["passage_id"]))


@settings(max_examples=150, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9), cuts=st.sets(st.integers(1, 80)))
def test_pairs_cover_a_document(lengths, cuts):
    ends = [sum(lengths[:count]) for count in range(len(lengths) + 1)]
    made = _pair_up(list(pairwise(ends)), sorted(cuts))
    covered = [place for start, middle, end in made for place in [*range(start, middle), *range(middle, end)]]
    if lengths == [1] * len(lengths) and len(lengths) % 2:
        assert len(covered) == len(lengths) - 1
    else:
        assert covered == list(range(sum(lengths)))
    assert all(start < middle < end for start, middle, end in made)


@pytest.mark.parametrize("objective", ["nsp", "sop"])
def test_half_of_the_pairs_are_false(pairs, tokenizer, objective):
    """NSP: with the second segment of another document's passage; SOP: swapped."""
    rows = list(pairs)
    documents: dict[tuple, set[int]] = {}
    for row in rows:
        documents.setdefault(tuple(segments_of(row, tokenizer)[1]), set()).add(row["document_id"])
    false = total = 0
    for epoch in range(10):
        batch = collate(tokenizer, pairs, objective, epoch)
        for place, row in enumerate(rows):
            first, second = segments_of(row, tokenizer)
            ids, label = unmasked(batch, place), int(batch["pair_labels"][place])
            if label and objective == "sop":
                first, second = second, first
            elif label:
                second = ids[len(first) + 2 : -1]
                assert documents[tuple(second)] != {row["document_id"]}
            assert ids == joined(tokenizer, first, second)
            types = batch["token_type_ids"][place][: len(ids)].tolist()
            assert types == [0] * (len(first) + 2) + [1] * (len(second) + 1)
            false, total = false + label, total + 1
    assert abs(false / total - 0.5) < 3 * math.sqrt(0.25 / total)


def test_every_other_document_can_lend_a_segment(tokenizer):
    documents = Dataset.from_dict({"text": ["fox. wolf.", "river. meadow.", "town. tower."]})
    passages = tokenize_passages(documents, tokenizer, 16, pairs=True)
    lent = set()
    for epoch in range(40):
        batch = collate(tokenizer, passages, "nsp", epoch)
        for place in range(3):
            lent.add((place, tokenizer.decode(unmasked(batch, place)[3:])))
    assert len(lent) == 9


@settings(max_examples=100, deadline=None)
@given(
    documents=st.lists(st.integers(0, 5), min_size=2, max_size=20).filter(lambda found: len(set(found)) > 1),
    seeds=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8),
    data=st.data(),
)
def test_a_false_successor_is_never_of_the_same_document(tokenizer, documents, seeds, data):
    """Whatever the order of the passages, and for passages that are not among the partners."""
    frame = Frame.of(tokenizer, pairs=True)

    def passage(document: int) -> dict:
        ids, types = frame.tokens([9], [50 + document]), frame.token_types([9], [50 + document])
        return {"input_ids": ids, "token_type_ids": types, "document_id": document}

    make = PairMaker("nsp", tokenizer, Dataset.from_list([*map(passage, documents)]))
    of_any = st.lists(st.integers(0, 9), min_size=len(seeds), max_size=len(seeds))
    asked = [*map(passage, data.draw(of_any))]
    made, labels = make(asked, torch.tensor(seeds))
    for row, before, label in zip(made, asked, labels.tolist(), strict=True):
        second = row["input_ids"][3]
        assert (second != 50 + before["document_id"]) == (label == 1)
        assert label == 0 or second - 50 in documents


@pytest.mark.parametrize("objective", ["nsp", "sop"])
def test_a_pair_depends_on_its_own_seed_alone(pairs, tokenizer, objective):
    rows = list(pairs)
    whole = collate(tokenizer, pairs, objective, 3)
    for place in (0, 5, len(rows) - 1):
        alone = collate(tokenizer, pairs, objective, 3, [rows[place]])
        length = alone["input_ids"].shape[1]
        for name in ("input_ids", "labels", "token_type_ids", "decoder_labels"):
            assert torch.equal(whole[name][place, :length], alone[name][0]), name
        assert whole["pair_labels"][place] == alone["pair_labels"][0]


def test_whole_words_stay_whole_in_pairs(tokenizer):
    documents = Dataset.from_dict({"text": MANY})
    marked = tokenize_passages(documents, tokenizer, 48, pairs=True, word_segmenter=chinese_segmenter())
    plain = tokenize_passages(documents, tokenizer, 48, pairs=True)
    for objective in ("nsp", "sop"):
        given, found = (collate(tokenizer, source, objective, whole_word_mask=True) for source in (marked, plain))
        assert torch.equal(given["labels"], found["labels"])
        real = given["attention_mask"].bool()
        assert torch.equal(given["word_ids"][real], found["word_ids"][real])


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_pairs_of_other_tokenizers_have_their_separators(kind):
    tokenizer = train_tokenizer(kind, TEXTS, 400, 64, lowercase=True)
    passages = tokenize_passages(Dataset.from_dict({"text": MANY}), tokenizer, 48, pairs=True)
    frame = Frame.of(tokenizer, pairs=True)
    for row in passages:
        first, second = segments_of(row, tokenizer)
        assert row["input_ids"] == frame.tokens(first, second)
        assert row["input_ids"].count(tokenizer.sep_token_id) == 2


def test_the_pair_loss_by_hand(encoder_config, tokenizer, pairs):
    """Logits (0, log 3) give the label 1 the probability 3/4: three pairs cost (log 4 + 2 log 4/3) / 3."""
    config = RetroMAEConfig(encoder_config=encoder_config, pair_objective="sop", decoding="none", mlm_loss_weight=0.0)
    model = RetroMAEForPreTraining(config).eval()
    with torch.no_grad():
        model.pair_head.classifier.weight.zero_()
        model.pair_head.classifier.bias.copy_(torch.tensor([0.0, math.log(3)]))
    ids = torch.randint(5, 100, (3, 12))
    output = model(ids, labels=ids, pair_labels=torch.tensor([0, 1, 1]))
    expected = (math.log(4) + 2 * math.log(4 / 3)) / 3
    assert output.pair_loss.item() == pytest.approx(expected, abs=1e-6)
    assert output.loss.item() == pytest.approx(expected, abs=1e-6)
    output = model.double()(ids, labels=ids, pair_labels=torch.tensor([0, 1, 1]))
    assert output.pair_loss.dtype == torch.float64


def test_the_pair_head_reads_the_sentence_embedding_and_trains_it(encoder_config):
    config = RetroMAEConfig(encoder_config=encoder_config, pair_objective="nsp", decoding="none")
    model = RetroMAEForPreTraining(config)
    ids = torch.randint(5, 100, (3, 12))
    output = model(ids, pair_labels=torch.tensor([0, 1, 1]))
    head = model.pair_head
    logits = torch.tanh(output.sentence_embedding @ head.pooler.weight.T + head.pooler.bias)
    logits = logits @ head.classifier.weight.T + head.classifier.bias
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1]))
    assert torch.allclose(output.pair_loss, expected)
    output.loss.backward()
    assert model.encoder.bert.encoder.layer[0].output.dense.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("decoding", ["enhanced", "none"])
def test_the_order_of_sentences_is_learnt_beside_the_others(encoder_config, tokenizer, decoding):
    """Here the length of the first segment tells the order, so the loss must fall far below log 2."""
    text = "the fox jumps over the river {}. it {}."
    documents = Dataset.from_dict({"text": [text.format(word, word) for word in ("jumps", "glides")] * 8})
    passages = tokenize_passages(documents, tokenizer, 24, pairs=True)
    config = RetroMAEConfig(encoder_config=encoder_config, decoding=decoding, pair_objective="sop")
    model = RetroMAEForPreTraining(config)
    collator = DataCollatorForRetroMAE.from_config(tokenizer, config, encoder_mask_ratio=0.1, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for epoch in range(150):
        collator.set_epoch(epoch)
        output = model(**collator(list(passages)))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.pair_loss.item())
    assert losses[0] == pytest.approx(math.log(2), abs=0.2)
    assert sum(losses[-5:]) / 5 < 0.5
    assert (output.decoder_loss is None) == (decoding == "none")


def test_what_a_pair_objective_needs(pairs, tokenizer):
    one = pairs.filter(lambda document: document == 0, input_columns="document_id")
    for partners, message in (
        (None, "needs pair_partners"),
        (pairs.remove_columns("document_id"), "lack the columns document_id"),
        (one, "at least two documents"),
    ):
        with pytest.raises(RetroMAEError, match=message):
            DataCollatorForRetroMAE(tokenizer, pair_objective="nsp", pair_partners=partners)
    for objective, rows, message in (
        ("sop", [{"input_ids": [2, 9, 3], "passage_id": 0}], "needs passages of two segments"),
        ("nsp", list(pairs.remove_columns("document_id")), "needs the column document_id"),
    ):
        with pytest.raises(RetroMAEError, match=message):
            collate(tokenizer, pairs, objective, rows=rows)
    for texts, max_length, message in ((MANY, 6, "no room"), (["fox", "river"], 16, "no document with two tokens")):
        with pytest.raises(RetroMAEError, match=message):
            tokenize_passages(Dataset.from_dict({"text": texts}), tokenizer, max_length, pairs=True)
