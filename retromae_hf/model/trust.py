"""What is refused in a model's files before a library opens them: pickles, code, and paths that lead out of the folder.

A pickle runs what it likes when it is read, and so does code that comes with a model. Weights are read from safetensors
alone, and code runs only where the user says so. `transformers` keeps to that where it is told to;
sentence-transformers up to version 5 runs the code of any local folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.utils import cached_file

from .errors import RetroMAEError, in_one_sentence

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TRUST_FLAG = "--trust_remote_code true"
TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
OWN_MODULES = "sentence_transformers."
OWN_ACTIVATIONS = "torch.nn."


def check_weights(name_or_path: str | Path, where: str = "") -> None:
    """Raise `RetroMAEError` where a folder, or the folder `where` in it, holds its weights as a pickle alone."""
    folder = Path(name_or_path, where)
    with in_one_sentence(f"{folder} cannot be looked into"):
        pickles = sorted(file.name for file in folder.glob("pytorch_model*.bin"))
        if pickles and not any(folder.glob("model*.safetensors")):
            raise _pickled(str(folder), pickles[0])


@contextmanager
def safetensors_only(name_or_path: str | Path, where: str = "") -> Iterator[None]:
    """Around loading with `use_safetensors=True`: that there is none becomes a sentence with a remedy.

    The one of `transformers` is to allow pickles. What else reads a pickle inside gets tensors or the same sentence.
    """
    check_weights(name_or_path, where)
    before = os.environ.get(TENSORS_ONLY, "0")
    os.environ[TENSORS_ONLY] = "1"  # a sentence_bert_config.json may ask for weights_only=False
    try:
        yield
    except (OSError, UnpicklingError) as error:
        if isinstance(error, UnpicklingError) or "use_safetensors=True" in str(error):
            raise _pickled(str(name_or_path), "pytorch_model.bin") from error
        raise
    finally:
        os.environ[TENSORS_ONLY] = before


def read_config(name_or_path: str | Path) -> dict[str, Any]:
    """A model's config.json as it stands; that there is none is an error of `transformers`.

    Raises:
        RetroMAEError: it is no JSON object.
    """
    config, _ = PreTrainedConfig.get_config_dict(name_or_path)
    if not isinstance(config, dict):
        raise RetroMAEError(f"{name_or_path} holds no model that can be loaded: its config.json is no JSON object")
    return config


def check_code(name_or_path: str, trust_remote_code: bool) -> None:
    """Raise `RetroMAEError` where a model cannot be told from its configuration without running code that it brings.

    A model that brings code beside a type that `transformers` knows is loaded without that code.
    """
    if trust_remote_code:
        return
    config = read_config(name_or_path)
    if config.get("auto_map") and str(config.get("model_type")) not in CONFIG_MAPPING:
        raise has_code(name_or_path, "config.json asks for by auto_map")


def check_modules(name_or_path: str, trust_remote_code: bool) -> None:
    """Raise `RetroMAEError` where sentence-transformers' modules of a model are pickled, lie elsewhere, or are code.

    Code is what is named by a path that leads out of sentence-transformers or, for an activation, out of torch.nn.
    """
    check_weights(name_or_path)
    listed = _read_json(name_or_path, "modules.json")
    for module in [] if listed is None else listed if isinstance(listed, list) else [None]:
        if not (isinstance(module, Mapping) and all(isinstance(module.get(key), str) for key in ("path", "type"))):
            raise RetroMAEError(
                f"{name_or_path}: modules.json is no list of objects with a path and a type; save it anew"
            )
        for kind, path in _with_routed(name_or_path, module["type"], module["path"]):
            config = _read_json(name_or_path, f"{path}/config.json") if path else None
            activation = config.get("activation_function") if isinstance(config, Mapping) else None
            if not kind.startswith(OWN_MODULES) and not trust_remote_code:
                raise has_code(name_or_path, f"modules.json names as {kind}")
            if activation is not None and not str(activation).startswith(OWN_ACTIVATIONS) and not trust_remote_code:
                raise has_code(name_or_path, f"{path}/config.json names as {activation}")
            safe, pickle = (path and _fetch(name_or_path, f"{path}/{file}") for file in WEIGHTS)
            if pickle and not safe:
                raise _pickled(f"{name_or_path}/{path}", WEIGHTS[1])


def _with_routed(name_or_path: str, kind: str, path: str) -> Iterator[tuple[str, str]]:
    """A module's type and folder, and those of the modules that it chooses from, if it is a router."""
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\0" in path:
        raise RetroMAEError(f"{name_or_path}: the path {path!r} in modules.json leads out of the model; save it anew")
    yield kind, path
    router = _read_json(name_or_path, str(PurePosixPath(path, "router_config.json")))
    types = router.get("types") if isinstance(router, Mapping) else None
    for inner, inner_kind in types.items() if isinstance(types, Mapping) else ():
        yield from _with_routed(name_or_path, str(inner_kind), str(PurePosixPath(path, inner)))


def _read_json(name_or_path: str, file: str) -> Any:
    """What a JSON file of a folder or of a model on the Hub holds; None where there is no such file."""
    with in_one_sentence(f"{name_or_path}: {file} cannot be read"):
        found = _fetch(name_or_path, file)
        return None if found is None else json.loads(Path(found).read_text(encoding="utf-8"))


def _fetch(name_or_path: str, file: str) -> str | None:
    return cached_file(
        name_or_path,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )


def _pickled(place: str, pickle: str) -> RetroMAEError:
    return RetroMAEError(
        f"{place} holds weights that are no safetensors, and a pickle such as {pickle} is not read, because it can run "
        "code; where you trust it, load it with the library that wrote it and save it anew, which writes safetensors"
    )


def has_code(name_or_path: str, what: str) -> RetroMAEError:
    """The error for a model that wants to run code of its own; `what` says where it does."""
    return RetroMAEError(
        f"{name_or_path} brings code of its own, which {what} and which is not run; where you have read it and trust "
        f"it, give {TRUST_FLAG}"
    )
