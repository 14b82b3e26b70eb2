"""What is compared: the recipe of a comparison, and the arguments that each of its cells is trained with."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainingArguments

from ..arguments.filling import fill
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
from ..data.disk import check_file_name, write_json
from ..model.errors import RetroMAEError, check_at_least, check_choice
from .baselines import BASELINES


class PretrainArguments(NamedTuple):
    """What `pretrain` takes."""

    text: TextSource
    cutting: Cutting
    masking: Masking
    start: StartArguments
    training: TrainingArguments
    run: RunArguments


SETTINGS = ("dataset", "finetuning_dataset", "model", "pretraining", "finetuning", "max_documents", "max_seconds")
"""What all cells of a folder have in common, beside what their objectives change."""
OWN = ("start", "baseline", "finetuning")
"""Of an objective: another one whose encoder of the same seed it starts from, one of `BASELINES` in place of our
pretraining, and what it changes of its fine-tuning."""
UNTRAINED = "untrained"
"""The row of what all start from, zero-shot, and fine-tuned alone."""
ENCODERS = {"zero_shot": "encoder", "finetuned": "finetuned"}
"""The stages of a cell, and the folder of each stage's model."""


@dataclass
class Comparison:
    """What is compared, and how each objective is trained.

    All start from the same weights: those of a new model, or of the `model_name_or_path` that `model` names.
    """

    dataset: str  # the text to pretrain on, as `retromae-hf pretrain` takes it
    finetuning_dataset: str
    tasks: list[str]
    seeds: list[int]
    model: dict[str, Any]  # arguments of `retromae-hf pretrain`
    pretraining: dict[str, Any]  # likewise, of data and training
    finetuning: dict[str, Any]
    objectives: dict[str, dict[str, Any]]  # what each changes in `model` and `pretraining`, and `OWN`
    reference: str = "mlm"  # the objective that the others are tested against, or `untrained`
    max_documents: int | None = None  # of each task
    max_seconds: float | None = None  # of each objective's pretraining, in place of `max_steps`
    output_dir: str = "runs/compare"
    folder: Path = field(init=False)
    steps: dict[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = Path(self.output_dir)
        check_at_least(1, max_documents=self.max_documents)
        check_at_least(1, seeds=len(self.seeds), tasks=len(self.tasks), objectives=len(self.objectives))
        check_choice("reference", self.reference, (UNTRAINED, *self.objectives))
        if self.max_seconds is not None:
            if not self.max_seconds > 0:
                raise RetroMAEError(f"max_seconds={self.max_seconds:g} must be above 0")
            for where, told in {"pretraining": self.pretraining, **self.objectives}.items():
                if both := {"max_steps", "num_train_epochs", "start", "baseline"} & told.keys():
                    raise RetroMAEError(f"{where}: {', '.join(sorted(both))} cannot be told beside max_seconds")
        known: list[str] = []
        for name, changes in self.objectives.items():
            check_file_name("the objective's name", name)
            start, baseline = changes.get("start"), changes.get("baseline")
            if start is not None and start not in known:
                raise RetroMAEError(f"objective {name}: start={start!r} is none of those before it, {', '.join(known)}")
            if baseline is not None:
                check_choice(f"objective {name}: baseline", baseline, BASELINES)
            known.append(name)
            # So that a wrong one shows before anything is trained.
            self.arguments(name, self.seeds[0])
            self.finetuning_arguments(name, self.seeds[0])

    def arguments(self, objective: str, seed: int) -> PretrainArguments:
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
        return PretrainArguments(*fill(values, classes, f"objective {objective}"))

    def finetuning_arguments(self, objective: str, seed: int, **changes: Any) -> Any:
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
        return fill(values, classes, f"finetuning of {objective}")

    @property
    def starts_trained(self) -> bool:
        return self.model.get("model_name_or_path") is not None

    def cell(self, objective: str, seed: int) -> Path:
        return self.folder / "cells" / f"{objective}-{seed}"


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
