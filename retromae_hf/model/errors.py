"""The package's own error, and what turns other people's errors into it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

LONGEST_NAME = 200
"""Bytes of a name that becomes part of a file's; file systems take 255 in all."""

LONGEST_SENTENCE = 1000
"""Characters of an error's message."""


class RetroMAEError(ValueError):
    """Bad input or a bad combination of settings, in one sentence that names the thing and the remedy.

    What it quotes may be anything, so line ends and control characters are escaped, and a very long text is cut.
    """

    def __init__(self, message: str):
        if message.startswith("Caught "):  # torch puts the traceback of a loader's process before its sentence
            message = message.strip().rpartition("RetroMAEError: ")[2]
        kept = message if len(message) <= LONGEST_SENTENCE else f"{message[:LONGEST_SENTENCE]} ..."
        super().__init__("".join(one if one.isprintable() else ascii(one)[1:-1] for one in kept))


class RunInterruptedError(Exception):
    """A signal ended a run after it had saved a checkpoint; `status` is the exit status that belongs to the signal."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def first_line(error: BaseException) -> str:
    """The first line of an error's message with what its colon announces, or the error's name where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    shown = lines[:2] if lines and lines[0].endswith(":") else lines[:1]
    return " ".join(shown) or type(error).__name__


@contextmanager
def in_one_sentence(what: str) -> Iterator[None]:
    """Around calls into libraries on input that may be broken in any way: their error becomes `what` and its reason."""
    try:
        yield
    except RetroMAEError:
        raise
    except Exception as error:
        raise RetroMAEError(f"{what}: {first_line(error)}") from error


def check_file_name(what: str, name: object) -> None:
    """Raise `RetroMAEError` for a name that cannot be part of a file's, or would lead out of its folder."""
    if not isinstance(name, str) or not name.strip() or name in (".", "..") or not name.isprintable():
        raise RetroMAEError(f"{what} {name!r} becomes part of a file name; give one of letters and digits")
    if {"/", "\\"} & set(name) or len(name.encode("utf-8", "replace")) > LONGEST_NAME:
        raise RetroMAEError(
            f"{what} {name!r} becomes part of a file name; give {LONGEST_NAME} bytes at most, without slashes"
        )


def import_extra(module: str, what: str, extra: str) -> Any:
    """A module of a package that one of our extras installs and that `what` needs; `RetroMAEError` where it is not."""
    try:
        return import_module(module)
    except ImportError as error:
        package = (error.name or module).partition(".")[0]
        raise RetroMAEError(f"{what} needs the package {package}; pip install 'retromae-hf[{extra}]'") from error


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise `RetroMAEError` unless `value` is one of `choices`."""
    if value not in choices:
        raise RetroMAEError(f"{name}={value!r} is unknown; choose one of {', '.join(choices)}")


def check_at_least(minimum: float, **values: float | None) -> None:
    """Raise `RetroMAEError` for a value below `minimum`; None is a value that was not given."""
    for name, value in values.items():
        if value is not None and value < minimum:
            raise RetroMAEError(f"{name}={value} must be at least {minimum}")
