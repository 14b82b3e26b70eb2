"""Where a model's encoder lies, in a folder or in a repository on the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError

from .errors import RetroMAEError

MODULES = "modules.json"
"""What a model of sentence-transformers has in its folder: the list of its modules, and in which folders they lie."""


def find_file(name_or_path: str | Path, name: str, place: str = "") -> Path | None:
    """A file in the folder `place` of a model, from the Hub if need be; None where the model has none."""
    if Path(name_or_path).is_dir():
        file = Path(name_or_path, place, name)
        return file if file.is_file() else None
    try:
        return Path(hf_hub_download(str(name_or_path), name, subfolder=place or None))
    except (EntryNotFoundError, HFValidationError):
        return None


def encoder_places(name_or_path: str | Path, place: str = "") -> Iterator[str]:
    """The folders that encoders lie in, in the folder `place` of a model; "" is the model's own.

    In a model of sentence-transformers these are among the modules that modules.json and routers name, in their order.
    """
    modules = _read(name_or_path, MODULES, place)
    if modules is None:
        yield from _encoders_at(name_or_path, place)
        return
    for inner in _inside(place, [module["path"] for module in modules]):
        yield from _encoders_at(name_or_path, place) if inner == place else encoder_places(name_or_path, inner)


def encoder_place(name_or_path: str | Path) -> str:
    """The folder in a model's that its first encoder lies in; "" where it is no model of sentence-transformers.

    Raises:
        RetroMAEError: it is one without an encoder, such as a static one.
    """
    if not is_modular(name_or_path):
        return ""
    place = next(encoder_places(name_or_path), None)
    if place is None:
        raise RetroMAEError(
            f"{name_or_path} holds no model that can be loaded: of its modules for sentence-transformers none is an "
            "encoder with a model_type in its config.json, as in a static model; name a masked language model"
        )
    return place


def is_modular(name_or_path: str | Path) -> bool:
    """Whether a model is one of sentence-transformers."""
    return find_file(name_or_path, MODULES) is not None


def _encoders_at(name_or_path: str | Path, place: str) -> Iterator[str]:
    """As `encoder_places`, for a single module: an encoder or a router."""
    config = _read(name_or_path, "config.json", place)
    if isinstance(config, dict) and "model_type" in config:
        yield place
        return
    # Routers of old versions, which were called Asym, have their routes in config.json.
    router = _read(name_or_path, "router_config.json", place) or config
    for inner in _inside(place, router.get("types", {}) if isinstance(router, dict) else {}):
        if inner != place:
            yield from encoder_places(name_or_path, inner)


def _inside(place: str, names: Iterable[str]) -> Iterator[str]:
    """Folders in the folder `place`; those that lie elsewhere, which sentence-transformers refuses, are left out."""
    for name in names:
        path = PurePosixPath(place, name)
        if ".." not in path.parts and not path.is_absolute():
            yield "" if path == PurePosixPath() else str(path)


def _read(name_or_path: str | Path, name: str, place: str = "") -> Any:
    """What a JSON file of a model holds; None where there is no such file."""
    file = find_file(name_or_path, name, place)
    return None if file is None else json.loads(file.read_text(encoding="utf-8"))
