"""The cards in model_cards/: one for each model that was trained here, made of the results file beside it.

Their weights are not published, so that a card names the command that trains such a model.
"""

from __future__ import annotations

from typing import Any

import from_scratch_report
from huggingface_hub import ModelCard
from transformers import AutoConfig

from retromae_hf.model.configuration_retromae import DEFAULT_DECODING
from retromae_hf.publishing.model_card import build_card
from retromae_hf.publishing.record import describe_model, describe_source, new_record, thin
from retromae_hf.studies import comparison_report

COMPARED = {"compare-cpu": "retromae", "compare-cpu-more": "mlm-then-retromae"}
"""Which objective's model the card of a comparison is about; the others stand beside it in its tables."""


def from_scratch_card(report: dict[str, Any]) -> ModelCard:
    """The card of the fine-tuned RetroMAE encoder of `make from-scratch`."""
    settings, environment = report["settings"], dict(report["environment"])
    documents = environment.pop("docstrings")
    length = settings["max_length"]
    history = report["logs"]["retromae"]
    stages = [
        _stage(
            "pretraining",
            {"decoding": DEFAULT_DECODING},
            describe_source("pydocs", None, "train", documents=documents, max_length=length),
            settings["pretraining"],
            environment,
            report["seconds"]["retromae_pretraining"],
            history,
        ),
        _stage(
            "finetuning",
            {"objective": "contrastive", "similarity": "cosine"},
            describe_source("pydocs", None, "train", max_length=length),
            settings["finetuning"],
            environment,
            report["seconds"]["retromae_finetuning"],
            [],
            start="retromae-encoder",
        ),
    ]
    record = _record("from-scratch", settings, length, stages)
    record |= {"repository": "runs/from-scratch/retromae-finetuned", "command": "make from-scratch"}
    measured = report["results"]["retromae"]["finetuned"]
    task = report["task"] | {"measures": measured, "bm25": {"measures": report["results"]["bm25"]["zero_shot"]}}
    results = {"model": record["repository"], "tasks": {task.pop("name"): task}}
    comparison = f"Beside the same encoder with other pretraining:\n\n{from_scratch_report.table(report)}\n\n"
    return build_card(record, results, ["curves.png"], comparison + from_scratch_report.conditions(report))


def comparison_card(name: str, report: dict[str, Any]) -> ModelCard:
    """The card of one objective's fine-tuned encoder in a comparison; its figures are means over the seeds."""
    recipe, objective = report["recipe"], COMPARED[name]
    chain = [objective]
    while (start := recipe["objectives"][chain[0]].get("start")) is not None:
        chain.insert(0, start)
    tuning = recipe["finetuning"]
    stages = [_pretraining(report, one) for one in chain]
    length = max(tuning["query_length"], tuning["passage_length"])
    stages.append(
        _stage(
            "finetuning",
            {"objective": "contrastive", "similarity": "cosine"},
            describe_source(recipe["finetuning_dataset"], None, "train", max_length=length),
            tuning,
            report["environment"],
            None,
            [],
            start="encoder",
        )
    )
    record = _record(name, recipe["model"], length, stages)
    record["repository"] = f"{recipe['output_dir']}/cells/{objective}-{recipe['seeds'][0]}/finetuned"
    record["command"] = f"retromae-hf compare examples/recipes/compare/{name}.yaml"
    measured = report["objectives"][objective]["finetuned"]
    tasks = {
        task: {
            "num_queries": about["num_queries"],
            "num_documents": about["num_documents"],
            "measures": {measure: values["mean"] for measure, values in measured[task].items()},
            "bm25": {"measures": about["bm25"]},
        }
        for task, about in report["tasks"].items()
    }
    seeds = len(recipe["seeds"])
    evaluated = f"{objective}, fine-tuned, {'one seed' if seeds == 1 else f'mean over {seeds} seeds'}"
    tables = [
        f"{comparison_report.table(report, task)}\n\n{comparison_report.conditions(report, task)}" for task in tasks
    ]
    comparison = "\n\n".join(["Beside the same encoder with other pretraining:", *tables])
    return build_card(record, {"model": evaluated, "tasks": tasks}, ["comparison.png"], comparison)


def _pretraining(report: dict[str, Any], objective: str) -> dict[str, Any]:
    """The stage of an objective, with the figures of the first seed's logs."""
    recipe, row = report["recipe"], report["objectives"][objective]
    changes = {name: value for name, value in recipe["objectives"][objective].items() if name != "start"}
    settings = recipe["pretraining"] | changes
    data = describe_source(recipe["dataset"], None, "train", max_length=settings["max_length"])
    decoding = {"decoding": settings.pop("decoding", DEFAULT_DECODING)}
    start = recipe["objectives"][objective].get("start")
    stage = _stage("pretraining", decoding, data, settings, report["environment"], row["seconds"], row["logs"], start)
    return stage | {"tokens_seen": round(row["tokens"]), "tokens_counted": True}


def _stage(
    stage: str,
    objective: dict[str, Any],
    data: dict[str, Any],
    settings: dict[str, Any],
    environment: dict[str, Any],
    seconds: float | None,
    logs: list[dict[str, Any]],
    start: str | None = None,
) -> dict[str, Any]:
    """A stage of a record, with the settings that differ from the commands' defaults."""
    own = {"max_steps": "steps", "per_device_train_batch_size": "batch_size"}
    left_out = {"max_length", "logging_steps", "use_cpu", "query_length", "passage_length"}
    return {
        "stage": stage,
        "start": None if start is None else {"name": start, "on_hub": False},
        "data": data,
        "objective": objective,
        "training": {own.get(name, name): value for name, value in settings.items() if name not in left_out},
        "flops": next((entry["total_flos"] for entry in logs if entry.get("total_flos")), None),
        "seconds": seconds,
        "environment": environment,
        "logs": thin(logs),
    }


def _record(name: str, sizes: dict[str, Any], length: int, stages: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("num_hidden_layers", "hidden_size", "vocab_size")
    config = AutoConfig.for_model(sizes.get("config_name", "bert"), **{one: sizes[one] for one in names})
    model = describe_model(config, None, length, pooling="cls", similarity="cosine")
    return new_record(f"retromae-{name}", "encoder", model, stages, language=["en"])
