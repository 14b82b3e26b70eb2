"""Sentences of a text."""

from __future__ import annotations

import re

# A sentence ends at . ! ? before white space, unless a lower-case letter follows (an abbreviation, as a rule) or the
# full stop closes a known one; at a full-width stop; and at an empty line.
_SENTENCE_END = re.compile(r"(?<!e\.g\.)(?<!i\.e\.)(?<!cf\.)(?<=[.!?])\s+(?![a-z])|(?<=[。！？])\s*|\n\s*\n\s*")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text in order, without surrounding white space; none is empty."""
    return [sentence for part in _SENTENCE_END.split(text) if (sentence := part.strip())]


def split_first_sentence(text: str) -> tuple[str, str]:
    """A text's first sentence, with its white space folded, and the rest; the rest is empty for a single sentence."""
    text = text.strip()
    first = _SENTENCE_END.split(text, maxsplit=1)[0]
    return " ".join(first.split()), text[len(first) :].strip()


def without_surrogates(text: str) -> str:
    """A text with "?" for lone surrogates, which source code and JSON can escape and which are no text."""
    return text.encode("utf-8", "replace").decode("utf-8")
