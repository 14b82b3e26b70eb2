"""What RetroMAE needs to know of a masked language model; the only file that knows model families.

A family answers four questions of its `*ForMaskedLM`: the embedding of tokens at hidden size, the table of position
embeddings, the features before the output projection, and the projection itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from .errors import RetroMAEError


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder layer: those of one layer of the encoder."""

    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    layer_norm_eps: float
    hidden_dropout: float
    attention_dropout: float


class BertBackbone:
    """BERT (arXiv 1810.04805) and the checkpoints that share its architecture."""

    def token_states(
        self, encoder: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None
    ) -> Tensor:
        """The last layer's states `[B, L, H]`."""
        return encoder.base_model(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state

    def embed(
        self,
        encoder: PreTrainedModel,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """The embedding module's output `[B, L, H]`, positions included, for ids or for given word embeddings."""
        return encoder.base_model.embeddings(
            input_ids=input_ids, token_type_ids=token_type_ids, inputs_embeds=inputs_embeds
        )

    def position_embeddings(self, encoder: PreTrainedModel, length: int) -> Tensor:
        """The encoder's position embeddings `[length, H]`."""
        return encoder.base_model.embeddings.position_embeddings.weight[:length]

    def head_features(self, encoder: PreTrainedModel, states: Tensor) -> Tensor:
        """What the output projection is applied to, of the shape of `states`."""
        return encoder.cls.predictions.transform(states)

    def output_projection(self, encoder: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
        """Weight `[V, H]` and bias `[V]` of the output projection."""
        projection = encoder.get_output_embeddings()
        return projection.weight, projection.bias

    def max_positions(self, config: PreTrainedConfig) -> int:
        """The longest passage, in tokens, that the encoder has positions for."""
        return config.max_position_embeddings

    def decoder_shape(self, config: PreTrainedConfig) -> DecoderShape:
        """Sizes of a decoder layer beside this encoder."""
        return DecoderShape(
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            hidden_act=config.hidden_act,
            layer_norm_eps=config.layer_norm_eps,
            hidden_dropout=config.hidden_dropout_prob,
            attention_dropout=config.attention_probs_dropout_prob,
        )


BACKBONES = {"bert": BertBackbone()}
"""The known families, by `model_type`."""


def backbone_for(config: PreTrainedConfig) -> BertBackbone:
    """The family of an encoder's configuration.

    Raises:
        RetroMAEError: the family is not known.
    """
    if config.model_type not in BACKBONES:
        raise RetroMAEError(
            f"encoders of type {config.model_type!r} are not supported; known types: {', '.join(sorted(BACKBONES))}"
        )
    return BACKBONES[config.model_type]
