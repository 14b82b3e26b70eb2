"""Estimates the GPU hours of the recipes in examples/recipes/full-scale/: operations counted, everything else assumed.

Counts the matrix products of one real step of each kind (BERT base, on a CPU) and writes runs/full-scale.json;
examples/measure/publish.py makes model_cards/recipes.md of it. No step of a recipe is run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import benchmark
import torch
import yaml
from transformers import BertModel

COMMANDS = ("pretrain", "finetune", "evaluate")  # the order in which they are needed
RECIPES = {
    file.stem: file
    for command in COMMANDS
    for file in sorted((Path(__file__).parents[1] / "recipes/full-scale").glob(f"{command}-*.yaml"))
}
RESULTS = Path("runs/full-scale.json")
REFERENCE = "Reference, not ours: "

# Assumptions, all of them; recipes.md states them.
GPU, PEAK_FLOPS, SUSTAINED = "A100", 312e12, 0.4
WORDPIECES_PER_WORD = 1.3
GENERAL_WORDS = 3.3e9  # Wikipedia and BookCorpus, as BERT's paper counts them (arXiv 1810.04805, section 3.1)
PASSAGES, PASSAGE_WORDS = 8_841_823, 56
PAIRS, QUERIES = 532_761, 502_939  # of MS MARCO's training set: a contrastive row is a pair, a teacher's is a query
PASSAGE_TOKENS = round(PASSAGE_WORDS * WORDPIECES_PER_WORD) + 2


def main() -> None:
    report = {name: rows | {"flops_per_row": flops_of(rows)} for name, rows in stages().items()}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(report))
    print(f"\n{assumptions()} The counts are in {RESULTS}.")


def stages() -> dict[str, dict[str, Any]]:
    """What each recipe that trains goes through: the texts of a row, the rows of an epoch, and the epochs."""
    found = {}
    for name, file in RECIPES.items():
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
        if "num_train_epochs" not in recipe:
            continue
        if "decoding" in recipe:
            general = recipe["dataset"] == "data/general"
            tokens = recipe["max_length"] if general else PASSAGE_TOKENS
            rows = round(GENERAL_WORDS * WORDPIECES_PER_WORD / (tokens - 2)) if general else PASSAGES
            row = {"step": "pretraining", "texts": {str(tokens): 1}, "rows": rows}
        else:
            texts = {str(recipe["query_length"]): 1, str(PASSAGE_TOKENS): 1 + recipe["num_negatives"]}
            contrastive = recipe["objective"] == "contrastive"
            row = {"step": recipe["objective"], "texts": texts, "rows": PAIRS if contrastive else QUERIES}
        found[name] = row | {"epochs": recipe["num_train_epochs"]}
    return found


def flops_of(row: dict[str, Any]) -> int:
    count = {"pretraining": pretraining_flops, "contrastive": cached_flops}.get(row["step"], encoder_flops)
    return sum(number * count(int(tokens)) for tokens, number in row["texts"].items())


def pretraining_flops(length: int) -> int:
    setting = benchmark.Setting(shape="base", tokens_per_batch=length, dropout=0.0)
    rows = benchmark.random_passages(length, 1)
    batch = benchmark.batches_of(setting, benchmark.new_tokenizer(), rows, None)["retromae"]
    model = benchmark.new_model(setting, length, "retromae").train()
    return benchmark.count_flops(lambda: model(**batch).loss.backward())


def encoder_flops(length: int, backward: bool = True) -> int:
    """The encoder alone on one text, as fine-tuning has it."""
    setting = benchmark.Setting(shape="base", dropout=0.0)
    model = BertModel(setting.encoder_config(length), add_pooling_layer=False).train()
    ids = torch.full((1, length), 7)
    if backward:
        return benchmark.count_flops(lambda: model(ids).last_hidden_state[:, 0].sum().backward())
    with torch.no_grad():
        return benchmark.count_flops(lambda: model(ids))


def cached_flops(length: int) -> int:
    """GradCache encodes every text once more without gradients, so that a batch may be of any size."""
    return encoder_flops(length) + encoder_flops(length, backward=False)


def hours(row: dict[str, Any]) -> float:
    return row["rows"] * row["epochs"] * row["flops_per_row"] / (PEAK_FLOPS * SUSTAINED) / 3600


def page(report: dict[str, Any], utilisation: float) -> str:
    """model_cards/recipes.md.

    Args:
        report: what `main` wrote.
        utilisation: share of the matrix product's rate that our own benchmark's step of this encoder has on a CPU.
    """
    return f"""<!-- written by examples/measure/publish.py -->
# Full-scale recipes: not yet trained

The papers' runs, ready to launch on 8 GPUs: each recipe begins with the commands that prepare its data and launch it.
**None was run here**: the figures in the last column are the authors', not ours.

{references()}

Known differences from the authors' runs: the passages of MS MARCO have no titles; the first round's negatives and the
teacher's scores are those that sentence-transformers publishes; hard negatives are drawn once, not in every epoch;
the second round continues from the first, and the distillation from the second with its settings.

## What they would cost

{table(report)}

{assumptions()}

For comparison, a training step of this encoder reaches {utilisation:.0%} of the rate of a large matrix product on the
CPU of our own benchmark (model_cards/benchmark/base.json).
"""


def references() -> str:
    """What each recipe says of itself, and the authors' figures beside it."""
    lines = ["| recipe | what | reference, not ours |", "|---|---|---|"]
    for name, file in RECIPES.items():
        comments = [line[2:] for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
        (reference,) = (line.removeprefix(REFERENCE) for line in comments if line.startswith(REFERENCE))
        lines.append(f"| [`{name}`](../examples/recipes/full-scale/{file.name}) | {comments[0]} | {reference} |")
    return "\n".join(lines)


def table(report: dict[str, Any]) -> str:
    lines = [
        f"| recipe | rows an epoch | epochs | tokens in all, billions | TFLOP a row | GPU hours ({GPU}), estimate |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in report.items():
        tokens = sum(int(length) * number for length, number in row["texts"].items()) * row["rows"] * row["epochs"]
        lines.append(
            f"| `{name}` | {row['rows']:,} | {row['epochs']} | {tokens / 1e9:.1f} | {row['flops_per_row'] / 1e12:.3f} "
            f"| {hours(row):,.0f} |"
        )
    return "\n".join(lines)


def assumptions() -> str:
    return (
        "Estimate, not measured: matrix products of forward and backward of BERT base, counted on one real row, times "
        f"the rows, at {SUSTAINED:.0%} of an {GPU}'s {PEAK_FLOPS / 1e12:.0f} TFLOP/s in bfloat16, which is an "
        f"assumption. So are {GENERAL_WORDS / 1e9:.1f} billion words of Wikipedia and BookCorpus, {PASSAGE_WORDS} "
        f"words a passage of MS MARCO and {WORDPIECES_PER_WORD} WordPieces a word. Queries count at their full "
        "length; padding, mining and evaluation are not counted."
    )


if __name__ == "__main__":
    main()
