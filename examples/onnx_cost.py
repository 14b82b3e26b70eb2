"""What ONNX and 8-bit weights cost in retrieval: an encoder, its ONNX file and the quantised one on the same tasks.

    python examples/onnx_cost.py runs/mine/tuned --dataset pydocs my/task --output runs/onnx.json

Takes any folder that `SentenceTransformer` loads; writes `onnx/` into it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from retromae_hf.checkpoints.onnx import ONNX_FILE, export_onnx
from retromae_hf.retrieval.embedders import load_embedder
from retromae_hf.retrieval.evaluation import evaluate_model
from retromae_hf.retrieval.tasks import load_tasks

MEASURES = ("ndcg@10", "mrr@10", "recall@100")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", help="folder that SentenceTransformer loads")
    parser.add_argument("--dataset", nargs="+", required=True, help="as retromae-hf evaluate takes it")
    parser.add_argument("--output", required=True, help="JSON file to write")
    args = parser.parse_args(argv)
    export_onnx(args.encoder, "int8")
    tasks = load_tasks(args.dataset)
    report: dict[str, Any] = {
        "encoder": Path(args.encoder).name,
        "tasks": {task.name: {"queries": len(task.queries), "documents": len(task.documents)} for task in tasks},
        "models": {},
    }
    onnx = Path(args.encoder) / ONNX_FILE
    files = {"PyTorch": None, "ONNX": onnx, "ONNX, int8": onnx.with_name("model_int8.onnx")}
    for name, file in files.items():
        results = evaluate_model(load_embedder(str(file or args.encoder)), tasks)["tasks"]
        report["models"][name] = {
            "megabytes": round((file or Path(args.encoder) / "model.safetensors").stat().st_size / 1e6, 1),
            "tasks": {task: found["measures"] for task, found in results.items()},
        }
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(table(report), conditions(report), sep="\n\n")


def table(report: dict[str, Any]) -> str:
    lines = [
        "| | MB | task | " + " | ".join(MEASURES) + " |",
        "|---|---:|---|" + "---:|" * len(MEASURES),
    ]
    for name, model in report["models"].items():
        for task, measures in model["tasks"].items():
            figures = " | ".join(f"{measures[measure]:.4f}" for measure in MEASURES)
            lines.append(f"| {name} | {model['megabytes']} | {task} | {figures} |")
    return "\n".join(lines)


def conditions(report: dict[str, Any]) -> str:
    tasks = (
        f"{name}: {size['queries']:,} queries against {size['documents']:,} documents"
        for name, size in report["tasks"].items()
    )
    return f"`{report['encoder']}`; {'; '.join(tasks)}."


if __name__ == "__main__":
    main()
