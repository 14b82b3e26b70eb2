"""An encoder of any family under one name, with what `transformers` asks of a model; no part of the objective."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from .backbones import backbone_for
from .configuration_retromae import RetroMAEConfig
from .distributed import sharded_by_accelerate
from .errors import RetroMAEError, in_one_sentence
from .losses import linear_cross_entropy, token_accuracy
from .trust import check_code, safetensors_only


class RetroMAEPreTrainedModel(PreTrainedModel):
    """What both models share: an encoder, a plain `*ForMaskedLM`, under the name `encoder`."""

    config_class = RetroMAEConfig
    base_model_prefix = "retromae"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: RetroMAEConfig):
        super().__init__(config)
        self.backbone = backbone_for(config.encoder_config)
        with in_one_sentence(f"no {config.encoder_config.model_type} encoder can be made of this configuration"):
            self.encoder = AutoModelForMaskedLM.from_config(config.encoder_config)
        self.supports_gradient_checkpointing = self.encoder.supports_gradient_checkpointing

    def post_init(self) -> None:
        """As in `transformers`; and FSDP's units, beside the root's, are the layers."""
        super().post_init()
        # Some families name their embeddings too, whose weights the head shares.
        layers = {type(module).__name__ for module in self.modules() if isinstance(module, GradientCheckpointingLayer)}
        self._no_split_modules = layers

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers`, from safetensors alone: a pickle can run code when it is read.

        Raises:
            RetroMAEError: the weights are pickled.
        """
        kwargs["use_safetensors"] = True
        with safetensors_only(pretrained_model_name_or_path or "", kwargs.get("subfolder") or ""):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """The encoder's last hidden states `[B, L, H]`; the sentence embedding is position 0.

        `input_ids` may be word embeddings `[B, L, E]` as well.

        Raises:
            RetroMAEError: the batch is longer than the encoder's positions.
        """
        self._check_length(input_ids)
        return self.backbone.token_states(self.encoder, input_ids, attention_mask, token_type_ids)

    def head(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the masked-LM head makes its logits of: features `[..., E]` of `states` `[..., H]`, weight and bias.

        The losses take these three; nobody needs all of the logits `features @ weight.T + bias` at once.
        """
        return (self.backbone.head_features(self.encoder, states), *self.backbone.output_projection(self.encoder))

    def token_loss(self, states: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of `states` `[T, H]` against `labels` `[T]` through the encoder's masked-LM head."""
        return linear_cross_entropy(*self.head(states), labels)

    def token_accuracy(self, states: Tensor, labels: Tensor) -> Tensor:
        """Share of `states` `[T, H]` whose most probable token is the one in `labels` `[T]`."""
        return token_accuracy(*self.head(states), labels)

    def _check_length(self, tokens: Tensor) -> None:
        limit = self.backbone.max_positions(self.encoder.config)
        if tokens.shape[1] > limit:
            raise RetroMAEError(
                f"passages of {tokens.shape[1]} tokens do not fit the encoder's {limit} positions; "
                f"prepare them with max_length={limit} or less"
            )

    def get_input_embeddings(self) -> nn.Module | None:
        """The encoder's word embeddings; None where accelerate shards the model, see `get_output_embeddings`."""
        return None if sharded_by_accelerate() else self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the encoder's word embeddings."""
        self.encoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The encoder's output projection; None where accelerate shards the model.

        It asks for both to give them units of their own, whose weights are whole only while the modules are called.
        The losses read weight and bias without calling, and masked-LM heads share them with other modules, so they
        have to stay in the root's unit, which is whole from the forward pass to the end of the backward pass.
        """
        return None if sharded_by_accelerate() else self.encoder.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the encoder's output projection."""
        self.encoder.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Resize the encoder's vocabulary; its configuration, which is part of this one, follows."""
        return self.encoder.resize_token_embeddings(*args, **kwargs)


def load_encoder_config(name_or_path: str) -> PreTrainedConfig:
    """The configuration of a masked LM.

    Raises:
        RetroMAEError: it is that of a RetroMAE checkpoint, or cannot be told without running code.
    """
    check_code(name_or_path, trust_remote_code=False)
    config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    if isinstance(config, RetroMAEConfig):
        raise RetroMAEError(
            f"{name_or_path} is a RetroMAE checkpoint; continue it with RetroMAEForPreTraining.from_pretrained"
        )
    return config


def load_encoder(name_or_path: str, config: PreTrainedConfig) -> PreTrainedModel:
    """A masked LM from safetensors, in float32 whatever they hold: half precision loses an optimizer's small steps.

    Raises:
        RetroMAEError: its weights are pickled.
    """
    with safetensors_only(name_or_path):
        return AutoModelForMaskedLM.from_pretrained(
            name_or_path,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,  # the backbones know the classes of transformers alone
        )
