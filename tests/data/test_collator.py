"""Batches are pure functions of the run's seed, the epoch and the passages."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from conftest import features_of
from torch.utils.data import DataLoader
from transformers import BertTokenizer

from retromae_hf import DataCollatorForRetroMAE, RetroMAEConfig, RetroMAEError, RetroMAEForPreTraining
from retromae_hf.model.masking import IGNORE_INDEX


@pytest.fixture
def features(tokenizer, texts):
    return features_of(tokenizer, [*texts, "The fox slept."])


def collate(tokenizer, features, epoch=0, **kwargs):
    collator = DataCollatorForRetroMAE(tokenizer, **{"seed": 1, **kwargs})
    collator.set_epoch(epoch)
    return collator(features)


def test_an_enhanced_batch(tokenizer, features):
    batch = collate(tokenizer, features)
    ids = batch["decoder_input_ids"]
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    of_mlm = {"input_ids", "attention_mask", "labels", "passage_id", "label_slots"}
    of_decoder = {"decoder_input_ids", "decoder_labels", "visibility_seed", "decoder_label_slots"}
    assert set(batch) == of_mlm | of_decoder
    assert set(collate(tokenizer, features, decoding="none")) == of_mlm
    for labels, slots in (("labels", "label_slots"), ("decoder_labels", "decoder_label_slots")):
        assert batch[slots].shape == (len(features), (batch[labels] != IGNORE_INDEX).sum(), 0)
    assert torch.equal(batch["attention_mask"], (ids != tokenizer.pad_token_id).long())
    assert torch.equal(batch["decoder_labels"], ids.masked_fill(special, IGNORE_INDEX))
    assert ((batch["labels"] == IGNORE_INDEX) | (batch["labels"] == ids)).all()
    assert (batch["labels"][special] == IGNORE_INDEX).all()
    for row, feature in zip(ids, features, strict=True):
        assert row[: len(feature["input_ids"])].tolist() == feature["input_ids"]
    assert batch["visibility_seed"].nbytes == 8 * len(features)


def test_a_basic_batch_masks_the_decoder_apart_from_the_encoder(tokenizer, features):
    batch = collate(tokenizer, features, decoding="basic", decoder_mask_ratio=0.7)
    assert "visibility_seed" not in batch
    masked = batch["decoder_labels"] != IGNORE_INDEX
    ordinary = ~torch.isin(batch["decoder_labels"].where(masked, batch["decoder_input_ids"]), torch.tensor([0, 2, 3]))
    assert 0.6 < masked.sum() / ordinary.sum() < 0.8
    assert not torch.equal(masked, batch["labels"] != IGNORE_INDEX)


def test_draws_depend_on_neither_the_batch_nor_the_padding(tokenizer, features):
    whole = collate(tokenizer, features, pad_to_multiple_of=16)
    assert whole["input_ids"].shape[1] % 16 == 0
    for index, feature in enumerate(features):
        alone = collate(tokenizer, [feature])
        length = len(feature["input_ids"])
        for name in ("input_ids", "labels", "decoder_labels"):
            assert torch.equal(whole[name][index, :length], alone[name][0])
        assert whole["visibility_seed"][index] == alone["visibility_seed"][0]


@pytest.mark.parametrize("workers", [1, 2])
def test_draws_do_not_depend_on_workers_and_follow_the_epoch(tokenizer, features, workers):
    collator = DataCollatorForRetroMAE(tokenizer, seed=1)
    loader = DataLoader(
        features, batch_size=7, collate_fn=collator, num_workers=workers, persistent_workers=True, shuffle=False
    )
    seen = []
    for epoch in (0, 1):
        collator.set_epoch(epoch)
        seen.append(torch.cat([batch["visibility_seed"] for batch in loader]))
        assert torch.equal(seen[-1], collate(tokenizer, features, epoch)["visibility_seed"])
    assert not torch.equal(*seen)


def test_static_masks_are_the_same_in_every_epoch(tokenizer, features):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # there is no epoch to be told
        untold = DataCollatorForRetroMAE(tokenizer, seed=1, static_masking=True)(features)
    for epoch in (0, 3):
        batch = collate(tokenizer, features, epoch, static_masking=True)
        for name, tensor in untold.items():
            assert torch.equal(batch[name], tensor), name
    assert not torch.equal(collate(tokenizer, features, 3)["labels"], untold["labels"])


@pytest.mark.parametrize(("masked", "random"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.5)])
def test_what_becomes_of_the_chosen_tokens_can_be_set(tokenizer, features, masked, random):
    batch = collate(tokenizer, features * 20, mask_replace_prob=masked, random_replace_prob=random)
    chosen = batch["labels"] != IGNORE_INDEX
    became = batch["input_ids"][chosen]
    assert (became == tokenizer.mask_token_id).float().mean() == pytest.approx(masked, abs=0.05)
    kept = (became == batch["labels"][chosen]).float().mean()
    assert kept == pytest.approx(1 - masked - random, abs=0.05)


def test_an_epoch_that_nobody_tells_is_warned_of(tokenizer, features):
    with pytest.warns(UserWarning, match="not told the epoch"):
        DataCollatorForRetroMAE(tokenizer, seed=1)(features)


def test_without_a_seed_the_draws_follow_torchs_generator(tokenizer, features):
    collator = DataCollatorForRetroMAE(tokenizer)
    torch.manual_seed(3)
    first, second = collator(features), collator(features)
    torch.manual_seed(3)
    assert torch.equal(first["input_ids"], collator(features)["input_ids"])
    assert not torch.equal(first["input_ids"], second["input_ids"])


def test_without_ids_a_seed_still_fixes_the_sequence_of_draws(tokenizer, features):
    plain = [{"input_ids": feature["input_ids"]} for feature in features]
    one, other = (DataCollatorForRetroMAE(tokenizer, seed=1) for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = one(plain)
    assert torch.equal(first["labels"], other(plain)["labels"])
    assert not torch.equal(first["labels"], one(plain)["labels"])


@pytest.mark.parametrize("make", [list, np.array, torch.tensor])
def test_lists_arrays_and_tensors_with_or_without_padding_are_alike(tokenizer, texts, make):
    expected = collate(tokenizer, features_of(tokenizer, texts[:3]))
    for padding in (False, "max_length"):
        columns = tokenizer(texts[:3], truncation=True, padding=padding, max_length=32)
        rows = [{name: make(columns[name][row]) for name in columns} | {"passage_id": row} for row in range(3)]
        batch = collate(tokenizer, rows)
        for name, tensor in expected.items():
            assert torch.equal(batch[name], tensor), name


def test_a_copy_draws_the_same(tokenizer, features):
    collator = DataCollatorForRetroMAE(tokenizer, seed=1)
    collator.set_epoch(2)
    copy = pickle.loads(pickle.dumps(collator))
    assert torch.equal(copy(features)["labels"], collator(features)["labels"])


@pytest.mark.parametrize("decoding", ["enhanced", "basic", "none"])
def test_a_compact_batch_is_the_same_in_half_the_bytes(tokenizer, features, encoder_config, decoding):
    wide, compact = (collate(tokenizer, features, decoding=decoding, compact=compact) for compact in (False, True))
    for name, tensor in wide.items():
        assert torch.equal(compact[name].to(tensor.dtype), tensor), name
        assert compact[name].nbytes == tensor.nbytes / (2 if tensor.dim() == 2 else 1)
    model = RetroMAEForPreTraining(RetroMAEConfig(encoder_config=encoder_config, decoding=decoding)).eval()
    assert torch.equal(model(**compact).loss, model(**wide).loss)


def test_from_config_takes_over_the_models_choice(tokenizer, encoder_config):
    config = RetroMAEConfig(encoder_config=encoder_config, decoding="basic", decoder_mask_ratio=0.6)
    collator = DataCollatorForRetroMAE.from_config(tokenizer, config, seed=0)
    collator.check_matches(config)
    with pytest.raises(RetroMAEError, match=r"decoding='enhanced'.*'basic'"):
        DataCollatorForRetroMAE(tokenizer).check_matches(config)


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        *(("encoder_mask_ratio", {"encoder_mask_ratio": ratio}) for ratio in (0, 1, "half", None)),
        *(("decoder_mask_ratio", {"decoder_mask_ratio": ratio}) for ratio in (-0.1, 1)),
        *(("mask_replace_prob", {"mask_replace_prob": share}) for share in (-0.1, 1.2)),
        ("random_replace_prob", {"random_replace_prob": "some"}),
        ("add up to 1.1", {"mask_replace_prob": 0.8, "random_replace_prob": 0.3}),
        ("decoding='fancy'", {"decoding": "fancy"}),
        ("pair_objective='next'", {"pair_objective": "next"}),
        ("pad_to_multiple_of=0", {"pad_to_multiple_of": 0}),
        ("needs a seed", {"static_masking": True}),
    ],
)
def test_arguments_out_of_range_are_refused(tokenizer, wrong, message):
    with pytest.raises(RetroMAEError, match=message):
        DataCollatorForRetroMAE(tokenizer, **wrong)


def test_a_tokenizer_without_a_mask_token_is_refused(tokenizer):
    unmasked = BertTokenizer(vocab=tokenizer.get_vocab())
    unmasked.mask_token = None
    with pytest.raises(RetroMAEError, match="no mask token"):
        DataCollatorForRetroMAE(unmasked)


NOT_TOKENISED = "the rows have no column input_ids; tokenise the text first"
# Its first word would be the sentence embedding; so it is with blocks cut out of a stream of tokens.
NO_CLS = "begins with the ordinary token .* tokenise with special tokens"


@pytest.mark.parametrize(
    ("message", "rows", "options"),
    [
        (NOT_TOKENISED, ["a text"], {}),
        (NOT_TOKENISED, [{"text": "a text", "passage_id": 0}], {}),
        (NO_CLS, [{"input_ids": [9, 10]}], {}),
        (NO_CLS, [{"input_ids": torch.tensor([2, 9, 3])}, {"input_ids": torch.tensor([9, 10])}], {}),
        ("padded on the left", [{"input_ids": [0, 0, 2, 9, 3], "attention_mask": [0, 0, 1, 1, 1]}], {}),
        ("fewer than two tokens", [{"input_ids": [2]}], {}),
        ("token ids go from 2 to 9999", [{"input_ids": [2, 9999, 3]}], {}),
        ("needs a column passage_id", [{"input_ids": [2, 9, 3]}], {"static_masking": True}),
    ],
)
def test_rows_that_are_no_passages_are_refused(tokenizer, message, rows, options):
    with pytest.raises(RetroMAEError, match=message):
        collate(tokenizer, rows, **options)
