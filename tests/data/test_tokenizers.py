"""A tokenizer trained on the corpus."""

from __future__ import annotations

import itertools

from transformers import AutoTokenizer

from retromae_hf.data.tokenizers import SPECIAL_TOKENS, train_wordpiece


def test_the_same_texts_give_the_same_tokenizer():
    # Every pair of letters is as frequent as every other: nothing but the order of ties tells the merges apart.
    words = [f"{first}{second}{third}" for first, second, third in itertools.permutations("abcdefghij", 3)]
    vocabularies = [train_wordpiece([" ".join(words)] * 3, 200, 32).get_vocab() for _ in range(3)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)


def test_special_tokens_come_first_and_text_survives(texts, tmp_path):
    tokenizer = train_wordpiece(texts, 300, 32)
    assert tokenizer.convert_ids_to_tokens(list(range(5))) == SPECIAL_TOKENS
    assert len(tokenizer) <= 300
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.decode(again("The quick fox!")["input_ids"], skip_special_tokens=True) == "the quick fox!"


def test_every_kind_of_character_is_known_and_only_what_continues_words_has_such_pieces():
    texts = ["Naïve ÅNGSTRÖM, it's 東京 한국 ½ 🤗 ok\x00ay x\u200by"] * 3
    tokenizer = train_wordpiece(texts, 400, 32)
    assert tokenizer.unk_token not in tokenizer.tokenize(texts[0])
    pieces = {token for token in tokenizer.get_vocab() if token.startswith("##")}
    assert "##a" in pieces
    assert not {"##東", "##京", "##,", "##½ "} & pieces


def test_case_is_kept_where_it_matters():
    assert "Fox" in train_wordpiece(["The Fox and the Fox"] * 3, 100, 32, lowercase=False).get_vocab()
