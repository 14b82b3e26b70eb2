"""Documents into tokenised passages, cut at sentence ends, or into pairs of segments."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Sized
from dataclasses import asdict, dataclass
from itertools import accumulate, chain, pairwise, repeat
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Sequence, Value
from datasets.fingerprint import Hasher
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from ..arguments.pretraining import Cutting
from ..model.errors import RetroMAEError
from .documents import fingerprint_of_tokenizer
from .text import LONGEST_PIECE, cut_long, cut_sentences, in_groups
from .words import WordSegmenter, is_han, number_words, word_starts, word_table

logger = logging.getLogger(__name__)

# A passage's id is its document's index and its own place in the document; a document holds fewer passages than this.
_MAX_PASSAGES = 1 << 24
DOCUMENT_BITS = 63 - 24
"""A document's number has no more bits than this."""


def tokenize_passages(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    seed: int = 0,
    num_proc: int | None = None,
    pairs: bool = False,
    word_segmenter: WordSegmenter | None = None,
    **cutting: Any,
) -> Dataset:
    """Cut documents into tokenised passages at sentence ends.

    Sentences are packed into a passage while they fit; a sentence that is longer than a passage is cut. As in the
    released recipe, a passage gets with probability `short_seq_prob` a shorter target, uniform from 3 tokens up, so
    that the encoder sees short texts too. The result is cached by `datasets` where `documents` is on disk.

    For the pair objectives (NSP and SOP) a passage is two consecutive segments of its document, each of whole sentences
    and at most half a passage long. Every token is in one pair: of an odd number of segments the longest is cut in two.
    Documents of a single token make none and are dropped.

    Args:
        documents: must have the column `text`.
        tokenizer: must put one special token at each end of a passage.
        max_length: tokens of a passage at most, special tokens included.
        seed: seed of the short targets; they depend on it and on the document alone.
        num_proc: processes to tokenise with.
        pairs: make pairs of segments.
        word_segmenter: takes a text apart into words, for whole-word masks of Chinese (`chinese_segmenter`); of other
            scripts the collator finds the words by itself.
        **cutting: `short_seq_prob`, the probability of a short target, in [0, 1]; `stride`, tokens that a passage
            shares at most with the one before it, as many whole sentences as fit; `max_passages_per_document`, of a
            longer document the first ones, by default all.

    Returns:
        A dataset with the columns `input_ids` (int32, special tokens included), `length` (tokens of it), `passage_id`
        (int64, unique and stable, ascending within a document) and `document_id` (int64); for pairs also
        `token_type_ids` (0 up to the first segment's end, 1 behind); with a segmenter also `word_ids` (int32).

    Raises:
        RetroMAEError: no document holds a token, or an argument is out of range.
    """
    cutter = PassageCutter(Cutting(max_length, **cutting), tokenizer, seed, pairs, word_segmenter)
    return cut_documents(documents, cutter, num_proc)


