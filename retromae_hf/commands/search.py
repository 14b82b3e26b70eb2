"""`retromae-hf search`: ask the documentation in this Python environment, or a corpus of your own."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from ..model.errors import check_at_least
from .common import command, parse


@dataclass
class SearchArguments:
    """Options of `retromae-hf search`."""

    dataset: str = field(
        default="pydocs",
        metadata={"help": "Corpus: pydocs, a text, JSON, CSV or Parquet file, a folder of them, or a Hub dataset."},
    )
    top: int = field(default=5, metadata={"help": "Results to list."})
    hybrid: bool = field(
        default=False,
        metadata={"help": "Join the model's ranking with that of BM25; scores are then sums of reciprocal ranks."},
    )
    batch_size: int | None = field(default=None, metadata={"help": "Texts a batch; default: 64, on a CPU 16."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes to read the corpus with."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that comes with the model; have read it before."}
    )

    def __post_init__(self) -> None:
        check_at_least(1, top=self.top, batch_size=self.batch_size, num_proc=self.num_proc)


@command
def main(argv: list[str] | None = None) -> None:
    """Answer one question."""
    args, words = parse(
        "search",
        "Search the documentation of the Python packages installed here, or a corpus of your own.",
        [SearchArguments],
        argv,
        positionals={
            "model": "Exported encoder, training checkpoint or any sentence-transformers model.",
            "question": "What to look for, in words.",
        },
    )
    from ..retrieval.search import format_results, load_index

    index = load_index(words.model, args.dataset, args.batch_size, args.num_proc, args.trust_remote_code, args.hybrid)
    (results,) = index.search([words.question], args.top)
    print(format_results(results))


if __name__ == "__main__":
    sys.exit(main())
