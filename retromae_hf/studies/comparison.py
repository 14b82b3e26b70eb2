"""The paper's comparison on one's own text: objectives that differ in nothing else, zero-shot and fine-tuned alike.

Every objective starts from the same weights, sees the same passages in the same order for the same number of steps, is
evaluated, fine-tuned in the same way and evaluated again, for every seed. What an objective has come to with a seed is
a cell; its result is a file, so that a comparison that was cut off goes on with the cells that are missing.
"""

from __future__ import annotations

import gc
import json
import logging
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed

from ..checkpoints.starting_model import ModelArguments, load_model_and_tokenizer
from ..model.errors import RetroMAEError, check_at_least, check_file_name
from ..publishing.export import export_encoder
from ..retrieval.embedders import load_embedder
from ..retrieval.evaluation import evaluate_bm25, run_in_memory
from ..retrieval.measures import paired_test, score_queries
from ..retrieval.named_tasks import load_tasks
from ..retrieval.tasks import RetrievalTask
from ..training.finetuning import DEFAULT_FINETUNING_ARGUMENTS, FinetuneArguments, finetune
from ..training.pretraining import DEFAULT_TRAINING_ARGUMENTS, DataArguments, load_text, pretrain
from ..training.resuming.whole_files import write_json
from .baselines import BASELINES, train_baseline
from .field_types import check_types

logger = logging.getLogger(__name__)

MEASURES = ("ndcg@10", "mrr@10", "recall@100")
ENCODERS = {"zero_shot": "encoder", "finetuned": "finetuned"}
"""The stages of a cell, and the folder of the model of each."""
STAGES = tuple(ENCODERS)
RESULT = "result.json"
UNTRAINED = "untrained"
SETTINGS = ("dataset", "finetuning_dataset", "model", "pretraining", "finetuning")
"""What all cells of a folder have in common, beside what their objectives change."""
SHORT = 128
"""Tokens of a passage up to which plain attention is the faster one to train with on a CPU."""


