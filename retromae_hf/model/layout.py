"""Where a model's encoder lies, in a folder or in a repository on the Hub, and what stands there of its use."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError

from .errors import RetroMAEError

logger = logging.getLogger(__name__)

MODULES = "modules.json"
"""What a model of sentence-transformers has in its folder: the list of its modules, and in which folders they lie."""
USE = "config_sentence_transformers.json"
"""How such a model prompts and compares texts."""
READING = "sentence_bert_config.json"
"""How its encoder reads them; this lies beside the encoder."""
SETTINGS = {
    "normalize": bool,
    "max_seq_length": int,
    "do_lower_case": bool,
    "prompts": dict,
    "default_prompt_name": str,
    "similarity_fn_name": str,
}
"""What such a model says of its embeddings beside the pooling, and of which type that is."""
KNOWN_MODULES = ("Transformer", "Pooling", "Normalize", "Dropout", "Router", "Asym")
"""The modules of which nothing is lost when the encoder is taken alone, with what `sentence_settings` tells."""


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
    for inner, config in _modules(name_or_path, place):
        if "model_type" in config:
            yield inner


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


def sentence_settings(name_or_path: str | Path) -> dict[str, Any]:
    """What a model of sentence-transformers says of how its embeddings are made, beside the encoder.

    Returns:
        `pooling`, as its file names it, of several at once joined by "+", and of `SETTINGS` what the model has. Empty
        where nothing is pooled, as in a plain encoder.
    """
    if not is_modular(name_or_path):
        return {}
    pooling = next((told for _, config in _modules(name_or_path, "") if (told := _pooling(config))), None)
    if pooling is None:
        return {}
    kinds = [str(module["type"]).rpartition(".")[2] for module in _read(name_or_path, MODULES)]
    if others := [kind for kind in kinds if kind not in KNOWN_MODULES]:
        logger.warning("%s: the encoder is taken without the modules behind it: %s", name_or_path, ", ".join(others))
    found = {
        **(_read(name_or_path, READING, encoder_place(name_or_path)) or {}),
        **(_read(name_or_path, USE) or {}),
        "normalize": True if "Normalize" in kinds else None,
    }
    return {"pooling": pooling} | {name: found[name] for name in SETTINGS if found.get(name) is not None}


def _pooling(config: dict[str, Any]) -> str | None:
    """What the configuration of a module pools by, in its newer or its older layout; None where it does not."""
    flags = [name for name in config if name.startswith("pooling_mode_")]
    if "pooling_mode" not in config and not flags:
        return None
    by_flag = [
        name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for name in flags
        if config[name]
    ]
    modes = config.get("pooling_mode", by_flag or "mean")
    told = "+".join(map(str, modes)) if isinstance(modes, list) else str(modes)
    return told if config.get("include_prompt", True) else f"{told} without the prompt"


def _modules(name_or_path: str | Path, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The modules in the folder `place` of a model, those of routers included: their folders and their config.json."""
    modules = _read(name_or_path, MODULES, place)
    if modules is None:
        yield from _module_at(name_or_path, place)
        return
    for inner in _inside(place, [module["path"] for module in modules]):
        yield from _module_at(name_or_path, place) if inner == place else _modules(name_or_path, inner)


def _module_at(name_or_path: str | Path, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """As `_modules`, for a single module or a router."""
    config = _read(name_or_path, "config.json", place)
    config = config if isinstance(config, dict) else {}
    yield place, config
    if "model_type" in config:
        return
    # Routers of old versions, which were called Asym, have their routes in config.json.
    router = _read(name_or_path, "router_config.json", place) or config
    for inner in _inside(place, router.get("types", {}) if isinstance(router, dict) else {}):
        if inner != place:
            yield from _modules(name_or_path, inner)


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
