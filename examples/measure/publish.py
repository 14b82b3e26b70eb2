"""Puts the latest results of what the Makefile measures into model_cards/ and the pages.

Likewise those of `retromae-hf compare` and onnx_cost.py. Those of full_scale.py become model_cards/recipes.md.

No figure of the README and the guides is typed by hand: what stands between two markers there is written here, and a
test compares it with the results files.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # the examples whose results are published

import benchmark_tables
import choosing
import demo
import first_result
import full_scale
import fuzz
import onnx_cost
import padding
import published_cards
import small_model
import stream_memory
import support

from retromae_hf.model.families import BACKBONES
from retromae_hf.studies import comparison_report

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- {}: written by examples/measure/publish.py -->", "<!-- /{} -->"
PAGES = (ROOT / "README.md", *sorted((ROOT / "examples/guides").glob("*.md")))
RECIPES_PAGE = ROOT / "model_cards/recipes.md"
BENCHMARKS = ("small", "base", "base-memory", "growth")
PROFILES = ("profile", "profile-base")
COMPARISONS = ("compare-cpu", "compare-cpu-more", "compare-objectives")
AT_EQUAL_SECONDS = ("compare-rows",)
TUNED = ("compare-minilm", "compare-minilm-shift")
MEASURE = "mrr@10"
PUBLISHED = {
    ROOT / "runs/demo/results.json": ROOT / "model_cards/demo/results.json",
    **{
        ROOT / f"runs/demo/adapted/encoder/{file}": ROOT / f"model_cards/demo/{file}"
        for file in ("README.md", "adaptation.png", "training-1.png")
    },
    **{
        ROOT / f"runs/from-scratch/{file}": ROOT / f"model_cards/from-scratch/{file}"
        for file in ("results.json", "curves.png")
    },
    **{
        ROOT / f"runs/benchmark/{name}.json": ROOT / f"model_cards/benchmark/{name}.json"
        for name in (*BENCHMARKS, *PROFILES, "stream-memory", "padding", "compiling")
    },
    **{
        ROOT / f"runs/{name}/{file}": ROOT / f"model_cards/{name}/{file}"
        for name in (*COMPARISONS, *TUNED, *AT_EQUAL_SECONDS)
        for file in ("results.json", "comparison.png")
    },
    ROOT / "runs/small-model/results.json": ROOT / "model_cards/small-model/results.json",
    **{
        ROOT / f"runs/small-model/encoder/{file}": ROOT / f"model_cards/small-model/{file}"
        for file in ("README.md", "training-1.png", "training-2.png")
    },
    ROOT / "runs/onnx.json": ROOT / "model_cards/onnx.json",
    ROOT / "runs/support.json": ROOT / "model_cards/support.json",
    ROOT / "runs/soak.json": ROOT / "model_cards/soak.json",
    ROOT / fuzz.OUTPUT: ROOT / "model_cards/fuzz.json",
    ROOT / full_scale.RESULTS: ROOT / "model_cards/full-scale.json",
}


def main() -> None:
    """Copy what is there and fill the pages."""
    for result, published in PUBLISHED.items():
        if result.is_file():
            published.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(result, published)
            print(f"{result.relative_to(ROOT)} -> {published.relative_to(ROOT)}")
    RECIPES_PAGE.write_text(recipes_page(), encoding="utf-8")
    for file, card in cards().items():
        file.write_text(card, encoding="utf-8")
    for file, page in fill({file: file.read_text(encoding="utf-8") for file in PAGES}).items():
        file.write_text(page, encoding="utf-8")


def fill(pages: Mapping[Path, str]) -> dict[Path, str]:
    """The pages with the published results between their markers; every block stands once in one of them."""
    written = blocks()
    found = [name for page in pages.values() for name in re.findall(BEGIN.format(r"([\w-]+)"), page)]
    if sorted(found) != sorted(written):
        wrong = sorted(name for name in {*found, *written} if found.count(name) != 1 or name not in written)
        raise SystemExit(f"these blocks do not stand once in the README and the guides: {', '.join(wrong)}")
    filled = dict(pages)
    for name, block in written.items():
        begin, end = BEGIN.format(name), END.format(name)
        pattern = re.compile(f"({begin}).*?({end})", re.DOTALL)
        for file, page in filled.items():
            filled[file] = pattern.sub(lambda match, text=block: f"{match[1]}\n{text}\n{match[2]}", page)
    return filled


def blocks() -> dict[str, str]:
    """What is written between the markers, by their names."""
    adapted, small = (
        json.loads((ROOT / f"model_cards/{name}/results.json").read_text(encoding="utf-8"))
        for name in ("demo", "small-model")
    )
    supported = json.loads((ROOT / "model_cards/support.json").read_text(encoding="utf-8"))
    soaked = json.loads((ROOT / "model_cards/soak.json").read_text(encoding="utf-8"))
    onnx = json.loads((ROOT / "model_cards/onnx.json").read_text(encoding="utf-8"))
    benchmarks, (padded, streamed) = (
        [json.loads((ROOT / f"model_cards/benchmark/{name}.json").read_text(encoding="utf-8")) for name in names]
        for names in (BENCHMARKS, ("padding", "stream-memory"))
    )
    (scratch, *_), tuned, at_equal_seconds = (
        [json.loads((ROOT / f"model_cards/{name}/results.json").read_text(encoding="utf-8")) for name in names]
        for names in (COMPARISONS, TUNED, AT_EQUAL_SECONDS)
    )
    fuzzed = json.loads((ROOT / "model_cards/fuzz.json").read_text(encoding="utf-8"))
    return {
        "result": first_result.block(tuned[0], scratch),
        "choices": choosing.choices(tuned[0], scratch, tuned[1]),
        "normal": choosing.normal(scratch),
        "tuned": "\n\n".join(comparison(one) for one in tuned),
        "demo": demo.table(adapted),
        "answers": f"```console\n{demo.answers(adapted | {'searches': adapted['searches'][:1]})}\n```",
        "small": f"{small_model.table(small)}\n\n{small_model.conditions(small)}",
        "objectives": objectives(),
        "families": families(supported),
        "soak": soaking(soaked),
        "hostile": fuzz.conditions(fuzzed),
        "compare": comparison(scratch),
        "costs": benchmark_tables.summary(benchmarks),
        "streams": stream_memory.table(streamed),
        "onnx": f"{onnx_cost.table(onnx)}\n\n{onnx_cost.conditions(onnx)}",
        "steps": benchmark_tables.steps(benchmarks),
        "collators": benchmark_tables.collators(benchmarks[0]),
        "rows": "\n\n".join(comparison(one) for one in at_equal_seconds),
        "padding": f"{padding.table(padded)}\n\n{padding.conditions(padded)}",
    }


def cards() -> dict[Path, str]:
    """The cards of the models that were trained here, by their files; the results files are beside them."""
    made = {"from-scratch": published_cards.from_scratch_card}
    made |= {name: partial(published_cards.comparison_card, name) for name in published_cards.COMPARED}
    folders = {name: ROOT / "model_cards" / name for name in made}
    return {
        folders[name]
        / "README.md": f"{card(json.loads((folders[name] / 'results.json').read_text(encoding='utf-8')))}\n"
        for name, card in made.items()
    }


def comparison(report: dict) -> str:
    """A comparison in one table, a row an objective and two columns a task, and what its figures hold for."""
    recipe, tasks = report["recipe"], report["tasks"]
    planned = recipe.get("max_seconds") is not None
    measured = [(task, stage) for task in tasks for stage in comparison_report.STAGES]
    columns = [f"{task}, {comparison_report.TITLES[stage]}" for task, stage in measured]
    columns = ["objective", *columns, *(["steps"] if planned else []), "seconds", "million tokens"]
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    for objective, row in report["objectives"].items():
        cells = [comparison_report.cell(row[stage][task][MEASURE]) for task, stage in measured]
        cells += [f"{row['steps']:,.0f}"] if planned else []
        # The seconds of fine-tuning were not always measured.
        seconds = " + ".join(f"{row[name]:,.0f}" for name in ("seconds", "finetuning_seconds") if name in row)
        title = comparison_report.title_of(objective, recipe)
        lines.append(f"| {title} | {' | '.join(cells)} | {seconds} | {row['tokens'] / 1e6:.1f} |")
    bm25 = " | | ".join(f"{task['bm25'][MEASURE]:.3f}" for task in tasks.values())
    lines.append(f"| BM25 | {bm25} |{' |' * (len(columns) - 2 * len(tasks))}")
    return "\n".join([*lines, "", comparison_conditions(report)])


def comparison_conditions(report: dict) -> str:
    """What the figures of a comparison hold for; the recipe says the rest."""
    recipe, device = report["recipe"], report["environment"]["device"]
    sizes = "; ".join(
        f"{task}: {one['num_queries']:,} queries, {one['num_documents']:,} documents"
        for task, one in report["tasks"].items()
    )
    before, after = recipe["pretraining"], recipe["finetuning"]
    seconds = recipe.get("max_seconds")
    steps = f"{before['max_steps']:,} steps" if seconds is None else f"As many steps as take {seconds:g} seconds,"
    return (
        f"MRR@10, mean ± standard deviation over {len(recipe['seeds'])} seeds; * differs from "
        f"{comparison_report.title_of(recipe['reference'], recipe)} with p < {comparison_report.SIGNIFICANT} (paired "
        f"test). {sizes}. {steps} of {before['per_device_train_batch_size']} passages of {before['max_length']} "
        f"tokens, then {after['max_steps']:,} of fine-tuning with {after['per_device_train_batch_size']} pairs, on "
        f"{'a CPU' if device == 'cpu' else device}."
    )


def soaking(results: list[dict]) -> str:
    """How runs that were cut again and again have ended."""
    runs = "; ".join(
        f"{one['scenario']}, cut {one['cuts']} times: {'bit for bit' if one['as_uncut'] else 'NOT'} as without cuts"
        for one in results
    )
    return f"{runs[0].upper()}{runs[1:]}."


def recipes_page() -> str:
    """The recipes that were not run, and what running them is estimated to cost."""
    counted, measured = (
        json.loads((ROOT / f"model_cards/{name}.json").read_text(encoding="utf-8"))
        for name in ("full-scale", "benchmark/base")
    )
    return full_scale.page(counted, measured["step"][0]["utilisation"]["retromae"])


def objectives() -> str:
    """The recipes, and what each says of itself."""
    return "\n".join(
        [
            "| recipe | what it trains |",
            "|---|---|",
            *(f"| `{name}` | {title} |" for name, title in support.titles().items()),
        ]
    )


def families(supported: list[dict]) -> str:
    """The encoders that are known, from their registry, and what `make support` found."""
    lines = ["| family | `model_type` | positions |", "|---|---|---|"]
    lines += [f"| {known.title} | `{model_type}` | {known.positions} |" for model_type, known in BACKBONES.items()]
    failed = [f"`{one['objective']}` with `{one['model_type']}`" for one in supported if not one["works"]]
    small = dict.fromkeys(f"`{one['model_type']}`" for one in supported if one["options"])
    told = (
        "`make support` tries every recipe above with every family on tiny models: "
        f"{len(supported) - len(failed)} of {len(supported)} pairs work"
        f"{', not ' if failed else ''}{', '.join(failed)}. "
        f"The embeddings of {', '.join(small)} are smaller than their states, so that `dupmae` takes "
        "`decoder_query: sum` there."
    )
    return "\n".join([*lines, "", told])


if __name__ == "__main__":
    main()
