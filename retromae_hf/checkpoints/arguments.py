"""What a user may say of the model to train; light to import, for the help of the commands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..model.errors import RetroMAEError, check_at_least, check_choice

MODEL_OPTIONS = (
    "decoding",
    "pooling",
    "num_decoder_layers",
    "decoder_mask_ratio",
    "bow_loss_weight",
    "final_bow_loss_weight",
    "bow_source",
    "decoder_query",
    "pair_objective",
    "contrast_loss_weight",
    "contrast_temperature",
)
"""Arguments of `retromae-hf pretrain` that are fields of `RetroMAEConfig`."""

SIZES = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
"""Sizes of a new encoder where neither a flag nor a configuration says otherwise."""


@dataclass
class ModelArguments:
    """Which model to train."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Masked-LM checkpoint or sentence-transformers model to start from, or a RetroMAE checkpoint to go "
            "on with. The learning rate is 1e-4 by default, from a model that was tuned for retrieval 2e-5."
        },
    )
    decoder_from: str | None = field(
        default=None,
        metadata={
            "help": "Safetensors file in the released RetroMAE code's layout (or its successor's), whose decoder comes "
            "beside the encoder of model_name_or_path; default: a new decoder."
        },
    )
    config_name: str | None = field(
        default=None,
        metadata={
            "help": "From scratch: a family (bert, roberta, xlm-roberta, albert, distilbert, electra, deberta-v2, "
            "mpnet, modernbert, camembert, ernie, rembert, nomic_bert, gte, jina_embeddings_v3, eurobert), or a folder "
            "or Hub name with the encoder's configuration; default: bert."
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
    resize_token_embeddings: bool = field(
        default=False, metadata={"help": "Make room in the checkpoint for tokens that were added to the tokenizer."}
    )
    decoding: str | None = field(
        default=None,
        metadata={"help": "enhanced, basic, condenser or none (MLM alone); default: the checkpoint's or enhanced."},
    )
    pooling: str | None = field(
        default=None,
        metadata={
            "help": "Sentence embedding: cls (the papers) or mean; default: that of the checkpoint or of the "
            "sentence-transformers model, or cls."
        },
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
        metadata={"help": "Weight of the bag-of-words loss, 0.1 in DupMAE; default: the checkpoint's or 0."},
    )
    final_bow_loss_weight: float | None = field(
        default=None,
        metadata={"help": "What that weight falls to along a cosine; default: the checkpoint's, or it stays."},
    )
    bow_source: str | None = field(
        default=None,
        metadata={
            "help": "What predicts the bag of words: tokens (DupMAE) or sentence, the sentence embedding alone "
            "(BoW-DPR, with --decoding none); default: the checkpoint's or tokens."
        },
    )
    decoder_query: str | None = field(
        default=None,
        metadata={"help": "sum (RetroMAE) or embedded (DupMAE); default: the checkpoint's or sum."},
    )
    pair_objective: str | None = field(
        default=None,
        metadata={
            "help": "nsp, sop, contrast (two spans of each passage find one another in the batch) or none, beside the "
            "other losses; default: the checkpoint's or none."
        },
    )
    contrast_loss_weight: float | None = field(
        default=None, metadata={"help": "Weight of the span contrast; default: the checkpoint's or 1."}
    )
    contrast_temperature: float | None = field(
        default=None, metadata={"help": "Temperature of its cosines; default: the checkpoint's or 0.05."}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "sdpa, eager, flash_attention_2, flash_attention_3, flex_attention or a kernel's name on the Hub; "
            "default: what transformers takes, sdpa as a rule."
        },
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that comes with a tokenizer; have read it before."}
    )

    def __post_init__(self) -> None:
        from ..data.tokenizers import TRAINERS
        from ..model.configuration_retromae import RetroMAEConfig
        from .positions import METHODS

        check_at_least(1, vocab_size=self.vocab_size, **{name: getattr(self, name) for name in SIZES})
        check_choice("tokenizer_type", self.tokenizer_type, TRAINERS)
        if self.extend_positions is not None:
            check_choice("extend_positions", self.extend_positions, METHODS)
        if self.config_name is not None and self.model_name_or_path is not None:
            raise RetroMAEError(
                "config_name starts from scratch and model_name_or_path from a checkpoint; give one of them"
            )
        if self.decoder_from is not None and self.model_name_or_path is None:
            raise RetroMAEError("decoder_from goes with the encoder that it was trained with; give model_name_or_path")
        RetroMAEConfig(**self.model_options())  # for its checks, before any text is read

    def model_options(self) -> dict[str, Any]:
        """The fields of `RetroMAEConfig` that were given."""
        given = {name: value for name in MODEL_OPTIONS if (value := getattr(self, name)) is not None}
        if given.get("pair_objective") == "none":
            given["pair_objective"] = None
        return given