@dataclass
class Comparison:
    """What is compared, and how each objective is trained.

    Attributes:
        dataset: the text to pretrain on, as `retromae-hf pretrain` takes it.
        finetuning_dataset: what to fine-tune on, as `retromae-hf finetune` takes it.
        tasks: retrieval tasks to evaluate on, as `retromae-hf evaluate` takes them.
        seeds: of the weights, the order and the masks.
        model: arguments of the model, those of `retromae-hf pretrain`.
        pretraining: arguments of data and training, likewise.
        finetuning: arguments of `retromae-hf finetune`.
        objectives: by name, what each changes in `model` and `pretraining`. `baseline: tsdae` or `simcse` is
            sentence-transformers' objective of that name instead; `start: NAME` goes on with another objective's
            encoder of the same seed.
        reference: the objective that the others are tested against.
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
    output_dir: str = "runs/compare"
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        for name in self.objectives:
            check_file_name("the objective's name", name)
        self.folder = Path(self.output_dir)
        check_at_least(1, seeds=len(self.seeds), tasks=len(self.tasks), objectives=len(self.objectives))
        if self.reference not in self.objectives:
            raise RetroMAEError(f"reference={self.reference!r} is none of the objectives {', '.join(self.objectives)}")
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
            self.arguments(name, self.seeds[0])  # so that a wrong one shows before anything is trained
        self.finetuning_arguments("encoder", "out", self.seeds[0])

    def arguments(self, objective: str, seed: int) -> tuple[DataArguments, ModelArguments, TrainingArguments]:
        """The arguments that `pretrain` takes for a cell."""
        changes = {k: v for k, v in self.objectives[objective].items() if k not in ("start", "baseline")}
        values = {**DEFAULT_TRAINING_ARGUMENTS, **self.model, **self.pretraining, **changes}
        values |= {
            "dataset": self.dataset,
            "output_dir": str(self.cell(objective, seed) / "checkpoint"),
            "overwrite_output_dir": True,
            "seed": seed,
            "save_strategy": "no",
            "report_to": "none",
            "include_num_input_tokens_seen": "non_padding",
            # Measured once, at the end.
            "eval_strategy": "steps",
            "eval_steps": values.get("max_steps"),
        }
        start = self.objectives[objective].get("start")
        if start is None:
            values["tokenizer_name"] = str(self.folder / "tokenizer")
        else:
            own = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "config_name")
            values = {name: value for name, value in values.items() if name not in own}
            values["model_name_or_path"] = str(self.cell(start, seed) / "encoder")
        return tuple(distribute(values, [DataArguments, ModelArguments, TrainingArguments], f"objective {objective}"))

    def finetuning_arguments(self, encoder: str, output: str, seed: int) -> Any:
        """The arguments that `finetune` takes for a cell."""
        from sentence_transformers import SentenceTransformerTrainingArguments

        values = {
            **DEFAULT_FINETUNING_ARGUMENTS,
            **self.finetuning,
            "model_name_or_path": encoder,
            "dataset": self.finetuning_dataset,
            "output_dir": output,
            "overwrite_output_dir": True,
            "seed": seed,
            "save_strategy": "no",
            "report_to": "none",
        }
        return distribute(values, [FinetuneArguments, SentenceTransformerTrainingArguments], "finetuning")

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


def compare(comparison: Comparison) -> dict[str, Any]:
    """Fill the cells that are missing, and put all of them together.

    Returns:
        The report, which is also in `results.json` of the comparison's folder.

    Raises:
        RetroMAEError: the folder holds cells of another recipe; more objectives, seeds and tasks are welcome.
    """
    comparison.folder.mkdir(parents=True, exist_ok=True)
    keep_recipe(comparison)
    data, _, _ = comparison.arguments(next(iter(comparison.objectives)), comparison.seeds[0])
    make_tokenizer(comparison)
    tasks = {task.name: task for task in load_tasks(comparison.tasks)}
    cells = list(all_cells(comparison))
    with suited_attention(data.max_length):
        for number, (objective, seed) in enumerate(cells, start=1):
            folder = comparison.cell(objective, seed)
            if not (folder / RESULT).is_file():
                logger.info("Cell %d of %d: %s, seed %d", number, len(cells), objective, seed)
                train_cell(comparison, objective, seed)
            if not (folder / ENCODERS["finetuned"]).is_dir():
                finetune_cell(comparison, folder, seed)
            evaluate_cell(folder, tasks)
    report = summarise(comparison, tasks)
    write_json(comparison.folder / "results.json", report)
    return report


@contextmanager
def suited_attention(max_length: int) -> Iterator[None]:
    """On a CPU the backward pass of the fused attention is slower than the plain one for short passages."""
    fused = torch.backends.cuda.flash_sdp_enabled()
    torch.backends.cuda.enable_flash_sdp(fused and (torch.cuda.is_available() or max_length > SHORT))
    try:
        yield
    finally:
        torch.backends.cuda.enable_flash_sdp(fused)


def keep_recipe(comparison: Comparison) -> None:
    """Note what the cells were trained with, and refuse to mix them with others."""
    file = comparison.folder / "recipe.json"
    recipe = {name: getattr(comparison, name) for name in SETTINGS} | {"objectives": comparison.objectives}
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        changed = [name for name in SETTINGS if before[name] != recipe[name]]
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


def all_cells(comparison: Comparison) -> Iterator[tuple[str, int]]:
    """Every objective with every seed, seed by seed, so that what is there early is a whole comparison."""
    for seed in comparison.seeds:
        yield UNTRAINED, seed
        yield from ((objective, seed) for objective in comparison.objectives)


def make_tokenizer(comparison: Comparison) -> None:
    """Train the tokenizer that all share, where it is not there yet."""
    folder = comparison.folder / "tokenizer"
    if not folder.is_dir():
        data, model, _ = comparison.arguments(next(iter(comparison.objectives)), comparison.seeds[0])
        model.tokenizer_name = None
        _, tokenizer = load_model_and_tokenizer(model, load_text(data)[0]["text"], data.max_length)
        aside = folder.with_name("tokenizer-new")
        tokenizer.save_pretrained(aside)
        aside.rename(folder)


def train_cell(comparison: Comparison, objective: str, seed: int) -> None:
    """Train an encoder, and write down what it took."""
    folder = comparison.cell(objective, seed)
    shutil.rmtree(folder, ignore_errors=True)  # of a cell that was cut off
    encoder = folder / ENCODERS["zero_shot"]
    started = time.perf_counter()
    result: dict[str, Any] = {"objective": objective, "seed": seed, "tokens": 0, "logs": []}
    if objective == UNTRAINED:
        export_untrained(comparison, seed, encoder)
    elif (kind := comparison.objectives[objective].get("baseline")) is not None:
        data, _, training_args = comparison.arguments(objective, seed)
        start = comparison.cell(comparison.objectives[objective].get("start", UNTRAINED), seed) / encoder.name
        result |= train_baseline(kind, data, training_args, start, encoder)
    else:
        trainer = pretrain(*comparison.arguments(objective, seed))
        export_encoder(trainer.model, trainer.processing_class, encoder, source=str(folder / "checkpoint"))
        result |= {"tokens": trainer.state.num_input_tokens_seen, "logs": trainer.state.log_history}
        del trainer
        shutil.rmtree(folder / "checkpoint")
    gc.collect()  # models and optimizers hang in cycles, on a GPU with their memory
    result["seconds"] = time.perf_counter() - started
    write_json(folder / RESULT, result | {stage: {} for stage in STAGES})


def finetune_cell(comparison: Comparison, folder: Path, seed: int) -> None:
    """Fine-tune a cell's encoder."""
    aside = folder / "finetuned-new"
    finetune(*comparison.finetuning_arguments(str(folder / ENCODERS["zero_shot"]), str(aside), seed))
    aside.rename(folder / ENCODERS["finetuned"])
    gc.collect()


