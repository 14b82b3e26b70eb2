"""Opens sentence-transformers models, and plain encoders as such."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForTextEncoding
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

from ..model.errors import RetroMAEError, import_extra
from ..model.layout import encoder_places, is_modular
from ..model.pretrained_model import check_complete, filtering, without_load_report
from ..model.trust import check_weights, code_refused, read_config, safetensors_only
from .hub import loading
from .loading import is_checkpoint

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)


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
