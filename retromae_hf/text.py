"""Sentences of a text."""

from __future__ import annotations

import re
from itertools import pairwise

# A sentence ends at . ! ? before white space, unless a lower-case letter follows (an abbreviation, as a rule) or the
# full stop closes a known one; at an empty line; and behind full-width stops and what closes behind them.
_SENTENCE_END = re.compile(
    r"(?<!e\.g\.)(?<!i\.e\.)(?<!cf\.)(?<=[.!?])\s+(?![a-z])"
    r"|\n\s*\n\s*"
    r"|(?P<full_width>[。！？]+[”’」』）》〉】〕]*)"
)


def cut_sentences(text: str) -> list[str]:
    """The sentences of a text in order, each with the white space before it; none is blank.

    Joined they are the text without the white space around it.
    """
    text = text.strip()
    cuts = [0]
    for end in _SENTENCE_END.finditer(text):
        cut = end.end() if end["full_width"] else end.start()
        if text[cuts[-1] : cut].strip():  # between a full-width stop and an empty line there may be white space alone
            cuts.append(cut)
    if cuts[-1] < len(text):
        cuts.append(len(text))
    return [text[start:end] for start, end in pairwise(cuts)]


def split_sentences(text: str) -> list[str]:
    """The sentences of a text in order, without surrounding white space; none is empty."""
    return [sentence.strip() for sentence in cut_sentences(text)]


def split_first_sentence(text: str) -> tuple[str, str]:
    """A text's first sentence, with its white space folded, and the rest; the rest is empty for a single sentence."""
    first, *rest = cut_sentences(text) or [""]
    return " ".join(first.split()), "".join(rest).strip()


def without_surrogates(text: str) -> str:
    """A text with "?" for lone surrogates, which source code and JSON can escape and which are no text."""
    return text.encode("utf-8", "replace").decode("utf-8")
