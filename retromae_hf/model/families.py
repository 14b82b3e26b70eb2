"""What RetroMAE needs to know of a masked language model, family by family.

A family answers four questions of its `*ForMaskedLM`: the embedding of tokens at hidden size, the table of position
embeddings (if it has one), the features before the output projection, and the projection itself.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers import PreTrainedConfig, PreTrainedModel
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
    """BERT (arXiv 1810.04805) and what most families have in common with it; the others say where they differ.

    Attributes:
        title: the family's name, for people; an instance may be given its own.
        positions: how it knows positions: "absolute", "relative" or "rotary", of which the last has no table of them.
        token_types: whether it tells segments apart.
        config_names: what its configuration calls the fields of `DecoderShape` that it names otherwise.
        new_config: what the configuration of a new encoder has otherwise than the configuration's class.
        head: the module before the output projection, in its `*ForMaskedLM`.
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
    head = "cls.predictions.transform"
    padding_id: int | None = None
    pooling = "cls"

    def __init__(self, title: str | None = None):
        if title is not None:
            self.title = title

    def token_states(
        self, encoder: PreTrainedModel, tokens: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None
    ) -> Tensor:
        """The last layer's states `[B, L, H]`, for ids `[B, L]` or their word embeddings `[B, L, E]`."""
        inputs, mask = self._inputs(encoder, tokens, token_type_ids), self._mask(encoder, tokens, attention_mask)
        return encoder.base_model(**inputs, attention_mask=mask).last_hidden_state

    def last_and_middle_states(
        self, encoder: PreTrainedModel, tokens: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The last layer's states and those in the middle (of 12 layers behind the 6th), both `[B, L, H]`."""
        inputs, mask = self._inputs(encoder, tokens, token_type_ids), self._mask(encoder, tokens, attention_mask)
        outputs = encoder.base_model(**inputs, attention_mask=mask, output_hidden_states=True)
        return outputs.last_hidden_state, outputs.hidden_states[encoder.config.num_hidden_layers // 2]

    def embed(self, encoder: PreTrainedModel, tokens: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """What the first layer is given, `[B, L, H]`, for ids `[B, L]` or word embeddings `[B, L, E]`.

        Position embeddings are in it where the family has a table of them.
        """
        embedded = encoder.base_model.embeddings(**self._inputs(encoder, tokens, token_type_ids))
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
        return self.positions != "rotary"

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
        return encoder.get_submodule(self.head)(states)

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

    def _inputs(self, encoder: PreTrainedModel, tokens: Tensor, token_type_ids: Tensor | None) -> dict[str, Any]:
        """Ids or word embeddings, and the segment ids of an encoder that has them, as its arguments are called."""
        embedded = tokens.is_floating_point()
        # Both, because DistilBERT's embedding module has to be given that there are no ids.
        inputs = {"input_ids": None if embedded else tokens, "inputs_embeds": tokens if embedded else None}
        # RoBERTa has the argument but a single type, so that a second segment's would be out of range.
        if token_type_ids is not None and self.token_types and encoder.config.type_vocab_size > 1:
            inputs["token_type_ids"] = token_type_ids
        return inputs

    def _mask(self, encoder: PreTrainedModel, tokens: Tensor, attention_mask: Tensor | None) -> Any:
        return mask_of_pairs(encoder, attention_mask)

    def _embedding_projection(self, encoder: PreTrainedModel) -> nn.Linear | None:
        """What takes the embedding module's output to the hidden size, where it does not do so itself."""
        return None

    def _position_projection(self, encoder: PreTrainedModel) -> nn.Linear | None:
        """What takes position embeddings to the hidden size, inside the embedding module or behind it."""
        return self._embedding_projection(encoder)


def mask_of_pairs(encoder: PreTrainedModel, mask: Tensor | None, near: Tensor | bool = True) -> Tensor | None:
    """The mask `[B, L]` as an encoder's attention asks for it, `[B, 1, L, L]`, of the pairs that are `near` alone.

    Of one that is `[B, L]` transformers asks, at each forward pass, whether all of it is 1, and the host waits.
    """
    how = encoder.config._attn_implementation
    if mask is None or how not in ("sdpa", "eager"):  # the others count tokens, or want blocks
        return mask
    asked = mask.bool()[:, None, None] & near
    if how == "eager":  # which adds it to the scores
        lowest = torch.finfo(encoder.dtype).min
        asked = torch.zeros(asked.shape, dtype=encoder.dtype, device=mask.device).masked_fill(~asked, lowest)
    return asked.expand(-1, -1, mask.shape[1], -1)


class RobertaBackbone(Backbone):
    """RoBERTa (arXiv 1907.11692): positions start behind the padding's."""

    def position_offset(self, config: PreTrainedConfig) -> int:
        # Fairseq's convention: the padding token's id is the padding's position, and tokens follow.
        return 1 + (config.pad_token_id if self.padding_id is None else self.padding_id)

    def head_features(self, encoder: PreTrainedModel, states: Tensor) -> Tensor:
        return encoder.lm_head.layer_norm(ACT2FN["gelu"](encoder.lm_head.dense(states)))


class MPNetBackbone(RobertaBackbone):
    """MPNet (arXiv 2004.09297): a relative bias beside absolute positions, whose padding is fixed at 1."""

    positions = "absolute and relative"
    token_types = False
    padding_id = 1


class AlbertBackbone(Backbone):
    """ALBERT (arXiv 1909.11942): embeddings are smaller than the hidden size, and layers share their weights."""

    head = "predictions"

    def head_features(self, encoder: PreTrainedModel, states: Tensor) -> Tensor:
        head = encoder.get_submodule(self.head)
        return head.LayerNorm(head.activation(head.dense(states)))

    def _embedding_projection(self, encoder: PreTrainedModel) -> nn.Linear | None:
        return encoder.base_model.encoder.embedding_hidden_mapping_in


class RemBertBackbone(AlbertBackbone):
    """RemBERT (arXiv 2010.12821): small embeddings at the bottom, large and untied ones at the top."""

    head = "cls.predictions"
    # The class's are for 1,152 states and a quarter of a million words.
    new_config: ClassVar[dict[str, Any]] = {"input_embedding_size": 128, "output_embedding_size": 256}

    def embedding_size(self, config: PreTrainedConfig) -> int:
        return config.input_embedding_size

    def _mask(self, encoder: PreTrainedModel, tokens: Tensor, attention_mask: Tensor | None) -> Any:
        if attention_mask is None:  # it makes one itself and then looks into it
            attention_mask = torch.ones(tokens.shape[:2], dtype=torch.int64, device=tokens.device)
        return super()._mask(encoder, tokens, attention_mask)


class DistilBertBackbone(Backbone):
    """DistilBERT (arXiv 1910.01108)."""

    token_types = False
    config_names: ClassVar[dict[str, str]] = {
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout": "dropout",
    }

    def head_features(self, encoder: PreTrainedModel, states: Tensor) -> Tensor:
        return encoder.vocab_layer_norm(encoder.activation(encoder.vocab_transform(states)))


class ElectraBackbone(Backbone):
    """ELECTRA's generator (arXiv 2003.10555), which is its masked language model."""

    head = "generator_predictions"

    def _embedding_projection(self, encoder: PreTrainedModel) -> nn.Linear | None:
        return getattr(encoder.base_model, "embeddings_project", None)


class DebertaV2Backbone(Backbone):
    """DeBERTa v2 and v3 (arXiv 2111.09543): positions relative to each other, in most checkpoints nothing else."""

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

    def has_position_table(self, config: PreTrainedConfig) -> bool:
        return config.position_biased_input

    def set_max_positions(self, config: PreTrainedConfig, length: int) -> None:
        if getattr(config, "position_buckets", -1) < 1 and config.max_relative_positions < 1:
            # Left at -1 the second one follows max_position_embeddings, and with it the size of a learned table.
            config.max_relative_positions = config.max_position_embeddings
        super().set_max_positions(config, length)

    def head_features(self, encoder: PreTrainedModel, states: Tensor) -> Tensor:
        if encoder.legacy:
            return super().head_features(encoder, states)
        head = encoder.lm_predictions.lm_head
        return head.LayerNorm(head.transform_act_fn(head.dense(states)))

    def output_projection(self, encoder: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
        if encoder.legacy:
            return super().output_projection(encoder)
        return encoder.get_input_embeddings().weight, encoder.lm_predictions.lm_head.bias

    def resize_vocabulary(self, encoder: PreTrainedModel, *args: Any, **options: Any) -> nn.Module:
        if encoder.legacy:
            return super().resize_vocabulary(encoder, *args, **options)
        # transformers takes a layer within this head for its output projection.
        embeddings = encoder.base_model.resize_token_embeddings(*args, **options)
        rows, head = embeddings.num_embeddings, encoder.lm_predictions.lm_head
        head.bias = nn.Parameter(pad(head.bias.data, (0, rows - len(head.bias))))
        return embeddings

    def _mask(self, encoder: PreTrainedModel, tokens: Tensor, attention_mask: Tensor | None) -> Any:
        return attention_mask  # which its embeddings are multiplied by

    def _position_projection(self, encoder: PreTrainedModel) -> nn.Linear | None:
        return getattr(encoder.base_model.embeddings, "embed_proj", None)


class RotaryBackbone(Backbone):
    """NomicBERT (arXiv 2402.01613), and what families with rotary positions have in common with it."""

    positions = "rotary"


class GteBackbone(RotaryBackbone):
    """GTE's encoders (arXiv 2407.19669) and Jina-embeddings-v3 (arXiv 2409.10173), with a RoBERTa's head."""

    head_features = RobertaBackbone.head_features


class EuroBertBackbone(RotaryBackbone):
    """EuroBERT (arXiv 2503.05500): a Llama that sees both ways, without [CLS], segments, or layers in its head."""

    token_types = False
    pooling = "mean"
    config_names: ClassVar[dict[str, str]] = {"hidden_dropout": "attention_dropout", "layer_norm_eps": "rms_norm_eps"}
    new_config: ClassVar[dict[str, Any]] = {"tie_word_embeddings": True}

    def embed(self, encoder: PreTrainedModel, tokens: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        return tokens if tokens.is_floating_point() else encoder.get_input_embeddings()(tokens)

    def head_features(self, encoder: PreTrainedModel, states: Tensor) -> Tensor:
        return states


class ModernBertBackbone(RotaryBackbone):
    """ModernBERT (arXiv 2412.13663): rotary positions, attention that alternates between near and far."""

    token_types = False
    config_names: ClassVar[dict[str, str]] = {
        "hidden_act": "hidden_activation",
        "layer_norm_eps": "norm_eps",
        "hidden_dropout": "mlp_dropout",
    }
    head = "head"

    def _mask(self, encoder: PreTrainedModel, tokens: Tensor, attention_mask: Tensor | None) -> Any:
        """Two masks: that of layers which see as far as the window alone, and that of the others."""
        whole = super()._mask(encoder, tokens, attention_mask)
        if whole is attention_mask:
            return attention_mask
        places = torch.arange(tokens.shape[1], device=tokens.device)
        near = (places[:, None] - places).abs() <= encoder.config.sliding_window
        return {"full_attention": whole, "sliding_attention": mask_of_pairs(encoder, attention_mask, near)}


BACKBONES: dict[str, Backbone] = {
    "bert": Backbone("BERT"),
    "roberta": RobertaBackbone("RoBERTa"),
    "xlm-roberta": RobertaBackbone("XLM-RoBERTa"),  # arXiv 1911.02116
    "albert": AlbertBackbone("ALBERT"),
    "distilbert": DistilBertBackbone("DistilBERT"),
    "electra": ElectraBackbone("ELECTRA"),
    "deberta-v2": DebertaV2Backbone("DeBERTa-v2, DeBERTa-v3"),
    "mpnet": MPNetBackbone("MPNet"),
    "modernbert": ModernBertBackbone("ModernBERT"),
    "camembert": RobertaBackbone("CamemBERT"),  # arXiv 1911.03894
    "ernie": Backbone("ERNIE"),  # arXiv 1904.09223; its embeddings of tasks are left out here
    "rembert": RemBertBackbone("RemBERT"),
    "nomic_bert": RotaryBackbone("NomicBERT"),
    "gte": GteBackbone("GTE"),
    "jina_embeddings_v3": GteBackbone("Jina-embeddings-v3"),
    "eurobert": EuroBertBackbone("EuroBERT"),
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


def backbone_for(config: PreTrainedConfig) -> Backbone:
    """The family of an encoder's configuration; `RetroMAEError` where it is not known."""
    if config.model_type not in BACKBONES:
        raise RetroMAEError(
            f"encoders of type {config.model_type!r} are not supported; known types: {', '.join(sorted(BACKBONES))}; "
            "another one can be added with register_backbone"
        )
    return BACKBONES[config.model_type]
