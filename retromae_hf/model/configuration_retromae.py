"""Configuration of a RetroMAE model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .errors import RetroMAEError, check_choice, in_one_sentence

DECODINGS = ("enhanced", "basic", "condenser", "none")
POOLINGS = ("cls", "mean")
SEGMENT_OBJECTIVES = ("nsp", "sop")
"""Pair objectives on passages of two segments, which a head tells true from false."""
PAIR_OBJECTIVES = (*SEGMENT_OBJECTIVES, "contrast")
DEFAULT_DECODING = "enhanced"
DEFAULT_DECODER_MASK_RATIO = 0.5
SETTINGS = ("normalize", "max_seq_length", "do_lower_case", "prompts", "default_prompt_name", "similarity_fn_name")
"""What a model of sentence-transformers says of its embeddings beside the pooling."""
LARGEST = {"labels": 10**5, "layers": 10**3, "group": 10**3, "position": 10**7, "vocab": 10**7, "hidden": 10**6}
"""Sizes above which a configuration is a broken file, by a part of the field's name: they are built before a look."""
AUTO_MAP = {
    "AutoConfig": "configuration_retromae.RetroMAEConfig",
    "AutoModel": "modeling_retromae.RetroMAEModel",
    "AutoModelForPreTraining": "modeling_retromae.RetroMAEForPreTraining",
}
"""Where `transformers` finds the classes in a checkpoint's folder, which holds a copy of this code."""


def is_number(value: object) -> bool:
    """Whether a value is a finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def check_ratio(name: str, ratio: float) -> None:
    """Raise `RetroMAEError` unless 0 < `ratio` < 1."""
    if not is_number(ratio) or not 0 < ratio < 1:
        raise RetroMAEError(f"{name}={ratio!r} must lie between 0 and 1, both excluded")


def check_shared(settings: Any) -> None:
    """Raise `RetroMAEError` where a value is wrong that the model's configuration and the collator both have."""
    check_choice("decoding", settings.decoding, DECODINGS)
    check_ratio("decoder_mask_ratio", settings.decoder_mask_ratio)
    check_choice("bow_source", settings.bow_source, ("tokens", "sentence"))
    if settings.pair_objective is not None:
        check_choice("pair_objective", settings.pair_objective, PAIR_OBJECTIVES)


def check_replacement(mask_replace_prob: float, random_replace_prob: float) -> None:
    """Raise `RetroMAEError` unless both are shares of the chosen tokens that add up to 1 at most."""
    shares = {"mask_replace_prob": mask_replace_prob, "random_replace_prob": random_replace_prob}
    for name, share in shares.items():
        if not is_number(share) or not 0 <= share <= 1:
            raise RetroMAEError(f"{name}={share!r} must lie between 0 and 1")
    if sum(shares.values()) > 1 + 1e-9:
        raise RetroMAEError(f"mask_replace_prob and random_replace_prob add up to {sum(shares.values()):g}, over 1")


def check_sizes(config: Mapping[str, Any], what: str) -> None:
    """Raise `RetroMAEError` where `config`, as it stands in a file, or one within it has a size that no model has."""
    for name, value in config.items():
        if isinstance(value, Mapping) and name.endswith("config"):
            check_sizes(value, what)
        largest = next((largest for part, largest in LARGEST.items() if part in name), math.inf)
        if isinstance(value, int) and value > largest:
            raise RetroMAEError(f"{what}: {name}={value} is over {largest:,}, more than any model has; mend the file")
        if name in ("vocab_size", "hidden_size", "num_hidden_layers") and isinstance(value, int) and value < 1:
            raise RetroMAEError(f"{what}: {name}={value} must be at least 1; mend the file")


def read_encoder_config(config: Any) -> PreTrainedConfig:
    """An encoder's configuration, from an object or from what it saves; None is BERT's defaults."""
    if isinstance(config, PreTrainedConfig):
        return config
    if config is None:
        config = {"model_type": "bert"}
    if not isinstance(config, Mapping):
        raise RetroMAEError(
            f"encoder_config is a {type(config).__name__}; give a configuration, or the mapping that one saves"
        )
    model_type = config.get("model_type")
    if model_type is None:
        raise RetroMAEError("encoder_config has no model_type; give it, for example 'bert'")
    if model_type == RetroMAEConfig.model_type or str(model_type) not in CONFIG_MAPPING:
        raise RetroMAEError(
            f"encoder_config has the model_type {model_type!r}, which is no encoder's; give 'bert' or another"
        )
    check_sizes(config, "encoder_config")
    with in_one_sentence(f"encoder_config is no configuration of a {model_type} model"):
        return AutoConfig.for_model(**config)


