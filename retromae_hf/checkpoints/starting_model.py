"""The model and the tokenizer that a run starts with: new ones, a checkpoint's, or those of the run to resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..data.tokenizers import check_tokenizer_kind, train_tokenizer
from ..model.backbones import BACKBONES, backbone_for, fit_to_tokenizer, new_encoder_config
from ..model.configuration_retromae import RetroMAEConfig
from ..model.errors import RetroMAEError, check_at_least, in_one_sentence
from ..model.modeling_retromae import RetroMAEForPreTraining
from .loading import load_checkpoint, load_config, load_tokenizer
from .positions import check_method, extend_positions

MODEL_OPTIONS = (
    "decoding",
    "num_decoder_layers",
    "decoder_mask_ratio",
    "bow_loss_weight",
    "decoder_query",
    "pair_objective",
)
"""Arguments of `retromae-hf pretrain` that are fields of `RetroMAEConfig`."""

MODULES = ("decoding", "num_decoder_layers", "pair_objective")
"""Those of them that decide which weights there are."""

SIZES = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
"""Sizes of a new encoder where neither a flag nor a configuration says otherwise."""


@dataclass
class ModelArguments:
    """Which model to train."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Masked-LM checkpoint to start from, or a RetroMAE checkpoint to go on with."},
    )
    config_name: str | None = field(
        default=None,
        metadata={
            "help": f"From scratch: a family ({', '.join(BACKBONES)}), or a folder or Hub name with the encoder's "
            "configuration; default: bert."
        },
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer; by default the model's, or from scratch a new one on the corpus."}
    )
    tokenizer_type: str = field(
        default="wordpiece", metadata={"help": "A new tokenizer's kind: wordpiece, bpe (on bytes) or unigram."}
    )
    lowercase: bool = field(default=True, metadata={"help": "A new tokenizer folds case."})
    vocab_size: int = field(default=8192, metadata={"help": "A new tokenizer's entries at most."})
    hidden_size: int | None = field(
        default=None,
        metadata={"help": f"From scratch: hidden size; default: the configuration's or {SIZES['hidden_size']}."},
    )
    num_hidden_layers: int | None = field(
        default=None, metadata={"help": f"From scratch: layers; default: likewise or {SIZES['num_hidden_layers']}."}
    )
    num_attention_heads: int | None = field(
        default=None,
        metadata={"help": f"From scratch: attention heads; default: likewise or {SIZES['num_attention_heads']}."},
    )
    extend_positions: str | None = field(
        default=None,
        metadata={"help": "Where max_length is over the checkpoint's positions, extend them: tile or interpolate."},
    )
    decoding: str | None = field(
        default=None,
        metadata={"help": "enhanced, basic, condenser or none (MLM alone); default: the checkpoint's or enhanced."},
    )
    num_decoder_layers: int | None = field(
        default=None, metadata={"help": "Layers of the decoder; default: the checkpoint's or 1, as in the paper."}
    )
    decoder_mask_ratio: float | None = field(
        default=None,
        metadata={"help": "Share of tokens hidden from the decoder; default: the checkpoint's or 0.5."},
    )
    bow_loss_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of DupMAE's bag-of-words loss, 0.1 there; default: the checkpoint's or 0."},
    )
    decoder_query: str | None = field(
        default=None,
        metadata={"help": "sum (RetroMAE) or embedded (DupMAE); default: the checkpoint's or sum."},
    )
    pair_objective: str | None = field(
        default=None,
        metadata={"help": "nsp, sop or none, beside the other losses; default: the checkpoint's or none."},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that comes with a tokenizer; have read it before."}
    )

    def __post_init__(self) -> None:
        check_at_least(1, vocab_size=self.vocab_size, **{name: getattr(self, name) for name in SIZES})
        check_tokenizer_kind(self.tokenizer_type)
        if self.extend_positions is not None:
            check_method(self.extend_positions)
        if self.config_name is not None and self.model_name_or_path is not None:
            raise RetroMAEError(
                "config_name starts from scratch and model_name_or_path from a checkpoint; give one of them"
            )
        RetroMAEConfig(**self.model_options())  # for its checks, before any text is read

    def model_options(self) -> dict[str, Any]:
        """The fields of `RetroMAEConfig` that were given."""
        given = {name: value for name in MODEL_OPTIONS if (value := getattr(self, name)) is not None}
        if given.get("pair_objective") == "none":
            given["pair_objective"] = None
        return given


def load_model_and_tokenizer(
    args: ModelArguments, texts: Sequence[str], max_length: int, checkpoint: str | None = None
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
    return model, tokenizer


def _read_encoder_config(args: ModelArguments) -> PreTrainedConfig | None:
    """The configuration that `config_name` points to; None where it names a family or nothing."""
    if args.config_name is None or args.config_name in BACKBONES:
        return None
    config = load_config(args.config_name)
    if isinstance(config, RetroMAEConfig):
        config = config.encoder_config
    backbone_for(config)
    return config


def _new_model(
    args: ModelArguments, config: PreTrainedConfig | None, tokenizer: PreTrainedTokenizerBase, max_length: int
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


def _load_model(args: ModelArguments, source: str) -> RetroMAEForPreTraining:
    config = load_config(source)
    if not isinstance(config, RetroMAEConfig):
        backbone_for(config)
        with in_one_sentence(f"{source} holds no weights that can be loaded"):
            return RetroMAEForPreTraining.from_encoder(source, **args.model_options())
    model = load_checkpoint(RetroMAEForPreTraining, source)
    for name, value in args.model_options().items():
        trained = getattr(model.config, name)
        if name in MODULES and value != trained:
            raise RetroMAEError(f"{source} was trained with {name}={trained!r}; leave --{name} out to go on with it")
        setattr(model.config, name, value)
    model.config.check_values()
    return model


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: RetroMAEConfig) -> None:
    """Raise `RetroMAEError` where tokenizer and model do not share a vocabulary.

    A model may have a few rows more than its tokenizer has tokens: some are padded to round numbers.
    """
    tokens, rows = len(tokenizer), config.vocab_size
    if tokens > rows or tokens < 0.99 * rows:
        raise RetroMAEError(
            f"the tokenizer has {tokens} tokens and the model {rows}; use the tokenizer that belongs to the model"
        )
