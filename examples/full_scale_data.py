"""Prepares the data of the recipes in examples/recipes/full-scale/; this downloads.

python examples/full_scale_data.py general --folder data/general
    Wikipedia and BookCorpus from the Hub as files of one column.
python examples/full_scale_data.py msmarco --folder data/msmarco
    Hard negatives and a cross-encoder's scores for MS MARCO. The folder is BEIR's msmarco.zip unpacked, with
    https://sbert.net/datasets/msmarco-hard-negatives.jsonl.gz, the negatives that BEIR names, beside it.
"""

from __future__ import annotations

import argparse
import gzip
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

SENTENCES = 200
FILES = ("negatives-bm25", "negatives-all", "negatives-scored", "scores")
MARGIN = 3.0  # of the teacher's scores: a negative that comes nearer to a positive is probably relevant (BEIR's choice)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("general", "msmarco"))
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.data == "msmarco":
        write_negatives(args.folder)
        return
    wikipedia = load_dataset("wikimedia/wikipedia", "20231101.en", split="train").select_columns("text")
    wikipedia.to_parquet(args.folder / "wikipedia.parquet")
    joined(load_dataset("SamuelYang/bookcorpus", split="train")).to_parquet(args.folder / "bookcorpus.parquet")


def joined(sentences: Dataset) -> Dataset:
    """Consecutive sentences as documents: BookCorpus has a sentence a row, and a passage never crosses a row."""
    return sentences.select_columns("text").map(
        lambda rows: {"text": [" ".join(rows["text"])]}, batched=True, batch_size=SENTENCES
    )


def write_negatives(folder: Path) -> None:
    with ExitStack() as stack:
        published = stack.enter_context(gzip.open(folder / "msmarco-hard-negatives.jsonl.gz", "rt", encoding="utf-8"))
        files = {name: stack.enter_context((folder / f"{name}.jsonl").open("w", encoding="utf-8")) for name in FILES}
        for line in published:
            for name, content in lines_of(json.loads(line)).items():
                files[name].write(json.dumps(content) + "\n")


def lines_of(found: dict[str, Any]) -> dict[str, Any]:
    """A query's line in each file, from its scored positives and, by the system that found them, its negatives."""
    if not found["pos"]:
        return {}
    query = {"query_id": str(found["qid"])}
    positives = {str(one["pid"]): one["ce-score"] for one in found["pos"]}
    negatives = {str(one["pid"]): one["ce-score"] for system in found["neg"].values() for one in system}
    certain = [one for one, score in negatives.items() if score < min(positives.values()) - MARGIN]
    best = max(positives, key=positives.__getitem__)
    hardest = sorted(negatives, key=negatives.__getitem__, reverse=True)
    return {
        "negatives-bm25": query | {"negative_ids": [str(one["pid"]) for one in found["neg"].get("bm25", [])]},
        "negatives-all": query | {"negative_ids": certain},
        # The teacher says how relevant each one is, so none need be left out.
        "negatives-scored": query | {"positive_id": best, "negative_ids": hardest},
        "scores": [positives[best], *(negatives[one] for one in hardest)],
    }


if __name__ == "__main__":
    main()
