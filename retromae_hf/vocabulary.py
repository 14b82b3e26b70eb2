"""A WordPiece tokenizer trained on the corpus, for encoders that start from nothing."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizer

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train_wordpiece(texts: Iterable[str], vocab_size: int, max_length: int, lowercase: bool = True) -> BertTokenizer:
    """Train BERT's tokenizer on texts.

    Args:
        texts: the texts.
        vocab_size: entries at most, special tokens included.
        max_length: tokens of the longest passage, special tokens included; the tokenizer truncates there when asked to.
        lowercase: fold case, as the uncased BERT does.
    """
    trainer = BertWordPieceTokenizer(lowercase=lowercase)
    trainer.train_from_iterator(texts, vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, show_progress=True)
    vocabulary = {token: index for index, token in enumerate(_ordered(trainer.get_vocab()))}
    return BertTokenizer(vocab=vocabulary, do_lower_case=lowercase, model_max_length=max_length)


def _ordered(vocabulary: dict[str, int]) -> list[str]:
    return sorted(vocabulary, key=vocabulary.__getitem__)
