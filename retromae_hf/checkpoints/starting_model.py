"""More positions than a checkpoint was trained with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from ..arguments.pretraining import EXTENSIONS, SIZES, StartArguments
from ..data.tokenizers import train_tokenizer
from ..model.configuration_retromae import RetroMAEConfig
from ..model.encoders import RetroMAEPreTrainedModel, use_attention
from ..model.errors import RetroMAEError, check_choice, in_one_sentence
from ..model.families import BACKBONES, backbone_for
from ..model.modeling_retromae import RetroMAEForPreTraining
from .foreign import load_reference_decoder
from .loading import load_checkpoint, load_config, load_tokenizer


def extend_positions(model: RetroMAEPreTrainedModel, max_length: int, method: str = "tile") -> None:
    """Give a model learned positions for longer passages, in place; training must teach it what they mean.

    The encoder's table of position embeddings grows, and the decoder's own where it has one. Rotary and relative
    encoders have no table to grow, only a limit. What was done is written into the encoder's configuration, as
    `position_extension`, and so goes with every checkpoint and export.

    Args:
        model: the model.
        max_length: tokens of the longest passage from now on, special tokens included.
        method: "tile" repeats the learned positions one after another, so that every neighbourhood is one that the
            encoder knows; "interpolate" stretches them linearly, so that the whole range is used once.

    Raises:
        RetroMAEError: `method` is unknown, or the model has as many positions already.
    """
    check_choice("extend_positions", method, EXTENSIONS)
    config = model.config.encoder_config
    backbone = model.backbone
    before = backbone.max_positions(config)
    if max_length <= before:
        raise RetroMAEError(f"the encoder has {before} positions, no fewer than max_length={max_length}; leave them")
    if backbone.has_position_table(config):
        embeddings = model.encoder.base_model.embeddings
        _extend(embeddings.position_embeddings, max_length, method, backbone.position_offset(config))
        for name in ("position_ids", "token_type_ids"):  # constants, one for each position
            if isinstance(old := getattr(embeddings, name, None), Tensor):
                size = max_length + backbone.position_offset(config)
                new = torch.arange(size, device=old.device) if name == "position_ids" else old.new_zeros(size)
                setattr(embeddings, name, new[None])
    if hasattr(model, "decoder_positions"):
        _extend(model.decoder_positions, max_length, method)
    # The model's and its parts' configurations may be copies of one another.
    first = getattr(config, "position_extension", {}).get("from", before)
    for each in {id(c): c for c in (config, model.encoder.config, model.encoder.base_model.config)}.values():
        backbone.set_max_positions(each, max_length)
        each.position_extension = {"from": first, "to": max_length, "method": method}


@torch.no_grad()
def _extend(table: nn.Embedding, length: int, method: str, offset: int = 0) -> None:
    """Make a table `length` positions long; its first `offset` rows, which are of no position, stay as they are."""
    unused, learned = table.weight[:offset], table.weight[offset:]
    if method == "tile":
        extended = learned[torch.arange(length, device=learned.device) % len(learned)]
    else:
        extended = interpolate(learned.T[None], size=length, mode="linear", align_corners=True)[0].T
    table.weight = nn.Parameter(torch.cat([unused, extended]), requires_grad=table.weight.requires_grad)
    table.num_embeddings = len(table.weight)


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


MODULES = ("decoding", "num_decoder_layers", "pair_objective")
"""Those of `MODEL_OPTIONS` that decide which weights there are."""


def load_model_and_tokenizer(
    args: StartArguments, texts: Sequence[str], max_length: int, checkpoint: str | None = None
) -> tuple[RetroMAEForPreTraining, PreTrainedTokenizerBase]:
    """The model to train: from the checkpoint to resume, from a given one, or from scratch.

    Args:
        args: which.
        texts: what a new tokenizer is trained on.
        max_length: tokens of the longest passage.
        checkpoint: the run to resume; it goes before what `args` names.

    Raises:
        RetroMAEError: what is named does not load or does not fit.
    """
    source = checkpoint or args.model_name_or_path
    tokenizer_source = args.tokenizer_name or source
    encoder_config = None if source is not None else _read_encoder_config(args)
    if tokenizer_source is None:
        tokenizer = train_tokenizer(args.tokenizer_type, texts, args.vocab_size, max_length, args.lowercase)
    else:
        tokenizer = load_tokenizer(tokenizer_source, args.trust_remote_code)
    if tokenizer.mask_token_id is None:
        raise RetroMAEError(f"the tokenizer {tokenizer_source} has no mask token; use a masked language model's")
    model = _load_model(args, source) if source else _new_model(args, encoder_config, tokenizer, max_length)
    use_attention(model, args.attn_implementation)
    tokens = max(tokenizer.get_vocab().values()) + 1
    if args.resize_token_embeddings and tokens > model.config.vocab_size:
        model.resize_token_embeddings(tokens)
    check_vocabulary(tokenizer, model.config)
    limit = model.backbone.max_positions(model.config.encoder_config)
    if max_length > limit and args.extend_positions is None:
        raise RetroMAEError(
            f"max_length={max_length} is over the encoder's {limit} positions; lower it to {limit} or less, "
            "or give it more with --extend_positions"
        )
    if max_length > limit:
        extend_positions(model, max_length, str(args.extend_positions))
        tokenizer.model_max_length = max_length
    settings = model.config.sentence_settings
    if "max_seq_length" in settings:  # what was trained on longer passages reads them too
        settings["max_seq_length"] = max(settings["max_seq_length"], max_length)
    return model, tokenizer


def _read_encoder_config(args: StartArguments) -> PreTrainedConfig | None:
    """The configuration that `config_name` points to; None where it names a family or nothing."""
    if args.config_name is None or args.config_name in BACKBONES:
        return None
    config = load_config(args.config_name)
    if isinstance(config, RetroMAEConfig):
        config = config.encoder_config
    backbone_for(config)
    return config


def _new_model(
    args: StartArguments, config: PreTrainedConfig | None, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> RetroMAEForPreTraining:
    given = {name: size for name in SIZES if (size := getattr(args, name)) is not None}
    if config is None:
        config = new_encoder_config(args.config_name or "bert", tokenizer, max_length=max_length, **(SIZES | given))
    else:
        for name, size in given.items():
            setattr(config, name, size)
        fit_to_tokenizer(config, tokenizer)
    if config.hidden_size % config.num_attention_heads:
        raise RetroMAEError(
            f"hidden_size={config.hidden_size} is not a multiple of num_attention_heads={config.num_attention_heads}"
        )
    if backbone_for(config).positions == "rotary" and config.hidden_size // config.num_attention_heads % 2:
        raise RetroMAEError(
            f"rotary positions need attention heads of an even size, and hidden_size={config.hidden_size} makes "
            f"num_attention_heads={config.num_attention_heads} of an odd one; change one of them"
        )
    with in_one_sentence(f"no {config.model_type} encoder can be made of this configuration"):
        return RetroMAEForPreTraining(RetroMAEConfig(encoder_config=config, **args.model_options()))


def _load_model(args: StartArguments, source: str) -> RetroMAEForPreTraining:
    config = load_config(source)
    if not isinstance(config, RetroMAEConfig):
        backbone_for(config)
        with in_one_sentence(f"{source} holds no weights that can be loaded"):
            return _from_encoder(args, source)
    if args.decoder_from is not None and source == args.model_name_or_path:
        raise RetroMAEError(f"{source} has a decoder of its own; leave decoder_from out to go on with that")
    model = load_checkpoint(RetroMAEForPreTraining, source)
    for name, value in args.model_options().items():
        trained = getattr(model.config, name)
        weightless = {value, trained} <= {None, "contrast"}  # of pair objectives these have no head
        if name in MODULES and value != trained and not weightless:
            raise RetroMAEError(f"{source} was trained with {name}={trained!r}; leave --{name} out to go on with it")
        setattr(model.config, name, value)
    model.config.check_values()
    return model


def _from_encoder(args: StartArguments, source: str) -> RetroMAEForPreTraining:
    options = args.model_options()
    if args.decoder_from is not None and load_config(source).model_type == "xlm-roberta":
        options.setdefault("decoder_query", "embedded")  # as the successor's decoder takes its queries
    model = RetroMAEForPreTraining.from_encoder(source, **options)
    if args.decoder_from is not None:
        load_reference_decoder(model, args.decoder_from)
    return model


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: RetroMAEConfig) -> None:
    """Raise `RetroMAEError` where tokenizer and model do not share a vocabulary.

    A model may have a few rows more than its tokenizer has tokens: some are padded to round numbers.
    """
    tokens, rows = max(tokenizer.get_vocab().values()) + 1, config.vocab_size
    if tokens > rows or tokens < 0.99 * rows:
        room = ", or make room for tokens that you added to it with --resize_token_embeddings true"
        raise RetroMAEError(
            f"the tokenizer has {tokens} tokens and the model {rows}; use the tokenizer that belongs to the model"
            f"{room if tokens > rows else ''}"
        )
