"""An encoder of any family under one name, with what `transformers` asks of a model; no part of the objective."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

from .backbones import backbone_for
from .configuration_retromae import POOLINGS, RetroMAEConfig
from .distributed import sharded_by_accelerate
from .errors import RetroMAEError, in_one_sentence
from .layout import encoder_place, sentence_settings
from .losses import linear_cross_entropy, token_accuracy
from .trust import open_config, safetensors_only

logger = logging.getLogger(__name__)


class RetroMAEPreTrainedModel(PreTrainedModel):
    """What both models share: an encoder, a plain `*ForMaskedLM`, under the name `encoder`."""

    config_class = RetroMAEConfig
    base_model_prefix = "retromae"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: RetroMAEConfig):
        super().__init__(config)
        self.backbone = backbone_for(config.encoder_config)
        with in_one_sentence(f"no {config.encoder_config.model_type} encoder can be made of this configuration"):
            # Its configuration may say in which precision the weights of another one were stored.
            self.encoder = AutoModelForMaskedLM.from_config(config.encoder_config, dtype=torch.get_default_dtype())
        self.supports_gradient_checkpointing = self.encoder.supports_gradient_checkpointing

    def post_init(self) -> None:
        """As in `transformers`; and FSDP's units, beside the root's, are the layers."""
        super().post_init()
        # Some families name their embeddings too, whose weights the head shares.
        layers = {type(module).__name__ for module in self.modules() if isinstance(module, GradientCheckpointingLayer)}
        self._no_split_modules = layers

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers`, from safetensors alone, and in float32 unless another `dtype` is asked for.

        A pickle can run code when it is read, and half precision loses an optimizer's small steps.

        Raises:
            RetroMAEError: the weights are pickled.
        """
        kwargs["use_safetensors"] = True
        if "torch_dtype" not in kwargs:  # the older name
            kwargs.setdefault("dtype", torch.float32)
        with safetensors_only(pretrained_model_name_or_path or "", kwargs.get("subfolder") or ""):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @property
    def masked_lm(self) -> PreTrainedModel:
        """The encoder itself, a `*ForMaskedLM`, also where PEFT has wrapped it and put adapters into its layers."""
        return self.encoder.get_base_model() if hasattr(self.encoder, "get_base_model") else self.encoder

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """The encoder's last hidden states `[B, L, H]`, of which `pool` makes the sentence embedding.

        `input_ids` may be word embeddings `[B, L, E]` as well.

        Raises:
            RetroMAEError: the batch is longer than the encoder's positions.
        """
        self._check_length(input_ids)
        return self.backbone.token_states(self.masked_lm, input_ids, attention_mask, token_type_ids)

    def pool(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The sentence embeddings `[B, H]` of last hidden states `[B, L, H]`: [CLS]'s, or the real tokens' mean."""
        if self.config.pooling == "cls":
            return states[:, 0]
        if attention_mask is None:
            return states.mean(dim=1)
        real = attention_mask[:, :, None].to(states.dtype)
        return (states * real).sum(dim=1) / real.sum(dim=1)

    def head(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the masked-LM head makes its logits of: features `[..., E]` of `states` `[..., H]`, weight and bias.

        The losses take these three; nobody needs all of the logits `features @ weight.T + bias` at once.
        """
        return (
            self.backbone.head_features(self.masked_lm, states),
            *self.backbone.output_projection(self.masked_lm),
        )

    def token_loss(self, states: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of `states` `[T, H]` against `labels` `[T]` through the encoder's masked-LM head."""
        return linear_cross_entropy(*self.head(states), labels)

    def token_accuracy(self, states: Tensor, labels: Tensor) -> Tensor:
        """Share of `states` `[T, H]` whose most probable token is the one in `labels` `[T]`."""
        return token_accuracy(*self.head(states), labels)

    def _check_length(self, tokens: Tensor) -> None:
        limit = self.backbone.max_positions(self.masked_lm.config)
        if tokens.shape[1] > limit:
            raise RetroMAEError(
                f"passages of {tokens.shape[1]} tokens do not fit the encoder's {limit} positions; "
                f"prepare them with max_length={limit} or less"
            )

    def get_input_embeddings(self) -> nn.Module | None:
        """The encoder's word embeddings; None where accelerate shards the model, see `get_output_embeddings`."""
        return None if sharded_by_accelerate() else self.masked_lm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the encoder's word embeddings."""
        self.masked_lm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The encoder's output projection; None where accelerate shards the model.

        It asks for both to give them units of their own, whose weights are whole only while the modules are called.
        The losses read weight and bias without calling, and masked-LM heads share them with other modules, so they
        have to stay in the root's unit, which is whole from the forward pass to the end of the backward pass.
        """
        return None if sharded_by_accelerate() else self.masked_lm.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the encoder's output projection."""
        self.masked_lm.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Resize the encoder's vocabulary; its configuration, which is part of this one, follows."""
        return self.backbone.resize_vocabulary(self.masked_lm, *args, **kwargs)


def load_encoder(name_or_path: str, repooled: bool = False) -> tuple[PreTrainedModel, set[str], dict[str, Any]]:
    """A masked LM from safetensors, in float32 whatever they hold: half precision loses an optimizer's small steps.

    That of a sentence-transformers model is the first encoder in it. A head that the checkpoint does not have is new.

    Args:
        name_or_path: a folder or a Hub name.
        repooled: whether somebody says how to pool it, so that its own way does not matter.

    Returns:
        The masked LM, the names of those of its weights that are new, and the fields of `RetroMAEConfig` that follow.

    Raises:
        RetroMAEError: it is a RetroMAE checkpoint, cannot be told without running code, is pickled, lacks weights, or
            pools otherwise than by [CLS] or the mean.
    """
    settings = sentence_settings(name_or_path)
    pooling = settings.pop("pooling", None)
    if not repooled and pooling not in (None, *POOLINGS):
        raise RetroMAEError(
            f"{name_or_path} makes its embeddings by {pooling} pooling, which cannot be pretrained; choose "
            "--pooling cls or --pooling mean, and the embedding becomes that"
        )
    place = encoder_place(name_or_path)
    config = open_config(name_or_path, place)
    if isinstance(config, RetroMAEConfig):
        raise RetroMAEError(
            f"{name_or_path} is a RetroMAE checkpoint; continue it with RetroMAEForPreTraining.from_pretrained"
        )
    pooling = pooling or backbone_for(config).pooling
    # The backbones know the classes of transformers alone.
    options = {"config": config, "subfolder": place, "trust_remote_code": False}
    with safetensors_only(name_or_path, place):
        if not check_complete(AutoModelForMaskedLM, name_or_path, **options):
            logger.warning("the encoder has no MLM head; a new one is trained")
        with without_load_report():
            encoder, info = AutoModelForMaskedLM.from_pretrained(
                name_or_path, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
            )
    fields = {"encoder_config": encoder.config, "pooling": pooling, "sentence_settings": settings}
    return encoder, info["missing_keys"], fields


def check_complete(model_class: Any, name_or_path: str, **options: Any) -> bool:
    """Compare the weights of a checkpoint with those of a model, by names and shapes: nothing else is read or made.

    `transformers` itself makes random weights of what is missing, however large a configuration says that they are.
    Where DeepSpeed's ZeRO-3 makes the model nothing is compared, and its report is shown.

    Args:
        model_class: what is to be loaded, with `from_pretrained`.
        name_or_path: from where.
        **options: what `from_pretrained` takes.

    Returns:
        Whether the head of a masked LM is there, where the model has one; a new one can be trained. Nor is a pooler
        needed, which no embedding is made of.

    Raises:
        RetroMAEError: weights are missing or have another shape.
    """
    if is_deepspeed_zero3_enabled():  # which takes no device_map
        return True
    with without_load_report():
        model, info = model_class.from_pretrained(
            name_or_path,
            device_map="meta",
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    for name, stored, wanted in sorted(info["mismatched_keys"]):
        raise RetroMAEError(
            f"{name_or_path} holds weights that do not fit its config.json: {name} has the shape {list(stored)} and "
            f"should have {list(wanted)}"
        )
    encoder = "" if model.base_model is model else f"{model.base_model_prefix}."
    tied = {name for name, source in model.all_tied_weights_keys.items() if source.startswith(encoder)}
    head = {name for name in model.state_dict() if not name.startswith(encoder)} - tied
    missing = set(info["missing_keys"])
    has_head = not head or not head <= missing
    needed = {name for name in (missing if has_head else missing - head) if "pooler." not in name}
    if needed:
        raise RetroMAEError(
            f"{name_or_path} lacks {len(needed)} of its model's weights, {min(needed)} for one, which would start at "
            "random; name a folder that holds the whole model"
        )
    return has_head


@contextmanager
def without_load_report() -> Iterator[None]:
    """Without what `transformers` says of missing weights; `check_complete` says it."""
    shows_progress = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        # ZeRO-3's report is the only word there is, see `check_complete`.
        with filtering("transformers.modeling_utils", lambda record: is_deepspeed_zero3_enabled()):
            yield
    finally:
        if shows_progress:
            transformers_logging.enable_progress_bar()


@contextmanager
def filtering(name: str, is_shown: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Have a library's logger show what `is_shown` lets pass; it may raise, where a warning is to be an error."""
    library = logging.getLogger(name)
    library.addFilter(is_shown)
    try:
        yield
    finally:
        library.removeFilter(is_shown)
