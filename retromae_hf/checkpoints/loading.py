"""Loads what a folder or a Hub name holds, with everything that may be wrong with it as one sentence."""

from __future__ import annotations

from typing import TypeVar

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from ..model.configuration_retromae import RetroMAEConfig
from ..model.errors import RetroMAEError
from ..model.pretrained_model import RetroMAEPreTrainedModel
from ..model.trust import check_code, code_refused, read_config
from .hub import loading

Checkpoint = TypeVar("Checkpoint", bound=RetroMAEPreTrainedModel)


def load_config(name_or_path: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of any model.

    Raises:
        RetroMAEError: there is none, or reading it takes code of the model's own and `trust_remote_code` is False.
    """
    with loading(f"{name_or_path} holds no model that can be loaded"):
        check_code(name_or_path, trust_remote_code)
        return AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)


def load_tokenizer(name_or_path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of any model.

    Raises:
        RetroMAEError: there is none, or it takes code of the model's own and `trust_remote_code` is False.
    """
    with (
        loading(f"{name_or_path} holds no tokenizer that can be loaded"),
        code_refused(name_or_path, "its tokenizer asks for"),
    ):
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
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
        raise RetroMAEError(
            f"{name_or_path} holds a {kind} model, not a RetroMAE checkpoint; name the folder that pretraining wrote "
            "(an exported encoder has no decoder any more)"
        )
    with loading(f"{name_or_path} holds no checkpoint that can be loaded"):
        model, info = model_class.from_pretrained(name_or_path, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise RetroMAEError(
            f"{name_or_path} lacks weights of a training checkpoint, {missing[0]} for one (RetroMAEModel saves the "
            "encoder alone); name the folder that pretraining wrote"
        )
    return model
