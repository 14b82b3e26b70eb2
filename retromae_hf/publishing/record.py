"""What a model's folder says of how the model came about: `training.json`, from which its card is made.

The record, schema 1:

    {
      "schema": 1,
      "name": "mine",
      "format": "checkpoint",              or "encoder", "sparse-encoder"
      "license": "mit",                    as it was given, null where it was not; likewise
      "language": ["en"],
      "source": {"name": "mine", "on_hub": false},     of an exported encoder the checkpoint, null of others
      "model": {
        "model_type": "bert", "num_hidden_layers": 4, "hidden_size": 256, "vocab_size": 8192,
        "num_parameters": 6000000,         of what is in the folder, a checkpoint's decoder included
        "max_length": 512,                 tokens that it reads of a text
        "pooling": "cls",                  or "mean"; null where there is more to it, and of sparse encoders
        "similarity": "cosine",            null for a checkpoint
        "prompts": {"query": "", "document": ""}
      },
      "stages": [                          in their order; empty where nobody wrote down how it was trained
        {
          "stage": "pretraining",          or "finetuning"
          "start": {"name": "bert-base-uncased", "on_hub": true},    null: from scratch
          "data": {
            "source": "wikipedia", "on_hub": true, "config": null, "split": "train",    of a path the last part
            "documents": 100, "passages": 300, "tokens": 30000, "max_length": 128       or "rows"; what was counted
            "sources": [{"source": ...}], "weights": [0.7, 0.3]     of several, whose shares add up to 1; null: all
          },
          "objective": {"decoding": "enhanced", "decoder_mask_ratio": 0.5, ...},
          "training": {"steps": 10, "epochs": 1.1, "batch_size": 32, "learning_rate": 0.0001, ...},
          "tokens_seen": 33000,            null where it is not known; not "tokens_counted": epochs x tokens
          "tokens_counted": false,
          "flops": 1e12,                   Trainer's estimate, null where it makes none
          "seconds": 12.3,                 of training, evaluations included, over all parts of an interrupted run
          "environment": {"device": "cpu", "processes": 1, "threads": 2, "torch": "2.13.0", ...},
          "logs": [{"step": 5, "loss": 9.1}, ...]
        }
      ]
    }

A model that starts from another one that has a record goes on with the stages of that.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedConfig, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.utils import cached_file

from ..data.disk import read_json
from ..model.encoders import is_modular, resolve
from ..model.errors import RetroMAEError

RECORD_FILE = "training.json"
SCHEMA = 1

LOGGED = (
    "loss",
    "mlm_loss",
    "decoder_loss",
    "bow_loss",
    "pair_loss",
    "contrast_loss",
    "eval_loss",
    "eval_embedding_gap",
    "eval_bow_gap",
    "eval_mean_cosine",
    "eval_ndcg@10",
    "eval_mrr@10",
    "eval_recall@100",
)
"""What a record keeps of the logs."""

MAX_LOGS = 200
"""Entries of the logs that a record keeps at most: enough for a curve."""

SETTINGS = ("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim", "seed")
"""What a record keeps of `TrainingArguments` as it stands."""

COMMON_NAMES = ("encoder", "finetuned", "model", "checkpoint")
"""Names of folders that say nothing without the folder that they are in."""

PACKAGES = ("torch", "transformers", "sentence-transformers", "retromae-hf")


class RunClock(TrainerCallback, ExportableState):
    """Counts the seconds that a run trains; checkpoints hold them, so that an interrupted run goes on counting."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0 and args.should_save:
            Path(args.output_dir, RECORD_FILE).unlink(missing_ok=True)  # of an earlier run
        self.seconds, self._since = seconds_of(state), time.perf_counter()
        state.stateful_callbacks[type(self).__name__] = self.state()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.stateful_callbacks[type(self).__name__] = self.state()
        self._since = None

    def state(self) -> dict[str, Any]:
        if self._since is not None:
            now = time.perf_counter()
            self.seconds, self._since = self.seconds + now - self._since, now
        return {"args": {}, "attributes": {"seconds": self.seconds}}


def seconds_of(state: TrainerState) -> float:
    """The seconds that a `RunClock` has counted; 0 without one."""
    stored = (state.stateful_callbacks or {}).get(RunClock.__name__, {})
    return float(stored.get("attributes", {}).get("seconds", 0.0))


