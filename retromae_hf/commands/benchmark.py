"""`retromae-hf benchmark`: what RetroMAE costs beside plain masked language modelling."""

from __future__ import annotations

import dataclasses
import json
import platform
import shlex
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from ..data.pydocs import load_pydocs
from ..data.tokenizers import train_wordpiece
from ..model.configuration_retromae import check_ratio
from ..model.errors import RetroMAEError, check_at_least
from ..studies.benchmark import (
    PRETENSE,
    SHAPES,
    SIDES,
    Setting,
    import_pretense,
    measure_collators,
    measure_matmul,
    measure_memory,
    measure_steps,
    measure_trainer,
    new_tokenizer,
)
from .common import command, parse, writable

PARTS = ("collator", "step", "memory", "trainer")
TRAINER_TEXTS = 3000


@dataclass
class BenchmarkArguments:
    """Arguments of `retromae-hf benchmark`."""

    shape: str = field(default="small", metadata={"help": "Encoder: small (6 layers x 384) or base (12 x 768)."})
    lengths: list[int] = field(
        default_factory=lambda: [128, 512], metadata={"help": "Tokens a passage; several give the growth with it."}
    )
    tokens_per_batch: int = field(default=1024, metadata={"help": "Tokens a batch, the same at every length."})
    encoder_mask_ratio: float = field(default=0.3, metadata={"help": "Share of the tokens masked for the encoder."})
    dropout: float = field(
        default=0.1, metadata={"help": "Dropout of both; 0 lets attention run without its weights in memory."}
    )
    parts: list[str] = field(
        default_factory=lambda: list(PARTS), metadata={"help": f"What to measure: {', '.join(PARTS)}."}
    )
    device: str | None = field(default=None, metadata={"help": "cpu or cuda; default: cuda where there is one."})
    dtype: str | None = field(
        default=None, metadata={"help": "float32 or bfloat16; default: bfloat16 on a GPU, else float32."}
    )
    compile: bool = field(default=False, metadata={"help": "Compile both models with torch.compile."})
    rounds: int = field(default=5, metadata={"help": "Turns that each side takes."})
    against: str | None = field(default=None, metadata={"help": "A third side: pretense, where it is installed."})
    output: str = field(default="runs/benchmark.json", metadata={"help": "JSON file to write the results to."})

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise RetroMAEError(f"shape={self.shape!r} is unknown; choose one of {', '.join(SHAPES)}")
        if unknown := set(self.parts) - set(PARTS):
            raise RetroMAEError(
                f"parts has unknown entries, {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}"
            )
        if self.against not in (None, PRETENSE):
            raise RetroMAEError(f"against={self.against!r} is unknown; it can be {PRETENSE}")
        if self.against == PRETENSE:
            import_pretense()
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if self.device not in ("cpu", "cuda") or (self.device == "cuda" and not torch.cuda.is_available()):
            raise RetroMAEError(f"device={self.device!r} is not to be had here; use cpu, or cuda where there is one")
        self.dtype = self.dtype or ("bfloat16" if self.device == "cuda" else "float32")
        if self.dtype not in ("float32", "bfloat16"):
            raise RetroMAEError(f"dtype={self.dtype!r} is unknown; choose float32 or bfloat16")
        check_at_least(1, rounds=self.rounds, tokens_per_batch=self.tokens_per_batch)
        check_at_least(8, **{"the least of lengths": min(self.lengths, default=0)})
        check_ratio("encoder_mask_ratio", self.encoder_mask_ratio)

    def setting(self) -> Setting:
        """What the measurements share."""
        return Setting(**{one.name: getattr(self, one.name) for one in dataclasses.fields(Setting)})


@command
def main(argv: list[str] | None = None) -> None:
    """Measure, print a table and write the results."""
    (args,) = parse("benchmark", "Measure RetroMAE beside plain masked language modelling.", [BenchmarkArguments], argv)
    output = writable(args.output)
    arguments = sys.argv[1:] if argv is None else argv
    report = {"command": shlex.join(["retromae-hf", "benchmark", *arguments]), **run(args)}
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{table(report)}\n\n{conditions(report)} The figures are in {output}.")


def run(args: BenchmarkArguments) -> dict[str, Any]:
    """All that was asked for."""
    setting, tokenizer = args.setting(), new_tokenizer()
    # Steps are set against it.
    matmul_rate = measure_matmul(setting) if {"step", "trainer"} & set(args.parts) else 0.0
    report: dict[str, Any] = {
        "setting": dataclasses.asdict(setting) | SHAPES[args.shape] | {"against": args.against},
        "environment": {
            "machine": torch.cuda.get_device_name() if args.device == "cuda" else _processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            **({PRETENSE: version(PRETENSE)} if args.against else {}),
        },
        "matmul_flops_per_second": matmul_rate or None,
        **{part: [] for part in args.parts},
    }
    if "trainer" in args.parts:
        texts = load_pydocs()["text"][:TRAINER_TEXTS]
        words = train_wordpiece(texts, 8192, max(args.lengths))
    for length in args.lengths:
        if "collator" in args.parts:
            report["collator"].append(measure_collators(setting, tokenizer, length, args.against))
        if "step" in args.parts:
            report["step"].append(measure_steps(setting, tokenizer, length, args.against, matmul_rate))
        if "memory" in args.parts:
            report["memory"].append(measure_memory(setting, length))
        if "trainer" in args.parts:
            report["trainer"].append(measure_trainer(setting, texts, words, length, matmul_rate))
    return report


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


if __name__ == "__main__":
    sys.exit(main())
