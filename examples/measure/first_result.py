"""Two comparisons in a few lines, for the first screen of the README: of an encoder in use, and of one from nothing."""

from __future__ import annotations

from typing import Any

from retromae_hf.publishing.record import public_name
from retromae_hf.studies.comparison_report import SIGNIFICANT, TITLES, cell

TASK, MEASURE = "pydocs", "mrr@10"
ROWS = {"untrained": "as it is", "mlm": "pretrained with MLM", "retromae": "pretrained with **RetroMAE**"}


def block(tuned: dict[str, Any], scratch: dict[str, Any]) -> str:
    """The table of one task, and what the two comparisons show; nothing that they do not.

    Args:
        tuned: the results of a comparison that starts from an encoder that was tuned for retrieval.
        scratch: of one that starts from nothing.
    """
    start = public_name(tuned["recipe"]["model"]["model_name_or_path"]).rpartition("/")[2]
    lines = [f"| {start} | {' MRR@10 | '.join(TITLES.values())} MRR@10 |", "|---|---:|---:|"]
    for row, name in ROWS.items():
        lines.append(f"| {name} | {' | '.join(cell(measured(tuned, row, stage)) for stage in TITLES)} |")
    lines.append(f"| BM25 | {tuned['tasks'][TASK]['bm25'][MEASURE]:.3f} | |")
    return "\n".join([*lines, "", f"{conditions(tuned)} {verdict(tuned, start)} {from_scratch(scratch)}"])


def measured(report: dict[str, Any], row: str, stage: str) -> dict[str, Any]:
    """The figures of an objective."""
    return report["objectives"][row][stage][TASK][MEASURE]


def conditions(report: dict[str, Any]) -> str:
    """What was compared."""
    recipe, task = report["recipe"], report["tasks"][TASK]
    return (
        f"{task['num_queries']:,} first sentences of the documentation in a Python environment look for their bodies "
        f"among {task['num_documents']:,}; {recipe['pretraining']['max_steps']:,} steps of pretraining on that text, "
        f"then {recipe['finetuning']['max_steps']:,} of fine-tuning on its pairs, on one "
        f"{report['environment']['device']}; mean ± standard deviation over {len(recipe['seeds'])} seeds; * differs "
        f"from the encoder as it is with p < {SIGNIFICANT} (paired test)."
    )


def verdict(report: dict[str, Any], start: str) -> str:
    """Whether pretraining has paid on an encoder that was tuned already."""
    ours, alone = measured(report, "retromae", "finetuned"), measured(report, "untrained", "finetuned")
    if ours["mean"] > alone["mean"]:
        return f"Pretraining {start} before fine-tuning it gives more than fine-tuning it alone."
    return (
        f"**An encoder like {start}, which was tuned for retrieval already, is better fine-tuned at once**; "
        "`retromae-hf adapt` does that."
    )


def from_scratch(report: dict[str, Any]) -> str:
    """What pretraining gives where nothing was tuned."""
    ours, theirs = (measured(report, row, "finetuned") for row in ("retromae", "mlm"))
    wins = sum(one > other for one, other in zip(ours["seeds"], theirs["seeds"], strict=True))
    return (
        "RetroMAE is for encoders that were not: of small ones from nothing, fine-tuned alike, it makes "
        f"{ours['mean']:.3f} where MLM makes {theirs['mean']:.3f} (above it in {wins} of {len(ours['seeds'])} seeds; "
        f"BM25 {report['tasks'][TASK]['bm25'][MEASURE]:.3f} of {report['tasks'][TASK]['num_documents']:,} bodies)."
    )
