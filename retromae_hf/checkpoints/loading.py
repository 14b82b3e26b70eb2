"""Loads what a folder or a Hub name holds, with everything that may be wrong with it as one sentence."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
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
    check_config,
    check_weights,
    encoder_place,
    encoder_places,
    has_code,
    is_modular,
    named,
    open_config,
    pickled,
    resolve,
    without_load_report,
)
from ..model.errors import RetroMAEError, import_extra, in_one_sentence

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

Checkpoint = TypeVar("Checkpoint", bound=RetroMAEPreTrainedModel)

TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def load_config(name_or_path: str | Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of any model; of a sentence-transformers model that of its first encoder."""
    folder = resolve(name_or_path, trust_remote_code, weights=False)
    with in_one_sentence(f"{named(folder)} holds no model that can be loaded"):
        return open_config(folder, encoder_place(folder), trust_remote_code)


def is_checkpoint(name_or_path: str | Path, trust_remote_code: bool = False) -> bool:
    """Whether a model is a RetroMAE checkpoint, and not an encoder of another kind."""
    folder = resolve(name_or_path, trust_remote_code, weights=False)
    return not is_modular(folder) and isinstance(load_config(folder, trust_remote_code), RetroMAEConfig)


def load_tokenizer(name_or_path: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of any model, which pads behind the text: [CLS] is looked for at position 0."""
    folder = resolve(name_or_path, trust_remote_code, weights=False)
    with (
        in_one_sentence(f"{named(folder)} holds no tokenizer that can be loaded"),
        _code_refused(folder, "its tokenizer asks for"),
    ):
        place = encoder_place(folder)
        if (folder / place / "config.json").is_file():  # a tokenizer alone has none
            check_config(folder, place)
        tokenizer = AutoTokenizer.from_pretrained(
            folder, subfolder=place, padding_side="right", trust_remote_code=trust_remote_code
        )
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of a folder without its files
        raise RetroMAEError(f"{named(folder)} holds no tokenizer; save one there or name one")
    return tokenizer


def load_checkpoint(model_class: type[Checkpoint], name_or_path: str | Path) -> Checkpoint:
    """A RetroMAE checkpoint in float32, from safetensors alone; none of its weights may be missing."""
    folder = resolve(name_or_path)
    with in_one_sentence(f"{named(folder)} holds no model that can be loaded"):
        kind = check_config(folder).get("model_type")
    if kind != RetroMAEConfig.model_type:
        held = "no model" if kind is None else f"a {kind} model"
        raise RetroMAEError(
            f"{named(folder)} holds {held}, not a RetroMAE checkpoint; name the folder that pretraining wrote (an "
            "exported encoder has no decoder any more)"
        )
    with in_one_sentence(f"{named(folder)} holds no checkpoint that can be loaded"):
        check_complete(model_class, folder)
        with without_load_report():
            return model_class.from_pretrained(folder)


def load_sentence_transformer(
    name_or_path: str | Path, trust_remote_code: bool = False, device: str | None = None
) -> SentenceTransformer:
    """A sentence-transformers model, or an encoder of `transformers` with [CLS] pooling, in float32.

    Args:
        name_or_path: a folder or a Hub name.
        trust_remote_code: whether code that comes with the model may run.
        device: where to; sentence-transformers' choice by default.
    """
    import_extra("sentence_transformers", str(name_or_path), "retrieval")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder = resolve(name_or_path, trust_remote_code)
    if is_checkpoint(folder, trust_remote_code):
        raise RetroMAEError(
            f"{named(folder)} is a training checkpoint; make an encoder of it with retromae-hf export "
            f"--model_name_or_path {named(folder)} --output_dir FOLDER"
        )
    code = {"trust_remote_code": trust_remote_code}
    options = {"use_safetensors": True, "dtype": torch.float32}
    with (
        in_one_sentence(f"{named(folder)} holds no model that can be loaded"),
        _code_refused(folder, "its modules ask for"),
        _tensors_only(folder),
        _checked(folder),
    ):
        if is_modular(folder):
            model = SentenceTransformer(
                str(folder), model_kwargs=options, device=device, trust_remote_code=trust_remote_code
            )
        else:
            # Left to itself sentence-transformers takes the mean over the tokens, which none of these was taught.
            encoder = Transformer(str(folder), model_kwargs=options | code, config_kwargs=code, processor_kwargs=code)
            logger.info(
                "%s is a plain encoder, without modules.json: its embedding is the state of [CLS]", named(folder)
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


def _checked(folder: Path) -> AbstractContextManager[None]:
    """Raise `RetroMAEError` where an encoder is pickled or lacks weights; return what to load the model in.

    Of an encoder that needs code of its own `transformers` tells what it lacks.
    """
    known = True
    for place in encoder_places(folder):
        check_weights(folder, place)
        kind = check_config(folder, place)["model_type"]
        if kind in CONFIG_MAPPING:
            # Of T5 and its kin sentence-transformers takes the encoder alone.
            model_class = AutoModelForTextEncoding if kind in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES else AutoModel
            check_complete(model_class, folder, subfolder=place, trust_remote_code=False, use_safetensors=True)
        else:
            known = False
    return without_load_report() if known else nullcontext()


@contextmanager
def _code_refused(folder: Path, what: str) -> Iterator[None]:
    """Around loading: that a library wants its argument `trust_remote_code` becomes the error `has_code`."""

    def is_no_refusal(record: logging.LogRecord) -> bool:
        if "trust_remote_code=" in record.getMessage():
            raise ValueError(record.getMessage())
        return True

    # It warns where it does not trust an activation, and takes another one: embeddings would be others.
    dense = logging.getLogger("sentence_transformers.base.modules.dense")
    dense.addFilter(is_no_refusal)
    try:
        yield
    except ValueError as error:
        if "trust_remote_code=" in str(error):
            raise has_code(folder, what) from error
        raise
    finally:
        dense.removeFilter(is_no_refusal)


@contextmanager
def _tensors_only(folder: Path) -> Iterator[None]:
    """Around loading: of a pickle tensors alone are read, also where a model's own files ask for more."""
    before = os.environ.get(TENSORS_ONLY, "0")
    os.environ[TENSORS_ONLY] = "1"
    try:
        yield
    except UnpicklingError as error:
        raise pickled(folder) from error
    finally:
        os.environ[TENSORS_ONLY] = before
