"""How many steps of each objective take the same seconds.

A run that a clock stops would depend on what else the machine does at that time. So the objectives take turns in short
trials before anything is trained, and what each cell makes are the steps that the seconds allow at this speed.
"""

from __future__ import annotations

import json
import logging
import shutil
import statistics

from ..data.reading.whole_files import write_json
from ..publishing.record import seconds_of
from ..training.pretraining import pretrain
from .comparison_recipe import Comparison

logger = logging.getLogger(__name__)

ROUNDS, TRIAL_STEPS = 3, 10


def plan_steps(comparison: Comparison) -> None:
    """Let a comparison with `max_seconds` know the steps of its objectives, which its folder keeps."""
    if comparison.max_seconds is None:
        return
    file, trial = comparison.folder / "steps.json", comparison.folder / "_trial"
    planned = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    missing = [name for name in comparison.objectives if name not in planned]
    trials: dict[str, list[float]] = {name: [] for name in missing}
    for turn in range(ROUNDS):
        for name in missing:
            logger.info("Measuring how long a step of %s takes, %d of %d", name, turn + 1, ROUNDS)
            shutil.rmtree(trial, ignore_errors=True)
            data, model, training_args = comparison.arguments(name, comparison.seeds[0])
            training_args.output_dir, training_args.max_steps = str(trial), TRIAL_STEPS
            training_args.eval_strategy = "no"
            trials[name].append(seconds_of(pretrain(data, model, training_args).state) / TRIAL_STEPS)
    shutil.rmtree(trial, ignore_errors=True)
    for name, seconds in trials.items():
        step = statistics.median(seconds)
        planned[name] = {"seconds_a_step": step, "steps": max(round(comparison.max_seconds / step), 1)}
    write_json(file, planned)
    comparison.steps = {name: planned[name]["steps"] for name in comparison.objectives}
