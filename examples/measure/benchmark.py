"""What RetroMAE costs beside plain masked language modelling, measured in one run.

Both sides get the same rows, threads, precision and optimizer, take turns, and are compared by their medians, since
machines are noisy. The plain side is `BertForMaskedLM` with `DataCollatorForLanguageModeling`.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from tqdm.auto import tqdm
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from retromae_hf.data.collator import DataCollatorForRetroMAE
from retromae_hf.data.disk import write_json
from retromae_hf.data.passages import tokenize_passages
from retromae_hf.data.tokenizers import SPECIAL_TOKENS
from retromae_hf.model.configuration_retromae import RetroMAEConfig
from retromae_hf.model.losses import OPERATORS
from retromae_hf.model.modeling_retromae import RetroMAEForPreTraining
from retromae_hf.training.callbacks import RetroMAECallback

SHAPES = {
    "small": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536},
    # To see that a benchmark runs to its end.
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
SIDES = ("retromae", "mlm")
PRETENSE = "pretense"
PARTS, PROFILE = ("collator", "step", "memory", "trainer"), "profile"
VOCAB_SIZE = 30_522
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Setting:
    shape: str = "small"
    tokens_per_batch: int = 1024
    encoder_mask_ratio: float = 0.3
    dropout: float = 0.1
    device: str = "cpu"
    dtype: str = "float32"
    compile: bool = False
    rounds: int = 5

    def encoder_config(self, length: int) -> BertConfig:
        return BertConfig(
            vocab_size=VOCAB_SIZE,
            max_position_embeddings=max(512, length),
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            **SHAPES[self.shape],
        )

    def batch_size(self, length: int) -> int:
        return max(self.tokens_per_batch // length, 1)


def new_tokenizer() -> BertTokenizer:
    """A vocabulary of BERT's size whose words are single tokens."""
    words = [f"w{index}" for index in range(VOCAB_SIZE - len(SPECIAL_TOKENS))]
    return BertTokenizer(vocab={token: index for index, token in enumerate([*SPECIAL_TOKENS, *words])})


def random_passages(length: int, count: int) -> list[dict[str, Any]]:
    """Passages of random words between the two special tokens, as ids and as text."""
    generator = torch.Generator().manual_seed(0)
    bodies = torch.randint(len(SPECIAL_TOKENS), VOCAB_SIZE, (count, length - 2), generator=generator).tolist()
    return [
        {
            "input_ids": [2, *body, 3],
            "passage_id": place,
            "text": " ".join(f"w{token - len(SPECIAL_TOKENS)}" for token in body),
        }
        for place, body in enumerate(bodies)
    ]


def collators(
    setting: Setting, tokenizer: PreTrainedTokenizerBase, against: str | None
) -> dict[str, Callable[[list[dict[str, Any]]], Mapping[str, Tensor]]]:
    ours = DataCollatorForRetroMAE(tokenizer, setting.encoder_mask_ratio, seed=0, compact=True)  # as `pretrain` does
    ours.set_epoch(0)
    plain = DataCollatorForLanguageModeling(tokenizer, mlm_probability=setting.encoder_mask_ratio)
    sides: dict[str, Any] = {"retromae": ours, "mlm": lambda rows: plain([{"input_ids": r["input_ids"]} for r in rows])}
    if against == PRETENSE:
        # Its collator takes texts, so that its rate includes the tokenizer.
        sides[PRETENSE] = import_pretense().MAECollator(
            tokenizer, 8192, encoder_mlm_probability=setting.encoder_mask_ratio
        )
    return sides


def new_model(setting: Setting, length: int, side: str) -> nn.Module:
    config = setting.encoder_config(length)
    if side == "retromae":
        return RetroMAEForPreTraining(RetroMAEConfig(encoder_config=config))
    plain = BertForMaskedLM(config)
    return plain if side == "mlm" else import_pretense().create_pretraining_model("retromae", plain)


def import_pretense() -> Any:
    """The one other package with this objective on today's libraries; of the extra `bench`."""
    import pretense

    return pretense


