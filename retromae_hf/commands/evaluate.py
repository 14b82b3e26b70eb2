"""`retromae-hf evaluate`: retrieval measures of a model on a task, as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..evaluation import BM25, evaluate_bm25, evaluate_embedder, load_embedder, load_task
from .common import command, parse


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


@command
def main(argv: list[str] | None = None) -> None:
    """Measure a model on a task and write the results."""
    (args,) = parse("evaluate", "Measure how well a model retrieves.", [EvaluateArguments], argv)
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
    if args.output is not None:
        output = Path(args.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
