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
    ordinary = torch.tensor(tokenizer.all_special_ids)
    special = torch.isin(ids, ordinary)
    assert set(batch) == {
        "input_ids",
        "attention_mask",
        "labels",
        "decoder_input_ids",
        "decoder_labels",
        "visibility_seed",
        "passage_id",
        "label_slots",
        "decoder_label_slots",
    }
    for labels, slots in (("labels", "label_slots"), ("decoder_labels", "decoder_label_slots")):
        assert batch[slots].shape == (len(features), (batch[labels] != IGNORE_INDEX).sum(), 0)
    assert torch.equal(batch["attention_mask"], (ids != tokenizer.pad_token_id).long())
    assert torch.equal(batch["decoder_labels"], ids.masked_fill(special, IGNORE_INDEX))
    assert ((batch["labels"] == IGNORE_INDEX) | (batch["labels"] == ids)).all()
    assert (batch["labels"][special] == IGNORE_INDEX).all()
    for row, feature in zip(ids, features, strict=True):
        assert row[: len(feature["input_ids"])].tolist() == feature["input_ids"]


def test_a_basic_batch_masks_the_decoder_apart_from_the_encoder(tokenizer, features):
    batch = collate(tokenizer, features, decoding="basic", decoder_mask_ratio=0.7)
    assert "visibility_seed" not in batch
    masked = batch["decoder_labels"] != IGNORE_INDEX
    ordinary = ~torch.isin(batch["decoder_labels"].where(masked, batch["decoder_input_ids"]), torch.tensor([0, 2, 3]))
    assert 0.6 < masked.sum() / ordinary.sum() < 0.8
    assert not torch.equal(masked, batch["labels"] != IGNORE_INDEX)


def test_mlm_alone_ships_nothing_for_a_decoder(tokenizer, features):
    assert set(collate(tokenizer, features, decoding="none")) == {
        "input_ids",
        "attention_mask",
        "labels",
        "passage_id",
        "label_slots",
    }


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


def test_static_masks_need_a_seed_and_ids(tokenizer, features):
    with pytest.raises(RetroMAEError, match="needs a seed"):
        DataCollatorForRetroMAE(tokenizer, static_masking=True)
    with pytest.raises(RetroMAEError, match="needs a column passage_id"):
        collate(tokenizer, [{"input_ids": [2, 9, 3]}], static_masking=True)


@pytest.mark.parametrize(("masked", "random"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.5)])
def test_what_becomes_of_the_chosen_tokens_can_be_set(tokenizer, features, masked, random):
    batch = collate(tokenizer, features * 20, mask_replace_prob=masked, random_replace_prob=random)
    chosen = batch["labels"] != IGNORE_INDEX
    became = batch["input_ids"][chosen]
    assert (became == tokenizer.mask_token_id).float().mean() == pytest.approx(masked, abs=0.05)
    kept = (became == batch["labels"][chosen]).float().mean()
    assert kept == pytest.approx(1 - masked - random, abs=0.05)


@pytest.mark.parametrize("wrong", [(0.8, 0.3), (-0.1, 0.1), (0.8, "some")])
def test_shares_that_do_not_add_up_are_refused(tokenizer, wrong):
    with pytest.raises(RetroMAEError, match="replace_prob"):
        DataCollatorForRetroMAE(tokenizer, mask_replace_prob=wrong[0], random_replace_prob=wrong[1])


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
def test_lists_arrays_and_tensors_are_alike(tokenizer, features, make):
    made = [{**feature, "input_ids": make(feature["input_ids"])} for feature in features]
    assert torch.equal(collate(tokenizer, made)["input_ids"], collate(tokenizer, features)["input_ids"])


def test_a_copy_draws_the_same(tokenizer, features):
    collator = DataCollatorForRetroMAE(tokenizer, seed=1)
    collator.set_epoch(2)
    copy = pickle.loads(pickle.dumps(collator))
    assert torch.equal(copy(features)["labels"], collator(features)["labels"])


def test_it_ships_eight_bytes_of_visibility_a_passage(tokenizer, features):
    batch = collate(tokenizer, features)
    assert batch["visibility_seed"].nbytes == 8 * len(features)
    assert all(tensor.numel() <= batch["input_ids"].numel() for tensor in batch.values())


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


@pytest.mark.parametrize("name", ["encoder_mask_ratio", "decoder_mask_ratio"])
@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, "half", None])
def test_a_ratio_outside_0_and_1_is_refused(tokenizer, name, ratio):
    with pytest.raises(RetroMAEError, match=name):
        DataCollatorForRetroMAE(tokenizer, **{name: ratio})


def test_a_tokenizer_without_a_mask_token_is_refused(tokenizer):
    unmasked = BertTokenizer(vocab=tokenizer.get_vocab())
    unmasked.mask_token = None
    with pytest.raises(RetroMAEError, match="no mask token"):
        DataCollatorForRetroMAE(unmasked)


def test_other_bad_arguments_are_refused(tokenizer):
    for wrong in ({"decoding": "fancy"}, {"mask_replace_prob": 1.2}, {"pad_to_multiple_of": 0}):
        with pytest.raises(RetroMAEError, match=next(iter(wrong))):
            DataCollatorForRetroMAE(tokenizer, **wrong)


def test_padding_in_the_dataset_is_padding(tokenizer, texts):
    collator = DataCollatorForRetroMAE(tokenizer, seed=0)
    collator.set_epoch(0)
    plain = features_of(tokenizer, texts[:3])
    padded = tokenizer(texts[:3], truncation=True, padding="max_length", max_length=32)
    for convert in (list, torch.tensor):
        columns = ("input_ids", "attention_mask", "token_type_ids")
        rows = [{name: convert(padded[name][row]) for name in columns} | {"passage_id": row} for row in range(3)]
        batch, expected = collator(rows), collator(plain)
        for name, tensor in expected.items():
            assert torch.equal(batch[name], tensor), name


def test_padding_on_the_left_is_refused(tokenizer):
    with pytest.raises(RetroMAEError, match="padded on the left"):
        DataCollatorForRetroMAE(tokenizer)([{"input_ids": [0, 0, 2, 9, 3], "attention_mask": [0, 0, 1, 1, 1]}])


@pytest.mark.parametrize("features", [["a text"], [{"text": "a text", "passage_id": 0}], [{"passage_id": 0}]])
def test_text_that_nobody_tokenised_is_one_sentence(tokenizer, features):
    with pytest.raises(RetroMAEError, match="the rows have no column input_ids; tokenise the text first"):
        DataCollatorForRetroMAE(tokenizer)(features)


def test_a_passage_that_begins_with_a_word_is_refused(tokenizer, features, texts):
    """Its first word would be the sentence embedding; so it is with blocks cut out of a stream of tokens."""
    collator = DataCollatorForRetroMAE(tokenizer)
    bare = tokenizer(texts[:2], add_special_tokens=False)["input_ids"]
    for wrong in (
        [{"input_ids": row} for row in bare],
        [*features[:3], features[0] | {"input_ids": torch.tensor(bare[1])}],
    ):
        with pytest.raises(RetroMAEError, match=r"begins with the ordinary token .* tokenise with special tokens"):
            collator(wrong)