def evaluate_cell(folder: Path, tasks: dict[str, RetrievalTask]) -> None:
    """Add the values of the tasks that are missing, by task, measure and query."""
    result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    for stage, model in ENCODERS.items():
        if missing := [task for name, task in tasks.items() if name not in result[stage]]:
            embedder = load_embedder(str(folder / model))
            for task in missing:
                result[stage][task.name] = score_queries(task.qrels, run_in_memory(task, embedder), MEASURES)
            write_json(folder / RESULT, result)


def export_untrained(comparison: Comparison, seed: int, folder: Path) -> None:
    """The weights that every objective starts from."""
    first = next(iter(comparison.objectives))
    data, model_args, _ = comparison.arguments(first, seed)
    set_seed(seed)
    model, tokenizer = load_model_and_tokenizer(model_args, [], data.max_length)
    export_encoder(model, tokenizer, folder)


def summarise(comparison: Comparison, tasks: dict[str, RetrievalTask]) -> dict[str, Any]:
    """Means and standard deviations over the seeds, and paired tests of every objective against the reference."""
    cells = {
        objective: [
            json.loads((comparison.cell(objective, seed) / RESULT).read_text(encoding="utf-8"))
            for seed in comparison.seeds
        ]
        for objective in (UNTRAINED, *comparison.objectives)
    }
    reference = cells[comparison.reference]

    def measured(results: list[dict], stage: str, task: str, measure: str) -> dict[str, Any]:
        by_seed = [result[stage][task][measure] for result in results]
        tested = {}
        if results is not reference:
            theirs = mean_by_query([result[stage][task][measure] for result in reference])
            tested["against_reference"] = paired_test(mean_by_query(by_seed), theirs)
        return spread([statistics.fmean(values.values()) for values in by_seed]) | tested

    rows = {
        objective: {
            "seconds": statistics.fmean(result["seconds"] for result in results),
            "tokens": statistics.fmean(result["tokens"] for result in results),
            "logs": results[0]["logs"],
            **{
                stage: {
                    task: {measure: measured(results, stage, task, measure) for measure in MEASURES} for task in tasks
                }
                for stage in STAGES
            },
        }
        for objective, results in cells.items()
    }
    return {
        "environment": environment(),
        "recipe": {one.name: getattr(comparison, one.name) for one in fields(comparison) if one.name != "folder"},
        "tasks": {
            name: {
                "num_queries": len(task.queries),
                "num_documents": len(task.documents),
                "bm25": evaluate_bm25(task),
            }
            for name, task in tasks.items()
        },
        "objectives": rows,
    }


def environment() -> dict[str, Any]:
    """What the figures depend on beside the recipe."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in ("torch", "transformers", "sentence-transformers")},
    }


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, standard deviation (None of a single value) and the values."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": deviation, "seeds": values}


def mean_by_query(values: list[dict[str, float]]) -> dict[str, float]:
    """Means over the seeds."""
    return {query: statistics.fmean(one[query] for one in values) for query in values[0]}
