"""The words that a sentence embedding predicts, where it was pretrained to name its passage's (BoW-DPR)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import linear
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .data.reading.text import without_surrogates
from .explanation import printable, written
from .model.backbones import max_text_length
from .model.errors import RetroMAEError


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
    was_training = model.training
    model.eval()
    features, weight, bias = model.head(model.pool(model.encode(torch.as_tensor(tokens, device=model.device)[None])))
    model.train(was_training)
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
