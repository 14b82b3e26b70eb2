"""What RetroMAE needs to know of a masked language model; the only file that knows model families.

A family answers four questions of its `*ForMaskedLM`: the embedding of tokens at hidden size, the table of position
embeddings (if it has one), the features before the output projection, and the projection itself.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import ACT2FN

from .errors import RetroMAEError


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
        return encoder.base_model(**_named(tokens), attention_mask=attention_mask, **segments, **options)

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


def _named(tokens: Tensor) -> dict[str, Tensor | None]:
    """Ids or word embeddings under the name that encoders have for them."""
    embedded = tokens.is_floating_point()
    # Both, because DistilBERT's embedding module wants to be told that there are no ids.
    return {"input_ids": None if embedded else tokens, "inputs_embeds": tokens if embedded else None}


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


class ModernBertBackbone(Backbone):
    """ModernBERT (arXiv 2412.13663): rotary positions, attention that alternates between near and far."""

    title = "ModernBERT"
    positions = "rotary"
    token_types = False
    config_names: ClassVar[dict[str, str]] = {
        "hidden_act": "hidden_activation",
        "layer_norm_eps": "norm_eps",
        "hidden_dropout": "mlp_dropout",
    }

    def has_position_table(self, config: PreTrainedConfig) -> bool:
        """See `Backbone`."""
        return False

    def head_features(self, encoder: PreTrainedModel, states: Tensor) -> Tensor:
        """See `Backbone`."""
        return encoder.head(states)


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
}
"""The known families, by `model_type`."""


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


def max_text_length(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> int:
    """The most tokens of a text that both a tokenizer and the positions of an encoder's configuration allow."""
    return min(tokenizer.model_max_length, backbone_for(config).max_positions(config))


def backbone_for(config: PreTrainedConfig) -> Backbone:
    """The family of an encoder's configuration.

    Raises:
        RetroMAEError: the family is not known.
    """
    if config.model_type not in BACKBONES:
        raise RetroMAEError(
            f"encoders of type {config.model_type!r} are not supported; known types: {', '.join(sorted(BACKBONES))}"
        )
    return BACKBONES[config.model_type]
