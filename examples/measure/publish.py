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

import benchmark_report as benchmark
import choosing
import compiling
import demo
import first_result
import from_scratch_report
import full_scale
import fuzz
import onnx_cost
import padding
import published_cards
import small_model
import soak
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
    adapted, scratch, small = (
        json.loads((ROOT / f"model_cards/{name}/results.json").read_text(encoding="utf-8"))
        for name in ("demo", "from-scratch", "small-model")
    )
    supported = json.loads((ROOT / "model_cards/support.json").read_text(encoding="utf-8"))
    soaked = json.loads((ROOT / "model_cards/soak.json").read_text(encoding="utf-8"))
    onnx = json.loads((ROOT / "model_cards/onnx.json").read_text(encoding="utf-8"))
    benchmarks, profiles, (padded, compiled, streamed) = (
        [json.loads((ROOT / f"model_cards/benchmark/{name}.json").read_text(encoding="utf-8")) for name in names]
        for names in (BENCHMARKS, PROFILES, ("padding", "compiling", "stream-memory"))
    )
    comparisons, tuned, at_equal_seconds = (
        [json.loads((ROOT / f"model_cards/{name}/results.json").read_text(encoding="utf-8")) for name in names]
        for names in (COMPARISONS, TUNED, AT_EQUAL_SECONDS)
    )
    fuzzed = json.loads((ROOT / "model_cards/fuzz.json").read_text(encoding="utf-8"))
    return {
        "result": first_result.block(tuned[0], comparisons[0]),
        "choices": choosing.choices(tuned[0], comparisons[0], tuned[1]),
        "normal": choosing.normal(comparisons[0]),
        "tuned": "\n\n".join(comparison(one) for one in tuned),
        "demo": demo.table(adapted),
        "answers": f"```console\n{demo.answers(adapted)}\n```",
        "scratch": f"{from_scratch_report.table(scratch)}\n\n{from_scratch_report.conditions(scratch)}",
        "small": f"{small_model.table(small)}\n\n{small_model.conditions(small)}",
        "objectives": objectives(),
        "families": families(),
        "support": f"{support.table(supported)}\n\n{support.conditions(supported)}",
        "soak": soak.table(soaked),
        "hostile": fuzz.conditions(fuzzed),
        "compare": "\n\n".join(comparison(one) for one in comparisons),
        "costs": costs(benchmarks),
        "streams": f"{stream_memory.table(streamed)}\n\n{stream_memory.conditions(streamed)}",
        "onnx": f"{onnx_cost.table(onnx)}\n\n{onnx_cost.conditions(onnx)}",
        "benchmark": measured(benchmarks),
        "profile": measured(profiles),
        "rows": "\n\n".join(comparison(one) for one in at_equal_seconds),
        "compiling": f"{compiling.table(compiled)}\n\n{compiling.conditions(compiled)}",
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
    """The tables of a comparison, one for each task."""
    return "\n\n".join(
        f"{comparison_report.table(report, task)}\n\n{comparison_report.conditions(report, task)}"
        for task in report["tasks"]
    )


def measured(reports: list[dict]) -> str:
    """The tables of benchmarks, one behind the other."""
    return "\n\n".join(f"{benchmark.table(one)}\n\n{benchmark.conditions(one)}" for one in reports)


def costs(benchmarks: list[dict]) -> str:
    """How long a step takes beside plain masked language modelling, one sentence."""
    steps = [
        f"{step['seconds']['retromae'] / step['seconds']['mlm']:.2f} times as long at "
        f"{one['setting']['num_hidden_layers']} layers x {one['setting']['hidden_size']} and {step['length']} tokens"
        for one in benchmarks[:2]
        for step in one["step"][:1]
    ]
    return (
        f"On a CPU a training step of RetroMAE takes {' and '.join(steps)} as one of masked language modelling. "
        "The authors of BoW-DPR (arXiv 2401.11248) found 1.68 times with the released code, whose loader makes the "
        "masks in Python."
    )


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


def families() -> str:
    """The encoders that are known, from their registry."""
    lines = ["| family | `model_type` | positions |", "|---|---|---|"]
    lines += [f"| {known.title} | `{model_type}` | {known.positions} |" for model_type, known in BACKBONES.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
