"""Where words begin in a tokenised text, for masks that take words as a whole.

`transformers` takes a word for what stands between two gaps in the offsets, so that to it a Chinese sentence is one
word and punctuation belongs to its neighbour. Here a word is what BERT's own tokenizer takes for one: a run of letters
and digits, a single punctuation mark, a single character of a script that is written without spaces (a run of them,
where a WordPiece vocabulary has them as one). Chinese words of several characters take a segmenter, which sees the
text: `tokenize_passages` writes down what it finds.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import partial

import torch
from tokenizers.models import WordPiece
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ..model.errors import RetroMAEError, import_extra

WordSegmenter = Callable[[str], list[str]]
"""A text into its words, in order; joined they are the text."""

# What the vocabulary tells of a token. Bits, so that one lookup a token answers all questions.
STARTS = 1  # has the vocabulary's sign of a word's beginning
FIRST_ALONE, LAST_ALONE = 2, 4  # its first, its last character is a word of its own
BARE = 8  # is that sign alone
REST = 16  # begins with what belongs to the character before: an accent, the rest of its bytes
THROUGH = 32  # is nothing else
SPECIAL = 64

# Scripts without spaces between words: CJK ideographs with their extensions; Thai and Lao, Myanmar, Khmer, kana.
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_UNSPACED = f"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff{_HAN}"
_MARKS = "".join(chr(code) for code in range(0x0E00, 0x3100) if unicodedata.category(chr(code))[0] == "M")
_HAN_CHARACTER, _UNSPACED_CHARACTER = re.compile(f"[{_HAN}]"), re.compile(f"[{_UNSPACED}]")
_WORD = re.compile(f"[{_UNSPACED}][{_MARKS}]*|[^\\s{_UNSPACED}]+")
_INNER_BYTES = bytes(range(0x80, 0xC0))  # of a character of several bytes in UTF-8, all but the first


def chinese_segmenter() -> WordSegmenter:
    """The words of Chinese text (rjieba), for `tokenize_passages`.

    Returns:
        A function that takes a text apart into its words, in order and without a loss.

    Raises:
        RetroMAEError: rjieba is not installed.
    """
    import_extra("rjieba", "cutting Chinese text into words", "chinese")
    return _cut_chinese


def _cut_chinese(text: str) -> list[str]:
    # A function of a module can be pickled, for other processes and for the cache of `datasets`; rjieba's cannot.
    import rjieba

    return rjieba.cut(text)


def spans_of_words(text: str) -> list[tuple[int, int]]:
    """Where the words of a text begin and end.

    A word is what stands between white space; of scripts that are written without any, a character with its marks.
    """
    return [word.span() for word in _WORD.finditer(text)]


def is_han(character: str) -> bool:
    return _HAN_CHARACTER.match(character) is not None


def word_table(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """What the vocabulary tells of each token's place in a word, uint8 `[V]` of the bits above, for `word_starts`.

    Knows WordPiece ("##"), SentencePiece ("▁") and byte-level BPE ("Ġ").

    Raises:
        RetroMAEError: the vocabulary is of another kind.
    """
    vocabulary = tokenizer.get_vocab()
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if isinstance(model, WordPiece):
        continuing = model.continuing_subword_prefix
        bits = [0 if token.startswith(continuing) and token != continuing else STARTS for token in vocabulary]
    else:
        marker = max("▁Ġ", key=lambda candidate: sum(token.startswith(candidate) for token in vocabulary))
        if not any(token.startswith(marker) for token in vocabulary):
            raise RetroMAEError(
                "whole-word masking knows WordPiece, SentencePiece and byte-level BPE, and this tokenizer, "
                f"{type(tokenizer).__name__}, is none of them; leave whole_word_mask at False"
            )
        byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
        ends_of = _ends if marker == "▁" else partial(_ends_of_bytes, byte_of=byte_of)
        bits = [
            STARTS | BARE
            if token in (marker, "")
            else token.startswith(marker) * STARTS | ends_of(token.removeprefix(marker))
            for token in vocabulary
        ]
    table = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.uint8)
    table[torch.tensor(list(vocabulary.values()))] = torch.tensor(bits, dtype=torch.uint8)
    # Special and added tokens are words of their own, however they are spelt.
    table[[*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder]] = STARTS | SPECIAL
    return table


def word_starts(table: Tensor, input_ids: Tensor) -> Tensor:
    """Whether a token is the first of its word, bool `[..., L]` for ids `[..., L]`; position 0 always is."""
    bits = table[input_ids]
    starts = (bits & STARTS).bool()
    starts[..., 0] = True
    through = (bits & THROUGH).bool()
    lasts = bits
    if through.any():
        # The rest of a character ends as that character does, so look at the token that began it.
        places = torch.arange(bits.shape[-1]).masked_fill(through, 0).cummax(-1).values
        lasts = bits.gather(-1, places)
    before, here = bits[..., :-1], bits[..., 1:]
    parted = ((here & FIRST_ALONE) | (lasts[..., :-1] & LAST_ALONE)).bool()
    # A lone sign of a beginning belongs to what follows it, and an accent to what stands before it.
    parted &= ~(before & BARE).bool() & ~(here & REST).bool()
    starts[..., 1:] |= parted | (before & SPECIAL).bool()
    return starts


def number_words(starts: Tensor) -> Tensor:
    """The number of each token's word, int32 `[..., L]`, from 0, by where words start, bool `[..., L]`."""
    return starts.cumsum(-1, dtype=torch.int32) - 1


def _ends(text: str) -> int:
    """The bits that a token's first and last characters decide."""
    begun = text.lstrip("".join(filter(_goes_on, text)))
    if not begun:
        return REST | THROUGH
    last = next(character for character in reversed(text) if not _goes_on(character))
    return (begun != text) * REST | _alone(text[0]) * FIRST_ALONE | _alone(last) * LAST_ALONE


def _ends_of_bytes(token: str, byte_of: dict[str, int]) -> int:
    """The same for a token of byte-level BPE, which may begin or end inside a character."""
    if any(character not in byte_of for character in token):
        return _ends(token)  # an added token, which is spelt as it is
    content = bytes(byte_of[character] for character in token)
    whole = content.lstrip(_INNER_BYTES)
    if not whole:
        return REST | THROUGH
    # A character that is cut at the end is told by its first byte, in place of which a character of its kind stands.
    text = whole.decode("utf-8", "replace").rstrip("\ufffd")
    cut = whole[len(text.encode()) :]
    if cut:
        # Three bytes from E2 to E9 or EF on are punctuation, symbols, kana and ideographs, four bytes emoji and more
        # ideographs; what else begins with them, or with other bytes, is taken for a letter.
        text += "。" if 0xE2 <= cut[0] <= 0xE9 or cut[0] >= 0xEF else "a"
    bits = _ends(text)
    return bits if len(whole) == len(content) else (bits | REST) & ~(FIRST_ALONE | THROUGH)


def _goes_on(character: str) -> bool:
    """Whether a character belongs to the one before it: accents, vowel signs, and what joins emoji."""
    return unicodedata.category(character)[0] == "M" or character == "\u200d"


def _alone(character: str) -> bool:
    """Whether a character is a word of its own."""
    if _goes_on(character):
        return False
    return unicodedata.category(character)[0] not in "LN" or _UNSPACED_CHARACTER.match(character) is not None
