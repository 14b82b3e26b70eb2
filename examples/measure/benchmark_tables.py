"""Tables of what `make bench` measures, for the guide guides/cost.md."""

from __future__ import annotations

from typing import Any

SIDES = {"retromae": "RetroMAE", "mlm": "plain MLM", "pretense": "pretense"}


def summary(benchmarks: list[dict[str, Any]]) -> str:
    """How long a step takes beside plain masked language modelling, in two sentences."""
    steps = [
        f"{step['seconds']['retromae'] / step['seconds']['mlm']:.2f} times as long at "
        f"{encoder(one).replace('x', 'layers x')} and {step['length']} tokens"
        for one in benchmarks[:2]
        for step in one["step"][:1]
    ]
    return (
        f"On a CPU a training step of RetroMAE takes {' and '.join(steps)} as one of masked language modelling. "
        "The authors of BoW-DPR (arXiv 2401.11248) found 1.68 times with the released code, whose loader makes the "
        "masks in Python."
    )


def steps(benchmarks: list[dict[str, Any]]) -> str:
    """Seconds and peak memory of a step: a row for each encoder, batch and length of passage."""
    lines = [
        "| encoder | tokens a batch | tokens a passage | RetroMAE, s | plain MLM, s | ratio | RetroMAE, MB | "
        "plain MLM, MB | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for report in benchmarks:
        seconds = {row["length"]: row["seconds"] for row in report.get("step", [])}
        memory = {row["length"]: row["peak_bytes"] for row in report.get("memory", [])}
        for length in sorted(seconds | memory):
            cells = [*_pair(seconds.get(length), 1, 3), *_pair(memory.get(length), 2**20, 0)]
            batch = f"{report['setting']['tokens_per_batch']:,}"
            lines.append(f"| {encoder(report)} | {batch} | {length:,} | {' | '.join(cells)} |")
    turns = "; ".join(
        f"{one['rounds']} turns with dropout {one['dropout']:g} in batches of {one['tokens_per_batch']:,} tokens"
        for one in {report["setting"]["tokens_per_batch"]: report["setting"] for report in benchmarks}.values()
    )
    return "\n".join([*lines, "", f"{conditions(benchmarks[0])} Medians of {turns}."])


def collators(report: dict[str, Any]) -> str:
    """Passages a second, and bytes that a passage takes to the device."""
    names = SIDES.values()
    lines = [
        f"| tokens a passage | {' | '.join(f'{name}, passages a second' for name in names)} | "
        f"{' | '.join(f'{name}, bytes a passage' for name in names)} |",
        "|---:|" + "---:|" * (2 * len(SIDES)),
    ]
    for row in report["collator"]:
        figures = [f"{row[what][side]:,.0f}" for what in ("passages_per_second", "bytes_per_passage") for side in SIDES]
        lines.append(f"| {row['length']} | {' | '.join(figures)} |")
    version = report["environment"]["pretense"]
    return "\n".join([*lines, "", f"At {encoder(report)}, as above; pretense is version {version}."])


def conditions(report: dict[str, Any]) -> str:
    """What the figures hold for."""
    setting, environment = report["setting"], report["environment"]
    return (
        f"{environment['machine']}, {environment['threads']} threads, torch {environment['torch']}, "
        f"{setting['dtype']}, {setting['encoder_mask_ratio']:.0%} masked. Plain MLM is `BertForMaskedLM` with "
        "`DataCollatorForLanguageModeling`."
    )


def encoder(report: dict[str, Any]) -> str:
    """Its layers and its width."""
    return f"{report['setting']['num_hidden_layers']} x {report['setting']['hidden_size']}"


def _pair(values: dict[str, float] | None, scale: float, digits: int) -> list[str]:
    if values is None:
        return ["", "", ""]
    ours, theirs = values["retromae"], values["mlm"]
    return [f"{ours / scale:,.{digits}f}", f"{theirs / scale:,.{digits}f}", f"{ours / theirs:.2f}"]
