"""What RetroMAE needs to know of a masked language model of any family.

A family answers four questions of its `*ForMaskedLM`: the embedding of tokens at hidden size, the table of position
embeddings (if it has one), the features before the output projection, and the projection itself.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder layer: those of one layer of the encoder."""

    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    hidden_dropout: float
    attention_dropout: float
    layer_norm_eps: float = 1e-12  # BERT's, where a family has it in its code and not in its configuration


class Backbone:
    """What most families have in common; each of them says where it differs.

    Attributes:
        title: the family's name, for people.
        positions: how it knows positions, likewise.
        token_types: whether it tells segments apart.
        config_names: what its configuration calls the fields of `DecoderShape` that it names otherwise.
        new_config: what the configuration of a new encoder has otherwise than the configuration's class.
        padding_id: the padding token's id, where the family's code takes it for granted.
        pooling: what its embeddings are made by unless somebody says otherwise: "cls", or "mean" where the tokenizer
            has no [CLS], whose place the first special token takes in the decoder.
    """

    title: str
    positions = "absolute"
    token_types = True
    config_names: ClassVar[dict[str, str]] = {
        "hidden_dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
    }
    new_config: ClassVar[dict[str, Any]] = {}
    padding_id: int | None = None
    pooling = "cls"

    def token_states(
        self, encoder: PreTrainedModel, tokens: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None
    ) -> Tensor:
        """The last layer's states `[B, L, H]`, for ids `[B, L]` or their word embeddings `[B, L, E]`."""
        return self._outputs(encoder, tokens, attention_mask, token_type_ids).last_hidden_state

    def last_and_middle_states(
        self, encoder: PreTrainedModel, tokens: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The last layer's states and those in the middle (of 12 layers behind the 6th), both `[B, L, H]`."""
        outputs = self._outputs(encoder, tokens, attention_mask, token_type_ids, output_hidden_states=True)
        return outputs.last_hidden_state, outputs.hidden_states[encoder.config.num_hidden_layers // 2]

    def embed(self, encoder: PreTrainedModel, tokens: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """What the first layer is given, `[B, L, H]`, for ids `[B, L]` or word embeddings `[B, L, E]`.

        Position embeddings are in it where the family has a table of them.
        """
        embedded = encoder.base_model.embeddings(**_named(tokens), **self._segments(encoder, token_type_ids))
        projection = self._embedding_projection(encoder)
        return embedded if projection is None else projection(embedded)

    def position_embeddings(self, encoder: PreTrainedModel, length: int) -> Tensor | None:
        """The encoder's position embeddings at hidden size, `[length, H]`; None where it has no table of them."""
        if not self.has_position_table(encoder.config):
            return None
        offset = self.position_offset(encoder.config)
        table = encoder.base_model.embeddings.position_embeddings.weight[offset : offset + length]
        projection = self._position_projection(encoder)
        # Without the projection's bias, which the sentence embedding beside it does not have either.
        return table if projection is None else linear(table, projection.weight)

    def has_position_table(self, config: PreTrainedConfig) -> bool:
        """Whether positions are embedded; otherwise the decoder learns positions of its own."""
        return True

    def position_offset(self, config: PreTrainedConfig) -> int:
        """The row of the table that belongs to the first token."""
        return 0

    def max_positions(self, config: PreTrainedConfig) -> int:
        """The longest passage, in tokens, that the encoder has positions for."""
        return config.max_position_embeddings - self.position_offset(config)

    def set_max_positions(self, config: PreTrainedConfig, length: int) -> None:
        """Note in the configuration that the encoder has positions for `length` tokens."""
        config.max_position_embeddings = length + self.position_offset(config)

    def embedding_size(self, config: PreTrainedConfig) -> int:
        """Size of the word embeddings, which a family may project to the hidden size."""
        return getattr(config, "embedding_size", None) or config.hidden_size

    def head_features(self, encoder: PreTrainedModel, states: Tensor) -> Tensor:
        """What the output projection is applied to, `[..., E]` for states `[..., H]`."""
        return encoder.cls.predictions.transform(states)

    def output_projection(self, encoder: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
        """Weight `[V, E]` and bias `[V]` of the output projection."""
        projection = encoder.get_output_embeddings()
        return projection.weight, projection.bias

    def resize_vocabulary(self, encoder: PreTrainedModel, *args: Any, **options: Any) -> nn.Module:
        """As `resize_token_embeddings` of `transformers`: word embeddings and output projection, bias included."""
        return encoder.resize_token_embeddings(*args, **options)

    def decoder_shape(self, config: PreTrainedConfig) -> DecoderShape:
        """Sizes of a decoder layer beside this encoder."""
        names = {field.name: self.config_names.get(field.name, field.name) for field in fields(DecoderShape)}
        return DecoderShape(**{field: getattr(config, name) for field, name in names.items() if hasattr(config, name)})

    def _outputs(
        self,
        encoder: PreTrainedModel,
        tokens: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        **options: Any,
    ) -> Any:
        """What the encoder without its head returns."""
        segments = self._segments(encoder, token_type_ids)
        mask = self._mask(encoder, tokens, attention_mask)
        return encoder.base_model(**_named(tokens), attention_mask=mask, **segments, **options)

    def _mask(self, encoder: PreTrainedModel, tokens: Tensor, attention_mask: Tensor | None) -> Any:
        """The mask `[B, L]` as the encoder's attention asks for it, `[B, 1, L, L]`.

        Of one that is `[B, L]` transformers asks, at each forward pass, whether all of it is 1, and the host waits.
        """
        how = encoder.config._attn_implementation
        if attention_mask is None or how not in ("sdpa", "eager"):  # the others count tokens, or want blocks
            return attention_mask
        length = attention_mask.shape[1]
        return as_asked(attention_mask.bool()[:, None, None], how, encoder.dtype).expand(-1, -1, length, -1)

    def _embedding_projection(self, encoder: PreTrainedModel) -> nn.Linear | None:
        """What takes the embedding module's output to the hidden size, where it does not do so itself."""
        return None

    def _position_projection(self, encoder: PreTrainedModel) -> nn.Linear | None:
        """What takes position embeddings to the hidden size, inside the embedding module or behind it."""
        return self._embedding_projection(encoder)

    def _segments(self, encoder: PreTrainedModel, token_type_ids: Tensor | None) -> dict[str, Any]:
        # RoBERTa has the argument but a single type, so that a second segment's would be out of range.
        known = self.token_types and encoder.config.type_vocab_size > 1
        return {"token_type_ids": token_type_ids} if known and token_type_ids is not None else {}


def as_asked(visible: Tensor, how: str, dtype: torch.dtype) -> Tensor:
    """What attention takes to see only what is True: that, or with "eager" what is added to the scores."""
    if how == "sdpa":
        return visible
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)


def _named(tokens: Tensor) -> dict[str, Tensor | None]:
    """Ids or word embeddings under the name that encoders have for them."""
    embedded = tokens.is_floating_point()
    # Both, because DistilBERT's embedding module wants to be told that there are no ids.
    return {"input_ids": None if embedded else tokens, "inputs_embeds": tokens if embedded else None}
