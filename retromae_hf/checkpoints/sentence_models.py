"""Opens sentence-transformers models, and plain encoders as such."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..model.configuration_retromae import RetroMAEConfig
from ..model.errors import RetroMAEError, import_extra, in_one_sentence
from ..model.trust import code_refused, safetensors_only
from .loading import load_config

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def load_sentence_transformer(
    name_or_path: str, trust_remote_code: bool = False, device: str | None = None
) -> SentenceTransformer:
    """A sentence-transformers model, or an encoder of `transformers` with [CLS] pooling.

    Args:
        name_or_path: a folder or a Hub name.
        trust_remote_code: whether code that comes with the model may run.
        device: where to; sentence-transformers' choice by default.

    Raises:
        RetroMAEError: there is no such model, it is pickled or a training checkpoint, it needs code of its own without
            `trust_remote_code`, or sentence-transformers is missing.
    """
    import_extra("sentence_transformers", name_or_path, "retrieval")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from sentence_transformers.util import is_sentence_transformer_model

    if isinstance(load_config(name_or_path, trust_remote_code), RetroMAEConfig):
        raise RetroMAEError(
            f"{name_or_path} is a training checkpoint; make an encoder of it with retromae-hf export "
            f"--model_name_or_path {name_or_path} --output_dir FOLDER"
        )
    options, code = {"use_safetensors": True}, {"trust_remote_code": trust_remote_code}
    with (
        in_one_sentence(f"{name_or_path} holds no model that can be loaded"),
        code_refused(name_or_path, "its modules ask for"),
        safetensors_only(name_or_path),
        _filtering("transformers.modeling_utils", _is_worth_reading),
        _filtering("sentence_transformers.base.modules.dense", _is_no_refusal),
    ):
        if is_sentence_transformer_model(name_or_path):
            return SentenceTransformer(
                name_or_path, model_kwargs=options, device=device, trust_remote_code=trust_remote_code
            )
        # Left to itself sentence-transformers takes the mean over the tokens, which none of these models was taught.
        transformer = Transformer(name_or_path, model_kwargs=options | code, config_kwargs=code, processor_kwargs=code)
        pooling = Pooling(transformer.get_embedding_dimension(), "cls")
        return SentenceTransformer(modules=[transformer, pooling], device=device)


@contextmanager
def _filtering(name: str, is_shown: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Have a logger show what `is_shown` lets pass."""
    logger = logging.getLogger(name)
    logger.addFilter(is_shown)
    try:
        yield
    finally:
        logger.removeFilter(is_shown)


def _is_worth_reading(record: logging.LogRecord) -> bool:
    """Whether a record is more than the report of `transformers` on weights that no embedding is made of."""
    title, _, report = record.getMessage().partition("\n")
    if "LOAD REPORT" not in title:
        return True
    rows = [line.split("|") for line in report.splitlines() if "|" in line][1:]  # behind the head of the table
    return not all("UNEXPECTED" in status or "pooler." in weight for weight, status, *_ in rows)


def _is_no_refusal(record: logging.LogRecord) -> bool:
    """Raise the warning that an activation is not trusted and another one taken: embeddings would be others."""
    if "trust_remote_code=" in record.getMessage():
        raise ValueError(record.getMessage())
    return True
