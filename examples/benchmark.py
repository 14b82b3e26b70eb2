"""RetroMAE against plain masked language modelling, in one run: the collator's rate and the time of a training step.

Both sides get the same rows, threads, precision and optimizer, take turns, and are compared by their medians, since
machines are noisy. Prints a table and writes runs/benchmark.json.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, DataCollatorForLanguageModeling

from retromae_hf import DataCollatorForRetroMAE, RetroMAEConfig, RetroMAEForPreTraining
from retromae_hf.vocabulary import SPECIAL_TOKENS

OUTPUT = Path("runs/benchmark.json")
VOCAB_SIZE = 30_522
ENCODER = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}
TOKENS_PER_BATCH = 4096
ROUNDS = 5

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    """Measure at two lengths and report."""
    words = [f"w{index}" for index in range(VOCAB_SIZE - len(SPECIAL_TOKENS))]
    tokenizer = BertTokenizer(vocab={token: index for index, token in enumerate([*SPECIAL_TOKENS, *words])})
    results = []
    for length in (128, 512):
        results += [measure_collators(tokenizer, length), measure_steps(tokenizer, length)]
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "vocab_size": VOCAB_SIZE,
        **ENCODER,
        "tokens_per_batch": TOKENS_PER_BATCH,
        "rounds": ROUNDS,
    }
    report = {"settings": settings, "results": results}
    OUTPUT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(table(report))
    print(conditions(report))


def table(report: dict) -> str:
    """The results as a Markdown table."""
    lines = ["| what | tokens a passage | RetroMAE | plain MLM | ratio |", "|---|---:|---:|---:|---:|"]
    for row in report["results"]:
        digits = 0 if row["mlm"] > 100 else 3
        figures = f"{row['retromae']:,.{digits}f} | {row['mlm']:,.{digits}f} | {row['retromae'] / row['mlm']:.2f}"
        lines.append(f"| {row['what']} | {row['length']} | {figures} |")
    return "\n".join(lines)


def conditions(report: dict) -> str:
    """What the figures hold for."""
    settings = report["settings"]
    return (
        f"Medians of {settings['rounds']} turns on {settings['device']} ({settings['threads']} threads, torch "
        f"{settings['torch']}); {settings['num_hidden_layers']} layers x {settings['hidden_size']}, vocabulary "
        f"{settings['vocab_size']:,}, {settings['tokens_per_batch']:,} tokens a batch, 30 % masked. Plain MLM is "
        "`BertForMaskedLM` with `DataCollatorForLanguageModeling`."
    )


def measure_collators(tokenizer: BertTokenizer, length: int) -> dict:
    """Passages a second, in one thread, as in a worker of a data loader."""
    rows = random_rows(length, 64)
    retromae_features = [{"input_ids": row, "passage_id": index} for index, row in enumerate(rows)]
    mlm_features = [{"input_ids": row} for row in rows]
    retromae = DataCollatorForRetroMAE(tokenizer, seed=0)
    retromae.set_epoch(0)
    mlm = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = take_turns(lambda: retromae(retromae_features), lambda: mlm(mlm_features), f"collators, {length}", 20)
    torch.set_num_threads(threads)
    return row_of("collator, passages a second", length, *(len(rows) / one for one in seconds))


def measure_steps(tokenizer: BertTokenizer, length: int) -> dict:
    """Seconds of forward, backward and AdamW, in bfloat16 on a GPU and in float32 on a CPU."""
    config = BertConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=512, **ENCODER)
    features = [
        {"input_ids": row, "passage_id": index}
        for index, row in enumerate(random_rows(length, TOKENS_PER_BATCH // length))
    ]
    collator = DataCollatorForRetroMAE(tokenizer, seed=0)
    collator.set_epoch(0)
    batch = {name: tensor.to(DEVICE) for name, tensor in collator(features).items()}
    plain = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    seconds = take_turns(
        step_of(RetroMAEForPreTraining(RetroMAEConfig(encoder_config=config)), batch),
        step_of(BertForMaskedLM(config), plain),
        f"steps, {length}",
        1,
    )
    return row_of("step, seconds", length, *seconds)


def step_of(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """A function that takes one training step and waits for it."""
    model.to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def take_turns(first: Callable, second: Callable, what: str, calls: int) -> tuple[float, float]:
    """Median seconds of one call of each, measured alternately after a first call of both."""
    measured: tuple[list[float], list[float]] = ([], [])
    first(), second()
    for _ in tqdm(range(ROUNDS), desc=what, leave=False):
        for function, seconds in zip((first, second), measured, strict=True):
            started = time.perf_counter()
            for _ in range(calls):
                function()
            seconds.append((time.perf_counter() - started) / calls)
    return statistics.median(measured[0]), statistics.median(measured[1])


def row_of(what: str, length: int, retromae: float, mlm: float) -> dict:
    """A line of the results."""
    return {"what": what, "length": length, "retromae": retromae, "mlm": mlm}


def random_rows(length: int, count: int) -> list[list[int]]:
    """Passages of random tokens between the two special ones."""
    generator = torch.Generator().manual_seed(0)
    bodies = torch.randint(len(SPECIAL_TOKENS), VOCAB_SIZE, (count, length - 2), generator=generator).tolist()
    return [[2, *body, 3] for body in bodies]


if __name__ == "__main__":
    main()
