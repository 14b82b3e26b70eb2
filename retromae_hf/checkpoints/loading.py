"""Loads what a folder or a Hub name holds, with everything that may be wrong with it as one sentence."""

from __future__ import annotations

from typing import TypeVar

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from ..model.configuration_retromae import RetroMAEConfig
from ..model.errors import RetroMAEError
from ..model.layout import encoder_place, find_file, is_modular
from ..model.pretrained_model import RetroMAEPreTrainedModel, check_complete, without_load_report
from ..model.trust import code_refused, open_config, read_config
from .hub import loading

Checkpoint = TypeVar("Checkpoint", bound=RetroMAEPreTrainedModel)


def load_config(name_or_path: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of any model; of a sentence-transformers model that of its first encoder.

    Raises:
        RetroMAEError: there is none, it has sizes that no model has, or reading it takes code of the model's own and
            `trust_remote_code` is False.
    """
    with loading(f"{name_or_path} holds no model that can be loaded"):
        return open_config(name_or_path, encoder_place(name_or_path), trust_remote_code)


def is_checkpoint(name_or_path: str, trust_remote_code: bool = False) -> bool:
    """Whether a model is a RetroMAE checkpoint, and not an encoder of another kind.

    Raises:
        RetroMAEError: it is neither, see `load_config`.
    """
    with loading(f"{name_or_path} holds no model that can be loaded"):
        modular = is_modular(name_or_path)
    return not modular and isinstance(load_config(name_or_path, trust_remote_code), RetroMAEConfig)


def load_tokenizer(name_or_path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of any model, which pads behind the text: [CLS] is looked for at position 0.

    Raises:
        RetroMAEError: there is none, or it takes code of the model's own and `trust_remote_code` is False.
    """
    with (
        loading(f"{name_or_path} holds no tokenizer that can be loaded"),
        code_refused(name_or_path, "its tokenizer asks for"),
    ):
        place = encoder_place(name_or_path)
        if find_file(name_or_path, "config.json", place) is not None:
            read_config(name_or_path, place)  # a tokenizer alone has none
        tokenizer = AutoTokenizer.from_pretrained(
            name_or_path, subfolder=place, padding_side="right", trust_remote_code=trust_remote_code
        )
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of a folder without its files
        raise RetroMAEError(f"{name_or_path} holds no tokenizer; save one there or name one")
    return tokenizer


def load_checkpoint(model_class: type[Checkpoint], name_or_path: str) -> Checkpoint:
    """A RetroMAE checkpoint in float32, from safetensors alone.

    Raises:
        RetroMAEError: there is none, or it lacks weights of this class, which would start at random.
    """
    with loading(f"{name_or_path} holds no model that can be loaded"):
        kind = read_config(name_or_path).get("model_type")
    if kind != RetroMAEConfig.model_type:
        held = "no model" if kind is None else f"a {kind} model"
        raise RetroMAEError(
            f"{name_or_path} holds {held}, not a RetroMAE checkpoint; name the folder that pretraining wrote (an "
            "exported encoder has no decoder any more)"
        )
    with loading(f"{name_or_path} holds no checkpoint that can be loaded"):
        check_complete(model_class, name_or_path)
        with without_load_report():
            return model_class.from_pretrained(name_or_path)
