"""Tokenizers trained on the corpus, for encoders that start from nothing."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from tokenizers import (
    AddedToken,
    BertWordPieceTokenizer,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..model.errors import RetroMAEError, check_at_least, check_choice, import_extra
from .text import cut_long, in_groups, without_surrogates

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]

# The alphabet of a WordPiece vocabulary: the most frequent characters, this many, or as many as make up this share of
# the text (Chinese has thousands). Rarer ones become [UNK].
_MAX_ALPHABET = 1000
_COVERAGE = 0.9995
_CODE_POINTS = 0x110000


def train_tokenizer(
    kind: str, texts: Sequence[str], vocab_size: int, max_length: int, lowercase: bool
) -> PreTrainedTokenizerBase:
    """Train a tokenizer on texts; the same texts give the same tokenizer, in every process.

    Args:
        kind: "wordpiece" (BERT's), "bpe" (RoBERTa's, on bytes) or "unigram" (that of SentencePiece).
        texts: the texts.
        vocab_size: entries at most, special tokens included.
        max_length: tokens of the longest passage, special tokens included; the tokenizer truncates there when asked to.
        lowercase: fold case.

    Raises:
        RetroMAEError: `kind` is unknown, `vocab_size` is too small for it, or sentencepiece is needed and missing.
    """
    check_choice("tokenizer_type", kind, TRAINERS)
    return TRAINERS[kind](texts, vocab_size, max_length, lowercase)


def train_wordpiece(texts: Sequence[str], vocab_size: int, max_length: int, lowercase: bool = True) -> BertTokenizer:
    trainer = BertWordPieceTokenizer(lowercase=lowercase)
    alphabet, continuing = _alphabet(_pieces(texts), trainer._tokenizer)
    trainer.train_from_iterator(
        _pieces(texts),
        vocab_size=vocab_size,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        # Left to itself the trainer numbers the pieces "##a", "##b" ... as a hash map of its own yields the words, and
        # breaks ties between merges by these numbers, so that every run gives another vocabulary. What is named here
        # is numbered first.
        special_tokens=[*SPECIAL_TOKENS, *(f"##{character}" for character in continuing)],
    )
    trained = trainer.get_vocab()
    if len(trained) > vocab_size:
        raise RetroMAEError(
            f"vocab_size={vocab_size} is below the {len(trained)} that the characters of this corpus take; raise it"
        )
    vocabulary = {token: index for index, token in enumerate(sorted(trained, key=trained.__getitem__))}
    return BertTokenizer(vocab=vocabulary, do_lower_case=lowercase, model_max_length=max_length)


def train_byte_level_bpe(
    texts: Sequence[str], vocab_size: int, max_length: int, lowercase: bool = False
) -> PreTrainedTokenizerFast:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    check_at_least(len(alphabet) + len(ROBERTA_SPECIAL_TOKENS), vocab_size=vocab_size)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special_tokens = _roberta_special_tokens()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special_tokens, initial_alphabet=sorted(alphabet)
    )
    tokenizer.train_from_iterator(_pieces(texts), trainer)
    return _like_robertas(tokenizer, max_length)


def train_unigram(
    texts: Sequence[str], vocab_size: int, max_length: int, lowercase: bool = False
) -> PreTrainedTokenizerFast:
    # The trainer of the tokenizers package fails on real text ("likelihood is NAN") and differs from run to run.
    sentencepiece = import_extra("sentencepiece", "a unigram tokenizer", "unigram")
    folding = [normalizers.Lowercase()] if lowercase else []
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    normalizer = normalizers.Sequence([normalizers.NFKC(), *folding, spaces, normalizers.Strip()])
    lines = (normalizer.normalize_str(line) for text in _pieces(texts) for line in text.splitlines())
    trained = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for line in lines if line),
            model_writer=trained,
            model_type="unigram",
            vocab_size=vocab_size - len(ROBERTA_SPECIAL_TOKENS) + 1,  # which has its own unknown token
            hard_vocab_limit=False,  # a small corpus has fewer pieces
            normalization_rule_name="identity",
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:  # with a line of C++ for a message
        raise RetroMAEError(
            f"vocab_size={vocab_size} is too small for a unigram tokenizer on this corpus, whose characters alone take "
            "more, or the corpus is empty; raise it"
        ) from error
    pieces = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    vocabulary = [(token, 0.0) for token in ROBERTA_SPECIAL_TOKENS]
    vocabulary += [(pieces.id_to_piece(index), pieces.get_score(index)) for index in range(1, len(pieces))]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=ROBERTA_SPECIAL_TOKENS.index("<unk>")))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(_roberta_special_tokens())
    return _like_robertas(tokenizer, max_length)


TRAINERS = {"wordpiece": train_wordpiece, "bpe": train_byte_level_bpe, "unigram": train_unigram}


def _roberta_special_tokens() -> list[AddedToken]:
    # [MASK] takes the space before it, as in RoBERTa, so that it stands for a word with its space.
    return [AddedToken(token, lstrip=token == "<mask>", special=True) for token in ROBERTA_SPECIAL_TOKENS]


def _like_robertas(tokenizer: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer with RoBERTa's special tokens, and segment ids for pairs."""
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B:1 </s>:1", ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def _alphabet(texts: Iterable[str], tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """The most frequent characters after normalisation, and those of them that may stand inside a word.

    Both in a fixed order. The texts are counted as they are, and only each distinct character is normalised.
    """
    counts = np.zeros(_CODE_POINTS, dtype=np.int64)
    inner = np.zeros(_CODE_POINTS, dtype=bool)  # does not end a word
    follows = np.zeros(_CODE_POINTS, dtype=bool)  # stands behind another character of a word
    for group in in_groups(texts):  # each of which is worth a pass over all code points
        codes = np.frombuffer("\n".join(group).encode("utf-32-le", "replace"), dtype=np.uint32)
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
    alphabet = sorted(frequencies, key=lambda character: (-frequencies[character], character))
    covered = np.cumsum([frequencies[character] for character in alphabet])
    enough = int(np.searchsorted(covered, _COVERAGE * covered[-1])) + 1 if alphabet else 0
    alphabet = alphabet[: max(_MAX_ALPHABET, enough)]
    return alphabet, [character for character in alphabet if character in continuing]


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """The texts with long ones cut: a trainer takes fifty times a text's size in memory."""
    return (piece for text in texts for piece in cut_long(without_surrogates(text)))


def _words(text: str, tokenizer: Tokenizer) -> list[str]:
    """What BERT's normaliser and pre-tokeniser make of a text."""
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))]
