"""What is refused in a model's files: pickles that are more than tensors, and code.

A pickle runs what it likes when it is read, and so does code that comes with a model. An encoder's weights are read
from safetensors alone, those of sentence-transformers' other modules as tensors alone, and code runs only where the
user says so. `transformers` and, from version 6.2 on, sentence-transformers keep to that where they are told to. A
configuration is looked at before anything is made of it, which may take all memory.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .configuration_retromae import RetroMAEConfig, check_sizes
from .errors import RetroMAEError, in_one_sentence

TRUST_FLAG = "--trust_remote_code true"
TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


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


def read_config(name_or_path: str | Path, place: str = "") -> dict[str, Any]:
    """The config.json in the folder `place` of a model, as it stands; that there is none is an error of `transformers`.

    Raises:
        RetroMAEError: it is no JSON object, or has sizes that no model has.
    """
    config, _ = PreTrainedConfig.get_config_dict(name_or_path, subfolder=place)
    if not isinstance(config, dict):
        raise RetroMAEError(f"{name_or_path} holds no model that can be loaded: its config.json is no JSON object")
    if config.get("model_type") != RetroMAEConfig.model_type:  # which looks at its encoder's itself
        check_sizes(config, f"config.json of {name_or_path}")
    return config


def open_config(name_or_path: str, place: str = "", trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration in the folder `place` of a model.

    A model that brings code beside a type that `transformers` knows is loaded without that code.

    Raises:
        RetroMAEError: as `read_config`, or it cannot be told without running code and `trust_remote_code` is False.
    """
    config = read_config(name_or_path, place)
    if not trust_remote_code and config.get("auto_map") and str(config.get("model_type")) not in CONFIG_MAPPING:
        raise has_code(name_or_path, "config.json asks for by auto_map")
    return AutoConfig.from_pretrained(name_or_path, subfolder=place, trust_remote_code=trust_remote_code)


def _pickled(place: str, pickle: str) -> RetroMAEError:
    return RetroMAEError(
        f"{place} holds weights that are no safetensors, and a pickle such as {pickle} is not read, because it can run "
        f"code; read its tensors alone with: retromae-hf convert {shlex.quote(place)} FOLDER"
    )


@contextmanager
def code_refused(name_or_path: str, what: str) -> Iterator[None]:
    """Around loading: that a library asks for its argument `trust_remote_code` becomes the error `has_code`."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code=" in str(error):
            raise has_code(name_or_path, what) from error
        raise


def has_code(name_or_path: str, what: str) -> RetroMAEError:
    """The error for a model that wants to run code of its own; `what` says where it does."""
    return RetroMAEError(
        f"{name_or_path} brings code of its own, which {what} and which is not run; where you have read it and trust "
        f"it, give {TRUST_FLAG}"
    )
