"""Where words begin, for every kind of tokenizer, and masks that take them as a whole."""

from __future__ import annotations

import pickle

import pytest
import torch
from conftest import CHINESE_TEXTS, TEXTS
from datasets import Dataset
from datasets.fingerprint import Hasher
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from retromae_hf import DataCollatorForRetroMAE, RetroMAEError, tokenize_passages
from retromae_hf.data.draws import corrupt_tokens
from retromae_hf.data.tokenizers import train_tokenizer
from retromae_hf.data.words import chinese_segmenter, number_words, word_starts, word_table
from retromae_hf.model.masking import IGNORE_INDEX, visibility_mask

KINDS = ("wordpiece", "bpe", "unigram")


@pytest.fixture(scope="module", params=KINDS)
def any_tokenizer(request):
    # So few merges of bytes that no token holds several Chinese characters: a token is never taken apart.
    vocab_size = 300 if request.param == "bpe" else 400
    return train_tokenizer(request.param, [*TEXTS, *CHINESE_TEXTS], vocab_size, 64, lowercase=True)


def words_of(tokenizer, text) -> list[str]:
    """The words of a text as the tokens tell them, put together again."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    numbers = number_words(word_starts(word_table(tokenizer), torch.tensor(ids))).tolist()
    words: list[list[int]] = [[] for _ in range(max(numbers) + 1)]
    for number, token in zip(numbers, ids, strict=True):
        words[number].append(token)
    # BERT's decoder takes "##" for the sign of what goes on a word before it.
    return [tokenizer.decode(word).replace(" ", "").replace("##", "") for word in words]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the quick fox", ["the", "quick", "fox"]),
        ("wandering, jumping", ["wandering", ",", "jumping"]),
        ("a tower. it slept!", ["a", "tower", ".", "it", "slept", "!"]),
        ("number 2024 bells", ["number", "2024", "bells"]),
        ("天气很好。我们去", ["天", "气", "很", "好", "。", "我", "们", "去"]),
        ("the 天气 fox", ["the", "天", "气", "fox"]),
    ],
)
def test_words_are_what_bert_takes_for_them(any_tokenizer, text, words):
    assert words_of(any_tokenizer, text) == words


def test_words_in_bytes():
    """A newline parts words, and characters that are cut into bytes stay whole."""
    tokenizer = train_tokenizer("bpe", ["abc"], 262, 64, lowercase=False)  # bytes alone
    assert words_of(tokenizer, "title\nThe fox\n\nOne") == ["title", "\n", "The", "fox", "\n", "\n", "One"]
    assert words_of(tokenizer, "né 今天好 🎉") == ["né", "今", "天", "好", "🎉"]
    assert words_of(tokenizer, "ok🎉hello你好abc") == ["ok", "🎉", "hello", "你", "好", "abc"]
    assert words_of(tokenizer, "“abc”，née") == ["“", "abc", "”", "，", "née"]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_accents_and_vowel_signs_stay_with_their_letter(kind):
    text = "ที่นี่ มี ❤️ok cafe\u0301s"
    tokenizer = train_tokenizer(kind, [" ".join(text), text], 320 if kind == "bpe" else 60, 64, lowercase=False)
    words = words_of(tokenizer, text)
    assert words[:5] == ["ที่", "นี่", "มี", "❤️", "ok"]
    assert len(words) == 6


def test_special_and_added_tokens_are_words_of_their_own(any_tokenizer):
    starts = word_starts(word_table(any_tokenizer), torch.tensor(any_tokenizer("fox")["input_ids"]))
    assert starts[[0, 1, -1]].all()


def test_a_tokenizer_of_another_kind_is_refused():
    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1, "[MASK]": 2, "[PAD]": 3}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]", pad_token="[PAD]")
    with pytest.raises(RetroMAEError, match="none of them; leave whole_word_mask at False"):
        DataCollatorForRetroMAE(tokenizer, whole_word_mask=True)


def chosen_as_a_whole(labels, word_ids) -> bool:
    chosen = labels != IGNORE_INDEX
    return all(chosen[word_ids == word].unique().numel() == 1 for word in word_ids.unique())


SEEDS = st.integers(-(2**63), 2**63 - 1)
STARTS = st.lists(st.booleans(), min_size=2, max_size=60).map(lambda starts: [True, *starts[1:]])


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS, starts=STARTS, ratio=st.floats(0.05, 0.95))
def test_a_word_is_chosen_as_a_whole(seed, starts, ratio):
    word_ids = number_words(torch.tensor([starts]))
    ids = torch.full((1, len(starts)), 7)
    every = torch.ones_like(ids, dtype=torch.bool)
    _, labels = corrupt_tokens(ids, every, torch.tensor([seed]), ratio, 4, torch.arange(5, 9), word_ids=word_ids)
    assert chosen_as_a_whole(labels[0], word_ids[0])


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS, starts=STARTS, padding=st.integers(0, 9), ratio=st.floats(0.05, 0.95))
def test_a_row_sees_a_word_as_a_whole_and_never_itself(seed, starts, padding, ratio):
    length = len(starts)
    word_ids = number_words(torch.tensor(starts + [True] * padding))
    visible = visibility_mask(seed, length, ratio, length + padding, word_ids)
    assert not visible.diagonal().any()
    assert visible[1:, 0].all()
    assert not visible[:, length:].any()
    places = torch.arange(length + padding)
    for row in range(1, length):
        others = (places != row) & (places > 0) & (places < length)
        for word in word_ids[1:length].unique():
            assert visible[row, others & (word_ids == word)].unique().numel() <= 1


def test_words_of_one_token_are_masked_as_tokens_are():
    """A text in which every token is a word has the very masks of token masking."""
    ids, seeds = torch.randint(5, 90, (40, 30)), torch.arange(40)
    every = torch.ones_like(ids, dtype=torch.bool)
    words = torch.arange(30, dtype=torch.int32).expand(40, 30)
    by_token, by_word = (
        corrupt_tokens(ids, every, seeds, 0.3, 4, torch.arange(5, 90), word_ids=given) for given in (None, words)
    )
    assert all(map(torch.equal, by_token, by_word))
    lengths = torch.full((40,), 30)
    assert torch.equal(visibility_mask(seeds, lengths, 0.5, 30, words), visibility_mask(seeds, lengths, 0.5, 30))


@pytest.mark.parametrize("decoding", ["enhanced", "basic", "none"])
def test_a_batch_of_whole_words(any_tokenizer, decoding):
    collator = DataCollatorForRetroMAE(any_tokenizer, 0.3, whole_word_mask=True, decoding=decoding, seed=0)
    collator.set_epoch(0)
    rows = any_tokenizer(TEXTS[:40], truncation=True, max_length=64)["input_ids"]
    batch = collator([{"input_ids": row, "passage_id": place} for place, row in enumerate(rows)])
    assert ("word_ids" in batch) == (decoding == "enhanced")
    table = word_table(any_tokenizer)
    for name in ("labels", *(["decoder_labels"] if decoding == "basic" else [])):
        for row, labels in zip(rows, batch[name], strict=True):
            numbers = number_words(word_starts(table, torch.tensor(row)))
            assert chosen_as_a_whole(labels[: len(row)], numbers)
    ordinary = sum(len(row) - 2 for row in rows)
    assert 0.2 < (batch["labels"] != IGNORE_INDEX).sum() / ordinary < 0.4
    # 80/10/10: most chosen tokens are [MASK], and some are not.
    masked = batch["input_ids"][batch["labels"] != IGNORE_INDEX] == any_tokenizer.mask_token_id
    assert 0.7 < masked.float().mean() < 0.9
    kept = batch["input_ids"] == batch["labels"]
    assert 0.05 < kept.sum() / masked.numel() < 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_chinese_words_are_those_of_the_segmenter(kind):
    tokenizer = train_tokenizer(kind, CHINESE_TEXTS, 300 if kind == "bpe" else 1000, 200, lowercase=True)
    documents = Dataset.from_dict({"text": CHINESE_TEXTS})
    passages = tokenize_passages(documents, tokenizer, 200, word_segmenter=chinese_segmenter())
    seen = set()
    for row in passages:
        words: dict[int, list[int]] = {}
        for token, word in zip(row["input_ids"], row["word_ids"], strict=True):
            words.setdefault(word, []).append(token)
        assert list(words) == list(range(len(words)))
        seen |= {tokenizer.decode(tokens).replace(" ", "") for tokens in words.values()}
    assert {"北京大学", "自然语言", "学习", "。"} <= seen
    assert "学" not in seen
    again = tokenize_passages(documents, tokenizer, 200, word_segmenter=chinese_segmenter(), num_proc=2)
    assert again[:] == passages[:]


def test_the_segmenter_can_be_cached_and_sent_to_other_processes():
    assert pickle.loads(pickle.dumps(chinese_segmenter()))("我们学习") == ["我们", "学习"]
    assert Hasher.hash(chinese_segmenter()) == Hasher.hash(chinese_segmenter())


def test_a_word_of_the_segmenter_is_masked_as_a_whole():
    tokenizer = train_tokenizer("wordpiece", CHINESE_TEXTS, 1000, 64, lowercase=True)
    documents = Dataset.from_dict({"text": CHINESE_TEXTS})
    passages = tokenize_passages(documents, tokenizer, 64, word_segmenter=chinese_segmenter())
    collator = DataCollatorForRetroMAE(tokenizer, whole_word_mask=True, seed=0)
    for epoch in range(5):
        collator.set_epoch(epoch)
        batch = collator(passages.to_list())
        for row, labels, numbers in zip(passages, batch["labels"], batch["word_ids"], strict=True):
            assert numbers[: row["length"]].tolist() == row["word_ids"]
            assert chosen_as_a_whole(labels[: row["length"]], numbers[: row["length"]])
    assert words_of(tokenizer, "北京大学") == ["北", "京", "大", "学"], "a character without the segmenter"
