"""The results of from_scratch.py as a table and a picture; the README's are drawn by the same code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROWS = {"untrained": "untrained", "mlm": "MLM", "retromae": "RetroMAE", "bm25": "BM25"}
STAGES = {"zero_shot": "zero-shot", "finetuned": "tuned"}
MEASURES = {"ndcg@10": "nDCG@10", "mrr@10": "MRR@10", "recall@100": "Recall@100"}
COLOURS = {"untrained": "#b8b8b8", "mlm": "#6f9bd1", "retromae": "#d1495b", "bm25": "#444444"}


def table(report: dict[str, Any]) -> str:
    """A Markdown table that a terminal shows well too: a row an encoder, zero-shot and fine-tuned."""
    header = ["", *(f"{stage} {measure}" for stage in STAGES.values() for measure in MEASURES.values())]
    rows = [header]
    for row, name in ROWS.items():
        measured = [report["results"][row].get(stage) for stage in STAGES]
        rows.append([name, *(f"{one[measure]:.3f}" if one else "-" for one in measured for measure in MEASURES)])
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(header))]
    padded = [[cell.rjust(width) for cell, width in zip(cells, widths, strict=True)] for cells in rows]
    lines = [f"| {' | '.join(cells)} |" for cells in padded]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(lines)


def searches(report: dict[str, Any]) -> str:
    return "\n\n".join(f"$ {search['command']}\n{search['output']}" for search in report["searches"])


def conditions(report: dict[str, Any]) -> str:
    task, environment, settings = report["task"], report["environment"], report["settings"]
    pretraining, finetuning = settings["pretraining"], settings["finetuning"]
    return (
        f"{task['num_queries']:,} first sentences against {task['num_documents']:,} bodies of docstrings. The encoder: "
        f"{settings['num_hidden_layers']} layers x {settings['hidden_size']}, vocabulary {settings['vocab_size']:,}, "
        f"from scratch; {pretraining['max_steps']} steps of {pretraining['per_device_train_batch_size']} passages of "
        f"at most {settings['max_length']} tokens; tuned: {finetuning['max_steps']} contrastive steps of "
        f"{finetuning['per_device_train_batch_size']} pairs; one seed, settings tried out on "
        f"this same task. Device {environment['device']}, "
        f"{environment['threads']} threads, {report['seconds']['total']:.0f} s in all."
    )


def draw(report: dict[str, Any], file: Path) -> None:
    """Draw the losses, what the embedding is worth to the decoder, and the comparison, side by side."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (losses, gap, bars) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for row, part, label, style in (
        ("mlm", "mlm_loss", "MLM: encoder", "-"),
        ("retromae", "mlm_loss", "RetroMAE: encoder", "-"),
        ("retromae", "decoder_loss", "RetroMAE: decoder", "--"),
    ):
        losses.plot(*_curve(report, row, part), style, color=COLOURS[row], label=label)
    losses.set(title="Training loss", xlabel="step", ylabel="nats a token")
    losses.legend(frameon=False)

    gap.plot(*_curve(report, "retromae", "eval_embedding_gap"), "o-", color=COLOURS["retromae"])
    gap.set(title="RetroMAE: embedding gap", xlabel="step", ylabel="nats a token")
    gap.set_xlim(left=0)
    gap.set_ylim(bottom=0)

    measure = "mrr@10"
    encoders = [row for row in ROWS if row != "bm25"]
    for offset, (stage, label, strength) in enumerate(
        (("zero_shot", "zero-shot", 0.45), ("finetuned", "fine-tuned", 1))
    ):
        values = [report["results"][row][stage][measure] for row in encoders]
        places = [place + 0.4 * offset - 0.2 for place in range(len(encoders))]
        drawn = bars.bar(places, values, 0.38, color=[COLOURS[row] for row in encoders], alpha=strength)
        bars.bar_label(drawn, [f"{value:.3f}" for value in values], fontsize=8)
        bars.bar(0, 0, color="grey", alpha=strength, label=label)
    bm25 = report["results"]["bm25"]["zero_shot"][measure]
    bars.axhline(bm25, color=COLOURS["bm25"], linestyle=":", label=f"BM25 {bm25:.3f}")
    bars.set_xticks(range(len(encoders)), [ROWS[row] for row in encoders])
    task = report["task"]
    bars.set(title=f"MRR@10, {task['num_queries']:,} queries in {task['num_documents']:,} documents")
    bars.legend(frameon=False)
    for axes in (losses, gap, bars):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _curve(report: dict[str, Any], row: str, name: str) -> tuple[list[int], list[float]]:
    entries = [entry for entry in report["logs"][row] if name in entry]
    return [entry["step"] for entry in entries], [entry[name] for entry in entries]
