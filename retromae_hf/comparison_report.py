"""A comparison as a Markdown table and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .comparison import STAGES, UNTRAINED

TITLES = {"zero_shot": "zero-shot", "finetuned": "fine-tuned"}
SIGNIFICANT = 0.05


def table(report: dict[str, Any], task: str, measure: str = "mrr@10") -> str:
    """A row an objective: the measure zero-shot and fine-tuned, time and tokens.

    Where an objective differs from the reference by more than chance in the paired test, a star says so.
    """
    name, _, depth = measure.partition("@")
    shown = f"{ {'mrr': 'MRR', 'ndcg': 'nDCG', 'recall': 'Recall'}[name] }@{depth}"
    lines = [
        f"| objective | {' | '.join(f'{title} {shown}' for title in TITLES.values())} | seconds | million tokens |",
        "|---|---:|---:|---:|---:|",
    ]
    for objective, row in report["objectives"].items():
        cells = [cell(row[stage][task][measure]) for stage in STAGES]
        lines.append(f"| {objective} | {' | '.join(cells)} | {row['seconds']:,.0f} | {row['tokens'] / 1e6:.1f} |")
    lines.append(f"| BM25 | {report['tasks'][task]['bm25'][measure]:.3f} | | | |")
    return "\n".join(lines)


def cell(measured: dict[str, Any]) -> str:
    """A figure: the mean, its deviation over the seeds, and the star of the paired test."""
    deviation = "" if measured["std"] is None else f" ± {measured['std']:.3f}"
    tested = measured.get("against_reference")
    star = " *" if tested and tested["p_value"] < SIGNIFICANT else ""
    return f"{measured['mean']:.3f}{deviation}{star}"


def conditions(report: dict[str, Any], task: str) -> str:
    """What the figures hold for."""
    recipe, measured = report["recipe"], report["tasks"][task]
    training, tuning = recipe["pretraining"], recipe["finetuning"]
    seeds = len(recipe["seeds"])
    continued = "".join(
        f"; {name}: {changes.get('max_steps', training['max_steps']):,} more from {changes['start']}"
        + (f" at learning rate {changes['learning_rate']:g}" if "learning_rate" in changes else "")
        for name, changes in recipe["objectives"].items()
        if "start" in changes
    )
    return (
        f"{measured['num_queries']:,} queries against {measured['num_documents']:,} documents of {task}; "
        f"{'mean ± standard deviation over ' + str(seeds) + ' seeds' if seeds > 1 else 'one seed'}; * differs from "
        f"{recipe['reference']} with p < {SIGNIFICANT} (paired randomisation test over the queries, two-sided). Every "
        f"objective: {training['max_steps']:,} steps of {training['per_device_train_batch_size']} passages of at most "
        f"{training['max_length']} tokens, learning rate {training['learning_rate']:g}{continued}; fine-tuned: "
        f"{tuning['max_steps']:,} steps of {tuning['per_device_train_batch_size']} pairs, learning rate "
        f"{tuning['learning_rate']:g}. {report['environment']['device']}, {report['environment']['threads']} threads, "
        f"torch {report['environment']['torch']}."
    )


def draw(report: dict[str, Any], file: Path, task: str, measure: str = "mrr@10") -> None:
    """Draw bars with their deviations, and the losses and embedding gaps of the first seed."""
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
    bars.set_xticks(range(len(objectives)), objectives, rotation=25, ha="right")
    seeds = len(report["recipe"]["seeds"])
    bars.set(title=f"{measure} on {task}, {'one seed' if seeds == 1 else f'mean of {seeds} seeds'}")
    bars.legend(frameon=False)
    for objective, row in objectives.items():
        logged = [entry for entry in row["logs"] if "loss" in entry]
        if objective != UNTRAINED and logged:
            losses.plot([entry["step"] for entry in logged], [entry["loss"] for entry in logged], label=objective)
    losses.set(title="Training loss (each objective's own)", xlabel="step")
    losses.legend(frameon=False, fontsize=8)
    for axes in (bars, losses):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
    plt.close(figure)
