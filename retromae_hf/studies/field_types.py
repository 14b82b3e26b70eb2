"""Values that were read from a file, held to the types of a dataclass's fields."""

from __future__ import annotations

from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from huggingface_hub.dataclasses import type_validator

from ..model.errors import RetroMAEError

SIMPLE = (str, int, float, bool, NoneType, Any)


def check_types(values: dict[str, Any], cls: type, where: str) -> dict[str, Any]:
    """The values that are fields of a dataclass, a whole number as a float where the field is one.

    Fields of other types than text, numbers, lists and mappings of these are left to the dataclass itself.

    Args:
        values: by name.
        cls: the dataclass.
        where: what to call the place in messages.

    Raises:
        RetroMAEError: a value is not of its field's type.
    """
    hints = get_type_hints(cls)
    checked = {}
    for name in values.keys() & hints.keys():
        value, hint = values[name], hints[name]
        if float in (hint, *get_args(hint)) and isinstance(value, int | str) and not isinstance(value, bool):
            value = _as_float(value)  # YAML takes 1e-3 for text
        if _is_simple(hint):
            try:
                type_validator(name, value, hint)
            except TypeError as error:
                wanted = getattr(hint, "__name__", None) if not get_args(hint) else None
                told = repr(value) if len(repr(value)) < 40 else type(value).__name__
                raise RetroMAEError(
                    f"{where}: {name}={told} must be {wanted or str(hint).replace('typing.', '')}"
                ) from error
        checked[name] = value
    return checked


def _as_float(value: int | str) -> float | int | str:
    try:
        return float(value)
    except (ValueError, OverflowError):
        return value


def _is_simple(hint: Any) -> bool:
    return hint in SIMPLE or (get_origin(hint) is not None and all(_is_simple(one) for one in get_args(hint)))
