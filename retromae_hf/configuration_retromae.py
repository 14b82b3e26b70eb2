"""Configuration of a RetroMAE model."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from .errors import RetroMAEError

DECODINGS = ("enhanced", "basic", "condenser", "none")
PAIR_OBJECTIVES = ("nsp", "sop")
DECODER_QUERIES = ("sum", "embedded")
DEFAULT_DECODING = "enhanced"
DEFAULT_DECODER_MASK_RATIO = 0.5

AUTO_MAP = {
    "AutoConfig": "configuration_retromae.RetroMAEConfig",
    "AutoModel": "modeling_retromae.RetroMAEModel",
    "AutoModelForPreTraining": "modeling_retromae.RetroMAEForPreTraining",
}
"""Where `transformers` finds the classes in a checkpoint's folder, which holds a copy of this code."""


def check_decoding(decoding: str) -> None:
    """Raise `RetroMAEError` unless `decoding` names a decoder."""
    if decoding not in DECODINGS:
        raise RetroMAEError(f"decoding={decoding!r} is unknown; choose one of {', '.join(DECODINGS)}")


def check_ratio(name: str, ratio: float) -> None:
    """Raise `RetroMAEError` unless 0 < `ratio` < 1."""
    if not isinstance(ratio, int | float) or not 0 < ratio < 1:
        raise RetroMAEError(f"{name}={ratio!r} must lie between 0 and 1, both excluded")


def check_pair_objective(objective: str | None) -> None:
    """Raise `RetroMAEError` unless `objective` is None or names a pair objective."""
    if objective is not None and objective not in PAIR_OBJECTIVES:
        raise RetroMAEError(f"pair_objective={objective!r} is unknown; choose one of {', '.join(PAIR_OBJECTIVES)}")


def check_replacement(mask_replace_prob: float, random_replace_prob: float) -> None:
    """Raise `RetroMAEError` unless both are shares of the chosen tokens that add up to 1 at most."""
    shares = {"mask_replace_prob": mask_replace_prob, "random_replace_prob": random_replace_prob}
    for name, share in shares.items():
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            raise RetroMAEError(f"{name}={share!r} must lie between 0 and 1")
    if sum(shares.values()) > 1 + 1e-9:
        raise RetroMAEError(f"mask_replace_prob and random_replace_prob add up to {sum(shares.values()):g}, over 1")


class RetroMAEConfig(PreTrainedConfig):
    """Configuration of `RetroMAEForPreTraining` and `RetroMAEModel` (RetroMAE, arXiv 2205.12035).

    Args:
        encoder_config: the encoder's own configuration, as an object or as the dict that it saves.
        decoding: "enhanced" (section 3.3: every token from its own sampled context), "basic" (section 3.2: the
            decoder's masked tokens), "condenser" (arXiv 2104.08253: the encoder's masked tokens, from its [CLS] and
            the token states of its middle layer) or "none" (masked language modelling alone, the baseline).
        num_decoder_layers: transformer layers of the decoder; RetroMAE's paper has 1, Condenser's 2.
        decoder_mask_ratio: share of the tokens that a decoder row does not see, in (0, 1).
        mlm_loss_weight: weight of the encoder's masked-LM loss in the sum; the decoder's is 1.
        bow_loss_weight: weight of the bag-of-words loss in the sum, 0.1 in DupMAE (arXiv 2211.08769); enhanced decoding
            only, whose labels are the bag.
        decoder_query: "sum" (RetroMAE: h + p_i) or "embedded" (DupMAE: h through the encoder's embedding module).
        pair_objective: None, "nsp" (BERT's next-sentence prediction) or "sop" (ALBERT's sentence order), beside the
            other losses, with weight 1.

    Raises:
        RetroMAEError: a value is out of range or not available.
    """

    model_type = "retromae"
    sub_configs: ClassVar[dict[str, Any]] = {"encoder_config": AutoConfig}

    encoder_config: Any = None
    decoding: str = DEFAULT_DECODING
    num_decoder_layers: int = 1
    decoder_mask_ratio: float = DEFAULT_DECODER_MASK_RATIO
    mlm_loss_weight: float = 1.0
    bow_loss_weight: float = 0.0
    decoder_query: str = "sum"
    pair_objective: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if "vocab_size" in kwargs or "hidden_size" in kwargs:
            raise RetroMAEError(
                "this is the configuration of an encoder, not of a RetroMAE checkpoint; give it as encoder_config, or "
                "start from the encoder's checkpoint with RetroMAEForPreTraining.from_encoder"
            )
        if self.encoder_config is None:
            self.encoder_config = AutoConfig.for_model("bert")
        elif isinstance(self.encoder_config, dict):
            if "model_type" not in self.encoder_config:
                raise RetroMAEError("encoder_config has no model_type; give it, for example 'bert'")
            self.encoder_config = AutoConfig.for_model(**self.encoder_config)
        self.check_values()
        # Where Trainer looks for them when it compares model and tokenizer.
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(self, name, getattr(self.encoder_config, name, None))
            kwargs.pop(name, None)
        super().__post_init__(**kwargs)
        # All of them whichever class is saved, and never those of the repository that a checkpoint came from.
        self.auto_map = dict(AUTO_MAP)

    def check_values(self) -> None:
        """Raise `RetroMAEError` where a value is out of range or values do not go together."""
        check_decoding(self.decoding)
        check_ratio("decoder_mask_ratio", self.decoder_mask_ratio)
        if not isinstance(self.num_decoder_layers, int) or self.num_decoder_layers < 1:
            raise RetroMAEError(f"num_decoder_layers={self.num_decoder_layers} must be a whole number from 1 up")
        for name in ("mlm_loss_weight", "bow_loss_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RetroMAEError(f"{name}={getattr(self, name)} must be 0 or a finite number above")
        if self.decoder_query not in DECODER_QUERIES:
            raise RetroMAEError(
                f"decoder_query={self.decoder_query!r} is unknown; choose one of {', '.join(DECODER_QUERIES)}"
            )
        if self.bow_loss_weight > 0 and self.decoding != "enhanced":
            raise RetroMAEError(
                f"bow_loss_weight={self.bow_loss_weight} needs decoding='enhanced', not {self.decoding!r}"
            )
        check_pair_objective(self.pair_objective)

    @property
    def hidden_size(self) -> int:
        """Size of the sentence embedding."""
        return self.encoder_config.hidden_size

    @property
    def vocab_size(self) -> int:
        """Entries of the encoder's vocabulary."""
        return self.encoder_config.vocab_size


__all__ = ["RetroMAEConfig"]
