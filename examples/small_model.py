"""A small encoder from nothing, at most 15 MB, made by the commands that a user would type; `make model`.

    python examples/small_model.py     # half an hour on two cores; typed again it goes on where it was cut off

The text is the documentation in the Python environment. What comes out lies in runs/small-model/encoder: weights in
float16, an ONNX file with 8-bit weights, and the card; `make space` and `retromae-hf search` take it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import onnx_cost
from safetensors.torch import load_file, save_file

from retromae_hf.commands.main import main as retromae_hf
from retromae_hf.data.disk import write_json

FOLDER = Path("runs/small-model")
LARGEST = 15_000_000
"""Bytes of what is handed over."""

TASK = "pydocs"
ENCODER = {"vocab_size": 6000, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "max_length": 64}
PRETRAINING = {"learning_rate": 1e-3, "per_device_train_batch_size": 64, "logging_steps": 50, "save_steps": 250}
FINETUNING = {
    "learning_rate": 5e-4,
    "per_device_train_batch_size": 128,
    "mini_batch_size": 64,
    "query_length": 32,
    "passage_length": 64,
    "logging_steps": 50,
    "save_steps": 100,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--dataset", default=TASK, help="text that pretrain and finetune take; default: pydocs")
    parser.add_argument("--task", default=TASK, help="what evaluate takes; default: pydocs")
    parser.add_argument("--steps", type=int, default=800, help="of pretraining; a fifth as many of fine-tuning")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args(argv)
    pretrained, plain, tuned, small = (args.folder / name for name in ("pretrained", "plain", "tuned", "encoder"))
    run("pretrain", dataset=args.dataset, output_dir=pretrained, max_steps=args.steps, **ENCODER, **PRETRAINING)
    if not plain.is_dir():
        run("export", model_name_or_path=pretrained, output_dir=plain)
    pairs = {} if args.dataset == TASK else {"pairs": "first-sentence"}
    steps = max(args.steps // 5, 1)
    run(
        "finetune",
        model_name_or_path=plain,
        dataset=args.dataset,
        output_dir=tuned,
        max_steps=steps,
        **pairs,
        **FINETUNING,
    )
    hand_over(tuned, small)
    onnx_cost.main([str(small), "--dataset", args.task, "--output", str(args.folder / "onnx.json")])
    (small / "onnx/model.onnx").unlink()  # four times as large as the one with 8-bit weights
    results = args.folder / "evaluation.json"
    run("evaluate", model_name_or_path=small, dataset=args.task, bm25="true", output=results)
    if retromae_hf(["card", str(small), "--results", str(results), "--overwrite", "true"]):
        raise SystemExit(2)
    size = sum(file.stat().st_size for file in small.rglob("*") if file.suffix in (".safetensors", ".onnx"))
    report = json.loads((args.folder / "onnx.json").read_text(encoding="utf-8")) | {"bytes": size}
    report["bm25"] = {
        task: entry["bm25"]["measures"]
        for task, entry in json.loads(results.read_text(encoding="utf-8"))["tasks"].items()
    }
    (args.folder / "results.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{table(report)}\n\n{conditions(report)}")
    if size > LARGEST:
        raise SystemExit(f"small_model: error: that is more than {LARGEST / 1e6:.0f} MB")


def hand_over(tuned: Path, small: Path) -> None:
    """Copy what makes a fine-tuned folder a model, with its weights in float16; loaders compute in float32 again."""
    shutil.rmtree(small, ignore_errors=True)
    shutil.copytree(tuned, small, ignore=shutil.ignore_patterns("checkpoint-*", "_*", "trainer_state.json", "eval"))
    weights = {name: tensor.half() for name, tensor in load_file(tuned / "model.safetensors").items()}
    save_file(weights, small / "model.safetensors", metadata={"format": "pt"})
    record = json.loads((small / "training.json").read_text(encoding="utf-8"))
    write_json(small / "training.json", record | {"name": "small-model"})  # and not after a stage's folder


def table(report: dict) -> str:
    kept = {"float16": report["models"]["PyTorch"], "ONNX, int8": report["models"]["ONNX, int8"]}
    lines = [onnx_cost.table(report | {"models": kept})]
    for task, measures in report["bm25"].items():
        figures = " | ".join(f"{measures[measure]:.4f}" for measure in onnx_cost.MEASURES)
        lines.append(f"| BM25 | | {task} | {figures} |")
    return "\n".join(lines)


def conditions(report: dict) -> str:
    """How large it is, and what was asked."""
    size = f"{report['bytes'] / 1e6:.1f} MB of weights, in float16 and as ONNX with 8-bit weights"
    return f"{size}; {onnx_cost.conditions(report)}"


def run(command: str, **options: object) -> None:
    argv = [command, *(str(part) for name, value in options.items() for part in (f"--{name}", value))]
    print(f"\n$ retromae-hf {' '.join(argv)}", flush=True)
    if status := retromae_hf(argv):
        raise SystemExit(status)


if __name__ == "__main__":
    main()