def read_record(name_or_path: str | Path) -> dict[str, Any] | None:
    """The record of a folder or of a repository on the Hub; None where there is none that can be read."""
    file = cached_file(
        str(name_or_path),
        RECORD_FILE,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    record = None if file is None else read_json(Path(file))
    known = record is not None and record.get("schema") == SCHEMA and isinstance(record.get("stages"), list)
    return record if known else None


def is_tuned_retriever(name_or_path: str | Path) -> bool:
    """Whether a model was tuned to retrieve: one of sentence-transformers that its record does not tell otherwise of.

    `export_encoder` writes such a model of an encoder that was only pretrained, and says so in the record.
    """
    folder = resolve(name_or_path, weights=False)
    if not is_modular(folder):
        return False
    record = read_record(folder)
    return record is None or any(stage["stage"] != "pretraining" for stage in record["stages"])


def new_record(
    name: str,
    form: str,
    model: dict[str, Any],
    stages: list[dict[str, Any]],
    license: str | None = None,
    language: list[str] | None = None,
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "name": name,
        "format": form,
        "license": license,
        "language": language,
        "source": None,
        "model": model,
        "stages": stages,
    }


def model_name(folder: str | Path) -> str:
    """What the model in a folder is called."""
    folder = Path(folder).resolve()
    common = folder.name in COMMON_NAMES and folder.parent != Path.home()  # whose name is the user's
    return " ".join((f"{folder.parent.name}-{folder.name}" if common else folder.name).split())


def public_name(name_or_path: str) -> str:
    """What a model or a data set may be called in public: a name on the Hub as it is, of a path the last part."""
    if Path(name_or_path).expanduser().exists():
        return model_name(Path(name_or_path).expanduser())
    parts = name_or_path.replace("\\", "/").rstrip("/").split("/")  # it may be of another machine
    return name_or_path if len(parts) <= 2 and parts[0] not in ("", ".", "..", "~") else parts[-1]


def describe_model(
    config: PreTrainedConfig | None, num_parameters: int | None, max_length: int | None, **use: Any
) -> dict[str, Any]:
    """A record's `model`; `config` is the encoder's, and `use` holds its pooling, similarity and prompts."""
    names = ("model_type", "num_hidden_layers", "hidden_size", "vocab_size")
    return {
        **{name: getattr(config, name, None) for name in names},
        "num_parameters": num_parameters,
        "max_length": max_length,
        **({"pooling": None, "similarity": None, "prompts": {}} | use),
    }


def describe_source(source: str, config: str | None, split: str, **counts: int | None) -> dict[str, Any]:
    """A stage's `data`, read from a path, of which the last part is kept, a Hub data set or "pydocs".

    `counts` are documents, passages and the like; those that are None were not counted.
    """
    known = {name: count for name, count in counts.items() if count is not None}
    if source == "pydocs":
        return {"source": source, "on_hub": False, **known}
    if Path(source).expanduser().exists():
        return {"source": public_name(source), "on_hub": False, **known}
    return {"source": public_name(source), "on_hub": True, "config": config, "split": split, **known}


def describe_sources(
    sources: Sequence[str], weights: Sequence[float] | None, config: str | None, split: str, **counts: int | None
) -> dict[str, Any]:
    """A stage's `data` where it may have been several sources, each with its weight; see `describe_source`."""
    if len(sources) == 1:
        return describe_source(sources[0], config, split, **counts)
    described = [describe_source(source, config, split) for source in sources]
    return describe_source(" + ".join(one["source"] for one in described), None, split, **counts) | {
        "on_hub": False,
        "sources": described,
        "weights": weights and [weight / sum(weights) for weight in weights],
    }


def describe_start(name_or_path: str | None) -> dict[str, Any] | None:
    """A stage's `start`: the model that it started from, of a folder the name alone."""
    if name_or_path is None:
        return None
    return {"name": public_name(name_or_path), "on_hub": not Path(name_or_path).is_dir()}


def describe_run(trainer: Trainer, corpus_tokens: int | None = None) -> dict[str, Any]:
    """What a stage holds of how it was trained: settings, tokens, operations, time, machine and logs.

    `corpus_tokens` are those of an epoch: where `Trainer` was not asked to count, so many times the epochs were seen.
    """
    args, state, settings = trainer.args, trainer.state, trainer.args.to_dict()
    tokens = state.num_input_tokens_seen or (corpus_tokens and round(corpus_tokens * (state.epoch or 0)))
    return {
        "training": {
            "steps": state.global_step,
            # Of a stream Trainer does not know them.
            **({"epochs": round(state.epoch or 0, 3)} if isinstance(trainer.train_dataset, Dataset) else {}),
            "batch_size": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
            **{name: settings[name] for name in SETTINGS},
            # Of pretraining alone, where new parts have learnt first.
            **({"head_warmup_steps": alone} if (alone := getattr(trainer, "head_warmup_steps", 0)) else {}),
            "precision": "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
        },
        "tokens_seen": tokens or None,
        "tokens_counted": state.num_input_tokens_seen > 0,
        "flops": state.total_flos or None,
        "seconds": round(seconds_of(state), 3),
        "environment": describe_environment(args),
        "logs": thin(state.log_history),
    }


def describe_environment(args: TrainingArguments) -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):  # of what is not needed for pretraining
            versions[package] = version(package)
    return {
        "device": torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else args.device.type,
        "processes": args.world_size,
        "threads": torch.get_num_threads(),
        **versions,
    }


def thin(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What of the logs a curve needs, at most `MAX_LOGS` entries of training and as many of evaluation."""
    kept = []
    for first in ("loss", "eval_"):
        entries = [entry for entry in history if any(name.startswith(first) and name in LOGGED for name in entry)]
        every = -(-len(entries) // MAX_LOGS) or 1
        kept += [{name: entry[name] for name in ("step", *LOGGED) if name in entry} for entry in entries[::-every]]
    return sorted(kept, key=lambda entry: entry["step"])


def require_record(folder: str | Path) -> dict[str, Any]:
    """The record of a folder; `RetroMAEError` where it has none."""
    record = read_record(folder) if Path(folder).is_dir() else None
    if record is None:
        raise RetroMAEError(f"{folder} has no {RECORD_FILE} to make a card of; pretrain, finetune and export write one")
    return record
