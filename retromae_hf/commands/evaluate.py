"""`retromae-hf evaluate`: retrieval measures of a model on a task, as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field

from ..errors import check_at_least
from ..evaluation import BM25, evaluate_bm25, evaluate_embedder, load_embedder, load_task
from .common import command, parse, writable


@dataclass
class EvaluateArguments:
    """Arguments of `retromae-hf evaluate`."""

    model_name_or_path: str = field(
        metadata={"help": "Exported encoder, training checkpoint or any sentence-transformers model; or 'bm25'."}
    )
    dataset: str = field(metadata={"help": "'pydocs' or a folder in BEIR's layout."})
    output: str | None = field(default=None, metadata={"help": "JSON file to write the results to."})
    batch_size: int = field(default=64, metadata={"help": "Texts a batch."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes to read the corpus with."})

    def __post_init__(self) -> None:
        check_at_least(1, batch_size=self.batch_size, num_proc=self.num_proc)


@command
def main(argv: list[str] | None = None) -> None:
    """Measure a model on a task and write the results."""
    (args,) = parse("evaluate", "Measure how well a model retrieves.", [EvaluateArguments], argv)
    output = None if args.output is None else writable(args.output)
    task = load_task(args.dataset, args.num_proc)
    if args.model_name_or_path == BM25:
        measured = evaluate_bm25(task)
    else:
        measured = evaluate_embedder(task, load_embedder(args.model_name_or_path, args.batch_size))
    results = {
        "model": args.model_name_or_path,
        "dataset": args.dataset,
        "num_queries": len(task.queries),
        "num_documents": len(task.documents),
        **measured,
    }
    text = json.dumps(results, indent=2)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
