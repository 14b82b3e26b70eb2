"""Sentences of a text."""

from __future__ import annotations

import re
from itertools import pairwise

# A sentence ends at . ! ? before white space, unless a lower-case letter follows (an abbreviation, as a rule) or the
# full stop closes a known one; at a full-width stop and the quotation mark that closes behind it; and at an empty line.
_SENTENCE_END = re.compile(
    r"(?<!e\.g\.)(?<!i\.e\.)(?<!cf\.)(?<=[.!?])\s+(?![a-z])"
    r"|(?<=[。！？])(?![。！？”’」』）])\s*|(?<=[。！？][”’」』）])\s*"
    r"|\n\s*\n\s*"
)


def cut_sentences(text: str) -> list[str]:
    """The sentences of a text in order, each with the white space before it; none is blank.

    Joined they are the text without the white space around it, so that a tokenizer for which a space belongs to the
    word behind it gives them the tokens that it gives the text.
    """
    text = text.strip()
    # A stop may be followed by nothing, and white space ends a sentence without being one.
    ends = [end.start() for end in _SENTENCE_END.finditer(text)]
    cuts = sorted({0, *ends, len(text)})
    return [text[start:end] for start, end in pairwise(cuts)]


def split_sentences(text: str) -> list[str]:
    """The sentences of a text in order, without surrounding white space; none is empty."""
    return [sentence.strip() for sentence in cut_sentences(text)]


def split_first_sentence(text: str) -> tuple[str, str]:
    """A text's first sentence, with its white space folded, and the rest; the rest is empty for a single sentence."""
    text = text.strip()
    first = _SENTENCE_END.split(text, maxsplit=1)[0]
    return " ".join(first.split()), text[len(first) :].strip()


def without_surrogates(text: str) -> str:
    """A text with "?" for lone surrogates, which source code and JSON can escape and which are no text."""
    return text.encode("utf-8", "replace").decode("utf-8")
