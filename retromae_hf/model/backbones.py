"""The known families of encoders; the only file that knows them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import ACT2FN

from .backbone import Backbone, as_asked
from .errors import RetroMAEError


class BertBackbone(Backbone):
    """BERT (arXiv 1810.04805)."""

    title = "BERT"


class RobertaBackbone(Backbone):
    """RoBERTa (arXiv 1907.11692) and XLM-RoBERTa (arXiv 1911.02116): positions start behind the padding's."""

    title = "RoBERTa"

    def position_offset(self, config: PreTrainedConfig) -> int:
        """Fairseq's convention: the padding token's id is the padding's position, and tokens follow."""
        return config.pad_token_id + 1

    def head_features(self, encoder: PreTrainedModel, states: Tensor) -> Tensor:
        """See `Backbone`."""
        return encoder.lm_head.layer_norm(ACT2FN["gelu"](encoder.lm_head.dense(states)))


class XLMRobertaBackbone(RobertaBackbone):
    """XLM-RoBERTa (arXiv 1911.02116)."""

    title = "XLM-RoBERTa"


class MPNetBackbone(RobertaBackbone):
    """MPNet (arXiv 2004.09297): a relative bias beside absolute positions, whose padding is fixed at 1."""

    title = "MPNet"
    positions = "absolute and relative"
    token_types = False
    padding_id = 1

    def position_offset(self, config: PreTrainedConfig) -> int:
        """See `RobertaBackbone`."""
        return self.padding_id + 1


class AlbertBackbone(Backbone):
    """ALBERT (arXiv 1909.11942): embeddings are smaller than the hidden size, and layers share their weights."""

    title = "ALBERT"

    def head_features(self, encoder: PreTrainedModel, states: Tensor) -> Tensor:
        """See `Backbone`."""
        head = encoder.predictions
        return head.LayerNorm(head.activation(head.dense(states)))

    def _embedding_projection(self, encoder: PreTrainedModel) -> nn.Linear | None:
        return encoder.base_model.encoder.embedding_hidden_mapping_in


class DistilBertBackbone(Backbone):
    """DistilBERT (arXiv 1910.01108)."""

    title = "DistilBERT"
    token_types = False
    config_names: ClassVar[dict[str, str]] = {
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout": "dropout",
    }

    def head_features(self, encoder: PreTrainedModel, states: Tensor) -> Tensor:
        """See `Backbone`."""
        return encoder.vocab_layer_norm(encoder.activation(encoder.vocab_transform(states)))


class ElectraBackbone(Backbone):
    """ELECTRA's generator (arXiv 2003.10555), which is its masked language model."""

    title = "ELECTRA"

    def head_features(self, encoder: PreTrainedModel, states: Tensor) -> Tensor:
        """See `Backbone`."""
        return encoder.generator_predictions(states)

    def _embedding_projection(self, encoder: PreTrainedModel) -> nn.Linear | None:
        return getattr(encoder.base_model, "embeddings_project", None)


