"""Values that were read from a file, held to the types of a dataclass's fields."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from huggingface_hub.dataclasses import type_validator
from transformers import TrainingArguments

from ..arguments.finetuning import DEFAULT_FINETUNING_ARGUMENTS, FinetuneArguments
from ..arguments.pretraining import (
    DEFAULT_TRAINING_ARGUMENTS,
    LEARNING_RATE,
    Cutting,
    Masking,
    RunArguments,
    StartArguments,
    TextSource,
)
from ..data.disk import write_json
from ..model.errors import RetroMAEError, check_at_least, check_choice, check_file_name
from .baselines import BASELINES


class PretrainArguments(NamedTuple):
    """What `pretrain` takes."""

    text: TextSource
    cutting: Cutting
    masking: Masking
    start: StartArguments
    training: TrainingArguments
    run: RunArguments


SIMPLE = (str, int, float, bool, NoneType, Any)


def check_types(values: dict[str, Any], cls: type, where: str) -> dict[str, Any]:
    """The values that are fields of a dataclass, a whole number as a float where the field is one.

    Fields of other types than text, numbers, lists and mappings of these are left to the dataclass itself.

    Args:
        values: by name.
        cls: the dataclass.
        where: what to call the place in messages.

    Raises:
        RetroMAEError: a value is not of its field's type.
    """
    hints = get_type_hints(cls)
    checked = {}
    for name in values.keys() & hints.keys():
        value, hint = values[name], hints[name]
        if float in (hint, *get_args(hint)) and isinstance(value, int | str) and not isinstance(value, bool):
            value = _as_float(value)  # YAML takes 1e-3 for text
        if _is_simple(hint):
            try:
                type_validator(name, value, hint)
            except TypeError as error:
                wanted = getattr(hint, "__name__", None) if not get_args(hint) else None
                told = repr(value) if len(repr(value)) < 40 else type(value).__name__
                raise RetroMAEError(
                    f"{where}: {name}={told} must be {wanted or str(hint).replace('typing.', '')}"
                ) from error
        checked[name] = value
    return checked


def _as_float(value: int | str) -> float | int | str:
    try:
        return float(value)
    except (ValueError, OverflowError):
        return value


def _is_simple(hint: Any) -> bool:
    return hint in SIMPLE or (get_origin(hint) is not None and all(_is_simple(one) for one in get_args(hint)))


SETTINGS = ("dataset", "finetuning_dataset", "model", "pretraining", "finetuning", "max_documents", "max_seconds")
"""What all cells of a folder have in common, beside what their objectives change."""
OWN = ("start", "baseline", "finetuning")
"""What an objective says that is no argument of `retromae-hf pretrain`."""
UNTRAINED = "untrained"
"""The row of what all start from, zero-shot, and fine-tuned alone."""
ENCODERS = {"zero_shot": "encoder", "finetuned": "finetuned"}
"""The stages of a cell, and the folder of each stage's model."""


