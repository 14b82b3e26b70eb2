"""Where a model's encoder lies, in a folder or in a repository on the Hub, and what stands there of its use."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

from .configuration_retromae import POOLINGS, SETTINGS, RetroMAEConfig, check_sizes
from .counting import sharded_by_accelerate
from .errors import RetroMAEError, first_line, in_one_sentence
from .families import backbone_for
from .losses import linear_cross_entropy, token_accuracy

logger = logging.getLogger(__name__)

MODULES = "modules.json"
"""What a model of sentence-transformers has in its folder: the list of its modules, and in which folders they lie."""
USE = "config_sentence_transformers.json"
"""How such a model prompts and compares texts."""
READING = "sentence_bert_config.json"
"""How its encoder reads them; this lies beside the encoder."""
KNOWN_MODULES = ("Transformer", "Pooling", "Normalize", "Dropout", "Router", "Asym")
"""The modules of which nothing is lost when the encoder is taken alone, with what `sentence_settings` tells."""


def find_file(name_or_path: str | Path, name: str, place: str = "") -> Path | None:
    """A file in the folder `place` of a model, from the Hub if need be; None where the model has none."""
    if Path(name_or_path).is_dir():
        file = Path(name_or_path, place, name)
        return file if file.is_file() else None
    try:
        return Path(hf_hub_download(str(name_or_path), name, subfolder=place or None))
    except (EntryNotFoundError, HFValidationError):
        return None


def encoder_places(name_or_path: str | Path, place: str = "") -> Iterator[str]:
    """The folders that encoders lie in, in the folder `place` of a model; "" is the model's own.

    In a model of sentence-transformers these are among the modules that modules.json and routers name, in their order.
    """
    for inner, config in _modules(name_or_path, place):
        if "model_type" in config:
            yield inner


def encoder_place(name_or_path: str | Path) -> str:
    """The folder in a model's that its first encoder lies in; "" where it is no model of sentence-transformers.

    Raises:
        RetroMAEError: it is one without an encoder, such as a static one.
    """
    if not is_modular(name_or_path):
        return ""
    place = next(encoder_places(name_or_path), None)
    if place is None:
        raise RetroMAEError(
            f"{name_or_path} holds no model that can be loaded: of its modules for sentence-transformers none is an "
            "encoder with a model_type in its config.json, as in a static model; name a masked language model"
        )
    return place


def is_modular(name_or_path: str | Path) -> bool:
    """Whether a model is one of sentence-transformers."""
    return find_file(name_or_path, MODULES) is not None


def sentence_settings(name_or_path: str | Path) -> dict[str, Any]:
    """What a model of sentence-transformers says of how its embeddings are made, beside the encoder.

    Returns:
        `pooling`, as its file names it, of several at once joined by "+", and of `SETTINGS` what the model has. Empty
        where nothing is pooled, as in a plain encoder.
    """
    if not is_modular(name_or_path):
        return {}
    pooling = next((told for _, config in _modules(name_or_path, "") if (told := _pooling(config))), None)
    if pooling is None:
        return {}
    kinds = [str(module["type"]).rpartition(".")[2] for module in _read(name_or_path, MODULES)]
    if others := [kind for kind in kinds if kind not in KNOWN_MODULES]:
        logger.warning("%s: the encoder is taken without the modules behind it: %s", name_or_path, ", ".join(others))
    found = {
        **(_read(name_or_path, READING, encoder_place(name_or_path)) or {}),
        **(_read(name_or_path, USE) or {}),
        "normalize": True if "Normalize" in kinds else None,
    }
    return {"pooling": pooling} | {name: found[name] for name in SETTINGS if found.get(name) is not None}


def _pooling(config: dict[str, Any]) -> str | None:
    """What the configuration of a module pools by, in its newer or its older layout; None where it does not."""
    flags = [name for name in config if name.startswith("pooling_mode_")]
    if "pooling_mode" not in config and not flags:
        return None
    by_flag = [
        name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for name in flags
        if config[name]
    ]
    modes = config.get("pooling_mode", by_flag or "mean")
    told = "+".join(map(str, modes)) if isinstance(modes, list) else str(modes)
    return told if config.get("include_prompt", True) else f"{told} without the prompt"


def _modules(name_or_path: str | Path, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The modules in the folder `place` of a model, those of routers included: their folders and their config.json."""
    modules = _read(name_or_path, MODULES, place)
    if modules is None:
        yield from _module_at(name_or_path, place)
        return
    for inner in _inside(place, [module["path"] for module in modules]):
        yield from _module_at(name_or_path, place) if inner == place else _modules(name_or_path, inner)


