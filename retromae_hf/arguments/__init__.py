"""Arguments of the commands. Light to import, so that `--help` is quick."""

from dataclasses import MISSING, field
from typing import Any


def argument(help_text: str, default: Any = MISSING) -> Any:
    """A field of a command's arguments, with what `--help` says of it."""
    return field(default=default, metadata={"help": help_text})
