"""What RetroMAE costs on a GPU, in one command of some 20 minutes:

    python examples/measure/gpu_report.py                    # one GPU, in bfloat16; writes runs/gpu-report.json
    python examples/measure/gpu_report.py --tiny --device cpu # with tiny shapes, to see that it runs

Collator, step and `Trainer` at BERT-base with 128 and 512 tokens, grouped by length and not; ModernBERT-base at 8,192
tokens with each attention; our loss against plain logits and against Liger's, where that is installed; and whether a
step makes the host wait. Each part is written as soon as it is measured. What the machine lacks is reported.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import benchmark
import torch
from benchmark import SHAPES, SIDES, VOCAB_SIZE, Setting
from benchmark_report import describe_machine, table
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from tqdm.auto import tqdm
from transformers import ModernBertConfig

from retromae_hf import RetroMAEConfig, RetroMAEError, RetroMAEForPreTraining
from retromae_hf.checkpoints.starting_model import fit_to_tokenizer
from retromae_hf.data.disk import write_json
from retromae_hf.data.pydocs import load_pydocs
from retromae_hf.data.tokenizers import train_wordpiece
from retromae_hf.model.encoders import use_attention
from retromae_hf.model.errors import first_line
from retromae_hf.model.losses import linear_cross_entropy

ATTENTION = ("sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
MODERN_BASE = {"hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12, "intermediate_size": 1152}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the script")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each side takes")
    parser.add_argument("--output", default="runs/gpu-report.json", help="JSON file to write")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu_report: error: there is no GPU; try the script with --tiny --device cpu")
    setting = Setting(
        shape="tiny" if args.tiny else "base",
        tokens_per_batch=64 if args.tiny else 32_768,
        device=args.device,
        dtype="float32" if args.tiny else "bfloat16",
        rounds=args.rounds,
    )
    report = {"setting": asdict(setting), "environment": describe_machine(args.device), "parts": {}}
    lengths, long = ((16,), 64) if args.tiny else ((128, 512), 8192)
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    rate = benchmark.measure_matmul(setting)
    report["matmul_flops_per_second"] = rate
    for name, measure in tqdm(measurements(setting, lengths, long, rate).items(), desc="Measuring"):
        report["parts"][name] = measured(measure)
        write_json(Path(args.output), report)
    print(f"\n{table(report['parts'])}\n\n{conditions(report)} The figures are in {args.output}.")


def measured(measure: Callable[[], Any]) -> Any:
    try:
        return measure()
    # What an implementation of attention lacks shows in many ways, and the other parts are to be measured all the same.
    except (RetroMAEError, ImportError, NotImplementedError, RuntimeError, ValueError) as error:
        return {"refused": first_line(error)}


def measurements(
    setting: Setting, lengths: tuple[int, ...], long: int, rate: float
) -> dict[str, Callable[[], dict[str, Any]]]:
    words = benchmark.new_tokenizer()
    texts = functools.cache(lambda: load_pydocs()["text"][:3000])
    tokenizer = functools.cache(lambda: train_wordpiece(texts(), 8192, max(lengths)))
    parts: dict[str, Callable[[], dict[str, Any]]] = {"waits": lambda: check_waits(setting, lengths[0])}
    for length in lengths:
        parts |= {
            f"collator {length}": lambda length=length: benchmark.measure_collators(setting, words, length, None),
            f"step {length}": lambda length=length: measure_step(setting, words, length, rate),
        }
        for grouped in (True, False):
            parts[f"Trainer {length}, {'grouped by length' if grouped else 'in random order'}"] = (
                lambda length=length, grouped=grouped: benchmark.measure_trainer(
                    setting, texts(), tokenizer(), length, rate, grouped
                )
            )
    for implementation in ATTENTION:
        parts[f"ModernBERT {long}, {implementation}"] = lambda implementation=implementation: measure_modernbert(
            setting, long, implementation, rate
        )
    hidden = SHAPES[setting.shape]["hidden_size"]
    for name, loss in LOSSES.items():
        parts[f"loss, {name}"] = lambda loss=loss: measure_loss(setting, hidden, loss)
    return parts


def check_waits(setting: Setting, length: int) -> dict[str, Any]:
    """Whether forward and backward pass let the host wait: on a GPU torch says so, else its device "meta" does."""
    device = "cuda" if setting.device == "cuda" else "meta"
    on_device = replace(setting, device=device)
    rows = benchmark.random_passages(length, setting.batch_size(length))
    batch = benchmark.batches_of(on_device, benchmark.new_tokenizer(), rows, None)["retromae"]
    model = benchmark.new_model(setting, length, "retromae").to(device).train()
    model(**batch).loss.backward()
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        model(**batch).loss.backward()
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return {"waits": 0}


def measure_step(setting: Setting, tokenizer: Any, length: int, rate: float) -> dict[str, Any]:
    """Both sides' step, with tokens a second and peak memory."""
    step = benchmark.measure_steps(setting, tokenizer, length, None, rate)
    tokens = step["batch_size"] * length
    step["tokens_per_second"] = {side: tokens / step["seconds"][side] for side in SIDES}
    return step | benchmark.measure_memory(setting, length)