class DebertaV2Backbone(Backbone):
    """DeBERTa v2 and v3 (arXiv 2111.09543): positions relative to each other, in most checkpoints nothing else."""

    title = "DeBERTa-v2, DeBERTa-v3"
    positions = "relative"
    # The class's defaults are those of no checkpoint; these are DeBERTa-v3's.
    new_config: ClassVar[dict[str, Any]] = {
        "relative_attention": True,
        "position_biased_input": False,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 256,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
    }

    def set_max_positions(self, config: PreTrainedConfig, length: int) -> None:
        """See `Backbone`."""
        if getattr(config, "position_buckets", -1) < 1 and config.max_relative_positions < 1:
            # Left at -1 the second one follows max_position_embeddings, and with it the size of a learned table.
            config.max_relative_positions = config.max_position_embeddings
        super().set_max_positions(config, length)

    def has_position_table(self, config: PreTrainedConfig) -> bool:
        """See `Backbone`."""
        return config.position_biased_input

    def _position_projection(self, encoder: PreTrainedModel) -> nn.Linear | None:
        return getattr(encoder.base_model.embeddings, "embed_proj", None)

    def head_features(self, encoder: PreTrainedModel, states: Tensor) -> Tensor:
        """See `Backbone`."""
        if encoder.legacy:
            return encoder.cls.predictions.transform(states)
        head = encoder.lm_predictions.lm_head
        return head.LayerNorm(head.transform_act_fn(head.dense(states)))

    def output_projection(self, encoder: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
        """See `Backbone`."""
        if encoder.legacy:
            return super().output_projection(encoder)
        return encoder.get_input_embeddings().weight, encoder.lm_predictions.lm_head.bias

    def resize_vocabulary(self, encoder: PreTrainedModel, *args: Any, **options: Any) -> nn.Module:
        """See `Backbone`."""
        if encoder.legacy:
            return super().resize_vocabulary(encoder, *args, **options)
        # transformers takes a layer within this head for its output projection.
        embeddings = encoder.base_model.resize_token_embeddings(*args, **options)
        rows, head = embeddings.num_embeddings, encoder.lm_predictions.lm_head
        head.bias = nn.Parameter(pad(head.bias.data, (0, rows - len(head.bias))))
        return embeddings

    def _mask(self, encoder: PreTrainedModel, tokens: Tensor, attention_mask: Tensor | None) -> Any:
        return attention_mask  # which its embeddings are multiplied by


class CamembertBackbone(RobertaBackbone):
    """CamemBERT (arXiv 1911.03894): RoBERTa in French."""

    title = "CamemBERT"


class ErnieBackbone(BertBackbone):
    """ERNIE (arXiv 1904.09223): BERT, with embeddings of tasks that are left out here."""

    title = "ERNIE"


class RemBertBackbone(Backbone):
    """RemBERT (arXiv 2010.12821): small embeddings at the bottom, large and untied ones at the top."""

    title = "RemBERT"
    # The class's are for 1,152 states and a quarter of a million words.
    new_config: ClassVar[dict[str, Any]] = {"input_embedding_size": 128, "output_embedding_size": 256}

    def embedding_size(self, config: PreTrainedConfig) -> int:
        """See `Backbone`."""
        return config.input_embedding_size

    def _mask(self, encoder: PreTrainedModel, tokens: Tensor, attention_mask: Tensor | None) -> Any:
        if attention_mask is None:  # it makes one itself and then looks into it
            attention_mask = torch.ones(tokens.shape[:2], dtype=torch.int64, device=tokens.device)
        return super()._mask(encoder, tokens, attention_mask)

    def head_features(self, encoder: PreTrainedModel, states: Tensor) -> Tensor:
        """See `Backbone`."""
        head = encoder.cls.predictions
        return head.LayerNorm(head.activation(head.dense(states)))

    def _embedding_projection(self, encoder: PreTrainedModel) -> nn.Linear | None:
        return encoder.base_model.encoder.embedding_hidden_mapping_in


class RotaryBackbone(Backbone):
    """What families with rotary positions have in common: no table of positions."""

    positions = "rotary"

    def has_position_table(self, config: PreTrainedConfig) -> bool:
        """See `Backbone`."""
        return False


class NomicBertBackbone(RotaryBackbone):
    """NomicBERT (arXiv 2402.01613)."""

    title = "NomicBERT"


class GteBackbone(RotaryBackbone):
    """GTE's multilingual and English encoders (arXiv 2407.19669), with a RoBERTa's head."""

    title = "GTE"

    def head_features(self, encoder: PreTrainedModel, states: Tensor) -> Tensor:
        """See `Backbone`."""
        return encoder.lm_head.layer_norm(ACT2FN["gelu"](encoder.lm_head.dense(states)))


class JinaEmbeddingsV3Backbone(GteBackbone):
    """Jina-embeddings-v3 (arXiv 2409.10173): an XLM-RoBERTa with rotary positions."""

    title = "Jina-embeddings-v3"


class EuroBertBackbone(RotaryBackbone):
    """EuroBERT (arXiv 2503.05500): a Llama that sees both ways, without [CLS], segments, or layers in its head."""

    title = "EuroBERT"
    token_types = False
    pooling = "mean"
    config_names: ClassVar[dict[str, str]] = {
        "hidden_dropout": "attention_dropout",
        "layer_norm_eps": "rms_norm_eps",
    }
    new_config: ClassVar[dict[str, Any]] = {"tie_word_embeddings": True}

    def embed(self, encoder: PreTrainedModel, tokens: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """See `Backbone`."""
        return tokens if tokens.is_floating_point() else encoder.get_input_embeddings()(tokens)

    def head_features(self, encoder: PreTrainedModel, states: Tensor) -> Tensor:
        """See `Backbone`."""
        return states


class ModernBertBackbone(RotaryBackbone):
    """ModernBERT (arXiv 2412.13663): rotary positions, attention that alternates between near and far."""

    title = "ModernBERT"
    token_types = False
    config_names: ClassVar[dict[str, str]] = {
        "hidden_act": "hidden_activation",
        "layer_norm_eps": "norm_eps",
        "hidden_dropout": "mlp_dropout",
    }

    def head_features(self, encoder: PreTrainedModel, states: Tensor) -> Tensor:
        """See `Backbone`."""
        return encoder.head(states)

    def _mask(self, encoder: PreTrainedModel, tokens: Tensor, attention_mask: Tensor | None) -> Any:
        """Two masks: that of layers which see as far as the window alone, and that of the others."""
        how = encoder.config._attn_implementation
        if attention_mask is None or how not in ("sdpa", "eager"):
            return attention_mask
        places = torch.arange(tokens.shape[1], device=tokens.device)
        near = (places[:, None] - places).abs() <= encoder.config.sliding_window
        real = attention_mask.bool()[:, None, None]
        return {
            "full_attention": super()._mask(encoder, tokens, attention_mask),
            "sliding_attention": as_asked(real & near, how, encoder.dtype),
        }


BACKBONES: dict[str, Backbone] = {
    "bert": BertBackbone(),
    "roberta": RobertaBackbone(),
    "xlm-roberta": XLMRobertaBackbone(),
    "albert": AlbertBackbone(),
    "distilbert": DistilBertBackbone(),
    "electra": ElectraBackbone(),
    "deberta-v2": DebertaV2Backbone(),
    "mpnet": MPNetBackbone(),
    "modernbert": ModernBertBackbone(),
    "camembert": CamembertBackbone(),
    "ernie": ErnieBackbone(),
    "rembert": RemBertBackbone(),
    "nomic_bert": NomicBertBackbone(),
    "gte": GteBackbone(),
    "jina_embeddings_v3": JinaEmbeddingsV3Backbone(),
    "eurobert": EuroBertBackbone(),
}
"""The known families, by `model_type`."""


def register_backbone(model_type: str, backbone: Backbone) -> None:
    """Make a family of encoders known, for this process.

    A checkpoint of such a model loads where the family was registered before; the copy of this code that travels with a
    checkpoint, for `trust_remote_code`, does not know it. An encoder exported from it is what `AutoModel` makes of it.

    Args:
        model_type: as the encoder's configuration has it, known to `AutoConfig` and `AutoModelForMaskedLM`.
        backbone: what is special about the family, an instance of a class of yours.

    Raises:
        RetroMAEError: the type is known already, or `backbone` is none.
    """
    if not isinstance(backbone, Backbone):
        raise RetroMAEError(f"register_backbone takes an instance of a Backbone, not {backbone!r}")
    if model_type in BACKBONES:
        raise RetroMAEError(f"encoders of type {model_type!r} are known already; give yours a type of its own")
    BACKBONES[model_type] = backbone


def max_text_length(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> int:
    """The most tokens of a text that a tokenizer, or what a `RetroMAEConfig` says instead, and the positions allow."""
    encoder, settings = getattr(config, "encoder_config", config), getattr(config, "sentence_settings", {})
    longest = settings.get("max_seq_length", tokenizer.model_max_length)
    return min(longest, backbone_for(encoder).max_positions(encoder))


def backbone_for(config: PreTrainedConfig) -> Backbone:
    """The family of an encoder's configuration.

    Raises:
        RetroMAEError: the family is not known.
    """
    if config.model_type not in BACKBONES:
        raise RetroMAEError(
            f"encoders of type {config.model_type!r} are not supported; known types: {', '.join(sorted(BACKBONES))}; "
            "another one can be added with register_backbone"
        )
    return BACKBONES[config.model_type]
