"""What ONNX and 8-bit weights cost in retrieval: an encoder, its ONNX file and the quantised one on the same tasks.

    python examples/onnx_cost.py runs/mine/tuned --dataset pydocs my/task --output runs/onnx.json

Takes any folder that `SentenceTransformer` loads; writes `onnx/` into it.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from retromae_hf.benchmark_tasks import load_tasks
from retromae_hf.evaluation import evaluate_model
from retromae_hf.onnx_export import ONNX_FILE, compute_with_onnx, export_onnx

MEASURES = ("ndcg@10", "mrr@10", "recall@100")
TIMED_TEXTS = 512


def main(argv: list[str] | None = None) -> None:
    """Export, evaluate, time and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", help="folder that SentenceTransformer loads")
    parser.add_argument("--dataset", nargs="+", required=True, help="as retromae-hf evaluate takes it")
    parser.add_argument("--output", required=True, help="JSON file to write")
    args = parser.parse_args(argv)
    export_onnx(args.encoder, "int8")
    tasks = load_tasks(args.dataset)
    documents = list(tasks[0].documents.values())[:TIMED_TEXTS]
    report: dict[str, Any] = {
        "encoder": Path(args.encoder).name,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "timed_texts": len(documents),
        "models": {},
    }
    onnx = Path(args.encoder) / ONNX_FILE
    files = {"PyTorch": None, "ONNX": onnx, "ONNX, int8": onnx.with_name("model_int8.onnx")}
    for name, file in files.items():
        results = evaluate_model(str(file or args.encoder), tasks)["tasks"]
        report["models"][name] = {
            "megabytes": round((file or Path(args.encoder) / "model.safetensors").stat().st_size / 1e6, 1),
            "seconds": round(seconds_to_embed(args.encoder, file, documents), 2),
            "tasks": {task: found["measures"] for task, found in results.items()},
        }
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(table(report))


def seconds_to_embed(encoder: str, file: Path | None, texts: list[str]) -> float:
    """The better of two turns, on the CPU."""
    model = SentenceTransformer(encoder, device="cpu")
    if file is not None:
        compute_with_onnx(model[0].auto_model, file)
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        model.encode(texts, show_progress_bar=False)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    lines = [
        f"| | MB | seconds for {report['timed_texts']} texts | task | " + " | ".join(MEASURES) + " |",
        "|---|---:|---:|---|" + "---:|" * len(MEASURES),
    ]
    for name, model in report["models"].items():
        for task, measures in model["tasks"].items():
            figures = " | ".join(f"{measures[measure]:.4f}" for measure in MEASURES)
            lines.append(f"| {name} | {model['megabytes']} | {model['seconds']} | {task} | {figures} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
