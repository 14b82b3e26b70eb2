"""Two comparisons for the README: of encoders from scratch, and of an encoder that is tuned for retrieval already."""

from __future__ import annotations

from typing import Any

from retromae_hf.publishing.record import public_name
from retromae_hf.studies.comparison_report import SIGNIFICANT, TITLES, cell

TASK, MEASURE = "pydocs", "mrr@10"
ROWS = {"untrained": "not pretrained", "mlm": "pretrained with MLM", "retromae": "pretrained with **RetroMAE**"}


def block(tuned: dict[str, Any], scratch: dict[str, Any]) -> str:
    """Both comparisons on one task: first the case that RetroMAE is for, then the one that it is not for.

    Args:
        tuned: the results of a comparison that starts from an encoder that was tuned for retrieval.
        scratch: of one that starts from nothing.
    """
    start = public_name(tuned["recipe"]["model"]["model_name_or_path"]).rpartition("/")[2]
    reports = {"from scratch": scratch, start: tuned}
    columns = [f"{name}, {title}" for name in reports for title in TITLES.values()]
    lines = [f"| MRR@10 | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for row, name in ROWS.items():
        cells = [cell(measured(report, row, stage)) for report in reports.values() for stage in TITLES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    bm25 = [f"{report['tasks'][TASK]['bm25'][MEASURE]:.3f} | |" for report in reports.values()]
    return "\n".join(
        [
            *lines,
            f"| BM25 | {' '.join(bm25)}",
            "",
            f"- **Encoders that nobody tuned for retrieval.** {from_scratch(scratch)} {conditions(scratch)}",
            f"- **Encoders that are tuned for retrieval already.** {verdict(tuned, start)} {conditions(tuned)}",
        ]
    )


def measured(report: dict[str, Any], row: str, stage: str) -> dict[str, Any]:
    """The figures of an objective."""
    return report["objectives"][row][stage][TASK][MEASURE]


def conditions(report: dict[str, Any]) -> str:
    """What was compared."""
    recipe, task, environment = report["recipe"], report["tasks"][TASK], report["environment"]
    device = f"{environment['threads']} CPU threads" if environment["device"] == "cpu" else environment["device"]
    start = report["recipe"]["model"]
    layers = f"{start['num_hidden_layers']} layers x {start['hidden_size']}; " if "hidden_size" in start else ""
    reference = {"untrained": "the encoder as it was", "mlm": "MLM"}[recipe["reference"]]
    return (
        f"({task['num_queries']:,} first sentences of Python documentation as queries, {task['num_documents']:,} "
        f"bodies as documents; {layers}{recipe['pretraining']['max_steps']:,} steps of pretraining, "
        f"{recipe['finetuning']['max_steps']:,} of fine-tuning; {device}; mean ± standard deviation over "
        f"{len(recipe['seeds'])} seeds; * differs from {reference} with p < {SIGNIFICANT} in a paired test.)"
    )


def verdict(report: dict[str, Any], start: str) -> str:
    """Whether pretraining has paid on an encoder that was tuned already."""
    ours, alone = measured(report, "retromae", "finetuned"), measured(report, "untrained", "finetuned")
    if ours["mean"] > alone["mean"]:
        return f"Pretraining {start} before fine-tuning it gives more than fine-tuning it alone."
    return f"RetroMAE is not for them: {start} is better fine-tuned at once, which `adapt` does."


def from_scratch(report: dict[str, Any]) -> str:
    """What pretraining gives where nothing was tuned."""
    ours, theirs = (measured(report, row, "finetuned") for row in ("retromae", "mlm"))
    wins = sum(one > other for one, other in zip(ours["seeds"], theirs["seeds"], strict=True))
    bm25 = report["tasks"][TASK]["bm25"][MEASURE]
    seconds = {row: report["objectives"][row]["seconds"] for row in ("retromae", "mlm")}
    told = (
        f"After as many steps and the same fine-tuning RetroMAE reaches {ours['mean']:.3f} where MLM reaches "
        f"{theirs['mean']:.3f}, and is ahead in {wins} of {len(ours['seeds'])} seeds. Its pretraining took "
        f"{seconds['retromae']:,.0f} s, that of MLM {seconds['mlm']:,.0f} s."
    )
    return f"{told} BM25 is ahead of encoders this small." if bm25 > ours["mean"] else told
