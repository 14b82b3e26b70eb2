"""Text from outside, such as names in a stranger's record, as a card may show it: it never becomes Markdown or HTML."""

from __future__ import annotations

import re
from typing import Any

_PLAIN = re.compile(
    r"(?!.*(://|www\.))([^\W_]([^\W_]|(?<=[^\W_])_(?=[^\W_])|[ .,:/+()%='-]|@\d+(?![\w.-]))*)?", re.IGNORECASE
)
"""What means nothing in Markdown, wherever it stands within a line, and is made no link."""


def as_text(value: Any) -> Any:
    """A value whose strings, keys and those in lists and mappings included, are plain text or code, of one line."""
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else _span(value)
    if isinstance(value, dict):
        return {as_text(name): as_text(inner) for name, inner in value.items()}
    return [as_text(inner) for inner in value] if isinstance(value, list) else value


def code(text: str) -> str:
    """What `as_text` has made, as code."""
    return text if text.startswith("`") else _span(text)


def _span(text: str) -> str:
    """A text as code that holds in a table and outside of it: no escape of backticks and bars does in both."""
    printable = "".join(one if one.isprintable() else " " for one in text)
    return f"`{' '.join(printable.split()).replace('`', chr(39)).replace('|', '¦') or ' '}`"