def _module_at(name_or_path: str | Path, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """As `_modules`, for a single module or a router."""
    config = _read(name_or_path, "config.json", place)
    config = config if isinstance(config, dict) else {}
    yield place, config
    if "model_type" in config:
        return
    # Routers of old versions, which were called Asym, have their routes in config.json.
    router = _read(name_or_path, "router_config.json", place) or config
    for inner in _inside(place, router.get("types", {}) if isinstance(router, dict) else {}):
        if inner != place:
            yield from _modules(name_or_path, inner)


def _inside(place: str, names: Iterable[str]) -> Iterator[str]:
    """Folders in the folder `place`; those that lie elsewhere, which sentence-transformers refuses, are left out."""
    for name in names:
        path = PurePosixPath(place, name)
        if ".." not in path.parts and not path.is_absolute():
            yield "" if path == PurePosixPath() else str(path)


def _read(name_or_path: str | Path, name: str, place: str = "") -> Any:
    """What a JSON file of a model holds; None where there is no such file."""
    file = find_file(name_or_path, name, place)
    return None if file is None else json.loads(file.read_text(encoding="utf-8"))


TRUST_FLAG = "--trust_remote_code true"
TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def check_weights(name_or_path: str | Path, where: str = "") -> None:
    """Raise `RetroMAEError` where a folder, or the folder `where` in it, holds its weights as a pickle alone."""
    folder = Path(name_or_path, where)
    with in_one_sentence(f"{folder} cannot be looked into"):
        pickles = sorted(file.name for file in folder.glob("pytorch_model*.bin"))
        if pickles and not any(folder.glob("model*.safetensors")):
            raise _pickled(str(folder), pickles[0])


@contextmanager
def safetensors_only(name_or_path: str | Path, where: str = "") -> Iterator[None]:
    """Around loading with `use_safetensors=True`: that there is none becomes a sentence with a remedy.

    The one of `transformers` is to allow pickles. What else reads a pickle inside gets tensors or the same sentence.
    """
    check_weights(name_or_path, where)
    before = os.environ.get(TENSORS_ONLY, "0")
    os.environ[TENSORS_ONLY] = "1"  # a sentence_bert_config.json may ask for weights_only=False
    try:
        yield
    except (OSError, UnpicklingError) as error:
        if isinstance(error, UnpicklingError) or "use_safetensors=True" in str(error):
            raise _pickled(str(name_or_path), "pytorch_model.bin") from error
        raise
    finally:
        os.environ[TENSORS_ONLY] = before


def read_config(name_or_path: str | Path, place: str = "") -> dict[str, Any]:
    """The config.json in the folder `place` of a model, as it stands; that there is none is an error of `transformers`.

    Raises:
        RetroMAEError: it is no JSON object, or has sizes that no model has.
    """
    config, _ = PreTrainedConfig.get_config_dict(name_or_path, subfolder=place)
    if not isinstance(config, dict):
        raise RetroMAEError(f"{name_or_path} holds no model that can be loaded: its config.json is no JSON object")
    if config.get("model_type") != RetroMAEConfig.model_type:  # which looks at its encoder's itself
        check_sizes(config, f"config.json of {name_or_path}")
    return config


def open_config(name_or_path: str, place: str = "", trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration in the folder `place` of a model.

    A model that brings code beside a type that `transformers` knows is loaded without that code.

    Raises:
        RetroMAEError: as `read_config`, or it cannot be told without running code and `trust_remote_code` is False.
    """
    config = read_config(name_or_path, place)
    if not trust_remote_code and config.get("auto_map") and str(config.get("model_type")) not in CONFIG_MAPPING:
        raise has_code(name_or_path, "config.json asks for by auto_map")
    return AutoConfig.from_pretrained(name_or_path, subfolder=place, trust_remote_code=trust_remote_code)


def _pickled(place: str, pickle: str) -> RetroMAEError:
    return RetroMAEError(
        f"{place} holds weights that are no safetensors, and a pickle such as {pickle} is not read, because it can run "
        f"code; read its tensors alone with: retromae-hf convert {shlex.quote(place)} FOLDER"
    )


@contextmanager
def code_refused(name_or_path: str, what: str) -> Iterator[None]:
    """Around loading: that a library asks for its argument `trust_remote_code` becomes the error `has_code`."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code=" in str(error):
            raise has_code(name_or_path, what) from error
        raise


def has_code(name_or_path: str, what: str) -> RetroMAEError:
    """The error for a model that wants to run code of its own; `what` says where it does."""
    return RetroMAEError(
        f"{name_or_path} brings code of its own, which {what} and which is not run; where you have read it and trust "
        f"it, give {TRUST_FLAG}"
    )


def use_attention(model: nn.Module, implementation: str | None) -> None:
    """Let a model, and every model of transformers within it, compute its attention so.

    Args:
        model: of this package, of transformers or of sentence-transformers.
        implementation: "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention" or a kernel on the
            Hub, such as "kernels-community/flash-attn2"; None leaves what transformers takes, which is "sdpa" where a
            family has it.

    Raises:
        RetroMAEError: there is no such implementation, its package is missing, or a family does not have it.
    """
    if implementation is None:
        return
    for part in model.modules():
        if not isinstance(part, PreTrainedModel):
            continue
        before = part.config._attn_implementation
        try:
            part.set_attn_implementation(implementation)
        except (ImportError, ValueError) as error:  # the package is missing; there is no such implementation
            raise RetroMAEError(f"attn_implementation={implementation} cannot be used: {first_line(error)}") from error
        # transformers warns where a family has attention of its own, and goes on with that.
        if implementation != before == part.config._attn_implementation:
            raise RetroMAEError(
                f"attn_implementation={implementation} is not there for encoders of type {part.config.model_type!r}, "
                f"which compute theirs as {before}; leave it out"
            )


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