class RetroMAEConfig(PreTrainedConfig):
    """Configuration of `RetroMAEForPreTraining` and `RetroMAEModel` (RetroMAE, arXiv 2205.12035).

    Args:
        encoder_config: the encoder's own configuration, as an object or as the dict that it saves.
        decoding: "enhanced" (section 3.3: every token from its own sampled context), "basic" (section 3.2: the
            decoder's masked tokens), "condenser" (arXiv 2104.08253: the encoder's masked tokens, from its [CLS] and
            the token states of its middle layer) or "none" (masked language modelling alone, the baseline).
        pooling: what the sentence embedding is of the encoder's last states: "cls", that of [CLS] (the papers), or
            "mean", the mean of those of all real tokens, for encoders that were tuned so.
        sentence_settings: what else a sentence-transformers model that the encoder came from says of its embeddings,
            as `SETTINGS` names it; an export says the same.
        num_decoder_layers: transformer layers of the decoder; RetroMAE's paper has 1, Condenser's 2.
        decoder_mask_ratio: share of the tokens that a decoder row does not see, in (0, 1).
        mlm_loss_weight: weight of the encoder's masked-LM loss in the sum; the decoder's is 1.
        bow_loss_weight: weight of the bag-of-words loss in the sum: 0.1 in DupMAE, 1 in BoW-DPR (see `bow_source`).
        final_bow_loss_weight: what that weight falls to along a cosine while it trains, 0.1 in BoW-DPR; None: it stays.
        bow_source: what predicts the bag of words: "tokens", the ordinary tokens' states (DupMAE, arXiv 2211.08769;
            with enhanced decoding only), or "sentence", the sentence embedding alone (BoW-DPR, arXiv 2401.11248, which
            has no decoder; with any decoding).
        decoder_query: "sum" (RetroMAE: h + p_i) or "embedded" (DupMAE: h through the encoder's embedding module).
        pair_objective: None, "nsp" (BERT's next-sentence prediction) or "sop" (ALBERT's sentence order), beside the
            other losses, with weight 1; or "contrast" (coCondenser, arXiv 2108.05540, section 3.2; Contriever, arXiv
            2112.09118): of each passage two spans are drawn, which have to find one another among those of the batch.
        contrast_loss_weight: weight of the span contrast in the sum.
        contrast_temperature: what the cosines of two sentence embeddings are divided by there.

    Raises:
        RetroMAEError: a value is out of range or not available.
    """

    model_type = "retromae"
    sub_configs: ClassVar[dict[str, Any]] = {"encoder_config": AutoConfig}

    encoder_config: Any = None
    decoding: str = DEFAULT_DECODING
    pooling: str = "cls"
    sentence_settings: dict[str, Any] | None = None
    num_decoder_layers: int = 1
    decoder_mask_ratio: float = DEFAULT_DECODER_MASK_RATIO
    mlm_loss_weight: float = 1.0
    bow_loss_weight: float = 0.0
    final_bow_loss_weight: float | None = None
    bow_source: str = "tokens"
    decoder_query: str = "sum"
    pair_objective: str | None = None
    contrast_loss_weight: float = 1.0
    contrast_temperature: float = 0.05

    def __post_init__(self, **kwargs: Any) -> None:
        if "vocab_size" in kwargs or "hidden_size" in kwargs:
            raise RetroMAEError(
                "this is the configuration of an encoder, not of a RetroMAE checkpoint; give it as encoder_config, or "
                "start from the encoder's checkpoint with RetroMAEForPreTraining.from_encoder"
            )
        if "num_labels" in kwargs:
            raise RetroMAEError("num_labels belongs to a classifier's configuration, not to RetroMAE's; leave it out")
        self.encoder_config = read_encoder_config(self.encoder_config)
        self.sentence_settings = self.sentence_settings or {}
        self.check_values()
        # Where Trainer looks for them when it compares model and tokenizer.
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(self, name, getattr(self.encoder_config, name, None))
            kwargs.pop(name, None)
        with in_one_sentence("the configuration has a value that transformers does not take"):
            super().__post_init__(**kwargs)
        # All of them whichever class is saved, and never those of the repository that a checkpoint came from.
        self.auto_map = dict(AUTO_MAP)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in `transformers`; what does not fit is a `RetroMAEError`."""
        with in_one_sentence("this is no configuration of a RetroMAE checkpoint"):
            return super().from_dict(config_dict, **kwargs)

    def check_values(self) -> None:
        """Raise `RetroMAEError` where a value is out of range or values do not go together."""
        check_shared(self)
        check_choice("pooling", self.pooling, POOLINGS)
        check_choice("decoder_query", self.decoder_query, ("sum", "embedded"))
        layers = self.num_decoder_layers  # the papers have 1 and 2; a number far above is a broken file
        if not isinstance(layers, int) or isinstance(layers, bool) or not 1 <= layers <= 64:
            raise RetroMAEError(f"num_decoder_layers={layers!r} must be a whole number from 1 to 64")
        final = [] if self.final_bow_loss_weight is None else ["final_bow_loss_weight"]
        for name in ("mlm_loss_weight", "bow_loss_weight", *final, "contrast_loss_weight"):
            if not is_number(getattr(self, name)) or getattr(self, name) < 0:
                raise RetroMAEError(f"{name}={getattr(self, name)!r} must be 0 or a finite number above")
        if not is_number(self.contrast_temperature) or self.contrast_temperature <= 0:
            raise RetroMAEError(f"contrast_temperature={self.contrast_temperature!r} must be a finite number above 0")
        if self.bow_loss_weight > 0 and self.bow_source == "tokens" and self.decoding != "enhanced":
            raise RetroMAEError(
                f"bow_loss_weight={self.bow_loss_weight} needs decoding='enhanced', not {self.decoding!r}, or "
                "bow_source='sentence'"
            )
        if self.bow_loss_weight == 0 and (self.bow_source == "sentence" or final):
            raise RetroMAEError("a bag of words is asked for that weighs nothing; give bow_loss_weight, 1 in BoW-DPR")

    @property
    def hidden_size(self) -> int:
        return self.encoder_config.hidden_size

    @property
    def vocab_size(self) -> int:
        return self.encoder_config.vocab_size


__all__ = ["RetroMAEConfig"]
