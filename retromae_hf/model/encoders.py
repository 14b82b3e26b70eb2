"""Opens an encoder, from a folder or from the Hub, and reads what stands beside it of its use."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, errors, get_cached_repo_tree, snapshot_download
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from .configuration_retromae import POOLINGS, SETTINGS, RetroMAEConfig, check_sizes
from .counting import sharded_by_accelerate
from .errors import RetroMAEError, first_line, in_one_sentence
from .families import backbone_for
from .losses import linear_cross_entropy, token_accuracy

logger = logging.getLogger(__name__)

MODULES = "modules.json"
"""What a model of sentence-transformers has in its folder: the list of its modules, and in which folders they lie."""
KNOWN_MODULES = ("Transformer", "Pooling", "Normalize", "Dropout", "Router", "Asym")
"""The modules of which nothing is lost when the encoder is taken alone, with what `_sentence_settings` reads."""

# What is fetched of a repository. Of small modules, such as a Dense, pickles are read too, as tensors alone.
SETTING_FILES = ("*.json", "*.txt", "*.model", "*.spm", "*.codes")
WEIGHT_FILES = ("*.safetensors", "*_*/pytorch_model.bin")
NOT_FETCHED = ("checkpoint-*/*", "last-checkpoint/*", "onnx/*", "openvino/*", "data_config.json", "*_Transformer/*.bin")


def resolve(name_or_path: str | Path, trust_remote_code: bool = False, weights: bool = True) -> Path:
    """The folder of a model: one on this machine as it is, a repository on the Hub once it is in the cache as a whole.

    Its own code and its weights come along where they are wanted. Whatever goes wrong is a `RetroMAEError`.
    """
    if os.path.isdir(name_or_path):
        return Path(name_or_path)
    name = str(name_or_path)
    wanted = [*SETTING_FILES, *(WEIGHT_FILES if weights else ()), *(("*.py",) if trust_remote_code else ())]
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=list(NOT_FETCHED)))
        if not is_modular(folder):
            get_cached_repo_tree(name)  # from which `snapshot_download` knows that nothing is missing
    except errors.CachedRepoTreeNotFoundError as error:
        # Other programs fetch file by file, and of a sentence-transformers model perhaps the encoder alone.
        raise RetroMAEError(
            f"{name} holds no model that can be loaded: the Hub cannot be reached, and what the cache has of it may be "
            f"a part; once there is a connection, fetch it as a whole with: hf download {name}"
        ) from error
    except Exception as error:
        reason = hub_reason(error) or first_line(error)
        raise RetroMAEError(f"{name} holds no model that can be loaded: {reason}") from error
    return folder


def named(folder: Path) -> str:
    """What a user calls the model in a folder: one in the Hub's cache by its repository's name."""
    return folder.parents[1].name.removeprefix("models--").replace("--", "/") if is_cached(folder) else str(folder)


def is_cached(folder: Path) -> bool:
    return folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--")


def hub_reason(error: BaseException | None) -> str | None:
    """What an error says that comes from the Hub, or that was made of one that does; None for others."""
    kinds = (errors.HTTPError, errors.HFValidationError, errors.LocalTokenNotFoundError, errors.OfflineModeIsEnabled)
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if isinstance(error, errors.HFValidationError):
        return "there is no such folder, and on the Hub a name is USER/NAME"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision; name one of its branches or tags"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return (
            "there is no such repository on the Hub, or no access to it; check the name, and log in with hf auth "
            "login or set HF_TOKEN to a token that has access"
        )
    if isinstance(error, errors.HTTPError) and (status is None or status >= 500):
        return f"the connection to {constants.ENDPOINT} failed ({first_line(error)})"
    return None if error is None else first_line(error)


def is_modular(folder: Path) -> bool:
    """Whether a model is one of sentence-transformers."""
    return (folder / MODULES).is_file()


def encoder_places(folder: Path) -> list[str]:
    """The folders within a model's that encoders lie in, in the order of modules and routes; "" is its own."""
    return [place for place, config in _modules(folder) if "model_type" in config]


def encoder_place(folder: Path) -> str:
    """The folder within a model's that its first encoder lies in; "" where it is no sentence-transformers model."""
    if not is_modular(folder):
        return ""
    for place in encoder_places(folder):
        return place
    raise RetroMAEError(
        f"{named(folder)} holds no model that can be loaded: of its modules for sentence-transformers none is an "
        "encoder with a model_type in its config.json, as in a static model; name a masked language model"
    )


