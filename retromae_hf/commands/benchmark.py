"""`retromae-hf benchmark`: what RetroMAE costs beside plain masked language modelling."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field

from ..model.errors import RetroMAEError, check_at_least, check_choice
from .common import command, parse, writable

PARTS = ("collator", "step", "memory", "trainer")
PROFILE = "profile"
"""What is measured only where it is asked for."""


@dataclass
class BenchmarkArguments:
    """Arguments of `retromae-hf benchmark`."""

    shape: str = field(
        default="small", metadata={"help": "Encoder: small (6 layers x 384), base (12 x 768) or tiny (2 x 32)."}
    )
    lengths: list[int] = field(
        default_factory=lambda: [128, 512], metadata={"help": "Tokens a passage; several give the growth with it."}
    )
    tokens_per_batch: int = field(default=1024, metadata={"help": "Tokens a batch, the same at every length."})
    encoder_mask_ratio: float = field(default=0.3, metadata={"help": "Share of the tokens masked for the encoder."})
    dropout: float = field(
        default=0.1, metadata={"help": "Dropout of both; 0 lets attention run without its weights in memory."}
    )
    parts: list[str] = field(
        default_factory=lambda: list(PARTS),
        metadata={"help": f"What to measure: {', '.join(PARTS)}, or {PROFILE}: where a step's time goes on a CPU."},
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
        import torch

        from ..model.configuration_retromae import check_ratio
        from ..studies.benchmark import PRETENSE, SHAPES, import_pretense

        check_choice("shape", self.shape, SHAPES)
        known = (*PARTS, PROFILE)
        if unknown := set(self.parts) - set(known):
            raise RetroMAEError(
                f"parts has unknown entries, {', '.join(sorted(unknown))}; there are {', '.join(known)}"
            )
        if self.against not in (None, PRETENSE):
            raise RetroMAEError(f"against={self.against!r} is unknown; it can be {PRETENSE}")
        if self.against == PRETENSE:
            import_pretense()
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if self.device not in ("cpu", "cuda") or (self.device == "cuda" and not torch.cuda.is_available()):
            raise RetroMAEError(f"device={self.device!r} is not to be had here; use cpu, or cuda where there is one")
        if PROFILE in self.parts and (self.device == "cuda" or self.compile):
            raise RetroMAEError("the profile is of a plain step on a CPU; give --device cpu, without --compile")
        self.dtype = self.dtype or ("bfloat16" if self.device == "cuda" else "float32")
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        check_at_least(1, rounds=self.rounds, tokens_per_batch=self.tokens_per_batch)
        check_at_least(8, **{"the least of lengths": min(self.lengths, default=0)})
        check_ratio("encoder_mask_ratio", self.encoder_mask_ratio)


@command
def main(argv: list[str] | None = None) -> None:
    """Measure, print a table and write the results."""
    (args,) = parse("benchmark", "Measure RetroMAE beside plain masked language modelling.", [BenchmarkArguments], argv)
    from ..data.reading.whole_files import write_json
    from ..studies.benchmark import Setting
    from ..studies.benchmark_report import conditions, measure, table

    output = writable(args.output)
    setting = Setting(**{name: getattr(args, name) for name in Setting.__dataclass_fields__})
    arguments = sys.argv[1:] if argv is None else argv
    measured = measure(setting, args.parts, args.lengths, args.against)
    report = {"command": shlex.join(["retromae-hf", "benchmark", *arguments]), **measured}
    write_json(output, report)
    print(f"{table(report)}\n\n{conditions(report)} The figures are in {output}.")


if __name__ == "__main__":
    sys.exit(main())
