"""Loads what a folder or a Hub name holds, with everything that may be wrong with it as one sentence."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeVar

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForTextEncoding,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

from ..model.configuration_retromae import RetroMAEConfig
from ..model.encoders import (
    RetroMAEPreTrainedModel,
    check_complete,
    check_weights,
    code_refused,
    encoder_place,
    encoder_places,
    filtering,
    find_file,
    is_modular,
    open_config,
    read_config,
    safetensors_only,
    without_load_report,
)
from ..model.errors import RetroMAEError, import_extra
from .hub import loading

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

Checkpoint = TypeVar("Checkpoint", bound=RetroMAEPreTrainedModel)


def load_config(name_or_path: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of any model; of a sentence-transformers model that of its first encoder.

    Raises:
        RetroMAEError: there is none, it has sizes that no model has, or reading it takes code of the model's own and
            `trust_remote_code` is False.
    """
    with loading(f"{name_or_path} holds no model that can be loaded"):
        return open_config(name_or_path, encoder_place(name_or_path), trust_remote_code)


def is_checkpoint(name_or_path: str, trust_remote_code: bool = False) -> bool:
    """Whether a model is a RetroMAE checkpoint, and not an encoder of another kind.

    Raises:
        RetroMAEError: it is neither, see `load_config`.
    """
    with loading(f"{name_or_path} holds no model that can be loaded"):
        modular = is_modular(name_or_path)
    return not modular and isinstance(load_config(name_or_path, trust_remote_code), RetroMAEConfig)


def load_tokenizer(name_or_path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of any model, which pads behind the text: [CLS] is looked for at position 0.

    Raises:
        RetroMAEError: there is none, or it takes code of the model's own and `trust_remote_code` is False.
    """
    with (
        loading(f"{name_or_path} holds no tokenizer that can be loaded"),
        code_refused(name_or_path, "its tokenizer asks for"),
    ):
        place = encoder_place(name_or_path)
        if find_file(name_or_path, "config.json", place) is not None:
            read_config(name_or_path, place)  # a tokenizer alone has none
        tokenizer = AutoTokenizer.from_pretrained(
            name_or_path, subfolder=place, padding_side="right", trust_remote_code=trust_remote_code
        )
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of a folder without its files
        raise RetroMAEError(f"{name_or_path} holds no tokenizer; save one there or name one")
    return tokenizer


def load_checkpoint(model_class: type[Checkpoint], name_or_path: str) -> Checkpoint:
    """A RetroMAE checkpoint in float32, from safetensors alone.

    Raises:
        RetroMAEError: there is none, or it lacks weights of this class, which would start at random.
    """
    with loading(f"{name_or_path} holds no model that can be loaded"):
        kind = read_config(name_or_path).get("model_type")
    if kind != RetroMAEConfig.model_type:
        held = "no model" if kind is None else f"a {kind} model"
        raise RetroMAEError(
            f"{name_or_path} holds {held}, not a RetroMAE checkpoint; name the folder that pretraining wrote (an "
            "exported encoder has no decoder any more)"
        )
    with loading(f"{name_or_path} holds no checkpoint that can be loaded"):
        check_complete(model_class, name_or_path)
        with without_load_report():
            return model_class.from_pretrained(name_or_path)


def load_sentence_transformer(
    name_or_path: str, trust_remote_code: bool = False, device: str | None = None
) -> SentenceTransformer:
    """A sentence-transformers model, or an encoder of `transformers` with [CLS] pooling, in float32.

    Args:
        name_or_path: a folder or a Hub name.
        trust_remote_code: whether code that comes with the model may run.
        device: where to; sentence-transformers' choice by default.

    Raises:
        RetroMAEError: there is no such model, it is pickled or a training checkpoint, lacks weights, needs code of its
            own without `trust_remote_code`, or sentence-transformers is missing.
    """
    import_extra("sentence_transformers", name_or_path, "retrieval")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    if is_checkpoint(name_or_path, trust_remote_code):
        raise RetroMAEError(
            f"{name_or_path} is a training checkpoint; make an encoder of it with retromae-hf export "
            f"--model_name_or_path {name_or_path} --output_dir FOLDER"
        )
    code = {"trust_remote_code": trust_remote_code}
    options = {"use_safetensors": True, "dtype": torch.float32}
    with (
        loading(f"{name_or_path} holds no model that can be loaded"),
        code_refused(name_or_path, "its modules ask for"),
        safetensors_only(name_or_path),
        _checked(name_or_path),
        filtering("sentence_transformers.base.modules.dense", _is_no_refusal),
    ):
        if is_modular(name_or_path):
            model = SentenceTransformer(
                name_or_path, model_kwargs=options, device=device, trust_remote_code=trust_remote_code
            )
        else:
            # Left to itself sentence-transformers takes the mean over the tokens, which none of these was taught.
            encoder = Transformer(name_or_path, model_kwargs=options | code, config_kwargs=code, processor_kwargs=code)
            logger.info(
                "%s is a plain encoder, without modules.json: its embedding is the state of [CLS]", name_or_path
            )
            pooling = Pooling(encoder.get_embedding_dimension(), "cls")
            model = SentenceTransformer(modules=[encoder, pooling], device=device)
        parts = list(model.modules())
        for router in (part for part in parts if isinstance(part, Router)):
            others = set(router.sub_modules) - {"query"}
            if len(others) == 1 and others != {"document"}:  # whose name was free, "doc" for example
                router.route_mappings.setdefault(("document", None), *others)
            for encode in (model.encode_query, model.encode_document):
                encode("text", show_progress_bar=False)  # that there is no route for it
    if any(isinstance(part, Pooling) and "cls" in part.pooling_mode for part in parts):
        for part in parts:
            if isinstance(part, Transformer):
                part.tokenizer.padding_side = "right"  # where positions are counted from the first token on
    return model.float()  # modules other than the encoder keep what they were stored in


def _checked(name_or_path: str) -> AbstractContextManager[None]:
    """Raise `RetroMAEError` where an encoder is pickled or lacks weights.

    Of an encoder that needs code of its own `transformers` tells what it lacks.

    Returns:
        What to load the model in.
    """
    known = True
    for place in encoder_places(name_or_path):
        check_weights(name_or_path, place)
        kind = read_config(name_or_path, place)["model_type"]
        if kind in CONFIG_MAPPING:
            # Of T5 and its kin sentence-transformers takes the encoder alone.
            model_class = AutoModelForTextEncoding if kind in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES else AutoModel
            check_complete(model_class, name_or_path, subfolder=place, trust_remote_code=False)
        else:
            known = False
    return without_load_report() if known else nullcontext()


def _is_no_refusal(record: logging.LogRecord) -> bool:
    """Raise the warning that a Dense module's activation is not trusted and another one taken.

    Embeddings would be others.
    """
    if "trust_remote_code=" in record.getMessage():
        raise ValueError(record.getMessage())
    return True
