"""A benchmark's measurements put together: the report, and a Markdown table of it."""

from __future__ import annotations

import dataclasses
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from benchmark import (
    PRETENSE,
    SHAPES,
    SIDES,
    Setting,
    measure_collators,
    measure_matmul,
    measure_memory,
    measure_steps,
    measure_trainer,
    new_tokenizer,
)
from step_profile import measure_profile

from retromae_hf.data.pydocs import load_pydocs
from retromae_hf.data.tokenizers import train_wordpiece

TRAINER_TEXTS = 3000


def measure(setting: Setting, parts: list[str], lengths: list[int], against: str | None) -> dict[str, Any]:
    """All that was asked for.

    Args:
        setting: what the measurements share.
        parts: what to measure: collator, step, memory, trainer, profile.
        lengths: tokens a passage.
        against: a third side, or None.
    """
    tokenizer = new_tokenizer()
    # Steps are set against it.
    matmul_rate = measure_matmul(setting) if {"step", "trainer"} & set(parts) else 0.0
    report: dict[str, Any] = {
        "setting": dataclasses.asdict(setting) | SHAPES[setting.shape] | {"against": against},
        "environment": describe_machine(setting.device) | ({PRETENSE: version(PRETENSE)} if against else {}),
        "matmul_flops_per_second": matmul_rate or None,
        **{part: [] for part in parts},
    }
    if "trainer" in parts:
        texts = load_pydocs()["text"][:TRAINER_TEXTS]
        words = train_wordpiece(texts, 8192, max(lengths))
    for length in lengths:
        if "collator" in parts:
            report["collator"].append(measure_collators(setting, tokenizer, length, against))
        if "step" in parts:
            report["step"].append(measure_steps(setting, tokenizer, length, against, matmul_rate))
        if "memory" in parts:
            report["memory"].append(measure_memory(setting, length))
        if "profile" in parts:
            report["profile"].append(measure_profile(setting, length))
        if "trainer" in parts:
            report["trainer"].append(measure_trainer(setting, texts, words, length, matmul_rate))
    return report


def describe_machine(device: str) -> dict[str, Any]:
    """What the measurements ran on."""
    return {
        "machine": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    """The CPU's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or "cpu")


def table(report: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    against = report["setting"]["against"]
    sides = [*SIDES, *([against] if against else [])]
    titles = {"retromae": "RetroMAE", "mlm": "plain MLM", PRETENSE: "pretense"}
    lines = [
        f"| what | tokens a passage | {' | '.join(titles[side] for side in sides)} | RetroMAE / plain |",
        "|---|---:|" + "---:|" * (len(sides) + 1),
    ]

    def add(what: str, row: dict[str, Any], name: str, scale: float = 1.0, digits: int = 0) -> None:
        values = row[name]
        cells = [f"{values[side] / scale:,.{digits}f}" if side in values else "" for side in sides]
        lines.append(f"| {what} | {row['length']} | {' | '.join(cells)} | {values['retromae'] / values['mlm']:.2f} |")

    for row in report.get("collator", []):
        add("collator, passages a second", row, "passages_per_second")
        add("bytes shipped a passage", row, "bytes_per_passage")
    for row in report.get("step", []):
        add("step, seconds", row, "seconds", digits=3)
        add("step, GFLOP", row, "flops", scale=1e9, digits=1)
        add("step, share of the matrix product's rate", row, "utilisation", digits=2)
    for row in report.get("memory", []):
        add("peak memory of a step, MB", row, "peak_bytes", scale=2**20)
    for row in report.get("profile", []):
        ours, theirs = (row["seconds_by_part"][side] for side in SIDES)
        for part in [*ours, "all"]:
            cells = [sum(side.values()) if part == "all" else side.get(part) for side in (ours, theirs)]
            shown = ["" if seconds is None else f"{seconds:,.3f}" for seconds in cells]
            ratio = "" if None in cells else f"{cells[0] / cells[1]:.2f}"
            blank = " |" * (len(sides) - 2)
            lines.append(f"| {part}, seconds a step | {row['length']} | {' | '.join(shown)} |{blank} {ratio} |")
    for row in report.get("trainer", []):
        blank = " |" * (len(sides) - 1)
        lines.append(f"| `Trainer`, tokens a second | {row['length']} | {row['tokens_per_second']:,.0f} |{blank} |")
        lines.append(
            f"| `Trainer`, share of the matrix product's rate | {row['length']} | {row['utilisation']:.2f} |{blank} |"
        )
        lines.append(f"| `Trainer`, tokens lost to padding | {row['length']} | {row['padding_share']:.1%} |{blank} |")
    return "\n".join(lines)


def conditions(report: dict[str, Any]) -> str:
    """What the figures hold for."""
    setting, environment = report["setting"], report["environment"]
    return (
        f"Medians of {setting['rounds']} turns on {environment['machine']} ({environment['threads']} threads, torch "
        f"{environment['torch']}, {setting['dtype']}{', compiled' if setting['compile'] else ''}); "
        f"{setting['num_hidden_layers']} layers x {setting['hidden_size']}, {setting['tokens_per_batch']:,} tokens a "
        f"batch, {setting['encoder_mask_ratio']:.0%} masked, dropout {setting['dropout']:g}. Plain MLM is "
        "`BertForMaskedLM` with `DataCollatorForLanguageModeling`."
        + (f" pretense is version {environment['pretense']}." if setting["against"] else "")
    )
