"""A benchmark's measurements put together: the report, and a Markdown table of it."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable
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


ROWS = {
    "collator": {
        "collator, passages a second": ("passages_per_second", 1, ",.0f"),
        "bytes shipped a passage": ("bytes_per_passage", 1, ",.0f"),
    },
    "step": {
        "step, seconds": ("seconds", 1, ".3f"),
        "step, GFLOP": ("flops", 1e9, ",.1f"),
        "step, share of the matrix product's rate": ("utilisation", 1, ".2f"),
    },
    "memory": {"peak memory of a step, MB": ("peak_bytes", 2**20, ",.0f")},
    "trainer": {
        "`Trainer`, tokens a second": ("tokens_per_second", 1, ",.0f"),
        "`Trainer`, share of the matrix product's rate": ("utilisation", 1, ".2f"),
        "`Trainer`, tokens lost to padding": ("padding_share", 1, ".1%"),
    },
}
"""What is shown of each part: where it lies, what it is divided by, and its form."""


def table(report: dict[str, Any]) -> str:
    against = report["setting"]["against"]
    sides = [*SIDES, *([against] if against else [])]
    titles = {"retromae": "RetroMAE", "mlm": "plain MLM", PRETENSE: "pretense"}
    lines = [
        f"| what | tokens a passage | {' | '.join(titles[side] for side in sides)} | RetroMAE / plain |",
        "|---|---:|" + "---:|" * (len(sides) + 1),
    ]

    def add(what: str, length: int, values: dict[str, float], form: str) -> None:
        cells = [f"{values[side]:{form}}" if side in values else "" for side in sides]
        ratio = f"{values['retromae'] / values['mlm']:.2f}" if {*SIDES} <= values.keys() else ""
        lines.append(" ".join(f"| {what} | {length} | {' | '.join(cells)} | {ratio} |".split()))

    for part, rows in ROWS.items():
        for row in report.get(part, []):
            for what, (name, scale, form) in rows.items():
                values = row[name] if isinstance(row[name], dict) else {"retromae": row[name]}
                add(what, row["length"], {side: value / scale for side, value in values.items()}, form)
    for row in report.get("profile", []):
        seconds = {side: parts | {"all": sum(parts.values())} for side, parts in row["seconds_by_part"].items()}
        for part in seconds["retromae"]:
            values = {side: parts[part] for side, parts in seconds.items() if part in parts}
            add(f"{part}, seconds a step", row["length"], values, ",.3f")
    return "\n".join(lines)


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
