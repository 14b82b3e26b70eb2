"""How much of a batch is padding where documents have any length, and so how much packing could save at most.

    python examples/measure/padding.py     # writes runs/benchmark/padding.json

Lengths are drawn log-uniformly, since short documents are many and long ones few, and batched by `Trainer`'s samplers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import RandomSampler, Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from retromae_hf.data.disk import write_json

DOCUMENTS, SHORTEST = 20_000, 128
LONGEST = (512, 2048, 8192)
BATCHES = (4, 32)
OUTPUT = Path("runs/benchmark/padding.json")


def main() -> None:
    report = measure()
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    write_json(OUTPUT, report)
    print(f"{table(report)}\n\n{conditions(report)}")


def measure(documents: int = DOCUMENTS) -> dict:
    """Shares of padding, by the longest document and the batch size."""
    rows = []
    for longest in LONGEST:
        drawn = np.random.default_rng(0).uniform(np.log(SHORTEST), np.log(longest), documents)
        lengths = np.exp(drawn).astype(int).tolist()
        for batch in BATCHES:
            generator = torch.Generator().manual_seed(0)
            samplers: dict[str, Sampler[int]] = {
                "random": RandomSampler(lengths, generator=generator),
                "grouped": LengthGroupedSampler(batch, lengths=lengths, generator=generator),
            }
            shares = {name: share_of_padding(lengths, list(order), batch) for name, order in samplers.items()}
            rows.append({"longest": longest, "batch_size": batch, "padding_share": shares})
    return {"documents": documents, "shortest": SHORTEST, "rows": rows}


def share_of_padding(lengths: list[int], order: list[int], batch: int) -> float:
    """Of all positions of the batches, those that hold no token."""
    batches = [[lengths[row] for row in order[start : start + batch]] for start in range(0, len(order), batch)]
    return 1 - sum(lengths) / sum(max(one) * len(one) for one in batches)


def table(report: dict) -> str:
    lines = [
        "| tokens of a document | documents a batch | in random order | grouped by length |",
        "|---|---:|---:|---:|",
    ]
    for row in report["rows"]:
        shares = " | ".join(f"{row['padding_share'][name]:.1%}" for name in ("random", "grouped"))
        lines.append(f"| {report['shortest']} to {row['longest']:,} | {row['batch_size']} | {shares} |")
    return "\n".join(lines)


def conditions(report: dict) -> str:
    return f"Share of padding in the batches of {report['documents']:,} documents whose lengths are log-uniform."


if __name__ == "__main__":
    main()
