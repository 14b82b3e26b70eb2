"""The help of the commands: an example, then the flags in groups, without importing what takes seconds."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from inspect import get_annotations
from typing import Any

from ..model.errors import import_extra

HELP = ("-h", "--help", "--help-all", "--help_all")

EXAMPLES = {
    "adapt": "--model_name_or_path sentence-transformers/all-MiniLM-L6-v2 --dataset texts.jsonl --output_dir runs/mine",
    "pretrain": "--model_name_or_path bert-base-uncased --dataset texts.jsonl --output_dir runs/mine",
    "finetune": "--model_name_or_path runs/mine/encoder --dataset beir/fiqa --output_dir runs/mine/finetuned",
    "convert": "pytorch_model.bin model.safetensors",
    "export": "--model_name_or_path runs/mine --output_dir runs/mine/encoder",
    "evaluate": "--model_name_or_path runs/mine/encoder --dataset beir/fiqa --bm25 true --output results.json",
    "compare": "examples/recipes/compare/compare-cpu.yaml",
    "benchmark": "--lengths 128 512 --output runs/benchmark.json",
    "card": "runs/mine/encoder --results results.json",
    "explain": "--model_name_or_path runs/mine --text 'Return the names of the files in a directory.'",
    "search": "runs/mine/encoder 'how do I list the files of a directory'",
}
"""What is typed behind each command's name."""

RUN = {
    "output_dir": "Folder of checkpoints, model and card; the same command again goes on with what was cut off there.",
    "num_train_epochs": "Passes over the data; default: 3.",
    "max_steps": "Steps, in place of epochs.",
    "per_device_train_batch_size": "Rows of a batch on each device.",
    "gradient_accumulation_steps": "Batches of a step.",
    "learning_rate": "Highest learning rate.",
    "warmup_steps": "Steps in which it rises; below 1 a share of all.",
    "bf16": "Compute in bfloat16, as most GPUs can.",
    "gradient_checkpointing": "Take less memory and more time.",
    "logging_steps": "Steps between two lines of the log.",
    "eval_strategy": "When to evaluate: no, steps or epoch.",
    "eval_steps": "Steps between two evaluations.",
    "save_steps": "Steps between two checkpoints; default: 500.",
    "load_best_model_at_end": "Keep the best of the checkpoints, by metric_for_best_model; default: the last one.",
    "report_to": "tensorboard, wandb or another reporter that is installed; default: none.",
    "seed": "Of order, masks and new weights; default: 42.",
}
"""What most runs set of the arguments of `TrainingArguments`."""


def show_help(
    command: str,
    description: str,
    classes: Sequence[Any],
    defaults: Mapping[str, Any],
    positionals: Mapping[str, str],
    everything: bool,
) -> None:
    """Print the flags in groups, and exit.

    The arguments are those of `parse`. A library's dataclass takes seconds to import, so without `everything` the help
    has of it what stands in `RUN`.
    """
    named = [name.upper() for name in positionals]
    words = " ".join(["%(prog)s", *(["[RECIPE.yaml]", *named, "[flags]"] if classes else named)])
    parser = ArgumentParser(
        prog=f"retromae-hf {command}",
        usage=f"{words}\n\nexample:\n  %(prog)s {EXAMPLES[command]}",
        description=description,
        add_help=False,
    )
    for name, told in positionals.items():
        parser.add_argument(name, help=told)
    for cls in classes:
        if isinstance(cls, str) and not everything:
            group = parser.add_argument_group(f"The run; the other arguments of {cls} are taken too, see --help-all")
            for name, told in RUN.items():
                default = f" (default: {defaults[name]})" if name in defaults else ""
                group.add_argument(f"--{name}", metavar=name.upper(), help=told + default)
            continue
        for title, members in _groups(load_class(cls)):
            group = parser.add_argument_group(title)
            for one in members:
                _add(group, one, defaults)
    parser.print_help()
    raise SystemExit(0)


def load_class(cls: Any) -> Any:
    """A dataclass, or the one that a dotted name stands for."""
    if not isinstance(cls, str):
        return cls
    module, _, name = cls.rpartition(".")
    return getattr(import_extra(module, "this command", "retrieval"), name)


def _groups(cls: Any) -> Iterator[tuple[str, list[Field]]]:
    """The fields of a dataclass under the title of the base that has them, its docstring's first line."""
    for base in reversed(cls.__mro__):
        if members := [one for one in fields(cls) if one.init and one.name in get_annotations(base)]:
            yield str(base.__doc__).partition("\n")[0].rstrip("."), members


def _add(group: Any, one: Field, defaults: Mapping[str, Any]) -> None:
    made = None if one.default_factory is MISSING else one.default_factory()
    default = defaults.get(one.name, one.default if made is None else made)
    told = " (required)" if default is MISSING else f" (default: {default})" if default is not None else ""
    kind = str(one.type)
    group.add_argument(
        f"--{one.name}",
        metavar="{true,false}" if kind == "bool" else one.name.upper(),
        nargs="?" if kind == "bool" else "+" if kind.startswith("list") else None,
        help=" ".join(str(one.metadata.get("help", "")).split()) + told,
    )
