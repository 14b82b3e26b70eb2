"""A comparison put together from its cells: the report, a Markdown table of it, and a picture."""

from __future__ import annotations

import json
import statistics
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ..arguments.finetuning import DEFAULT_FINETUNING_ARGUMENTS
from ..arguments.pretraining import DEFAULT_TRAINING_ARGUMENTS, LEARNING_RATE, Cutting
from ..publishing.record import describe_environment, public_name
from ..retrieval.evaluation import evaluate_bm25
from ..retrieval.measures import MEASURE_NAMES, SIGNIFICANT, markdown_table, paired_test
from ..retrieval.tasks import RetrievalTask
from .comparison_recipe import UNTRAINED, Comparison

MEASURES = ("ndcg@10", "mrr@10", "recall@100")
TITLES = {"zero_shot": "zero-shot", "finetuned": "fine-tuned"}
"""The stages of a cell, and what they are called."""
STAGES = tuple(TITLES)
RESULT = "result.json"
"""In a cell's folder."""


def read_result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RESULT).read_text(encoding="utf-8"))


def summarise(comparison: Comparison, tasks: dict[str, RetrievalTask]) -> dict[str, Any]:
    """Means and standard deviations over the seeds, and paired tests of every objective against the reference."""
    cells = {
        objective: [read_result(comparison.cell(objective, seed)) for seed in comparison.seeds]
        for objective in (UNTRAINED, *comparison.objectives)
    }
    reference = cells[comparison.reference]

    def measured(results: list[dict], stage: str, task: str, measure: str) -> dict[str, Any]:
        by_seed = [result[stage][task][measure] for result in results]
        means = [statistics.fmean(values.values()) for values in by_seed]
        deviation = statistics.stdev(means) if len(means) > 1 else None
        spread = {"mean": statistics.fmean(means), "std": deviation, "seeds": means}
        if results is reference:
            return spread
        ours, theirs = (
            {query: statistics.fmean(one[query] for one in values) for query in values[0]}
            for values in (by_seed, [result[stage][task][measure] for result in reference])
        )
        return spread | {"against_reference": paired_test(ours, theirs)}

    rows: dict[str, dict[str, Any]] = {}
    for objective, results in cells.items():
        counts = ("seconds", "finetuning_seconds", "steps", "tokens")
        row = {count: statistics.fmean(result[count] for result in results) for count in counts}
        rows[objective] = row | {"logs": results[0]["logs"]}
        for stage in STAGES:
            rows[objective][stage] = {
                task: {measure: measured(results, stage, task, measure) for measure in MEASURES} for task in tasks
            }
    return {
        "environment": describe_environment(comparison.arguments(comparison.reference, comparison.seeds[0]).training),
        "recipe": {one.name: getattr(comparison, one.name) for one in fields(comparison) if one.name != "folder"},
        "tasks": {
            name: {
                "num_queries": len(task.queries),
                "num_documents": len(task.documents),
                "num_queries_in_corpus": len(task.queries_in_corpus),
                "bm25": evaluate_bm25(task),
            }
            for name, task in tasks.items()
        },
        "objectives": rows,
    }


def title_of(objective: str, recipe: dict[str, Any]) -> str:
    return "as it is" if objective == UNTRAINED and "model_name_or_path" in recipe["model"] else objective


def table(report: dict[str, Any], task: str, measure: str = "mrr@10") -> str:
    """A row an objective: the measure zero-shot and fine-tuned, seconds and tokens, and the steps of equal seconds."""
    shown = MEASURE_NAMES[measure]
    equal_seconds = report["recipe"].get("max_seconds") is not None
    header = ["objective", *(f"{title} {shown}" for title in TITLES.values())]
    header += [*(["steps"] if equal_seconds else []), "seconds", "million tokens"]
    rows = []
    for objective, row in report["objectives"].items():
        # Published reports may have none of fine-tuning.
        seconds = " + ".join(f"{row[name]:,.0f}" for name in ("seconds", "finetuning_seconds") if name in row)
        cells = [title_of(objective, report["recipe"]), *(cell(row[stage][task][measure]) for stage in STAGES)]
        cells += [f"{row['steps']:,.0f}"] if equal_seconds else []
        rows.append([*cells, seconds, f"{row['tokens'] / 1e6:.1f}"])
    bm25 = ["BM25", f"{report['tasks'][task]['bm25'][measure]:.3f}"]
    return markdown_table(header, [*rows, bm25 + [""] * (len(header) - 2)])


