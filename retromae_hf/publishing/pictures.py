"""What a model card shows of a training run: its curves, and an encoder before and after it was adapted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..retrieval.evaluation import BM25, HYBRID
from ..retrieval.measures import MEASURE_NAMES, SIGNIFICANT, markdown_table

PANELS: dict[str, tuple[str, dict[str, str]]] = {
    "loss": (
        "Training loss",
        {
            "loss": "loss",
            "mlm_loss": "of the encoder",
            "decoder_loss": "of the decoder",
            "bow_loss": "of the bag",
            "contrast_loss": "of the spans",
        },
    ),
    "eval_embedding_gap": ("Embedding gap, nats a token", {"eval_embedding_gap": ""}),
    "eval_bow_gap": ("Gap of the bag of words, nats", {"eval_bow_gap": ""}),
    "eval_mrr@10": ("Retrieval while training", {"eval_mrr@10": "MRR@10", "eval_ndcg@10": "nDCG@10"}),
}
"""By the value that must be there: a panel's title and its curves' names."""


def has_curve(logs: list[dict[str, Any]], name: str = "loss") -> bool:
    """Whether the logs hold two points of a value."""
    return sum(name in entry for entry in logs) > 1


def draw_pictures(stages: Sequence[dict[str, Any]], folder: str | Path) -> list[str]:
    """Draw the curves of every stage that has any, as `training-1.png` and so on; where matplotlib is missing, none."""
    drawn = [(f"training-{number}.png", stage["logs"]) for number, stage in enumerate(stages, start=1)]
    drawn = [(name, logs) for name, logs in drawn if has_curve(logs)]
    try:
        return [_draw(logs, Path(folder), name) for name, logs in drawn]
    except ImportError:
        return []


def _draw(logs: list[dict[str, Any]], folder: Path, name: str) -> str:
    from matplotlib.figure import Figure

    panels = [panel for needed, panel in PANELS.items() if has_curve(logs, needed)]
    figure = Figure(figsize=(4.4 * len(panels), 3.4), layout="constrained")
    for place, (title, curves) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for value, label in curves.items():
            points = [(entry["step"], entry[value]) for entry in logs if value in entry]
            if points:
                axes.plot(*zip(*points, strict=True), label=label or None)
        axes.set(title=title, xlabel="step")
        axes.spines[["top", "right"]].set_visible(False)
        if any(curves.values()):
            axes.legend(frameon=False)
    figure.savefig(folder / name, dpi=100)
    return name


MEASURE = "ndcg@10"
"""By which one encoder is better than another."""
ROWS = {
    "BM25": ("before", BM25),
    "as it was": ("before", None),
    "as it was, joined with BM25": ("before", HYBRID),
    "adapted": ("after", None),
    "adapted, joined with BM25": ("after", HYBRID),
}
"""The rankings by what they are called: whose results they are, and which of them."""


def rankings(before: dict[str, Any], after: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The measures of every ranking, from an entry of a task before and after, see `evaluation`."""
    entries = {"before": before, "after": after}
    return {
        name: (entries[when] if kind is None else entries[when][kind])["measures"]
        for name, (when, kind) in ROWS.items()
    }


def before_after_table(before: dict[str, Any], after: dict[str, Any], tests: dict[str, dict[str, float]]) -> str:
    """A Markdown table with a row for each ranking.

    Args:
        before: the task's entry in the results of the encoder as it was, with BM25.
        after: likewise, adapted.
        tests: paired tests of the adapted encoder against itself as it was, by measure.
    """
    found, rows = rankings(before, after), []
    for name, measures in found.items():
        cells = []
        for measure in MEASURE_NAMES:
            star = " *" if name == "adapted" and tests[measure]["p_value"] < SIGNIFICANT else ""
            best = measures[measure] == max(others[measure] for others in found.values())
            cells.append(f"**{measures[measure]:.3f}**{star}" if best else f"{measures[measure]:.3f}{star}")
        rows.append([name, *cells])
    return markdown_table(["", *MEASURE_NAMES.values()], rows)


def verdict(tests: dict[str, dict[str, float]]) -> str:
    """Whether the adapted encoder is better, in words."""
    difference, chance = tests[MEASURE]["difference"], tests[MEASURE]["p_value"]
    told = f"{MEASURE_NAMES[MEASURE]} {difference:+.3f}, p = {chance:.2g} in a paired test"
    if not is_better(tests):
        return f"Not better than it was ({told})"
    return f"Better than it was ({told})" if chance < SIGNIFICANT else f"Better, which may be chance ({told})"


def is_better(tests: dict[str, dict[str, float]]) -> bool:
    """Whether the adapted encoder is the one to take."""
    return tests[MEASURE]["difference"] > 0


def draw_before_after(before: dict[str, Any], after: dict[str, Any], file: Path) -> bool:
    """Draw every ranking as a bar; returns False where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    found = rankings(before, after)
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.add_subplot()
    colours = ["#d1495b" if name.startswith("adapted") else "#b8c4d6" for name in found]
    bars = axes.barh(list(found), [measures[MEASURE] for measures in found.values()], color=colours)
    axes.bar_label(bars, fmt="%.3f", padding=3)
    axes.invert_yaxis()
    axes.set(title=f"{MEASURE_NAMES[MEASURE]} on held-out queries")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=100)
    return True
