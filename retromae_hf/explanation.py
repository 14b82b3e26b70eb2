"""What a sentence embedding remembers of its passage: the tokens that can be rebuilt from it, the words it predicts."""

from __future__ import annotations

import itertools
import math
import time
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import getdoc
from operator import attrgetter

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .data.text import without_surrogates
from .model.errors import RetroMAEError
from .model.families import max_text_length
from .model.losses import chunk_rows
from .model.masking import IGNORE_INDEX, visibility_mask
from .model.modeling_retromae import DecoderInputs, RetroMAEForPreTraining


@dataclass(frozen=True)
class PredictedWord:
    """An entry of the vocabulary that a sentence embedding predicts.

    Attributes:
        text: as the vocabulary writes it.
        probability: 0 to 1; of all entries they add up to 1.
        present: whether it is a token of the passage.
    """

    text: str
    probability: float
    present: bool


@torch.inference_mode()
def predict_words(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, count: int = 20
) -> list[PredictedWord]:
    """The words that a passage's sentence embedding predicts, the likeliest first (BoW-DPR, arXiv 2401.11248).

    Args:
        model: a `RetroMAEForPreTraining` with `bow_source="sentence"`.
        tokenizer: its tokenizer.
        text: the passage.
        count: how many.

    Returns:
        The words, at most `count`.

    Raises:
        RetroMAEError: the model was not trained to predict words.
    """
    if getattr(model.config, "bow_source", None) != "sentence":
        raise RetroMAEError(
            "this model's sentence embedding was not trained to predict words; take one with bow_source='sentence'"
        )
    max_length = max_text_length(tokenizer, model.config)
    tokens = tokenizer(without_surrogates(text), truncation=True, max_length=max_length)["input_ids"]
    with _evaluating(model):
        features, weight, bias = model.head(_embed(model, tokens))
    probabilities = linear(features[0], weight, bias).float().softmax(dim=0)
    best = probabilities.topk(min(count, len(probabilities)))
    return [
        PredictedWord(written(tokenizer, token), probability, token in tokens)
        for probability, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def words_as_table(words: Sequence[PredictedWord]) -> str:
    """A line a word, and how many of them are in the passage."""
    lines = [f"{'word':<16}{'probability':>12}  in the passage"]
    lines += [
        f"{printable(word.text):<16}{word.probability:>12.4f}  {'yes' if word.present else '-'}" for word in words
    ]
    present = sum(word.present for word in words)
    return "\n".join([*lines, f"Of the {len(words)} likeliest words {present} are in the passage."])


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout inside; afterwards the model trains on if it did before."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _embed(model: PreTrainedModel, tokens: Sequence[int] | Tensor) -> Tensor:
    return model.pool(model.encode(torch.as_tensor(tokens, device=model.device)[None]))


VISIBILITY_SEED = 0
"""The one seed of the visible tokens: what a row sees at a small share it sees at every larger one."""

BASIC_PASSES = 64
"""Passages that basic decoding rebuilds at a time, each for the sake of a single token."""

OTHERS = 4
"""Other passages that are taken of a corpus."""
PYTHONS_OWN = tuple(str(getdoc(function)) for function in (sorted, time.sleep, zlib.compress, itertools.combinations))
"""Other passages that are always at hand: what Python itself says of some functions that have little in common."""

SHADES = (0.001, 0.01, 0.1, 0.5)
"""Probabilities at which one colour ends and the next begins, about a power of ten each: words are rare, so that a
hundredth is much already."""
SHADE_NAMES = ("under 0.1%", "0.1 to 1%", "1 to 10%", "10 to 50%", "over 50%")
# Backgrounds of a terminal's 256 colours, faint to full, each with the foreground that can be read on it.
COLOURS = ((255, 16), (195, 16), (117, 16), (32, 231), (18, 231))
SIDES = {"rebuilt": "from the embedding", "exchanged": "from other passages' embeddings"}


@dataclass(frozen=True)
class Rebuilding:
    """What the decoder makes of a token's place: the true token's probability, and the token that it finds likeliest.

    Attributes:
        probability: of the true token, 0 to 1.
        guess: the likeliest token, as the vocabulary writes it.
        right: whether that is the true one.
    """

    probability: float
    guess: str
    right: bool


@dataclass(frozen=True)
class ExplainedToken:
    """One token of the passage, and how it was rebuilt.

    Attributes:
        text: the token as it stands in the passage; empty where a token before it covers the same character.
        start: where it stands there, in characters.
        rebuilt: from the sentence embedding.
        exchanged: the same with the embeddings of other passages in its place: the geometric mean of the probabilities
            that they give, and the guess by that mean.
    """

    text: str
    start: int
    rebuilt: Rebuilding
    exchanged: Rebuilding


@dataclass(frozen=True)
class EmbeddingExplanation:
    """A passage, rebuilt from its own sentence embedding and from those of others.

    Attributes:
        text: the passage.
        tokens: its ordinary tokens in order; special and unknown ones are not rebuilt.
        visible: share of the other tokens that each was rebuilt from.
        gain: how much more log-probability a token has with the embedding than with those of other passages, mean over
            tokens and passages, nats.
        truncated: whether the passage has more tokens than the model reads, which are not among `tokens`.
    """

    text: str
    tokens: list[ExplainedToken]
    visible: float
    gain: float
    truncated: bool


@torch.inference_mode()
def explain_embedding(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    visible: float = 0.0,
    others: Sequence[str] = PYTHONS_OWN,
) -> EmbeddingExplanation:
    """Encode a passage and rebuild each of its tokens from the sentence embedding, and from those of other passages.

    Each token is rebuilt from a sample of the others that is drawn for it alone, as enhanced decoding does (RetroMAE,
    section 3.3, equation 7), and never sees itself. A model with basic decoding gets the same samples: the passage is
    masked anew for every token. What another passage's embedding leaves is what the decoder knows from the position
    and the sample; the difference is what the embedding carries of this passage, as `eval_embedding_gap` measures it
    in training. The decoder was trained with a share of 1 minus `decoder_mask_ratio`, so other ones ask it for what it
    has not practised.

    Args:
        model: a `RetroMAEForPreTraining` with enhanced or basic decoding.
        tokenizer: its tokenizer, one that knows where in the text a token stands (tokenizers in `tokenizer.json` do).
        text: the passage.
        visible: share of the other tokens that a token is rebuilt from, 0 to 1. Samples are nested: what is visible at
            0.2 is at 0.4 too. At 0 there is nothing but the embedding and the positions.
        others: the other passages, of the text that the model was trained on as a rule (`other_passages`): the
            embedding of a text of another kind is easily told from this one's. The passage itself is left out.

    Returns:
        `EmbeddingExplanation`.

    Raises:
        RetroMAEError: the model has no decoder that rebuilds a passage from its embedding, `visible` is no share, the
            text has no token to rebuild, or there is no other passage.
    """
    decoding = _check(model, tokenizer, visible)
    text = without_surrogates(text)
    others = [without_surrogates(other) for other in others if other.strip() != text.strip()]
    if not others:
        raise RetroMAEError("there is no other passage to compare the text's embedding with; give some")
    max_length = max_text_length(tokenizer, model.config)
    encoded = tokenizer(
        text,
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=True,
        return_overflowing_tokens=True,  # a row for every piece; the first is the passage
    )
    other_tokens = tokenizer(others, truncation=True, max_length=max_length)["input_ids"]
    tokens = torch.tensor(encoded["input_ids"][0], device=model.device)
    special = torch.tensor(tokenizer.all_special_ids, device=model.device)
    labels = tokens.masked_fill(torch.isin(tokens, special), IGNORE_INDEX)
    true = labels[labels != IGNORE_INDEX]
    if len(true) == 0:
        raise RetroMAEError("the text has no token to rebuild; give a text with words that the vocabulary knows")
    seen = visibility_mask(VISIBILITY_SEED, len(tokens), 1.0 - visible).to(model.device)
    mask = None if decoding == "enhanced" else tokenizer.mask_token_id
    with _evaluating(model):
        own, *exchanged = (_embed(model, row) for row in (tokens, *other_tokens))
        chances, guesses = zip(
            *(
                _predict(model, torch.stack([_rebuild(model, h, tokens, labels, seen, mask) for h in side]), true)
                for side in ([own], exchanged)
            ),
            strict=True,
        )
    sides = (
        [
            Rebuilding(probability, written(tokenizer, guess), guess == token)
            for probability, guess, token in zip(log.exp().tolist(), best.tolist(), true.tolist(), strict=True)
        ]
        for log, best in zip(chances, guesses, strict=True)
    )
    spans = [span for span, label in zip(encoded["offset_mapping"][0], labels.tolist(), strict=True) if label >= 0]
    return EmbeddingExplanation(
        text=text,
        tokens=[
            ExplainedToken(piece, start, *pair)
            for (start, piece), *pair in zip(_pieces(text, spans), *sides, strict=True)
        ],
        visible=visible,
        gain=(chances[0] - chances[1]).mean().item(),
        truncated=len(encoded["input_ids"]) > 1,
    )


def other_passages(documents: Dataset) -> list[str]:
    """Some texts of a corpus with the column `text`, from all over it, for `explain_embedding` to compare with."""
    places = range(0, len(documents), max(len(documents) // OTHERS, 1))[:OTHERS]
    return documents.select(places)["text"][:]


def shade(probability: float) -> int:
    """The number of a probability's colour, an index into `SHADE_NAMES`."""
    return bisect_right(SHADES, probability)


def segments(explanation: EmbeddingExplanation) -> Iterator[tuple[str, ExplainedToken | None]]:
    """The passage from its beginning to its end, a piece at a time, each with its token; None is what is between."""
    end = 0
    for token in explanation.tokens:
        if token.start > end:
            yield explanation.text[end : token.start], None
        yield token.text, token
        end = token.start + len(token.text)
    if end < len(explanation.text):
        yield explanation.text[end:], None


def _check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, visible: float) -> str:
    """The model's decoding, or what is wrong with the arguments."""
    if not isinstance(model, RetroMAEForPreTraining):
        raise RetroMAEError(
            f"a {type(model).__name__} has no decoder to rebuild a passage with; take the training checkpoint "
            "(RetroMAEForPreTraining) that the encoder was exported from"
        )
    decoding = model.config.decoding
    if decoding not in ("enhanced", "basic"):
        raise RetroMAEError(
            f"a model with decoding={decoding!r} has no decoder that rebuilds a passage from its sentence embedding; "
            "take one that was trained with decoding='enhanced' or 'basic', or with bow_source='sentence' for its words"
        )
    if not tokenizer.is_fast:
        raise RetroMAEError(
            f"{type(tokenizer).__name__} does not tell where in the text a token stands; use a tokenizer that has a "
            "tokenizer.json"
        )
    if isinstance(visible, bool) or not isinstance(visible, int | float) or not 0 <= visible <= 1:
        raise RetroMAEError(f"visible={visible!r} must be a share between 0 and 1")
    return decoding


def _rebuild(
    model: RetroMAEForPreTraining, embedding: Tensor, tokens: Tensor, labels: Tensor, seen: Tensor, mask: int | None
) -> Tensor:
    """The decoder's states `[T, H]` at the T labelled tokens of a passage, from an embedding `[1, H]`.

    `seen[i, j]` is True where row i sees column j. In basic decoding, which has a `mask` token, rows see all that is
    not masked, themselves too, so that the passage is masked anew for every row.
    """
    if mask is None:
        inputs = DecoderInputs(tokens[None], labels[None], decoder_visibility=seen[None])
        return model.decode(embedding, inputs)[0]
    states = []
    for rows in (labels != IGNORE_INDEX).nonzero().squeeze(1).split(BASIC_PASSES):
        # Special tokens are never masked in training.
        masked = torch.where(seen[rows] | (labels == IGNORE_INDEX), tokens, mask)
        own = torch.full_like(masked, IGNORE_INDEX).scatter(1, rows[:, None], tokens[rows, None])
        states.append(model.decode(embedding.expand(len(rows), -1), DecoderInputs(masked, own))[0])
    return torch.cat(states)


def _predict(model: RetroMAEForPreTraining, states: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the true tokens and the likeliest tokens, both `[T]`, for states `[E, T, H]`.

    E embeddings make E log-probabilities, of which these are means.
    """
    features, weight, bias = model.head(states)
    rows = max(chunk_rows(features) // len(states), 1)
    chances, best = [], []
    for part, labels in zip(features.split(rows, dim=1), true.split(rows), strict=True):
        log_probabilities = linear(part, weight, bias).float().log_softmax(dim=2).mean(dim=0)
        chances.append(log_probabilities.gather(1, labels[:, None]).squeeze(1))
        best.append(log_probabilities.argmax(dim=1))
    return torch.cat(chances), torch.cat(best)


def written(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """A token for a reader: decoded, without the sign for a space; a token of nothing else by its name."""
    return tokenizer.decode([token_id]).strip() or tokenizer.convert_ids_to_tokens(token_id)


def _pieces(text: str, spans: list[tuple[int, int]]) -> Iterator[tuple[int, str]]:
    """Start and text of the tokens with these spans, without the space before them and without overlaps."""
    end = 0
    for start, stop in spans:
        start = max(start, end)
        piece = text[start:stop]
        if piece.strip():  # some tokenizers count the space before a word to its token
            start += len(piece) - len(piece.lstrip())
        yield start, text[start:stop]
        end = max(end, stop)


def in_colours(explanation: EmbeddingExplanation) -> str:
    """The passage twice, each token on the colour of its probability, and what the colours mean."""
    parts = []
    for side, name in SIDES.items():
        passage = "".join(
            printable(piece) if token is None else coloured(printable(piece), getattr(token, side).probability)
            for piece, token in segments(explanation)
        )
        parts.append(f"Rebuilt {name}:\n{passage}\n")
    # The lower end of each range lies in it.
    legend = (coloured(f" {name} ", edge) for name, edge in zip(SHADE_NAMES, (0.0, *SHADES), strict=True))
    return "\n".join([*parts, f"Probability of the true token: {''.join(legend)}"])


def as_table(explanation: EmbeddingExplanation) -> str:
    """A line a token: its probability from the embedding and from others, and the guess from the embedding."""
    lines = [f"{'token':<16}{'embedding':>10}{'others':>10}  guess"]
    lines += [
        f"{printable(token.text):<16}{token.rebuilt.probability:>10.4f}{token.exchanged.probability:>10.4f}"
        f"  {printable(token.rebuilt.guess)}"
        for token in explanation.tokens
    ]
    return "\n".join(lines)


def conclusion(explanation: EmbeddingExplanation) -> str:
    """What the embedding is worth, and what was left out."""
    guessed = [sum(map(attrgetter(f"{side}.right"), explanation.tokens)) for side in SIDES]
    text = (
        f"The decoder's first guess is right for {guessed[0]} of {len(explanation.tokens)} tokens, from other "
        f"passages' embeddings for {guessed[1]}.\nThe embedding is worth {explanation.gain:.2f} nats a token: with it "
        f"a true token is {math.exp(explanation.gain):,.1f} times as probable as with theirs (geometric mean)."
    )
    if explanation.truncated:
        text += "\nThe passage is longer than the model reads; only its beginning was encoded."
    return text


def coloured(text: str, probability: float) -> str:
    """A text on the colour of a probability."""
    background, foreground = COLOURS[shade(probability)]
    return f"\x1b[48;5;{background};38;5;{foreground}m{text}\x1b[0m"


def printable(text: str) -> str:
    """A text that cannot steer the terminal: white space is a space, and other control characters are "?"."""
    return "".join(" " if character.isspace() else character if character.isprintable() else "?" for character in text)