def cell(measured: dict[str, Any]) -> str:
    """The mean, its deviation over the seeds, and a star where the reference differs by more than chance."""
    deviation = "" if measured["std"] is None else f" ± {measured['std']:.3f}"
    tested = measured.get("against_reference")
    star = " *" if tested and tested["p_value"] < SIGNIFICANT else ""
    return f"{measured['mean']:.3f}{deviation}{star}"


def conditions(report: dict[str, Any], task: str) -> str:
    recipe, measured = report["recipe"], report["tasks"][task]
    training = _over_defaults(DEFAULT_TRAINING_ARGUMENTS | {"learning_rate": LEARNING_RATE} | recipe["pretraining"])
    tuning = _over_defaults(DEFAULT_FINETUNING_ARGUMENTS | recipe["finetuning"])
    seeds = len(recipe["seeds"])
    machine = report["environment"]
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    continued = "".join(
        f"; {name}: {_extent(training | changes).removesuffix(' steps')} more from {changes['start']}"
        + (f" at learning rate {float(changes['learning_rate']):g}" if "learning_rate" in changes else "")
        for name, changes in recipe["objectives"].items()
        if "start" in changes
    )
    start = recipe["model"].get("model_name_or_path")
    return (
        f"{measured['num_queries']:,} queries against {measured['num_documents']:,} documents of {task}; "
        f"{'mean ± standard deviation over ' + str(seeds) + ' seeds' if seeds > 1 else 'one seed'}; * differs from "
        f"{title_of(recipe['reference'], recipe)} with p < {SIGNIFICANT} (paired randomisation test over the queries, "
        "two-sided). "
        f"{'' if start is None else f'All start from {public_name(start)}. '}Every objective: "
        f"{_extent(training, recipe.get('max_seconds'))} of {training['per_device_train_batch_size']} passages of at "
        f"most {training['max_length']} tokens, learning rate {float(training['learning_rate']):g}{continued}; "
        f"fine-tuned: {_extent(tuning)} of {tuning['per_device_train_batch_size']} pairs, learning rate "
        f"{float(tuning['learning_rate']):g}. {machine['device']}, {threads}, torch {machine['torch']}."
    )


def _over_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    return {one.name: one.default for cls in (Cutting, TrainingArguments) for one in fields(cls)} | settings


def _extent(settings: dict[str, Any], max_seconds: float | None = None) -> str:
    if max_seconds is not None:
        return f"the steps that take {max_seconds:g} seconds, by the speed of trials in turns,"
    steps = int(settings["max_steps"])
    return f"{steps:,} steps" if steps > 0 else f"{float(settings['num_train_epochs']):g} epochs in steps"


def draw(report: dict[str, Any], file: Path, task: str, measure: str = "mrr@10") -> None:
    """Draw bars with their deviations, and the losses of the first seed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    objectives = report["objectives"]
    figure, (bars, losses) = plt.subplots(1, 2, figsize=(13, 4.2), layout="constrained", width_ratios=[3, 2])
    for place, (stage, title) in enumerate(TITLES.items()):
        measured = [row[stage][task][measure] for row in objectives.values()]
        bars.bar(
            [number + 0.4 * place - 0.2 for number in range(len(objectives))],
            [one["mean"] for one in measured],
            0.38,
            yerr=[one["std"] or 0 for one in measured],
            color=("#b8c4d6", "#d1495b")[place],
            error_kw={"elinewidth": 1},
            label=title,
        )
    bm25 = report["tasks"][task]["bm25"][measure]
    bars.axhline(bm25, color="#444444", linestyle=":", label=f"BM25 {bm25:.3f}")
    titles = [title_of(objective, report["recipe"]) for objective in objectives]
    bars.set_xticks(range(len(objectives)), titles, rotation=25, ha="right")
    seeds = len(report["recipe"]["seeds"])
    title = f"{MEASURE_NAMES[measure]} on {task}, {'one seed' if seeds == 1 else f'mean of {seeds} seeds'}"
    bars.set_title(title, pad=28)  # the legend stands between the title and the bars
    bars.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    for objective, row in objectives.items():
        logged = [entry for entry in row["logs"] if "loss" in entry]
        if objective != UNTRAINED and logged:
            losses.plot([entry["step"] for entry in logged], [entry["loss"] for entry in logged], label=objective)
    losses.set(title="Training loss (each objective's own)", xlabel="step")
    if losses.lines:  # runs that end before `logging_steps` leave none
        losses.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    for axes in (bars, losses):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
    plt.close(figure)
