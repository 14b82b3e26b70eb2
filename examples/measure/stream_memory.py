"""What one reader of a stream holds in memory: the loader of `retromae-hf pretrain --streaming true` on 10 MB and 1 GB.

It generates both texts in a temporary folder and reads each in a process of its own, through everything that a worker
of a training run does: shards, tokenising, shuffling, masks and batches, but no model. The reader is one of several
(`--readers`): it reads all of the text and tokenises its share. The small text is read again and again until as many
passages came out of it as out of the large one, so that both processes do the same work.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from benchmark import peak_rss

from retromae_hf import DataCollatorForRetroMAE
from retromae_hf.arguments.pretraining import Cutting, TextSource
from retromae_hf.checkpoints.loading import load_tokenizer
from retromae_hf.data.passages import PassageCutter
from retromae_hf.data.streams import DocumentStream, PassageStream
from retromae_hf.data.tokenizers import train_wordpiece

MAX_LENGTH, BATCH_SIZE, BUFFER_SIZE, VOCAB_SIZE = 128, 32, 10_000, 4000
BASE = "importing and opening"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs=2, default=[10, 1000], help="small and large text, in MB")
    parser.add_argument("--readers", type=int, default=32, help="readers among which this one is")
    parser.add_argument("--output", default="runs/benchmark/stream-memory.json", help="JSON file for the results")
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "PASSAGES"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        print(json.dumps(measure(Path(args.measure[0]), int(args.measure[1]), args.readers)))
        return
    with tempfile.TemporaryDirectory() as folder:
        files = [write_text(Path(folder) / f"{size}.jsonl", size * 10**6) for size in args.sizes]
        texts = [json.loads(line)["text"] for line in islice(files[0].open(encoding="utf-8"), 500)]
        train_wordpiece(texts, VOCAB_SIZE, MAX_LENGTH).save_pretrained(folder)
        base = in_a_process(files[0], 0, args.readers)
        large = in_a_process(files[1], -1, args.readers)
        small = in_a_process(files[0], large["passages"], args.readers)
    report = {
        "command": shlex.join(
            ["python", "examples/measure/stream_memory.py", *(sys.argv[1:] if argv is None else argv)]
        ),
        "setting": {
            "readers": args.readers,
            "max_length": MAX_LENGTH,
            "batch_size": BATCH_SIZE,
            "shuffle_buffer_size": BUFFER_SIZE,
        },
        "environment": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "datasets": datasets.__version__,
        },
        "base": base,
        "small": {"megabytes": args.sizes[0]} | small,
        "large": {"megabytes": args.sizes[1]} | large,
    }
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{table(report)}\n\n{conditions(report)} The figures are in {output}.")


def write_text(file: Path, size: int) -> Path:
    """A .jsonl file of about this many bytes, of invented words; every document is put together anew."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(5000)]
    sentences = [" ".join(draw.choices(words, k=draw.randint(4, 20))).capitalize() + "." for _ in range(20_000)]
    with file.open("w", encoding="utf-8") as lines:
        while lines.tell() < size:
            texts = (" ".join(draw.choices(sentences, k=draw.randint(5, 30))) for _ in range(100))
            lines.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return file


def in_a_process(file: Path, passages: int, readers: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", str(file), str(passages), "--readers", str(readers)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measure(file: Path, passages: int, readers: int) -> dict[str, Any]:
    """Peak memory of this process after so many passages of a reader; -1 stands for one pass over the text."""
    start = time.perf_counter()
    tokenizer = load_tokenizer(str(file.parent))
    documents = DocumentStream(TextSource([str(file)]), seed=0)
    documents.hold_out_head()
    cut = PassageCutter(Cutting(MAX_LENGTH), tokenizer)
    length = 10**9 if passages == -1 else passages
    stream = PassageStream(documents, cut, length, BATCH_SIZE, readers, BUFFER_SIZE, file.parent)
    # Every `readers`-th batch is of this reader.
    batches = (range(first, first + BATCH_SIZE) for first in range(0, length * readers, BATCH_SIZE * readers))
    collator, done = DataCollatorForRetroMAE(tokenizer, seed=0, compact=True), 0
    for batch in batches:
        rows = [stream[index] for index in batch]
        if done >= length or (passages == -1 and all(row["epoch"] > 0 for row in rows)):
            break
        collator(rows)
        done += len(rows)
    return {"passages": done, "peak_bytes": peak_rss(), "seconds": round(time.perf_counter() - start, 1)}


def table(report: dict[str, Any]) -> str:
    lines = ["| text | passages | peak memory, MB |", "|---|---:|---:|"]
    rows = [(f"none: {BASE}", report["base"])]
    rows += [(f"{report[name]['megabytes']:,} MB", report[name]) for name in ("small", "large")]
    lines += [f"| {what} | {row['passages']:,} | {row['peak_bytes'] / 2**20:,.0f} |" for what, row in rows]
    return "\n".join(lines)


def conditions(report: dict[str, Any]) -> str:
    setting, environment = report["setting"], report["environment"]
    return (
        f"One reader of {setting['readers']}, which reads all of the text, one `.jsonl` file, and tokenises its share; "
        "the small text is read again and again until it has given as many passages as one pass over the large one. "
        f"{setting['max_length']} tokens a passage at most, batches of {setting['batch_size']}, "
        f"{setting['shuffle_buffer_size']:,} passages to shuffle, torch {environment['torch']}, datasets "
        f"{environment['datasets']}; no model."
    )


if __name__ == "__main__":
    main()