def measure_collators(setting: Setting, tokenizer: PreTrainedTokenizerBase, length: int, against: str | None) -> dict:
    """Passages a second in one thread, as in a worker of a data loader, and bytes that a passage ships."""
    rows = random_passages(length, 64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sides = collators(setting, tokenizer, against)
    shipped = {name: sum(tensor.nbytes for tensor in side(rows).values()) / len(rows) for name, side in sides.items()}
    calls = {name: (lambda side=side: side(rows)) for name, side in sides.items()}
    seconds = take_turns(calls, setting.rounds, f"collators, {length}", repeat=10)
    torch.set_num_threads(threads)
    return {
        "length": length,
        "passages_per_second": {name: len(rows) / median for name, median in seconds.items()},
        "bytes_per_passage": shipped,
    }


def measure_steps(
    setting: Setting, tokenizer: PreTrainedTokenizerBase, length: int, against: str | None, matmul_rate: float
) -> dict:
    """Seconds of forward, backward and AdamW, its FLOPs, and its share of the rate of a large matrix product."""
    rows = random_passages(length, setting.batch_size(length))
    batches = batches_of(setting, tokenizer, rows, against)
    steps = {side: step_of(setting, new_model(setting, length, side), batch) for side, batch in batches.items()}
    flops = {name: count_flops(step) for name, step in steps.items() if name in SIDES}
    seconds = take_turns(steps, setting.rounds, f"steps, {length}")
    return {
        "length": length,
        "batch_size": len(rows),
        "seconds": seconds,
        "flops": flops,
        "utilisation": {name: count / seconds[name] / matmul_rate for name, count in flops.items()},
    }


def batches_of(
    setting: Setting, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], against: str | None
) -> dict[str, dict[str, Tensor]]:
    """One batch for each side; the plain one has the very masks of ours."""
    sides = collators(setting, tokenizer, against)
    batches = {name: dict(side(rows)) for name, side in sides.items()}
    names = {"input_ids", "attention_mask", "labels"} & batches["retromae"].keys()
    batches["mlm"] = {name: batches["retromae"][name].long() for name in names}
    return {
        side: {name: tensor.to(setting.device) for name, tensor in batch.items()} for side, batch in batches.items()
    }