@dataclass
class Comparison:
    """What is compared, and how each objective is trained.

    Attributes:
        dataset: the text to pretrain on, as `retromae-hf pretrain` takes it.
        finetuning_dataset: what to fine-tune on, as `retromae-hf finetune` takes it.
        tasks: retrieval tasks to evaluate on, as `retromae-hf evaluate` takes them.
        seeds: of the weights, the order and the masks.
        model: arguments of the model, those of `retromae-hf pretrain`; with a `model_name_or_path` all start from that
            encoder, a masked LM or a sentence-transformers model, and from its tokenizer.
        pretraining: arguments of data and training, likewise.
        finetuning: arguments of `retromae-hf finetune`.
        objectives: by name, what each changes in `model` and `pretraining`. `start: NAME` goes on with another
            objective's encoder of the same seed; `finetuning: {...}` changes arguments of its fine-tuning; `baseline:`
            names one of `BASELINES` instead of our pretraining.
        reference: the objective that the others are tested against, or `untrained`.
        max_seconds: of each objective's pretraining, in place of `max_steps`; see `equal_seconds.plan_steps`.
        max_documents: of each task, see `retrieval.tasks.sampled`; None for all.
    """

    dataset: str
    finetuning_dataset: str
    tasks: list[str]
    seeds: list[int]
    model: dict[str, Any]
    pretraining: dict[str, Any]
    finetuning: dict[str, Any]
    objectives: dict[str, dict[str, Any]]
    reference: str = "mlm"
    max_documents: int | None = None
    max_seconds: float | None = None
    output_dir: str = "runs/compare"
    folder: Path = field(init=False)
    steps: dict[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.objectives:
            check_file_name("the objective's name", name)
        self.folder = Path(self.output_dir)
        check_at_least(1, max_documents=self.max_documents)
        check_at_least(1, seeds=len(self.seeds), tasks=len(self.tasks), objectives=len(self.objectives))
        check_choice("reference", self.reference, (UNTRAINED, *self.objectives))
        if self.max_seconds is not None:
            self._check_seconds(self.max_seconds)
        known: list[str] = []
        for name, changes in self.objectives.items():
            start, baseline = changes.get("start"), changes.get("baseline")
            if start is not None and start not in known:
                raise RetroMAEError(f"objective {name}: start={start!r} is none of those before it, {', '.join(known)}")
            if baseline is not None and baseline not in BASELINES:
                raise RetroMAEError(
                    f"objective {name}: baseline={baseline!r} is unknown; choose {', '.join(BASELINES)}"
                )
            known.append(name)
            # So that a wrong one shows before anything is trained.
            self.arguments(name, self.seeds[0])
            self.finetuning_arguments(name, self.seeds[0])

    def _check_seconds(self, seconds: float) -> None:
        """Raise `RetroMAEError` where `max_seconds` cannot decide alone how long each objective trains."""
        if not seconds > 0:
            raise RetroMAEError(f"max_seconds={seconds:g} must be above 0")
        for where, told in {"pretraining": self.pretraining, **self.objectives}.items():
            if both := {"max_steps", "num_train_epochs", "start", "baseline"} & told.keys():
                raise RetroMAEError(f"{where}: {', '.join(sorted(both))} cannot be told beside max_seconds")

    def arguments(self, objective: str, seed: int) -> PretrainArguments:
        """The arguments that `pretrain` takes for a cell."""
        told = self.objectives.get(objective, {})
        changes = {name: value for name, value in told.items() if name not in OWN}
        # All start at one rate, whatever they start from.
        values = DEFAULT_TRAINING_ARGUMENTS | {"learning_rate": LEARNING_RATE}
        values |= self.model | self.pretraining | changes
        if objective in self.steps:
            values["max_steps"] = self.steps[objective]
        values |= {
            "dataset": [self.dataset],
            "output_dir": str(self.cell(objective, seed) / "checkpoint"),
            "seed": seed,
            "save_strategy": "no",
            "report_to": "none",
            "include_num_input_tokens_seen": "non_padding",
            # Measured once, at the end.
            "eval_strategy": "steps",
            "eval_on_start": False,  # its seconds would count as training
            "eval_steps": values.get("max_steps"),
        }
        start = told.get("start")
        if start is not None:
            sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "config_name")
            values = {name: value for name, value in values.items() if name not in sizes}
            values["model_name_or_path"] = str(self.cell(start, seed) / ENCODERS["zero_shot"])
        elif not self.starts_trained:
            values["tokenizer_name"] = str(self.folder / "tokenizer")
        classes = [TextSource, Cutting, Masking, StartArguments, TrainingArguments, RunArguments]
        return PretrainArguments(*distribute(values, classes, f"objective {objective}"))

    def finetuning_arguments(self, objective: str, seed: int, **changes: Any) -> Any:
        """The arguments that `finetune` takes for a cell."""
        from sentence_transformers import SentenceTransformerTrainingArguments

        folder = self.cell(objective, seed)
        values = {
            **DEFAULT_FINETUNING_ARGUMENTS,
            **self.finetuning,
            **self.objectives.get(objective, {}).get("finetuning", {}),
            **changes,
            "model_name_or_path": str(folder / ENCODERS["zero_shot"]),
            "dataset": self.finetuning_dataset,
            "output_dir": str(folder / "finetuned-new"),
            "seed": seed,
            "save_strategy": "no",
            "report_to": "none",
        }
        classes = [FinetuneArguments, SentenceTransformerTrainingArguments]
        return distribute(values, classes, f"finetuning of {objective}")

    @property
    def starts_trained(self) -> bool:
        """Whether all start from an encoder that is there, and none from scratch."""
        return self.model.get("model_name_or_path") is not None

    def cell(self, objective: str, seed: int) -> Path:
        """The folder of a cell."""
        return self.folder / "cells" / f"{objective}-{seed}"


def distribute(values: dict[str, Any], classes: list[Any], where: str) -> list[Any]:
    """Instances of dataclasses, each with those of the values that are its fields.

    Raises:
        RetroMAEError: a value is no field of any of them, or is not accepted, or a field without a default has none.
    """
    names = set().union(*({one.name for one in fields(cls) if one.init} for cls in classes))
    if unknown := values.keys() - names:
        raise RetroMAEError(f"{where}: unknown arguments {', '.join(sorted(map(str, unknown)))}")
    required = {
        one.name for cls in classes for one in fields(cls) if one.init and one.default is one.default_factory is MISSING
    }
    if missing := required - values.keys():
        raise RetroMAEError(f"{where}: {', '.join(sorted(missing))} must be given")
    typed = [check_types(values, cls, where) for cls in classes]
    try:
        return [cls(**own) for cls, own in zip(classes, typed, strict=True)]
    except (TypeError, ValueError) as error:
        raise RetroMAEError(f"{where}: {' '.join(str(error).split())}") from error


def keep_recipe(comparison: Comparison) -> None:
    """Note what the cells were trained with, and refuse to mix them with others."""
    file = comparison.folder / "recipe.json"
    recipe = {name: getattr(comparison, name) for name in SETTINGS} | {"objectives": comparison.objectives}
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        changed = [name for name in SETTINGS if before.get(name) != recipe[name]]
        changed += [
            f"objective {name}"
            for name, changes in comparison.objectives.items()
            if before["objectives"].get(name, changes) != changes
        ]
        if changed:
            raise RetroMAEError(
                f"{comparison.folder} holds a comparison whose recipe differs in {', '.join(changed)}; name another "
                "output_dir"
            )
        recipe["objectives"] = before["objectives"] | comparison.objectives
    write_json(file, recipe)
