"""`retromae-hf adapt`: the whole job for one who has text and an encoder."""

from __future__ import annotations

import shlex
import sys
from contextlib import redirect_stdout

from ..arguments.finetuning import AdaptArguments
from .common import command, one_process, parse


@command
def main(argv: list[str] | None = None) -> None:
    """Adapt, and say what came of it."""
    (args,) = parse("adapt", "Adapt an encoder to a text, and measure whether that has paid.", [AdaptArguments], argv)
    one_process("adapt")
    from ..training.adaptation import adapt

    with redirect_stdout(sys.stderr):  # Trainer prints its logs, and the first line is to tell what came of it
        report = adapt(args)
    model, encoder = args.model_name_or_path, report["encoder"]
    if report["is_better"]:
        print(f"{report['verdict']}: the adapted {model} is in {encoder}.")
    else:
        print(f"{report['verdict']}: {encoder} is {model} as it was; the adapted one is in {report['other']}.")
    print(f"\n{report['table']}\n")
    told = "" if report["indexed"] else " (it embeds the text first)"
    options = f"--dataset {shlex.quote(args.dataset)}{' --hybrid true' if report['hybrid'] else ''}"
    print(f'Next{told}: retromae-hf search {shlex.quote(encoder)} "QUESTION" {options}')


if __name__ == "__main__":
    sys.exit(main())
