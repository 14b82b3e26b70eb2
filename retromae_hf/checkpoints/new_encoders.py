"""Configurations of encoders that start from nothing."""

from __future__ import annotations

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from ..model.backbones import BACKBONES, backbone_for
from ..model.errors import RetroMAEError


def new_encoder_config(
    model_type: str,
    tokenizer: PreTrainedTokenizerBase,
    hidden_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    max_length: int,
) -> PreTrainedConfig:
    """The configuration of a new encoder of a family, without dropout, for a tokenizer's vocabulary.

    Args:
        model_type: the family, a key of `BACKBONES`.
        tokenizer: its tokenizer.
        hidden_size: H; the feed-forward layers are four times as wide.
        num_hidden_layers: layers.
        num_attention_heads: attention heads, which must divide `hidden_size`.
        max_length: tokens of the longest passage, special tokens included.
    """
    backbone = BACKBONES[model_type]
    # As in ModernBERT: pretraining sees a text a few times at most, so there is nothing to regularise.
    shape = {"intermediate_size": 4 * hidden_size, "hidden_dropout": 0.0, "attention_dropout": 0.0}
    config = AutoConfig.for_model(
        model_type,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        **{backbone.config_names.get(name, name): value for name, value in shape.items()},
        **backbone.new_config,
    )
    if backbone.embedding_size(config) > hidden_size:
        config.embedding_size = hidden_size
    fit_to_tokenizer(config, tokenizer)
    backbone.set_max_positions(config, max_length)
    return config


def fit_to_tokenizer(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a configuration the size of a tokenizer's vocabulary and its special tokens.

    Raises:
        RetroMAEError: the family wants padding to have another id.
    """
    wanted = backbone_for(config).padding_id
    if wanted not in (None, tokenizer.pad_token_id):
        raise RetroMAEError(
            f"{config.model_type} takes the id {wanted} for padding, which the tokenizer has at "
            f"{tokenizer.pad_token_id}; use its own, or a new one of tokenizer_type bpe or unigram"
        )
    config.vocab_size = max(tokenizer.get_vocab().values()) + 1  # among the ids there may be gaps
    config.pad_token_id = tokenizer.pad_token_id
    config.bos_token_id = config.cls_token_id = tokenizer.cls_token_id
    config.eos_token_id = config.sep_token_id = tokenizer.sep_token_id
