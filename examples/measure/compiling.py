"""What `--torch_compile` costs and brings here: seconds of compiling, and a step compiled and plain in turns.

    python examples/measure/compiling.py     # writes runs/benchmark/compiling.json; a quarter of an hour on a CPU

Batches of three lengths come one after the other, as a run grouped by length has them.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import torch
from benchmark import SHAPES, Setting, batches_of, new_model, new_tokenizer, random_passages, step_of, take_turns
from benchmark_report import describe_machine

from retromae_hf.data.disk import write_json

LENGTHS = (128, 96, 64)
OUTPUT = Path("runs/benchmark/compiling.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    report = measure(Setting(shape=args.shape))
    write_json(args.output, report)
    print(*report["rows"], f"The figures are in {args.output}.", sep="\n")


def measure(setting: Setting) -> dict:
    """Seconds of the first step at each length, graphs compiled by then, and seconds of a later step."""
    tokenizer = new_tokenizer()
    batches = {
        length: batches_of(setting, tokenizer, random_passages(length, setting.batch_size(length)), None)["retromae"]
        for length in LENGTHS
    }
    sides = {"plain": setting, "compiled": dataclasses.replace(setting, compile=True)}
    models = {name: new_model(side, max(LENGTHS), "retromae") for name, side in sides.items()}
    graphs = torch._dynamo.utils.counters["stats"]
    rows = []
    for length, batch in batches.items():
        steps = {name: step_of(side, models[name], batch) for name, side in sides.items()}
        before, started = graphs["unique_graphs"], time.perf_counter()
        steps["compiled"]()
        first = time.perf_counter() - started
        rows.append(
            {
                "length": length,
                "graphs": graphs["unique_graphs"] - before,
                "first_step_seconds": first,
                "seconds": take_turns(steps, setting.rounds, f"steps, {length}"),
            }
        )
    machine = describe_machine(setting.device)
    return {"setting": dataclasses.asdict(setting) | SHAPES[setting.shape], "environment": machine, "rows": rows}


if __name__ == "__main__":
    main()
