"""Sentences of a text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise

# A sentence ends at . ! ? before white space, unless a lower-case letter follows (an abbreviation, as a rule) or the
# full stop closes a known one; at an empty line; and behind full-width stops and what closes behind them.
_SENTENCE_END = re.compile(
    r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!cf\.)\s+(?![a-z])"  # what fails soonest first: it is tried everywhere
    r"|\n\s*\n\s*"
    r"|(?P<full_width>[。！？]+[”’」』）》〉】〕]*)"
)

MIN_QUERY_WORDS, MIN_BODY_WORDS = 5, 15
"""A query made of a text has at least so many words, and what it asks for."""
LONGEST_PIECE = 1 << 20
"""Characters that are tokenised at once at most, a book: a tokenizer takes some hundred bytes for each."""
LONGEST_READ = 1 << 18
"""Characters of a text that are looked at where its first tokens alone are wanted."""


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


def split_first_sentence(text: str) -> tuple[str, str]:
    """A text's first sentence, with its white space folded, and the rest; the rest is empty for a single sentence."""
    first, *rest = cut_sentences(text) or [""]
    return " ".join(first.split()), "".join(rest).strip()


def cut_long(text: str, longest: int = LONGEST_PIECE) -> Iterator[str]:
    """A text in pieces of at most `longest` characters, without white space around them; most texts are one piece.

    Cut at the last white space of a piece, where its last tenth has any.
    """
    text = text.strip()
    start = 0
    while len(text) - start > longest:
        tail = text[start + longest - longest // 10 : start + longest]
        word = tail.rsplit(maxsplit=1)[-1] if tail.strip() else tail
        inside_a_word = not (tail[-1:].isspace() or text[start + longest].isspace()) and len(word) < len(tail)
        end = start + longest - (len(word) if inside_a_word else 0)
        if piece := text[start:end].strip():
            yield piece
        start = end
    yield text[start:].strip()


def in_groups(texts: Iterable[str], most: int = LONGEST_PIECE) -> Iterator[list[str]]:
    """Texts in groups of at most so many characters, to be worked on at once; a longer text is a group of its own."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and size + len(text) > most:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group


def head_of(text: str) -> str:
    """A text as far as a tokenizer reads it that cuts it off, with "?" for lone surrogates."""
    return without_surrogates(text[:LONGEST_READ])


def titled(title: str, text: str) -> str:
    """A document of BEIR's layout as it is searched: its title in front of its text."""
    return f"{title} {text}".strip()


def without_surrogates(text: str) -> str:
    """A text with "?" for lone surrogates, which source code and JSON can escape and which are no text."""
    return text.encode("utf-8", "replace").decode("utf-8")
