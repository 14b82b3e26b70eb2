"""Loads what a folder or a Hub name holds, with everything that may be wrong with it as one sentence."""

from __future__ import annotations

from typing import TypeVar

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from .configuration_retromae import RetroMAEConfig
from .errors import RetroMAEError
from .hub import loading
from .modeling_retromae import RetroMAEPreTrainedModel

Checkpoint = TypeVar("Checkpoint", bound=RetroMAEPreTrainedModel)


def load_config(name_or_path: str) -> PreTrainedConfig:
    """The configuration of any model."""
    with loading(f"{name_or_path} holds no model that can be loaded"):
        return AutoConfig.from_pretrained(name_or_path)


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of any model."""
    with loading(f"{name_or_path} holds no tokenizer that can be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of a folder without its files
        raise RetroMAEError(f"{name_or_path} holds no tokenizer; save one there or name one")
    return tokenizer


def load_checkpoint(model_class: type[Checkpoint], name_or_path: str) -> Checkpoint:
    """A RetroMAE checkpoint in float32, from safetensors alone."""
    config = load_config(name_or_path)
    if not isinstance(config, RetroMAEConfig):
        raise RetroMAEError(
            f"{name_or_path} holds a {config.model_type} model, not a RetroMAE checkpoint; name the folder that "
            "pretraining wrote (an exported encoder has no decoder any more)"
        )
    with loading(f"{name_or_path} holds no checkpoint that can be loaded"):
        return model_class.from_pretrained(name_or_path, dtype=torch.float32, use_safetensors=True)
