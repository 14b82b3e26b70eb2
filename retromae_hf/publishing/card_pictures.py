"""The curves of a training run as a picture for its model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    """Draw the curves of every stage whose record has any; where matplotlib is missing, none.

    Returns:
        The names of the files, `training-1.png` for the first stage.
    """
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
