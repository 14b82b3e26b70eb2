"""`retromae-hf evaluate`: retrieval measures of a model on tasks, as a table and as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field

from ..model.errors import check_at_least, check_choice
from .common import command, parse, writable, writable_folder


@dataclass
class EvaluateArguments:
    """Arguments of `retromae-hf evaluate`."""

    model_name_or_path: str = field(
        metadata={
            "help": "Exported encoder or its .onnx file, training checkpoint, any sentence-transformers model, "
            "or 'bm25'."
        }
    )
    dataset: list[str] = field(
        metadata={
            "help": "'pydocs', folders in BEIR's layout, 'nanobeir' or 'nanobeir:NAME', 'beir:NAME', 'mteb:NAME'; "
            "several are evaluated one after the other."
        }
    )
    split: str = field(
        default="test", metadata={"help": "Judgments of a folder, qrels/SPLIT.tsv; MS MARCO's usual ones are dev."}
    )
    output: str | None = field(default=None, metadata={"help": "JSON file to write the results to."})
    run_dir: str | None = field(default=None, metadata={"help": "Folder to write the runs to, in TREC's format."})
    embeddings_dir: str | None = field(
        default=None,
        metadata={"help": "Folder to keep embeddings in: a run that was killed goes on, another one embeds nothing."},
    )
    search: str | None = field(
        default=None,
        metadata={
            "help": "exact or faiss; default: exact, or on a CPU faiss for thousands of queries in a large corpus."
        },
    )
    bm25: bool = field(
        default=False,
        metadata={"help": "Measure BM25 and both rankings joined beside the model, and test the differences."},
    )
    max_documents: int | None = field(
        default=None,
        metadata={"help": "Documents of a task, always the same: those that are judged and a sample of the others."},
    )
    batch_size: int | None = field(default=None, metadata={"help": "Texts a batch; default: 64, on a CPU 16."})
    dtype: str = field(
        default="float32",
        metadata={
            "help": "float32, bfloat16 or float16: half precision takes half the memory, and on a GPU less time."
        },
    )
    query_prompt: str | None = field(
        default=None, metadata={"help": "Text in front of every query; default: the model's own prompt."}
    )
    passage_prompt: str | None = field(
        default=None, metadata={"help": "Text in front of every document; default: the model's own prompt."}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "sdpa, eager, flash_attention_2, flash_attention_3, flex_attention or a kernel's name on the Hub; "
            "default: what transformers takes, sdpa as a rule."
        },
    )
    num_proc: int | None = field(default=None, metadata={"help": "Processes to read the documentation with."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that comes with the model; have read it before."}
    )

    def __post_init__(self) -> None:
        check_at_least(1, batch_size=self.batch_size, num_proc=self.num_proc, max_documents=self.max_documents)
        if self.search is not None:
            check_choice("search", self.search, ("exact", "faiss"))


@command
def main(argv: list[str] | None = None) -> None:
    """Measure a model on tasks, print the table and write the results."""
    (args,) = parse("evaluate", "Measure how well a model retrieves.", [EvaluateArguments], argv)
    from ..retrieval.embedders import load_embedder, process_state
    from ..retrieval.evaluation import BM25, evaluate_model, format_table
    from ..retrieval.tasks import load_tasks, write_mteb_results

    output = None if args.output is None else writable(args.output)
    run_dir, embeddings_dir = (
        None if folder is None else writable_folder(folder) for folder in (args.run_dir, args.embeddings_dir)
    )
    embedder = None
    with process_state().main_process_first():  # it downloads what others then find
        tasks = load_tasks(args.dataset, args.num_proc, args.split, args.max_documents)
        if args.model_name_or_path != BM25:
            embedder = load_embedder(
                args.model_name_or_path,
                batch_size=args.batch_size,
                trust_remote_code=args.trust_remote_code,
                attn_implementation=args.attn_implementation,
                dtype=args.dtype,
                query_prompt=args.query_prompt,
                passage_prompt=args.passage_prompt,
            )
    results = evaluate_model(embedder, tasks, args.search, args.bm25, embeddings_dir, run_dir)
    if results is None:
        return
    if output is not None:
        output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        for file in write_mteb_results(results, output.with_name(f"{output.stem}-mteb")):
            print(f"The result as MTEB writes it: {file}")
    told = "--output FILE keeps the results as JSON." if output is None else f"The results as JSON: {output}"
    print(format_table(results), told, sep="\n\n")


if __name__ == "__main__":
    sys.exit(main())
