"""Writes the record and the card of a training run, and of an export, into its folder."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, Trainer

from ..arguments.pretraining import CardArguments
from ..data.tokenizers import max_text_length
from ..model.errors import first_line
from .model_card import write_card
from .record import (
    RunClock,
    describe_model,
    describe_run,
    describe_start,
    model_name,
    new_record,
    read_record,
    require_record,
)

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)


def describe_sentence_transformer(model: SentenceTransformer) -> dict[str, Any]:
    """The record's `model` of a sentence-transformers model; `pooling` is None where there is more to it than that."""
    kinds, modules = [type(module).__name__ for module in model], list[Any](model)
    normalizes = kinds[2:] == ["Normalize"]
    pooling = getattr(modules[1], "pooling_mode", None) if len(modules) == 2 or normalizes else None
    return describe_model(
        getattr(model.transformers_model, "config", None),  # a static model has none, and reads all of a text
        sum(parameter.numel() for parameter in model.parameters()),
        model.max_seq_length if model.max_seq_length != math.inf else None,
        pooling=pooling if pooling in ("cls", "mean") else None,
        similarity="cosine" if normalizes else model.similarity_fn_name,  # of what has unit length dot is the cosine
        prompts={name: model.prompts.get(name) or "" for name in ("query", "document")},
    )


@contextmanager
def describing(
    trainer: Trainer, stage: dict[str, Any], start: str | None, args: CardArguments | None
) -> Iterator[None]:
    """Around a run that trains and saves: times it, and writes its record and its card in place of the libraries' own.

    Args:
        trainer: what trains a `RetroMAEForPreTraining` or a sentence-transformers model.
        stage: what is known of the stage before it is trained.
        start: the model that it starts from, whose stages go before.
        args: what the user says of the model.
    """
    args = args or CardArguments()
    folder = Path(trainer.args.output_dir)
    clock, trained_before = RunClock(), read_record(folder) if folder.is_dir() else None
    earlier = (read_record(start) if start else None) or {}
    trainer.add_callback(clock)
    writes_own = hasattr(trainer.model, "_create_model_card")  # of sentence-transformers, whenever a model is saved
    if writes_own:
        form, model = "encoder", describe_sentence_transformer(trainer.model)
    else:
        config, longest = trainer.model.config, max_text_length(trainer.processing_class, trainer.model.config)
        parameters = trainer.model.num_parameters()
        form = "checkpoint"
        model = describe_model(config.encoder_config, parameters, longest, pooling=config.pooling)

    def write(*unused: Any, **ignored: Any) -> None:
        """In place of the cards of `Trainer` and sentence-transformers, which would go over the one that is there."""
        if not trainer.is_world_process_zero() or trainer.is_in_train:
            return  # no card for the checkpoints on the way
        with _warning_instead(folder):
            steps = trained_before and trained_before["stages"][-1]["training"]["steps"]
            if clock.seconds == 0 and steps == trainer.state.global_step:
                return  # trained to its end already, and described
            stages = [*earlier.get("stages", []), stage | describe_run(trainer, stage["data"].get("tokens"))]
            record = new_record(model_name(folder), form, model, stages, **vars(args))
            if trainer.args.push_to_hub:
                record["repository"] = trainer.hub_model_id
            write_card(folder, record)

    trainer.create_model_card = write
    if writes_own:
        trainer.model._create_model_card = write
    try:
        yield
        write()
    finally:
        if writes_own:
            del trainer.model._create_model_card  # else the model could no longer be pickled


def write_export_card(
    folder: Path, form: str, source: str | None, encoder: PreTrainedModel, max_length: int, **use: Any
) -> None:
    """Write record and card of an exported encoder; of `source`, where it is known, its record is taken over.

    `form` is "encoder" or "sparse-encoder", and `use` is for `describe_model`.
    """
    with _warning_instead(folder):
        found = read_record(source) if source else None
        model = describe_model(encoder.config, encoder.num_parameters(), max_length, **use)
        record = new_record(model_name(folder), form, model, [])
        if source is not None:
            record["source"] = describe_start(source)
        if found is not None:
            record |= {name: found.get(name) for name in ("license", "language")} | {"stages": found["stages"]}
        write_card(folder, record)


def name_repository(folder: Path, repo_id: str) -> None:
    """Let an exported encoder's card name the repository on the Hub that the folder is pushed to."""
    with _warning_instead(folder):
        write_card(folder, require_record(folder) | {"repository": repo_id})


@contextmanager
def _warning_instead(folder: Path) -> Iterator[None]:
    """A card that cannot be written, say for another model's spoilt record, must not end a run that is saved."""
    try:
        yield
    except Exception as error:
        logger.warning("the model in %s is saved, but has no card: %s", folder, first_line(error))
