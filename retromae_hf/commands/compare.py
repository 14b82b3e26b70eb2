"""`retromae-hf compare`: pretraining objectives side by side, zero-shot and fine-tuned, over several seeds."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from ..arguments.filling import fill
from ..model.errors import RetroMAEError, import_extra, in_one_sentence
from .common import HELP, command, one_process, parse, read_recipe

DESCRIPTION = "Compare pretraining objectives, as a recipe says, in one process. What was cut off goes on."


@dataclass
class CompareArguments:
    """Arguments of `retromae-hf compare` behind the recipe."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the cells and results; default: the recipe's."}
    )
    tasks: list[str] | None = field(
        default=None, metadata={"help": "'pydocs' or folders in BEIR's layout to evaluate on; default: the recipe's."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Encoder that all start from; default: the recipe's, or new ones."}
    )
    seeds: list[int] | None = field(
        default=None, metadata={"help": "Seeds to compare over; those that are done already are kept."}
    )


@command
def main(argv: list[str] | None = None) -> None:
    """Compare and show."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or not arguments[0].endswith((".yaml", ".yml")):
        if set(HELP) & set(arguments):
            parse("compare", DESCRIPTION, [CompareArguments], arguments)
        raise RetroMAEError("name a recipe, such as examples/recipes/compare/compare-cpu.yaml")
    one_process("compare")
    recipe = read_recipe(arguments[0])
    (args,) = parse("compare", DESCRIPTION, [CompareArguments], arguments[1:])
    given = {name: value for name, value in vars(args).items() if value is not None}
    if start := given.pop("model_name_or_path", None):
        recipe["model"] = {**(recipe.get("model") or {}), "model_name_or_path": start}
    recipe |= given
    for module, extra in {"sentence_transformers": "retrieval", "bm25s": "retrieval", "matplotlib": "plot"}.items():
        import_extra(module, "compare", extra)  # the last one draws, hours later
    from ..studies.comparison import compare
    from ..studies.comparison_recipe import Comparison
    from ..studies.comparison_report import conditions, draw, table

    (comparison,) = fill(recipe, [Comparison], arguments[0])
    with in_one_sentence(f"output_dir={comparison.output_dir!r} cannot be written"):
        comparison.folder.mkdir(parents=True, exist_ok=True)
    report = compare(comparison)
    draw(report, comparison.folder / "comparison.png", next(iter(report["tasks"])))
    for task in report["tasks"]:
        print(f"\n{table(report, task)}\n\n{conditions(report, task)}")
    print(f"\nThe figures are in {comparison.folder}/results.json, a picture in {comparison.folder}/comparison.png.")


if __name__ == "__main__":
    sys.exit(main())