def step_of(setting: Setting, model: nn.Module, batch: dict[str, Tensor]) -> Callable[[], None]:
    model.to(setting.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)  # as Trainer does
    forward = torch.compile(model) if setting.compile else model
    dtype = getattr(torch, setting.dtype)

    def step() -> None:
        with torch.autocast(setting.device, dtype, enabled=dtype != torch.float32):
            loss = forward(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def count_flops(step: Callable[[], None]) -> int:
    def projection_flops(features: Any, weight: Any, *others: Any, **kwargs: Any) -> int:
        wants_features, wants_weight, _ = others[-1]
        return 2 * math.prod(features) * weight[0] * (1 + wants_features + wants_weight)

    def attention_flops(query: Any, key: Any, value: Any, *unused: Any, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *unused: Any, **kwargs: Any) -> int:
        return sdpa_backward_flop_count(gradient, query, key, value)

    operators = getattr(torch.ops, OPERATORS)
    uncounted = {  # which torch's counter does not know
        operators.cross_entropies: projection_flops,
        operators.pooled_cross_entropy: projection_flops,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=uncounted) as counter:
        step()
    return counter.get_total_flops()


def measure_matmul(setting: Setting) -> float:
    """FLOP/s of a large matrix product on the device, in the dtype of the steps."""
    size = 2048 if setting.device == "cpu" else 8192
    a, b = (torch.randn(size, size, dtype=getattr(torch, setting.dtype), device=setting.device) for _ in range(2))
    seconds = take_turns({"product": lambda: (a @ b)[0, 0].item()}, 2 * setting.rounds, "matrix product")
    return 2 * size**3 / seconds["product"]


def measure_memory(setting: Setting, length: int) -> dict:
    """Bytes that a side's first two steps need at their peak, model and optimizer included."""
    if setting.device != "cpu":
        return {"length": length, "peak_bytes": {side: _cuda_peak(setting, length, side) for side in SIDES}}
    # A process never forgets its peak, so each side has one of its own.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = pool.starmap(_peak_of_process, [(setting, length, side) for side in SIDES], chunksize=1)
    return {"length": length, "peak_bytes": dict(zip(SIDES, peaks, strict=True))}


def _peak_of_process(setting: Setting, length: int, side: str) -> int:
    before = peak_rss()
    _two_steps(setting, length, side)
    return peak_rss() - before


def peak_rss() -> int:
    """The most memory that this process has had, in bytes."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes
    # Not getrusage, which on Linux begins with the peak of the parent.
    return int(status.read_text(encoding="ascii").partition("VmHWM:")[2].split()[0]) * 1024


def _cuda_peak(setting: Setting, length: int, side: str) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _two_steps(setting, length, side)
    return torch.cuda.max_memory_allocated() - before


def _two_steps(setting: Setting, length: int, side: str) -> None:
    rows = random_passages(length, setting.batch_size(length))
    batch = batches_of(setting, new_tokenizer(), rows, None)[side]
    step = step_of(setting, new_model(setting, length, side), batch)
    step()
    step()


class Stopwatch(TrainerCallback):
    """Time and tokens of a training run from its third step on, when everything has been set up."""

    def __init__(self, device: str):
        self.device = device
        self.real: Tensor | int = 0
        self.all = 0
        self.seconds = 0.0

    def count(self, module: nn.Module, args: Any, batch: dict[str, Tensor]) -> None:
        self.all += batch["input_ids"].numel()
        mask = batch.get("attention_mask")
        # On a GPU the sum is still to be computed, so that nobody waits.
        self.real += batch["input_ids"].numel() if mask is None else mask.sum()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (WARM_UP_STEPS, state.max_steps):
            if self.device != "cpu":
                torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self.seconds
        if state.global_step == WARM_UP_STEPS:
            self.real, self.all = 0, 0


def measure_trainer(
    setting: Setting,
    texts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    matmul_rate: float,
    grouped: bool = True,
) -> dict:
    """Tokens a second of `Trainer` on ragged passages of real text, loading included, and the share lost to padding.

    The utilisation counts the operations of real tokens, at what they cost in the longest passages. Passages come
    grouped by length, or in random order.
    """
    passages = tokenize_passages(Dataset.from_dict({"text": texts}), tokenizer, length).with_format("numpy")
    config = setting.encoder_config(length)
    config.vocab_size = len(tokenizer)
    model = RetroMAEForPreTraining(RetroMAEConfig(encoder_config=config))
    collator = DataCollatorForRetroMAE.from_config(
        tokenizer, model.config, encoder_mask_ratio=setting.encoder_mask_ratio, seed=0, compact=True
    )
    collator.set_epoch(0)
    longest = np.argsort(passages["length"][:])[-setting.batch_size(length) :]
    batch = {name: part.to(setting.device) for name, part in collator([passages[int(row)] for row in longest]).items()}
    flops = count_flops(step_of(setting, RetroMAEForPreTraining(model.config), batch)) / batch["input_ids"].numel()
    stopwatch = Stopwatch(setting.device)
    model.register_forward_pre_hook(stopwatch.count, with_kwargs=True)
    steps = WARM_UP_STEPS + 4 * setting.rounds
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=setting.batch_size(length),
            train_sampling_strategy="group_by_length" if grouped else "random",
            bf16=setting.dtype == "bfloat16",
            use_cpu=setting.device == "cpu",
            torch_compile=setting.compile,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_num_workers=0 if setting.device == "cpu" else 4,  # on a CPU they would take what the step needs
        )
        callbacks = [RetroMAECallback(), stopwatch]
        Trainer(model=model, args=args, data_collator=collator, train_dataset=passages, callbacks=callbacks).train()
    rate = float(stopwatch.real) / stopwatch.seconds
    return {
        "length": length,
        "steps": steps,
        "tokens_per_second": rate,
        "padding_share": 1 - float(stopwatch.real) / stopwatch.all,
        "utilisation": rate * flops / matmul_rate,
    }


def take_turns(calls: Mapping[str, Callable[[], Any]], rounds: int, what: str, repeat: int = 1) -> dict[str, float]:
    """Median seconds of one call of each, measured alternately after a first call of each."""
    measured: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in tqdm(range(rounds), desc=what, leave=False):
        for name, call in calls.items():
            started = time.perf_counter()
            for _ in range(repeat):
                call()
            measured[name].append((time.perf_counter() - started) / repeat)
    return {name: statistics.median(seconds) for name, seconds in measured.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure RetroMAE beside plain masked language modelling.")
    parser.add_argument("--shape", choices=SHAPES, default="small", help="encoder: 6 layers x 384, 2 x 32 or 12 x 768")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512], help="tokens a passage")
    parser.add_argument("--tokens_per_batch", type=int, default=1024, help="the same at every length")
    parser.add_argument("--encoder_mask_ratio", type=float, default=0.3, help="share of the tokens masked")
    parser.add_argument("--dropout", type=float, default=0.1, help="of both; 0 lets attention run without its weights")
    parser.add_argument("--parts", nargs="+", choices=(*PARTS, PROFILE), default=PARTS, help="what to measure")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--compile", nargs="?", const="true", default="false", help="compile both with torch.compile")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each side takes")
    parser.add_argument("--against", choices=[PRETENSE], help="a third side, where it is installed")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark.json"), help="JSON file for the results")
    args = parser.parse_args(argv)
    args.dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    args.compile = args.compile == "true"
    if PROFILE in args.parts and (args.device == "cuda" or args.compile):
        parser.error("the profile is of a plain step on a CPU; give --device cpu, without --compile")
    from benchmark_report import measure, show

    setting = Setting(**{name: getattr(args, name) for name in Setting.__dataclass_fields__})
    command = shlex.join(["python", "examples/measure/benchmark.py", *(sys.argv[1:] if argv is None else argv)])
    report = {"command": command, **measure(setting, args.parts, args.lengths, args.against)}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, report)
    print(f"{show(report)} The figures are in {args.output}.")


if __name__ == "__main__":
    main()
