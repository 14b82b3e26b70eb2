"""The paper's comparison on one's own text: objectives that differ in nothing else, zero-shot and fine-tuned alike.

Every objective starts from the same weights, sees the same passages in the same order for the same number of steps, is
evaluated, fine-tuned in the same way and evaluated again, for every seed. An objective with a seed is a cell; its
result is a file, so that a comparison that was cut off goes on with the cells that are missing.
"""

from __future__ import annotations

import gc
import json
import logging
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from ..checkpoints.starting_model import load_model_and_tokenizer
from ..data.disk import write_json
from ..data.held_out import load_held_out
from ..publishing.export import export_encoder
from ..publishing.record import seconds_of
from ..retrieval.embedders import load_embedder
from ..retrieval.evaluation import run_in_memory
from ..retrieval.measures import score_queries
from ..retrieval.tasks import RetrievalTask, load_tasks
from ..training.finetuning import finetune
from ..training.pretraining import pretrain
from ..training.run_folder import lock_folder
from ..training.saving import checkpoints, last_complete_checkpoint
from .baselines import average, train_baseline
from .comparison_recipe import ENCODERS, UNTRAINED, Comparison, keep_recipe
from .comparison_report import MEASURES, RESULT, STAGES, read_result, summarise

logger = logging.getLogger(__name__)

ROUNDS, TRIAL_STEPS = 3, 10

SHORT = 128
"""Tokens of a passage up to which plain attention is the faster one to train with on a CPU."""


def compare(comparison: Comparison) -> dict[str, Any]:
    """Fill the cells that are missing, and put all of them together in the folder's results.json."""
    comparison.folder.mkdir(parents=True, exist_ok=True)
    max_length = comparison.arguments(UNTRAINED, comparison.seeds[0]).cutting.max_length
    with lock_folder(comparison.folder), suited_attention(max_length):
        keep_recipe(comparison)
        make_tokenizer(comparison)
        tasks = {task.name: task for task in load_tasks(comparison.tasks, max_documents=comparison.max_documents)}
        plan_steps(comparison)
        # Seed by seed, so that what is there early is a whole comparison.
        cells = [(objective, seed) for seed in comparison.seeds for objective in (UNTRAINED, *comparison.objectives)]
        for number, (objective, seed) in enumerate(cells, start=1):
            folder = comparison.cell(objective, seed)
            result = read_result(folder) if (folder / RESULT).is_file() else None
            if result is not None and all(task in result[stage] for stage in STAGES for task in tasks):
                continue  # its models are needed no more
            logger.info("Cell %d of %d: %s, seed %d", number, len(cells), objective, seed)
            if result is None:
                train_cell(comparison, objective, seed)
            if not (folder / ENCODERS["finetuned"]).is_dir():
                finetune_cell(comparison, objective, seed)
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


def make_tokenizer(comparison: Comparison) -> None:
    """Train the tokenizer that all share, where they start from scratch and it is not there yet."""
    folder = comparison.folder / "tokenizer"
    if not comparison.starts_trained and not folder.is_dir():
        arguments = comparison.arguments(UNTRAINED, comparison.seeds[0])
        arguments.start.tokenizer_name = None
        texts = load_held_out(arguments.text, arguments.training.seed).pretraining["text"]
        _, tokenizer = load_model_and_tokenizer(arguments.start, texts, arguments.cutting.max_length)
        aside = folder.with_name("tokenizer-new")
        tokenizer.save_pretrained(aside)
        aside.rename(folder)


def plan_steps(comparison: Comparison) -> None:
    """Let a comparison with `max_seconds` know the steps of its objectives, which its folder keeps.

    A clock would depend on what else the machine does. So the objectives take turns in short trials before anything is
    trained, and each cell makes the steps that the seconds allow at this speed.
    """
    if comparison.max_seconds is None:
        return
    file, trial = comparison.folder / "steps.json", comparison.folder / "_trial"
    planned = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    trials: dict[str, list[float]] = {name: [] for name in comparison.objectives if name not in planned}
    for turn in range(ROUNDS):
        for name, seconds in trials.items():
            logger.info("Measuring how long a step of %s takes, %d of %d", name, turn + 1, ROUNDS)
            shutil.rmtree(trial, ignore_errors=True)
            arguments = comparison.arguments(name, comparison.seeds[0])
            arguments.training.output_dir, arguments.training.max_steps = str(trial), TRIAL_STEPS
            arguments.training.eval_strategy = "no"
            seconds.append(seconds_of(pretrain(*arguments).state) / TRIAL_STEPS)
    shutil.rmtree(trial, ignore_errors=True)
    for name, seconds in trials.items():
        step = statistics.median(seconds)
        planned[name] = {"seconds_a_step": step, "steps": max(round(comparison.max_seconds / step), 1)}
    write_json(file, planned)
    comparison.steps = {name: planned[name]["steps"] for name in comparison.objectives}


