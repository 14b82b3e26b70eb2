"""Short training runs for `test_processes.py`, which starts this file in several processes and in its own.

    python tests/training/process_runs.py FOLDER
    accelerate launch ... tests/training/process_runs.py FOLDER NAME [NAME ...]

The first forks the processes of all runs, one group after the other, from one that has imported everything. FOLDER
holds what `test_processes.start_folder` writes. Every process leaves `NAME-WORLD_SIZE-RANK.json` in it, and all of them
together the model in `NAME-WORLD_SIZE`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset, load_from_disk
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers import AutoTokenizer, TrainerCallback, TrainingArguments

from retromae_hf import DataCollatorForRetroMAE, RetrievalCallback, RetroMAECallback, RetroMAEForPreTraining
from retromae_hf.commands import pretrain
from retromae_hf.commands.common import end_process_group
from retromae_hf.retrieval.tasks import RetrievalTask
from retromae_hf.training.trainer import AccumulatingTrainer

GLOBAL_BATCH = 8
WATCHED = {"num_train_epochs": 2, "eval_strategy": "steps", "eval_steps": 5}

RUNS: dict[str, dict] = {
    "retromae": WATCHED,
    "single-precision": {"max_steps": 6},
    "by-length": {"num_train_epochs": 2, "train_sampling_strategy": "group_by_length"},
    "dupmae-sop": {"max_steps": 6},
    "contrast": {"max_steps": 6},
    "accumulated": {"num_train_epochs": 2, "gradient_accumulation_steps": 2},
    "uneven": {"num_train_epochs": 1, "dataloader_drop_last": False},
    "tiny": {"num_train_epochs": 2, "dataloader_drop_last": False},
    "sharded": WATCHED | {"use_cpu": False, "save_strategy": "steps", "save_steps": 4},
    "sharded-resumed": WATCHED | {"use_cpu": False},
    "killed": {"num_train_epochs": 50},
    # With use_cpu, TrainingArguments forget the timeout.
    "stuck": {"num_train_epochs": 50, "ddp_timeout": 4, "use_cpu": False},
}
"""What each run has of `TrainingArguments`."""
EQUAL = ["retromae", "single-precision", "by-length", "dupmae-sop", "contrast"]
"""Runs that are the same in one process and in several."""
WITH_FOUR = ["by-length", "dupmae-sop", "contrast"]
GROUPS = {
    "two": (2, [*EQUAL, "uneven", "tiny", "accumulated"]),
    "four": (4, [*WITH_FOUR, "tiny", "killed"]),
    "stuck": (2, ["stuck"]),
    "bad input": (2, []),
}
"""On how many processes which runs are made."""
PASSAGES = {"uneven": 21, "tiny": 3}
"""Passages of a run, where it does not take all."""


class Watch(RetroMAECallback):
    """Notes what the model is given."""

    def on_train_begin(self, args, state, control, model, **kwargs):
        super().on_train_begin(args, state, control, model=model, **kwargs)
        self.batches = []
        model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module, args, kwargs):
        if not module.training:
            return
        real = kwargs.get("attention_mask", torch.ones_like(kwargs["input_ids"])).bool()
        rows = zip(kwargs["input_ids"], kwargs["labels"], kwargs["visibility_seed"], real, strict=True)
        self.batches.append(
            [[int(seed), ids[mask].tolist(), labels[mask].tolist()] for ids, labels, seed, mask in rows]
        )


class Fail(TrainerCallback):
    """The last process is killed, or hangs, in the third step."""

    def __init__(self, name: str):
        self.name = name

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3 and args.process_index == args.world_size - 1:
            if self.name == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.name == "stuck":
                time.sleep(600)


def take_cpu_for_gpu() -> None:
    """Let accelerate do on a CPU what it does on accelerators alone: shard models, keep to `ddp_timeout`."""
    os.environ |= {"ACCELERATE_TORCH_DEVICE": "cpu", "ACCELERATE_BYPASS_DEVICE_MAP": "true"}
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)


def run(folder: Path, name: str) -> None:
    world_size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    kind = {"dupmae-sop": "pairs", "contrast": "spans"}.get(name, "passages")
    passages: Dataset = load_from_disk(str(folder / kind))
    passages = passages.select(range(PASSAGES.get(name, len(passages))))
    tokenizer = AutoTokenizer.from_pretrained(folder / kind / "model")
    model = RetroMAEForPreTraining.from_pretrained(folder / kind / "model")
    if name != "single-precision":
        model = model.double()
    watch, accumulated = Watch(), RUNS[name].get("gradient_accumulation_steps", 1)
    trainer = AccumulatingTrainer(
        model=model,
        args=TrainingArguments(
            **{
                "output_dir": str(folder / name),
                "per_device_train_batch_size": GLOBAL_BATCH // world_size // accumulated,
                "per_device_eval_batch_size": 2,
                "learning_rate": 1e-3,
                "logging_steps": 1,
                "save_strategy": "no",
                "use_cpu": True,
                "disable_tqdm": True,
                "dataloader_drop_last": True,
                "dataloader_pin_memory": False,
                "ddp_find_unused_parameters": False,
            }
            | RUNS[name]
        ),
        train_dataset=passages,
        eval_dataset=passages.select(range(min(8, len(passages)))),
        data_collator=DataCollatorForRetroMAE.from_config(tokenizer, model.config, seed=0),
        processing_class=tokenizer,
        callbacks=[watch, Fail(name)],
    )
    task = RetrievalTask("dev", {"q": "the otter"}, {"d": "the otter sleeps", "e": "bells"}, {"q": {"d": 1}})
    trainer.add_callback(RetrievalCallback(trainer, task, max_length=32))
    trainer.train(resume_from_checkpoint=str(folder / "sharded" / "checkpoint-4") if "resumed" in name else None)
    trainer.save_model(str(folder / f"{name}-{world_size}"))
    history = trainer.state.log_history
    noted = {
        "logs": [entry for entry in history if "loss" in entry],
        "watched": [entry for entry in history if "eval_ndcg@10" in entry],
        "batches": watch.batches,
    }
    (folder / f"{name}-{world_size}-{rank}.json").write_text(json.dumps(noted))


def run_all(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    if not names:
        sys.exit(pretrain.main(["--use_cpu", "--output_dir", str(folder / "bad"), "--dataset", "missing.jsonl"]))
    if not all(RUNS[name].get("use_cpu", True) for name in names):
        take_cpu_for_gpu()
    for name in names:
        run(folder, name)
    end_process_group()


def launch_all(folder: Path) -> None:
    """Run all groups; `failures.json` tells by group and rank the exit status of the processes that failed."""
    failures = {}
    for group, (processes, names) in GROUPS.items():
        config = LaunchConfig(1, 1, processes, run_id=group, rdzv_backend="c10d", rdzv_endpoint="localhost:0")
        config.start_method, config.max_restarts = "fork", 0
        try:
            elastic_launch(config, run_all)(folder, names)
        except ChildFailedError as error:
            failures[group] = {rank: failure.exitcode for rank, failure in error.failures.items()}
    (folder / "failures.json").write_text(json.dumps(failures))


if __name__ == "__main__":
    if sys.argv[2:]:
        run_all(Path(sys.argv[1]), sys.argv[2:])
    else:
        launch_all(Path(sys.argv[1]))