def _modules(folder: Path, place: str = "", is_model: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
    """A model's modules, those of routers included: their folders within its own, and their config.json."""
    modules = _read(folder / place / MODULES) if is_model else None
    if modules is not None:
        inside = [module["path"] for module in modules]
    else:
        config = _read(folder / place / "config.json") or {}
        yield place, config
        # Routers of old versions, which were called Asym, have their routes in config.json.
        router = _read(folder / place / "router_config.json") or config
        inside = list(router.get("types", {})) if "model_type" not in config else []
    for name in inside:
        inner = (Path(place) / name).as_posix().removeprefix(".")
        yield from _modules(folder, inner, inner != place)


def _read(file: Path) -> Any:
    """What a JSON file holds; None where there is no such file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _sentence_settings(folder: Path) -> dict[str, Any]:
    """`pooling` and those of `SETTINGS` that a model of sentence-transformers has; empty where nothing is pooled."""
    if not is_modular(folder):
        return {}
    kinds = [str(module["type"]).rpartition(".")[2] for module in _read(folder / MODULES)]
    unread = "unknown" if "Pooling" in kinds else None  # its configuration may be missing in a cache
    pooling = next((mode for _, config in _modules(folder) if (mode := _pooling(config))), unread)
    if pooling is None:
        return {}
    if others := [kind for kind in kinds if kind not in KNOWN_MODULES]:
        logger.warning("%s: the encoder is taken without the modules behind it: %s", named(folder), ", ".join(others))
    found = {
        **(_read(folder / encoder_place(folder) / "sentence_bert_config.json") or {}),
        **(_read(folder / "config_sentence_transformers.json") or {}),
        "normalize": True if "Normalize" in kinds else None,
    }
    return {"pooling": pooling} | {name: found[name] for name in SETTINGS if found.get(name) is not None}


def _pooling(config: dict[str, Any]) -> str | None:
    """What a module's configuration, which has two layouts, pools by: several ways joined by "+"; else None."""
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


def check_weights(folder: Path, place: str = "") -> None:
    """Raise `RetroMAEError` where the folder `place` in a model's has its weights as a pickle alone."""
    inside = folder / place
    pickles = sorted(file.name for file in inside.glob("pytorch_model*.bin"))
    if (pickles or is_cached(folder)) and not any(inside.glob("*.safetensors")):
        raise pickled(folder, *pickles[:1])


def pickled(folder: Path, pickle: str = "pytorch_model.bin") -> RetroMAEError:
    return RetroMAEError(
        f"{named(folder)} holds weights that are no safetensors, and a pickle such as {pickle} is not read, because it "
        f"can run code; read its tensors alone with: retromae-hf convert {shlex.quote(named(folder))} FOLDER"
    )


def check_config(folder: Path, place: str = "") -> dict[str, Any]:
    """The config.json in the folder `place` of a model, as it stands; one without it is an error of `transformers`."""
    config, _ = PreTrainedConfig.get_config_dict(folder, subfolder=place)
    if not isinstance(config, dict):
        raise RetroMAEError(f"{named(folder)} holds no model that can be loaded: its config.json is no JSON object")
    if config.get("model_type") != RetroMAEConfig.model_type:  # which looks at its encoder's itself
        check_sizes(config, f"config.json of {named(folder)}")
    return config


def open_config(folder: Path, place: str = "", trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration in the folder `place` of a model; code beside a type that `transformers` knows is not run."""
    config = check_config(folder, place)
    if not trust_remote_code and config.get("auto_map") and str(config.get("model_type")) not in CONFIG_MAPPING:
        raise has_code(folder, "config.json asks for by auto_map")
    return AutoConfig.from_pretrained(folder, subfolder=place, trust_remote_code=trust_remote_code)


def has_code(folder: Path, what: str) -> RetroMAEError:
    """The error for a model that wants to run code of its own; `what` says where it does."""
    return RetroMAEError(
        f"{named(folder)} brings code of its own, which {what} and which is not run; where you have read it and trust "
        "it, give --trust_remote_code true"
    )


def use_attention(model: nn.Module, implementation: str | None) -> None:
    """Let a model, and every model of transformers within it, compute its attention so.

    Args:
        model: of this package, of transformers or of sentence-transformers.
        implementation: "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention" or a kernel on the
            Hub, such as "kernels-community/flash-attn2"; None leaves what transformers takes.
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
        super().post_init()
        # FSDP's units, beside the root's: some families name their embeddings too, whose weights the head shares.
        layers = {type(module).__name__ for module in self.modules() if isinstance(module, GradientCheckpointingLayer)}
        self._no_split_modules = layers

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers`, from safetensors alone, and in float32 unless another `dtype` is asked for.

        A pickle can run code when it is read, and half precision loses an optimizer's small steps.
        """
        kwargs["use_safetensors"] = True
        if "torch_dtype" not in kwargs:  # the older name
            kwargs.setdefault("dtype", torch.float32)
        if pretrained_model_name_or_path is not None:
            check_weights(Path(pretrained_model_name_or_path), kwargs.get("subfolder") or "")
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @property
    def masked_lm(self) -> PreTrainedModel:
        """The encoder itself, a `*ForMaskedLM`, also where PEFT has wrapped it and put adapters into its layers."""
        return self.encoder.get_base_model() if hasattr(self.encoder, "get_base_model") else self.encoder

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """The encoder's last hidden states `[B, L, H]`, of which `pool` makes the sentence embedding.

        `input_ids` may be word embeddings `[B, L, E]` as well; they must not be longer than the encoder's positions.
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
        return self.backbone.head_features(self.masked_lm, states), *self.backbone.output_projection(self.masked_lm)

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
        return None if sharded_by_accelerate() else self.masked_lm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.masked_lm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        # Where accelerate shards the model it asks for both embeddings to give them units of their own, whose weights
        # are whole only while the modules are called. The losses read weight and bias without calling, and masked-LM
        # heads share them with other modules, so they have to stay in the root's unit, which is whole from the forward
        # pass to the end of the backward pass.
        return None if sharded_by_accelerate() else self.masked_lm.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.masked_lm.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """As in `transformers`; the encoder's configuration, which is part of this one, follows."""
        return self.backbone.resize_vocabulary(self.masked_lm, *args, **kwargs)


def load_encoder(name_or_path: str | Path, repooled: bool = False) -> tuple[PreTrainedModel, set[str], dict[str, Any]]:
    """A masked LM from safetensors, in float32 whatever they hold: half precision loses an optimizer's small steps.

    That of a sentence-transformers model is the first encoder in it; where it is `repooled`, its own pooling does not
    matter. Returned with the names of its new weights, of a head that it lacked, and the fields of `RetroMAEConfig`.
    """
    folder = resolve(name_or_path)
    settings = _sentence_settings(folder)
    pooling = settings.pop("pooling", None)
    if not repooled and pooling not in (None, *POOLINGS):
        raise RetroMAEError(
            f"{named(folder)} makes its embeddings by {pooling} pooling, which cannot be pretrained; choose "
            "--pooling cls or --pooling mean, and the embedding becomes that"
        )
    place = encoder_place(folder)
    config = open_config(folder, place)
    if isinstance(config, RetroMAEConfig):
        raise RetroMAEError(
            f"{named(folder)} is a RetroMAE checkpoint; continue it with RetroMAEForPreTraining.from_pretrained"
        )
    pooling = pooling or backbone_for(config).pooling
    check_weights(folder, place)
    # The backbones know the classes of transformers alone.
    options = {"config": config, "subfolder": place, "trust_remote_code": False, "use_safetensors": True}
    if not check_complete(AutoModelForMaskedLM, folder, **options):
        logger.warning("the encoder has no MLM head; a new one is trained")
    with without_load_report():
        encoder, info = AutoModelForMaskedLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, **options
        )
    encoder.name_or_path = encoder.config._name_or_path = named(folder)  # which checkpoints and adapters keep
    fields = {"encoder_config": encoder.config, "pooling": pooling, "sentence_settings": settings}
    return encoder, info["missing_keys"], fields


def check_complete(model_class: Any, folder: Path, **options: Any) -> bool:
    """Compare the weights of a checkpoint with those of a model, by names and shapes: nothing else is read or made.

    `transformers` itself makes random weights of what is missing, however large a configuration says that they are.
    Returns whether the head of a masked LM is there: a new one can be trained. A pooler is not needed either.
    """
    if is_deepspeed_zero3_enabled():  # which takes no device_map
        return True
    options |= {"device_map": "meta", "ignore_mismatched_sizes": True, "output_loading_info": True}
    with without_load_report():
        model, info = model_class.from_pretrained(folder, **options)
    for name, stored, wanted in sorted(info["mismatched_keys"]):
        raise RetroMAEError(
            f"{named(folder)} holds weights that do not fit its config.json: {name} has the shape {list(stored)} and "
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
            f"{named(folder)} lacks {len(needed)} of its model's weights, {min(needed)} for one, which would start at "
            "random; name a folder that holds the whole model"
        )
    return has_head


@contextmanager
def without_load_report() -> Iterator[None]:
    """Without what `transformers` says of missing weights; `check_complete` says it."""

    def is_shown(record: logging.LogRecord) -> bool:
        return is_deepspeed_zero3_enabled()  # whose report is the only word there is

    # A filter, because at a higher level transformers looks into plans for tensor parallelism, and warns of those.
    library, shows_progress = logging.getLogger("transformers.modeling_utils"), is_progress_bar_enabled()
    disable_progress_bar()
    library.addFilter(is_shown)
    try:
        yield
    finally:
        library.removeFilter(is_shown)
        if shows_progress:
            enable_progress_bar()
