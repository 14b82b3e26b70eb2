"""A WordPiece tokenizer trained on the corpus, for encoders that start from nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from tokenizers import BertWordPieceTokenizer, Tokenizer
from transformers import BertTokenizer

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

# Rarer characters than these many become [UNK] (the trainer's own default).
_MAX_ALPHABET = 1000
_CODE_POINTS = 0x110000
_CHUNK_CHARACTERS = 1 << 20


def train_wordpiece(texts: Sequence[str], vocab_size: int, max_length: int, lowercase: bool = True) -> BertTokenizer:
    """Train BERT's tokenizer on texts; the same texts give the same tokenizer, in every process.

    Args:
        texts: the texts.
        vocab_size: entries at most, special tokens included.
        max_length: tokens of the longest passage, special tokens included; the tokenizer truncates there when asked to.
        lowercase: fold case, as the uncased BERT does.
    """
    trainer = BertWordPieceTokenizer(lowercase=lowercase)
    alphabet, continuing = _alphabet(texts, trainer._tokenizer)
    trainer.train_from_iterator(
        texts,
        vocab_size=vocab_size,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        # Left to itself the trainer numbers the pieces "##a", "##b" ... as a hash map of its own yields the words, and
        # breaks ties between merges by these numbers, so that every run gives another vocabulary. What is named here
        # is numbered first.
        special_tokens=[*SPECIAL_TOKENS, *(f"##{character}" for character in continuing)],
        show_progress=True,
    )
    trained = trainer.get_vocab()
    vocabulary = {token: index for index, token in enumerate(sorted(trained, key=trained.__getitem__))}
    return BertTokenizer(vocab=vocabulary, do_lower_case=lowercase, model_max_length=max_length)


def _alphabet(texts: Sequence[str], tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """The most frequent characters after normalisation, and those of them that may stand inside a word.

    Both in a fixed order. The texts are counted as they are, and only each distinct character is normalised.
    """
    counts = np.zeros(_CODE_POINTS, dtype=np.int64)
    inner = np.zeros(_CODE_POINTS, dtype=bool)  # does not end a word
    follows = np.zeros(_CODE_POINTS, dtype=bool)  # stands behind another character of a word
    for chunk in _chunks(texts):
        codes = np.frombuffer(chunk.encode("utf-32-le", "replace"), dtype=np.uint32)
        found = np.bincount(codes, minlength=_CODE_POINTS)
        for code in np.flatnonzero((found > 0) & (counts == 0)).tolist():
            inner[code] = len(_words(f"a{chr(code)}a", tokenizer)) == 1
        counts += found
        follows[codes[1:][inner[codes[1:]] & inner[codes[:-1]]]] = True
    frequencies: Counter[str] = Counter()
    continuing: set[str] = set()
    for code in np.flatnonzero(counts).tolist():
        normalised = "".join(_words(chr(code), tokenizer))
        for character in normalised:
            frequencies[character] += int(counts[code])
        continuing.update(normalised if follows[code] else normalised[1:])
    alphabet = sorted(frequencies, key=lambda character: (-frequencies[character], character))[:_MAX_ALPHABET]
    return alphabet, [character for character in alphabet if character in continuing]


def _chunks(texts: Sequence[str]) -> Iterator[str]:
    """The texts joined into pieces that are worth a pass over all code points each."""
    pending, size = [], 0
    for text in texts:
        pending.append(text)
        size += len(text) + 1
        if size >= _CHUNK_CHARACTERS:
            yield "\n".join(pending)
            pending, size = [], 0
    if pending:
        yield "\n".join(pending)


def _words(text: str, tokenizer: Tokenizer) -> list[str]:
    """What BERT's normaliser and pre-tokeniser make of a text."""
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))]