def cut_documents(documents: Dataset, cutter: PassageCutter, num_proc: int | None = None) -> Dataset:
    """What `tokenize_passages` does, by a cutter that is there."""
    passages = documents.map(
        cutter,
        batched=True,
        with_indices=True,
        input_columns="text",
        remove_columns=documents.column_names,
        features=cutter.features,
        num_proc=num_proc,
        new_fingerprint=Hasher.hash([documents._fingerprint, cutter.identity, cutter.pairs, cutter.word_segmenter]),
        desc="Tokenizing passages",
    )
    if len(passages) == 0:
        what = "document with two tokens to make a pair of" if cutter.pairs else "passage with a token in it"
        raise RetroMAEError(f"the corpus holds no {what}; give a source with text")
    with_passages = len(np.unique(passages.with_format("numpy")["passage_id"][:] // _MAX_PASSAGES))
    if dropped := len(documents) - with_passages:
        what = "pair" if cutter.pairs else "token"
        logger.warning("%d of %d documents hold no %s and were dropped", dropped, len(documents), what)
    return passages


@dataclass(frozen=True)
class Frame:
    """The special tokens around the text of a passage: before it, between its two segments (if any), behind it."""

    prefix: list[int]
    middle: list[int]
    suffix: list[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, pairs: bool) -> Frame:
        """What a tokenizer puts around one text, or around a pair.

        Raises:
            RetroMAEError: it does not put one special token at each end.
        """
        single = tokenizer("")["input_ids"]
        if len(single) != 2:
            raise RetroMAEError(
                f"the tokenizer puts {len(single)} special tokens around a text; RetroMAE needs one at each end"
            )
        if not pairs:
            return cls(single[:1], [], single[1:])
        text = tokenizer.mask_token  # an empty second text is taken for none
        both = tokenizer(text, text)["input_ids"]
        first, second = (place for place, token in enumerate(both) if token == tokenizer.mask_token_id)
        if both[:first] + both[second + 1 :] != single or second == first + 1:
            raise RetroMAEError("the tokenizer does not separate the texts of a pair; use a masked language model's")
        return cls(both[:first], both[first + 1 : second], both[second + 1 :])

    def parts(self, first: Any, second: Any) -> tuple[Any, ...]:
        """A passage's ids in the order of its parts; where it is no pair, `second` is empty."""
        return self.prefix, first, self.middle, second, self.suffix

    def tokens(self, first: list[int], second: list[int]) -> list[int]:
        """A passage's ids as one list."""
        return [*chain.from_iterable(self.parts(first, second))]

    def token_types(self, first: Sized, second: Sized) -> list[int]:
        """BERT's segment ids: 0 up to the separator behind the first segment, 1 from there on."""
        return [0] * (len(self.prefix) + len(first) + len(self.middle)) + [1] * (len(second) + len(self.suffix))

    def word_starts(self, first: list[bool], second: list[bool]) -> list[bool]:
        """Where words start, by where they do in the segments; special tokens are words of their own."""
        before, between, behind = ([True] * len(special) for special in (self.prefix, self.middle, self.suffix))
        return [*before, *first, *between, *second, *behind]

    def segments(self, tokens: list[Any], first_length: int) -> tuple[list[Any], list[Any]]:
        """What belongs to the two segments of a pair, of which `first_length` ids have the type 0."""
        first = tokens[len(self.prefix) : first_length - len(self.middle)]
        return first, tokens[first_length : len(tokens) - len(self.suffix)]


@dataclass
class PassageCutter:
    """Makes passages of documents: the function that is mapped over them, at once or as they stream by.

    Attributes:
        cutting: how.
        tokenizer: with what.
        seed: of the short targets.
        pairs: whether to make pairs of segments.
        word_segmenter: see `tokenize_passages`.
    """

    cutting: Cutting
    tokenizer: PreTrainedTokenizerBase
    seed: int = 0
    pairs: bool = False
    word_segmenter: WordSegmenter | None = None

    def __post_init__(self) -> None:
        self._frame = Frame.of(self.tokenizer, self.pairs)
        stride, max_length = self.cutting.stride, self.cutting.max_length
        self._room = room = (max_length - len(self._frame.tokens([], []))) // (2 if self.pairs else 1)
        if room < 1 + self.pairs:
            least = "two segments of two tokens" if self.pairs else "a token"
            raise RetroMAEError(f"max_length={max_length} leaves no room for {least} between the special ones")
        if not 0 <= stride < room:
            raise RetroMAEError(f"stride={stride} must be 0 or more, and below the {room} tokens of text in a passage")
        if stride and self.pairs:
            raise RetroMAEError("the segments of a pair follow one another; leave stride out, or the pair objective")
        if not self.tokenizer.is_fast:
            raise RetroMAEError("the tokenizer does not tell where its tokens stand in the text; use a fast one")
        self._words = None if self.word_segmenter is None else (word_table(self.tokenizer), self.word_segmenter)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which passages come of a text, beside `pairs` and the segmenter: not the tokenizer's folder."""
        return asdict(self.cutting) | {"seed": self.seed, "tokenizer": fingerprint_of_tokenizer(self.tokenizer)}

    @property
    def features(self) -> Features:
        """The columns of the passages."""
        columns = {"input_ids": Sequence(Value("int32")), "length": Value("int32")}
        columns |= {"passage_id": Value("int64"), "document_id": Value("int64")}
        columns |= {"token_type_ids": Sequence(Value("int8"))} if self.pairs else {}
        return Features(columns | ({"word_ids": Sequence(Value("int32"))} if self._words else {}))

    def __call__(self, texts: list[str], indices: list[int]) -> dict[str, list[Any]]:
        """The passages of some documents as columns.

        Tokens are in arrays of the columns' types, since one in a list takes ten times the memory of its text. The
        documents' numbers, below 2^39, go into the passages' ids and choose the short targets.
        """
        rows: dict[str, list[Any]] = {name: [] for name in self.features}
        frame, stride = self._frame, self.cutting.stride
        documents = _tokenize_documents(texts, self.tokenizer, self._words)
        for index, (tokens, lengths, starts) in zip(indices, documents, strict=True):
            targets = _targets(self._room, self.cutting.short_seq_prob, f"{self.seed} {index}")
            segments = list(_pack(lengths, self._room, targets, stride))
            spans = [(start, end, end) for start, end in segments]
            if self.pairs:
                spans = _pair_up(segments, list(accumulate(lengths)))
            for place, (start, middle, end) in enumerate(spans[: self.cutting.max_passages_per_document]):
                first, second = tokens[start:middle], tokens[middle:end]
                ids = np.concatenate(frame.parts(first, second), dtype=np.int32, casting="unsafe")
                rows["input_ids"].append(ids)
                rows["length"].append(len(ids))
                rows["passage_id"].append(index * _MAX_PASSAGES + place)
                rows["document_id"].append(index)
                if self.pairs:
                    rows["token_type_ids"].append(np.array(frame.token_types(first, second), dtype=np.int8))
                if self._words:
                    starts_here = frame.word_starts(starts[start:middle], starts[middle:end])
                    rows["word_ids"].append(number_words(torch.tensor(starts_here)).numpy())
        return rows


def _tokenize_documents(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, words: tuple[torch.Tensor, WordSegmenter] | None
) -> Iterator[tuple[np.ndarray, list[int], list[bool]]]:
    """Each document's tokens (int32), how many of them each of its sentences has, and which begin a word.

    Documents go through the tokenizer as a whole, since it may see a sentence's beginning otherwise when it stands
    alone. Those that are longer than any book go piece by piece: a tokenizer holds some hundred bytes a character.
    """
    encoded = _encode((piece for text in texts for piece in cut_long(text)), tokenizer)
    for text in texts:
        tokens: list[np.ndarray] = []
        lengths: list[int] = []
        starts: list[bool] = []
        for piece in cut_long(text):
            encoding = next(encoded)
            tokens.append(np.array(encoding.ids, dtype=np.int32))
            lengths += _tokens_of_sentences(piece, encoding)
            starts += _word_starts(piece, encoding, *words) if words else []
        yield np.concatenate(tokens), lengths, starts


def _encode(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[Encoding]:
    """The tokens of each text, and where they stand in it."""
    for group in in_groups(texts, LONGEST_PIECE):
        encoded = tokenizer(
            group,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        yield from encoded.encodings
        del encoded  # before the next group's is made, for it is what takes the memory


def _tokens_of_sentences(text: str, encoding: Encoding) -> list[int]:
    """How many tokens each sentence of a text has; one across a boundary belongs to the sentence behind it.

    Only the boundaries are looked up, since a list of all tokens' places takes longer to make than the tokens.
    """
    ends = list(accumulate(map(len, cut_sentences(text))))
    firsts = [0]
    for end, last in pairwise(ends):
        # Some characters have no token, such as spaces and what a normaliser leaves out.
        tokens = (encoding.char_to_token(place) for place in range(end, last))
        firsts.append(max(next((token for token in tokens if token is not None), 0), firsts[-1]))
    return [end - start for start, end in pairwise([*firsts, len(encoding)])]


def _targets(room: int, short_seq_prob: float, seed: str) -> Iterator[int]:
    """The length that each passage of a document aims at, without end."""
    if short_seq_prob == 0:
        yield from repeat(room)
    generator = random.Random(seed)
    while True:
        yield generator.randint(min(3, room), room) if generator.random() < short_seq_prob else room


def _pack(lengths: Iterable[int], room: int, targets: Iterator[int], stride: int) -> Iterator[tuple[int, int]]:
    """Where passages of at most `room` tokens start and end that hold sentences of these lengths one after another.

    A passage begins with the last sentences of the one before it, where these have `stride` tokens at most and leave
    room for the next one.
    """
    start = end = 0
    begins: list[int] = []  # of the passage's sentences
    target = next(targets)
    for length in lengths:
        for done in range(0, length, room):
            piece = min(length - done, room)
            if end > start and end - start + piece > target:
                yield start, end
                target = next(targets)
                begins = [at for at in begins if at > start and end - at <= stride and end - at + piece <= target]
                start = begins[0] if begins else end
            begins.append(end)
            end += piece
    if end > start:
        yield start, end


def _pair_up(segments: list[tuple[int, int]], sentence_ends: list[int]) -> list[tuple[int, int, int]]:
    """Start, middle and end of the pairs that a document's segments make, two by two."""
    if len(segments) % 2:
        longest = max(range(len(segments)), key=lambda place: segments[place][1] - segments[place][0])
        start, end = segments[longest]
        middle = (start + end) // 2
        inside = [cut for cut in sentence_ends if start < cut < end] or [middle]
        cut = min(inside, key=lambda cut: abs(cut - middle))
        # A document of one token makes no pair.
        halves = [(start, cut), (cut, end)] if end - start > 1 else []
        segments = [*segments[:longest], *halves, *segments[longest + 1 :]]
    return [(start, middle, end) for (start, _), (middle, end) in zip(segments[::2], segments[1::2], strict=False)]


def _word_starts(text: str, encoding: Encoding, table: torch.Tensor, segmenter: WordSegmenter) -> list[bool]:
    """Which of a document's tokens begin a word: what the vocabulary tells, less what goes on a Chinese word."""
    if not encoding.ids:
        return []
    starts = word_starts(table, torch.tensor(encoding.ids)).tolist()
    boundaries = {0, *accumulate(map(len, segmenter(text)))}
    for place, ((_, before), (here, _)) in enumerate(pairwise(encoding.offsets), start=1):
        # Neighbours, both Chinese, and the segmenter sees no boundary between them.
        if before == here and here not in boundaries and all(map(is_han, text[here - 1 : here + 1])):
            starts[place] = False
    return starts
