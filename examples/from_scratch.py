"""The main job on the embedded corpus, in minutes on two cores: pretrain, export, evaluate, fine-tune and search.

Three small encoders are compared that differ in their pretraining alone: none, masked language modelling (MLM) and
RetroMAE. They start from the same weights, see the same passages in the same order for the same number of steps, and
are fine-tuned alike. Everything is written to runs/from-scratch, the comparison to results.json and curves.png there.
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sentence_transformers
import torch
import transformers
from datasets import Dataset
from from_scratch_report import draw, searches, table
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from small_model import run
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from retromae_hf import DataCollatorForRetroMAE, RetroMAEForPreTraining, export_encoder
from retromae_hf.arguments.pretraining import StartArguments
from retromae_hf.checkpoints.starting_model import load_model_and_tokenizer
from retromae_hf.data.held_out import HeldOut, load_held_out_pydocs
from retromae_hf.data.tokenizers import train_wordpiece
from retromae_hf.retrieval.embedders import load_embedder
from retromae_hf.retrieval.evaluation import evaluate_bm25, evaluate_embedder
from retromae_hf.retrieval.search import format_results, load_index
from retromae_hf.retrieval.tasks import reported_task
from retromae_hf.studies.comparison import suited_attention

FOLDER = Path("runs/from-scratch")
VOCAB_SIZE = 4096
ENCODER = {
    "tokenizer_name": str(FOLDER / "tokenizer"),
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
MAX_LENGTH = 48
PRETRAINING = {"learning_rate": 1e-3, "per_device_train_batch_size": 64}
FINETUNING = {"per_device_train_batch_size": 128, "learning_rate": 2e-3}
# A machine on which pretraining's steps would take longer than this takes fewer of both, the same for every encoder.
PRETRAINING_STEPS, FINETUNING_STEPS, MAX_SECONDS = 600, 150, 55
QUESTIONS = ("split a tensor into chunks", "read a file line by line", "random numbers from a normal distribution")

ON_CPU = not torch.cuda.is_available()
PROCESSES = min(torch.get_num_threads(), 8)


def main() -> None:
    clock: dict[str, float] = {}
    with timed(clock, "total"), suited_attention(MAX_LENGTH):
        FOLDER.mkdir(parents=True, exist_ok=True)
        transformers.logging.set_verbosity_error()  # reports on a head that sentence embeddings do not use

        say("Reading the documentation of the Python packages installed here")
        with timed(clock, "read"):
            held_out = load_held_out_pydocs(PROCESSES)
            texts = held_out.pretraining["text"][:]
            train_wordpiece(texts, VOCAB_SIZE, MAX_LENGTH).save_pretrained(ENCODER["tokenizer_name"])
        print(f"{len(texts):,} docstrings, {sum(map(len, texts)) / 1e6:.1f} million characters")

        share, bf16 = plan(held_out)
        steps, finetuning_steps = round(share * PRETRAINING_STEPS), round(share * FINETUNING_STEPS)
        logs = {
            "retromae": pretrain_and_export("retromae", steps, bf16, clock, eval_steps=steps // 4),
            "mlm": pretrain_and_export("mlm", steps, bf16, clock, decoding="none", eval_strategy="no"),
        }
        set_seed(TrainingArguments.seed)  # so that these are the weights that both started from
        export_encoder(*new_model(held_out, "none"), new_folder("untrained-encoder"))

        say("Evaluating the encoders zero-shot, and again after the same short fine-tuning")
        task = reported_task(held_out)
        pairs = finetuning_pairs(held_out)
        results = {"bm25": {"zero_shot": evaluate_bm25(task)}}
        for row in ("untrained", "mlm", "retromae"):
            encoder, finetuned = str(FOLDER / f"{row}-encoder"), str(new_folder(f"{row}-finetuned"))
            results[row] = {"zero_shot": evaluate_embedder(task, load_embedder(encoder))}
            with timed(clock, f"{row}_finetuning"):
                finetune(encoder, finetuned, pairs, finetuning_steps, bf16)
            results[row]["finetuned"] = evaluate_embedder(task, load_embedder(finetuned))

        say("Embedding the documentation for the search")
        found = load_index(finetuned, num_proc=PROCESSES).search(list(QUESTIONS), top=3)

    report = {
        "task": {"name": task.name, "num_queries": len(task.queries), "num_documents": len(task.documents)},
        "settings": {
            "vocab_size": VOCAB_SIZE,
            **ENCODER,
            "max_length": MAX_LENGTH,
            "pretraining": {**PRETRAINING, "max_steps": steps, "bf16": bf16},
            "finetuning": {**FINETUNING, "max_steps": finetuning_steps, "bf16": bf16},
        },
        "environment": environment() | {"docstrings": len(texts)},
        "seconds": {name: round(seconds, 1) for name, seconds in clock.items()},
        "results": results,
        "searches": [
            {"command": f'retromae-hf search {finetuned} "{question}"', "output": format_results(results)}
            for question, results in zip(QUESTIONS, found, strict=True)
        ],
        "logs": logs,
    }
    (FOLDER / "results.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw(report, FOLDER / "curves.png")
    say(f"First sentence -> body, after {clock['total']:.0f} s in all; zero-shot, and fine-tuned alike")
    print(table(report))
    print(f"The figures are in {FOLDER}/results.json, the curves in {FOLDER}/curves.png.")
    say("Searching with the fine-tuned RetroMAE encoder")
    print(searches(report))
    print(f'\nNext, type:\n\n    .venv/bin/retromae-hf search {finetuned} "what you are looking for"')


def say(what: str) -> None:
    print(f"\n=== {what}", flush=True)


@contextmanager
def timed(clock: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    clock[name] = time.perf_counter() - started


def new_folder(name: str) -> Path:
    """A folder that an earlier run has left nothing in."""
    shutil.rmtree(FOLDER / name, ignore_errors=True)
    return FOLDER / name


def new_model(held_out: HeldOut, decoding: str) -> tuple[RetroMAEForPreTraining, PreTrainedTokenizerBase]:
    """The model that `retromae-hf pretrain` starts with."""
    args = StartArguments(decoding=decoding, **ENCODER)
    return load_model_and_tokenizer(args, held_out.pretraining["text"], MAX_LENGTH)


def plan(held_out: HeldOut) -> tuple[float, bool]:
    """The share of the steps to take, and whether in bfloat16: what a few steps of each kind say of this machine."""
    model, tokenizer = new_model(held_out, "enhanced")
    model.to("cpu" if ON_CPU else "cuda").train()
    optimizer = torch.optim.AdamW(model.parameters())
    rows = torch.randint(5, len(tokenizer), (PRETRAINING["per_device_train_batch_size"], MAX_LENGTH))
    rows[:, 0] = tokenizer.cls_token_id
    batch = DataCollatorForRetroMAE.from_config(tokenizer, model.config)([{"input_ids": row} for row in rows])
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}

    def seconds_per_step(bf16: bool, steps: int = 6) -> float:
        for step in range(2 + steps):
            if step == 2:  # the first ones warm up
                started = time.perf_counter()
            with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss.item()  # waits for the device
        return (time.perf_counter() - started) / steps

    seconds = {bf16: seconds_per_step(bf16) for bf16 in (False, True)}
    bf16 = min(seconds, key=seconds.__getitem__)
    print(f"A step takes {seconds[False]:.3f} s in float32 and {seconds[True]:.3f} s in bfloat16")
    share = MAX_SECONDS / (PRETRAINING_STEPS * seconds[bf16])
    return min(max(share, 0.1), 1.0), bf16


def pretrain_and_export(row: str, steps: int, bf16: bool, clock: dict[str, float], **options: Any) -> list[dict]:
    """Run the two commands as a user would, and return the training's logs."""
    say(f"Pretraining: {row}")
    with timed(clock, f"{row}_pretraining"):
        run(
            "pretrain",
            dataset="pydocs",
            output_dir=FOLDER / row,
            overwrite_output_dir=True,
            **ENCODER,
            max_length=MAX_LENGTH,
            **PRETRAINING,
            max_steps=steps,
            bf16=bf16,
            use_cpu=ON_CPU,
            logging_steps=steps // 12,
            save_strategy="no",
            preprocessing_num_workers=PROCESSES,
            **options,
        )
    run("export", model_name_or_path=FOLDER / row, output_dir=new_folder(f"{row}-encoder"))
    return json.loads((FOLDER / row / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]


def finetuning_pairs(held_out: HeldOut) -> Dataset:
    """First sentences and bodies that are not held out, without what a passage cannot hold.

    A token has three to four letters; the rest of a body need not be tokenised again in every step.
    """
    letters = 6 * MAX_LENGTH
    return held_out.pairs.map(lambda row: {"body": row["body"][:letters]}, desc="Shortening bodies")


def finetune(encoder: str, folder: str, pairs: Dataset, steps: int, bf16: bool) -> None:
    """Contrastive learning, first sentence -> body, with in-batch negatives."""
    model = SentenceTransformer(encoder, device="cpu" if ON_CPU else "cuda")
    model.model_card_data.generate_widget_examples = False  # it would tokenise the whole dataset
    args = SentenceTransformerTrainingArguments(
        **FINETUNING,
        max_steps=steps,
        output_dir=folder,
        warmup_steps=0.1,
        bf16=bf16,
        use_cpu=ON_CPU,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
    )
    SentenceTransformerTrainer(
        model=model, args=args, train_dataset=pairs, loss=MultipleNegativesRankingLoss(model)
    ).train()
    model.save_pretrained(folder)


def environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentence_transformers": sentence_transformers.__version__,
        "device": "cpu" if ON_CPU else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    main()