def train_cell(comparison: Comparison, objective: str, seed: int) -> None:
    folder = comparison.cell(objective, seed)
    for model in ENCODERS.values():
        shutil.rmtree(folder / model, ignore_errors=True)  # of a cell that was cut off
    encoder = folder / ENCODERS["zero_shot"]
    result: dict[str, Any] = {"objective": objective, "seed": seed, "seconds": 0.0, "steps": 0, "tokens": 0, "logs": []}
    changes = comparison.objectives.get(objective, {})
    baseline, start = changes.get("baseline"), comparison.cell(changes.get("start", UNTRAINED), seed) / encoder.name
    if objective == UNTRAINED:
        arguments = comparison.arguments(objective, seed)
        set_seed(seed)
        model, tokenizer = load_model_and_tokenizer(arguments.start, [], arguments.cutting.max_length)
        export_encoder(model, tokenizer, encoder, source=arguments.start.model_name_or_path)
    elif baseline in ("none", "longer"):
        shutil.copytree(start, encoder)
    elif baseline == "average":
        average(start, comparison.cell(UNTRAINED, seed) / encoder.name, encoder)
    elif baseline is not None:
        arguments = comparison.arguments(objective, seed)
        options = arguments.text, arguments.cutting, arguments.training
        result |= train_baseline(baseline, *options, start, encoder)
    else:
        clear_but_for_a_checkpoint(folder / "checkpoint")
        trainer = pretrain(*comparison.arguments(objective, seed))
        export_encoder(trainer.model, trainer.processing_class, encoder, source=str(folder / "checkpoint"))
        result |= {
            "seconds": seconds_of(trainer.state),
            "steps": trainer.state.global_step,
            "tokens": trainer.state.num_input_tokens_seen,
            "logs": trainer.state.log_history,
        }
        del trainer
        shutil.rmtree(folder / "checkpoint")
    gc.collect()  # models and optimizers hang in cycles, on a GPU with their memory
    write_json(folder / RESULT, result | {stage: {} for stage in STAGES})


def finetune_cell(comparison: Comparison, objective: str, seed: int) -> None:
    folder = comparison.cell(objective, seed)
    aside = folder / "finetuned-new"
    clear_but_for_a_checkpoint(aside)
    changes = {}
    if comparison.objectives.get(objective, {}).get("baseline") == "longer":
        changes["max_steps"] = steps_of_the_slowest(comparison, objective, seed)
    state = finetune(*comparison.finetuning_arguments(objective, seed, **changes)).state
    result = read_result(folder)
    write_json(folder / RESULT, result | {"finetuning_seconds": seconds_of(state), "finetuning_steps": state.max_steps})
    for checkpoint in checkpoints(aside):
        shutil.rmtree(checkpoint)
    aside.rename(folder / ENCODERS["finetuned"])
    gc.collect()


def steps_of_the_slowest(comparison: Comparison, objective: str, seed: int) -> int:
    """Steps of fine-tuning alone that take as many seconds as the slowest objective before took in all."""
    names = list(comparison.objectives)
    others = [read_result(comparison.cell(name, seed)) for name in names[: names.index(objective)]]
    alone = read_result(comparison.cell(UNTRAINED, seed))
    longest = max(one["seconds"] + one["finetuning_seconds"] for one in [*others, alone])
    return round(alone["finetuning_steps"] * longest / alone["finetuning_seconds"])


def clear_but_for_a_checkpoint(folder: Path) -> None:
    """Make room for a run, unless one that a signal has stopped can go on in the folder."""
    if last_complete_checkpoint(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)


def evaluate_cell(folder: Path, tasks: dict[str, RetrievalTask]) -> None:
    """Add the values of the tasks that are missing, by task, measure and query."""
    result = read_result(folder)
    for stage, model in ENCODERS.items():
        if missing := [task for name, task in tasks.items() if name not in result[stage]]:
            embedder = load_embedder(str(folder / model))
            for task in missing:
                result[stage][task.name] = score_queries(task.qrels, run_in_memory(task, embedder), MEASURES)
            write_json(folder / RESULT, result)