def measure_modernbert(setting: Setting, length: int, implementation: str, rate: float) -> dict[str, Any]:
    """A step of RetroMAE with ModernBERT; its operations are counted as those of dense attention."""
    sizes = SHAPES["tiny"] if setting.shape == "tiny" else MODERN_BASE
    tokenizer = benchmark.new_tokenizer()
    config = ModernBertConfig(max_position_embeddings=length, **sizes)
    fit_to_tokenizer(config, tokenizer)
    rows = benchmark.random_passages(length, setting.batch_size(length))
    batch = benchmark.batches_of(setting, tokenizer, rows, None)["retromae"]

    model = RetroMAEForPreTraining(RetroMAEConfig(encoder_config=config))
    use_attention(model, implementation)
    step = benchmark.step_of(setting, model, batch)
    found = timed(setting, step, implementation)
    found["tokens_per_second"] = len(rows) * length / found["seconds"]
    if implementation == "sdpa":
        found["utilisation"] = benchmark.count_flops(step) / found["seconds"] / rate
    return found


def timed(setting: Setting, call: Callable[[], Any], what: str) -> dict[str, Any]:
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = benchmark.take_turns({what: call}, setting.rounds, what)[what]
    peak = torch.cuda.max_memory_allocated() if setting.device == "cuda" else None
    return {"seconds": seconds, "peak_bytes": peak}


def ours(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return linear_cross_entropy(features, weight, None, labels)


def plain(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(linear(features, weight).float(), labels)


def liger(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The fused loss of Liger Kernel, where that is installed."""
    fused = import_module("liger_kernel.transformers.fused_linear_cross_entropy")
    half = [tensor.to(torch.bfloat16) for tensor in (weight, features)]
    return fused.LigerFusedLinearCrossEntropyLoss()(*half, labels)


LOSSES = {"ours": ours, "plain": plain, "Liger": liger}


def measure_loss(setting: Setting, hidden: int, loss: Callable[..., Tensor]) -> dict[str, Any]:
    """Seconds and peak memory of a loss over a quarter of a batch's tokens and of its gradients."""
    rows = max(setting.tokens_per_batch // 4, 8)
    features = torch.randn(rows, hidden, device=setting.device, requires_grad=True)
    weight = torch.randn(VOCAB_SIZE, hidden, device=setting.device, requires_grad=True)
    labels = torch.randint(VOCAB_SIZE, (rows,), device=setting.device)
    dtype = getattr(torch, setting.dtype)

    def call() -> None:
        with torch.autocast(setting.device, dtype, enabled=dtype != torch.float32):
            value = loss(features, weight, labels)
        value.backward()
        value.item()
        features.grad = weight.grad = None

    return {"rows": rows, **timed(setting, call, "loss")}


def conditions(report: dict[str, Any]) -> str:
    setting, machine = report["setting"], report["environment"]
    return (
        f"RetroMAE / plain MLM; medians of {setting['rounds']} turns on {machine['machine']} (torch "
        f"{machine['torch']}, transformers {machine['transformers']}), {setting['shape']} shapes in "
        f"{setting['dtype']}, {setting['tokens_per_batch']:,} tokens a batch; a large matrix product runs at "
        f"{report['matmul_flops_per_second'] / 1e12:.2f} TFLOP/s."
    )


if __name__ == "__main__":
    main()
