"""Cleans a large corpus and takes the copies out of it, with datatrove, into shards that a stream reads well.

    pip install 'retromae-hf[corpus]'

On this machine:

    python examples/prepare_corpus.py raw/ shards/ --tasks 64 --workers 8

On a Slurm cluster, from its login node, with folders that every node sees:

    python examples/prepare_corpus.py raw/ shards/ --tasks 1000 --workers 200 --slurm_partition cpu

Then:

    retromae-hf pretrain --dataset shards/ --streaming true --max_steps 100000 --model_name_or_path bert-base-uncased

Started again, it does what has not been done yet. Copies are documents with the same words, white space and case apart.
For near copies datatrove has MinHash, and for text from the web many filters of quality: they go where `clean` stands.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

READERS = {".jsonl": "JsonlReader", ".gz": "JsonlReader", ".zst": "JsonlReader", ".parquet": "ParquetReader"}
# Control characters but for tab and line feed, and what is left of text that was decoded wrongly.
NO_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffd\ud800-\udfff]+")


def main(argv: list[str] | None = None) -> None:
    """Run the three steps one after another, or hand them to Slurm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of .jsonl, .jsonl.gz, .jsonl.zst or .parquet files")
    parser.add_argument("output", type=Path, help="folder for the shards")
    parser.add_argument("--work", type=Path, help="folder for what the steps leave each other; default: OUTPUT.work")
    parser.add_argument("--text_column", default="text", help="column that holds the text")
    parser.add_argument("--min_characters", type=int, default=80, help="shorter documents are dropped")
    parser.add_argument("--shard_megabytes", type=int, default=256, help="size of a shard at most")
    parser.add_argument("--tasks", type=int, default=8, help="parts that the files are divided among")
    parser.add_argument("--workers", type=int, default=2, help="tasks that run at the same time")
    parser.add_argument("--slurm_partition", help="hand the steps to this partition of a Slurm cluster")
    parser.add_argument("--slurm_time", default="24:00:00", help="time that a task may take there")
    args = parser.parse_args(argv)
    args.work = args.work or args.output.with_name(f"{args.output.name}.work")
    try:
        executor = executors(args)
        executor.run()  # and before it those that it depends on
    except ImportError as error:
        raise SystemExit(f"a package is missing ({error}); pip install 'retromae-hf[corpus]'") from error


def executors(args: argparse.Namespace) -> Any:
    """The last step, which depends on the one before, and that one on the first."""
    from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor

    last = None
    for name, (pipeline, tasks) in steps(args).items():
        options = {"logging_dir": str(args.work / "logs" / name), "depends": last, "tasks": tasks}
        if args.slurm_partition:
            slurm = {"partition": args.slurm_partition, "time": args.slurm_time, "job_name": f"corpus-{name}"}
            last = SlurmPipelineExecutor(pipeline, workers=args.workers, **slurm, **options)
        else:
            last = LocalPipelineExecutor(pipeline, workers=min(args.workers, tasks), **options)
    return last


def steps(args: argparse.Namespace) -> dict[str, tuple[list[Any], int]]:
    """The pipelines by name, each with its number of tasks."""
    from datatrove.pipeline import readers
    from datatrove.pipeline.dedup import ExactDedupConfig, ExactDedupFilter, ExactDedupSignature, ExactFindDedups
    from datatrove.pipeline.writers import ParquetWriter
    from datatrove.utils.hashing import HashConfig

    kind = reader_of(args.source)
    # Both passes over the source must give the same documents, since copies are found by their place.
    documents = [
        getattr(readers, kind)(str(args.source), text_key=args.text_column),
        partial(clean, min_characters=args.min_characters),
    ]
    config = ExactDedupConfig(content_getter=words_of, hash_config=HashConfig(hash_fc="sha1"))
    signatures, copies = str(args.work / "signatures"), str(args.work / "copies")
    shards = ParquetWriter(
        str(args.output), compression="zstd", adapter=only_text, max_file_size=args.shard_megabytes * 10**6
    )
    return {
        "signatures": ([*documents, ExactDedupSignature(signatures, config)], args.tasks),
        "copies": ([ExactFindDedups(signatures, copies, config)], 1),
        "shards": ([*documents, ExactDedupFilter(copies, config), shards], args.tasks),
    }


def reader_of(source: Path) -> str:
    """The reader for the one kind of files that a folder holds."""
    found = {READERS[file.suffix] for file in source.rglob("*") if file.suffix in READERS}
    if len(found) != 1:
        raise SystemExit(f"{source} must be a folder with one kind of files, of {', '.join(READERS)}")
    return found.pop()


def clean(documents: Iterator[Any], rank: int, world_size: int, min_characters: int) -> Iterator[Any]:
    """Documents without characters that are no text, and without those that are too short then."""
    for document in documents:
        document.text = NO_TEXT.sub("", document.text).strip()
        if len(document.text) >= min_characters:
            yield document


def words_of(document: Any) -> str:
    return " ".join(document.text.lower().split())


def only_text(writer: Any, document: Any) -> dict[str, str]:
    return {"text": document.text}


if __name__ == "__main__":
    main()
