"""`retromae-hf card`: a model's card once more, with results of `retromae-hf evaluate` in it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from ..arguments import argument
from ..arguments.pretraining import CardArguments
from ..model.errors import in_one_sentence
from .common import command, parse, process_rank


@dataclass
class RewriteArguments:
    """Options of `retromae-hf card`."""

    results: list[str] | None = argument(
        "JSON files that retromae-hf evaluate has written of this model; their tasks are added. 'none' takes the "
        "card's results out; files may follow it.",
        None,
    )
    overwrite: bool = argument("Replace a README.md that retromae-hf has not written.", False)


@command
def main(argv: list[str] | None = None) -> None:
    """Write a card again."""
    card_args, args, words = parse(
        "card",
        "Write the card of a model again, from training.json in its folder.",
        [CardArguments, RewriteArguments],
        argv,
        positionals={"folder": "Folder that retromae-hf pretrain, finetune or export has written."},
    )
    if process_rank():
        return  # the first process writes the card
    from ..publishing.model_card import CARD_FILE, read_results, write_card
    from ..publishing.record import require_record

    record = require_record(words.folder)
    record |= {name: value for name, value in vars(card_args).items() if value is not None}
    results = read_results(words.folder, args.results or [])
    with in_one_sentence(f"the card cannot be written to {words.folder}"):
        if write_card(words.folder, record, results, args.overwrite):
            print(f"Wrote {Path(words.folder, CARD_FILE)}.")


if __name__ == "__main__":
    sys.exit(main())
