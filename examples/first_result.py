"""The comparison in a few lines, for the first screen of the README: RetroMAE against MLM and BM25."""

from __future__ import annotations

from typing import Any

from retromae_hf.studies.comparison_report import SIGNIFICANT, TITLES, cell

TASK, MEASURE = "pydocs", "mrr@10"
ROWS = {"untrained": "nothing", "mlm": "MLM", "retromae": "**RetroMAE**"}


def block(report: dict[str, Any]) -> str:
    """The table of one task, how the seeds agree, and what BM25 reaches; nothing that the report does not show."""
    lines = [f"| pretrained with | {' MRR@10 | '.join(TITLES.values())} MRR@10 |", "|---|---:|---:|"]
    for row, name in ROWS.items():
        lines.append(f"| {name} | {' | '.join(cell(measured(report, row, stage)) for stage in TITLES)} |")
    bm25 = report["tasks"][TASK]["bm25"][MEASURE]
    lines.append(f"| BM25, untrained word matching | {bm25:.3f} | |")
    return "\n".join([*lines, "", f"{conditions(report)} {comparison(report)} {beside_bm25(report, bm25)}"])


def measured(report: dict[str, Any], row: str, stage: str) -> dict[str, Any]:
    """The figures of an objective."""
    return report["objectives"][row][stage][TASK][MEASURE]


def conditions(report: dict[str, Any]) -> str:
    """What was compared."""
    recipe, task = report["recipe"], report["tasks"][TASK]
    model, training, tuning = recipe["model"], recipe["pretraining"], recipe["finetuning"]
    seeds = len(recipe["seeds"])
    return (
        f"Small encoders ({model['num_hidden_layers']} layers x {model['hidden_size']}), trained from scratch on the "
        f"documentation in a Python environment, on {report['environment']['threads']} threads of a "
        f"{report['environment']['device'].upper()}: the same {training['max_steps']:,} steps and passages, then the "
        f"same {tuning['max_steps']:,} steps of fine-tuning. {task['num_queries']:,} first sentences of docstrings "
        f"look for their bodies among {task['num_documents']:,}; "
        + (f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed")
        + f"; * differs from MLM with p < {SIGNIFICANT} (paired test)."
    )


def comparison(report: dict[str, Any]) -> str:
    """In how many seeds RetroMAE is above MLM."""
    above = []
    for stage, title in TITLES.items():
        retromae, mlm = (measured(report, row, stage)["seeds"] for row in ("retromae", "mlm"))
        wins = sum(ours > theirs for ours, theirs in zip(retromae, mlm, strict=True))
        above.append(f"{wins} of {len(mlm)} seeds {title}")
    return f"RetroMAE is above MLM in {' and '.join(above)}."


def beside_bm25(report: dict[str, Any], bm25: float) -> str:
    """Where BM25 stands."""
    best = max(measured(report, row, stage)["mean"] for row in ROWS for stage in TITLES)
    if bm25 > best:
        return "BM25 is ahead of all: encoders this small show which way an objective pulls, not how good one gets."
    return "The best of them is ahead of BM25."
