"""What RetroMAE costs beside plain masked language modelling, measured in one run.

Both sides get the same rows, threads, precision and optimizer, take turns, and are compared by their medians, since
machines are noisy. The plain side is `BertForMaskedLM` with `DataCollatorForLanguageModeling`.
"""

from __future__ import annotations

import math
import multiprocessing
import resource
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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

from retromae_hf.commands.common import command, parse, writable
from retromae_hf.data.collator import DataCollatorForRetroMAE
from retromae_hf.data.passages import tokenize_passages
from retromae_hf.data.tokenizers import SPECIAL_TOKENS
from retromae_hf.model.configuration_retromae import RetroMAEConfig
from retromae_hf.model.errors import RetroMAEError, check_at_least, check_choice
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
VOCAB_SIZE = 30_522
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Setting:
    """What is measured: the encoder, the batch and the machine."""

    shape: str = "small"
    tokens_per_batch: int = 1024
    encoder_mask_ratio: float = 0.3
    dropout: float = 0.1
    device: str = "cpu"
    dtype: str = "float32"
    compile: bool = False
    rounds: int = 5

    def encoder_config(self, length: int) -> BertConfig:
        """The encoder, with as many positions as are needed."""
        return BertConfig(
            vocab_size=VOCAB_SIZE,
            max_position_embeddings=max(512, length),
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            **SHAPES[self.shape],
        )

    def batch_size(self, length: int) -> int:
        """Passages of a length a batch."""
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
    """What makes the batches of each side."""
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
    """The model of a side."""
    config = setting.encoder_config(length)
    if side == "retromae":
        return RetroMAEForPreTraining(RetroMAEConfig(encoder_config=config))
    plain = BertForMaskedLM(config)
    return plain if side == "mlm" else import_pretense().create_pretraining_model("retromae", plain)


def import_pretense() -> Any:
    """The one other package with this objective on today's libraries."""
    try:
        import pretense
    except ImportError as error:
        raise RetroMAEError("--against pretense needs that package; pip install 'retromae-hf[bench]'") from error
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
    """A function that takes one training step and waits for it."""
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
    """Floating-point operations of the matrix products of one step."""

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
    try:
        # Not getrusage, which on Linux begins with the peak of the parent.
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


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


class _Stopwatch(TrainerCallback):
    """Time and tokens of a training run from its third step on, when everything has been set up."""

    def __init__(self, device: str):
        self.device = device
        self.real: Tensor | int = 0
        self.all = 0
        self.seconds = 0.0

    def count(self, module: nn.Module, args: Any, batch: dict[str, Tensor]) -> None:
        """A forward pre-hook."""
        self.all += batch["input_ids"].numel()
        mask = batch.get("attention_mask")
        # On a GPU the sum is still to be computed, so that nobody waits.
        self.real += batch["input_ids"].numel() if mask is None else mask.sum()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start and stop."""
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
    stopwatch = _Stopwatch(setting.device)
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


PARTS = ("collator", "step", "memory", "trainer")
PROFILE = "profile"
"""What is measured only where it is asked for."""


@dataclass
class BenchmarkArguments:
    """Arguments of `retromae-hf benchmark`."""

    shape: str = field(
        default="small", metadata={"help": "Encoder: small (6 layers x 384), base (12 x 768) or tiny (2 x 32)."}
    )
    lengths: list[int] = field(
        default_factory=lambda: [128, 512], metadata={"help": "Tokens a passage; several give the growth with it."}
    )
    tokens_per_batch: int = field(default=1024, metadata={"help": "Tokens a batch, the same at every length."})
    encoder_mask_ratio: float = field(default=0.3, metadata={"help": "Share of the tokens masked for the encoder."})
    dropout: float = field(
        default=0.1, metadata={"help": "Dropout of both; 0 lets attention run without its weights in memory."}
    )
    parts: list[str] = field(
        default_factory=lambda: list(PARTS),
        metadata={"help": f"What to measure: {', '.join(PARTS)}, or {PROFILE}: where a step's time goes on a CPU."},
    )
    device: str | None = field(default=None, metadata={"help": "cpu or cuda; default: cuda where there is one."})
    dtype: str | None = field(
        default=None, metadata={"help": "float32 or bfloat16; default: bfloat16 on a GPU, else float32."}
    )
    compile: bool = field(default=False, metadata={"help": "Compile both models with torch.compile."})
    rounds: int = field(default=5, metadata={"help": "Turns that each side takes."})
    against: str | None = field(default=None, metadata={"help": "A third side: pretense, where it is installed."})
    output: str = field(default="runs/benchmark.json", metadata={"help": "JSON file to write the results to."})

    def __post_init__(self) -> None:
        import torch

        from retromae_hf.model.configuration_retromae import check_ratio

        check_choice("shape", self.shape, SHAPES)
        known = (*PARTS, PROFILE)
        if unknown := set(self.parts) - set(known):
            raise RetroMAEError(
                f"parts has unknown entries, {', '.join(sorted(unknown))}; there are {', '.join(known)}"
            )
        if self.against not in (None, PRETENSE):
            raise RetroMAEError(f"against={self.against!r} is unknown; it can be {PRETENSE}")
        if self.against == PRETENSE:
            import_pretense()
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if self.device not in ("cpu", "cuda") or (self.device == "cuda" and not torch.cuda.is_available()):
            raise RetroMAEError(f"device={self.device!r} is not to be had here; use cpu, or cuda where there is one")
        if PROFILE in self.parts and (self.device == "cuda" or self.compile):
            raise RetroMAEError("the profile is of a plain step on a CPU; give --device cpu, without --compile")
        self.dtype = self.dtype or ("bfloat16" if self.device == "cuda" else "float32")
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        check_at_least(1, rounds=self.rounds, tokens_per_batch=self.tokens_per_batch)
        check_at_least(8, **{"the least of lengths": min(self.lengths, default=0)})
        check_ratio("encoder_mask_ratio", self.encoder_mask_ratio)


@command
def main(argv: list[str] | None = None) -> None:
    """Measure, print a table and write the results."""
    (args,) = parse("benchmark", "Measure RetroMAE beside plain masked language modelling.", [BenchmarkArguments], argv)
    from benchmark_report import conditions, measure, table

    from retromae_hf.data.disk import write_json

    output = writable(args.output)
    setting = Setting(**{name: getattr(args, name) for name in Setting.__dataclass_fields__})
    arguments = sys.argv[1:] if argv is None else argv
    measured = measure(setting, args.parts, args.lengths, args.against)
    report = {"command": shlex.join(["retromae-hf", "benchmark", *arguments]), **measured}
    write_json(output, report)
    print(f"{table(report)}\n\n{conditions(report)} The figures are in {output}.")


if __name__ == "__main__":
    sys.exit(main())
