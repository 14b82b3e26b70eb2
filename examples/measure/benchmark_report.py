"""A benchmark's measurements put together: the report, and a Markdown table of it."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from benchmark import (
    PARTS,
    PRETENSE,
    PROFILE,
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
    measures: dict[str, Callable[[int], dict[str, Any]]] = {
        "collator": lambda length: measure_collators(setting, tokenizer, length, against),
        "step": lambda length: measure_steps(setting, tokenizer, length, against, matmul_rate),
        "memory": lambda length: measure_memory(setting, length),
        "profile": lambda length: measure_profile(setting, length),
        "trainer": lambda length: measure_trainer(setting, texts, words, length, matmul_rate),
    }
    for length in lengths:
        for part in parts:
            report[part].append(measures[part](length))
    return report


def describe_machine(device: str) -> dict[str, Any]:
    return {
        "machine": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or "cpu")


SCALES = {"flops": 1e9, "peak_bytes": 2**20}
"""GFLOP and MB are shown."""


def table(rows: Mapping[str, Mapping[str, Any]], sides: Sequence[str] = SIDES) -> str:
    """What was measured as a Markdown table: a line for each figure of each row, with the sides beside each other."""
    lines = [f"| what | figure | {' | '.join(sides)} | retromae / mlm |", "|---|---|" + "---:|" * (len(sides) + 1)]
    for what, row in rows.items():
        if "refused" in row:
            lines.append(f"| {what} | not measured: {row['refused']} |{' |' * (len(sides) + 1)}")
        figures = {
            name: value for name, value in row.items() if isinstance(value, int | float | dict) and name != "length"
        }
        by_part = figures.pop("seconds_by_part", {})
        for part in by_part.get("retromae", ()):
            figures[f"seconds, {part}"] = {side: parts[part] for side, parts in by_part.items() if part in parts}
        for name, value in figures.items():
            values = value if isinstance(value, dict) else {"retromae": value}
            scaled = {side: value / SCALES.get(name, 1) for side, value in values.items()}
            forms = {side: ",.0f" if value >= 100 else ".3g" for side, value in scaled.items()}
            cells = [f"{scaled[side]:{forms[side]}}" if side in scaled else "" for side in sides]
            ratio = f"{values['retromae'] / values['mlm']:.2f}" if {*SIDES} <= values.keys() else ""
            lines.append(f"| {what} | {name} | {' | '.join(cells)} | {ratio} |")
    return "\n".join(lines)


def show(report: dict[str, Any]) -> str:
    """A report's table, and what its figures hold for."""
    rows = {f"{part}, {row['length']} tokens": row for part in (*PARTS, PROFILE) for row in report.get(part, [])}
    against = report["setting"]["against"]
    return f"{table(rows, [*SIDES, *([against] if against else [])])}\n\n{conditions(report)}"


def conditions(report: dict[str, Any]) -> str:
    setting, environment = report["setting"], report["environment"]
    return (
        f"Medians of {setting['rounds']} turns on {environment['machine']} ({environment['threads']} threads, torch "
        f"{environment['torch']}, {setting['dtype']}{', compiled' if setting['compile'] else ''}); "
        f"{setting['num_hidden_layers']} layers x {setting['hidden_size']}, {setting['tokens_per_batch']:,} tokens a "
        f"batch, {setting['encoder_mask_ratio']:.0%} masked, dropout {setting['dropout']:g}. Plain MLM is "
        "`BertForMaskedLM` with `DataCollatorForLanguageModeling`."
        + (f" pretense is version {environment['pretense']}." if setting["against"] else "")
    )
