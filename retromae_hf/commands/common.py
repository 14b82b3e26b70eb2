"""The help of the commands: an example, then the flags in groups, without importing what takes seconds."""

from __future__ import annotations

import functools
import gc
import logging
import os
import signal
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from inspect import get_annotations
from pathlib import Path
from typing import Any, NoReturn

from tqdm.contrib.logging import logging_redirect_tqdm

from ..model.errors import RetroMAEError, RunInterruptedError, import_extra, in_one_sentence

HELP = ("-h", "--help", "--help-all", "--help_all")

EXAMPLES = {
    "adapt": "--model_name_or_path sentence-transformers/all-MiniLM-L6-v2 --dataset texts.jsonl --output_dir runs/mine",
    "pretrain": "--model_name_or_path bert-base-uncased --dataset texts.jsonl --output_dir runs/mine",
    "finetune": "--model_name_or_path runs/mine/encoder --dataset beir/fiqa --output_dir runs/mine/finetuned",
    "convert": "pytorch_model.bin model.safetensors",
    "export": "--model_name_or_path runs/mine --output_dir runs/mine/encoder",
    "evaluate": "--model_name_or_path runs/mine/encoder --dataset beir/fiqa --bm25 true --output results.json",
    "compare": "examples/recipes/compare/compare-cpu.yaml",
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
                default = f" (default: {defaults[name]})" if defaults.get(name) is not None else ""
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


FIRST_WORD_SECONDS = 10
"""How long the other processes of a run wait for the first one to tell a fault. A launcher ends them well before."""

RENAMED = {
    # of transformers before version 5
    "adafactor": "optim adafactor",
    "evaluate_during_training": "eval_strategy steps",
    "evaluation_strategy": "eval_strategy",
    "fp16_backend": "",
    "fp16_opt_level": "",
    "group_by_length": "train_sampling_strategy group_by_length",
    "half_precision_backend": "",
    "no_cuda": "use_cpu",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "save_safetensors": "",
    "sharded_ddp": "fsdp",
    "torchdynamo": "torch_compile_backend",
    "use_mps_device": "",
    "warmup_ratio": "warmup_steps, a share of the steps where it is below 1",
    "xpu_backend": "ddp_backend",
    # of the released RetroMAE and its successors, and of the examples of transformers
    "dataset_name": "dataset",
    "decoder_mlm_probability": "decoder_mask_ratio",
    "encoder_mlm_probability": "encoder_mask_ratio",
    "max_seq_length": "max_length",
    "mlm_probability": "encoder_mask_ratio",
    "passage_max_len": "passage_length",
    "query_max_len": "query_length",
    "train_data": "dataset",
    "train_file": "dataset",
    "train_group_size": "num_negatives, of which there is one less",
}
"""What arguments that people know from elsewhere are called here; "" for what goes without saying."""

LONGEST_RECIPE = 100_000
"""Characters and values of a recipe, with what its aliases stand for written out."""


def parse(
    command: str,
    description: str,
    classes: Sequence[Any],
    argv: list[str] | None,
    defaults: Mapping[str, Any] | None = None,
    positionals: Mapping[str, str] | None = None,
) -> tuple[Any, ...]:
    """Fill dataclasses from an optional YAML recipe, named first, and from flags, which go before the recipe.

    Args:
        command: name of the command, for the help.
        description: what it does, likewise.
        classes: dataclasses as `HfArgumentParser` takes them. One of a library is given by its dotted name, is imported
            when a command runs, and is left out of the help but for `--help-all`.
        argv: the arguments; None takes those of the process.
        defaults: defaults that differ from the classes' own.
        positionals: names and help of arguments without a flag.

    Returns:
        The dataclasses, and a namespace of the positional arguments where there are any.

    Raises:
        RetroMAEError: the recipe cannot be read or names an argument that does not exist.
        SystemExit: the help was asked for, and is printed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if asked := set(HELP) & set(arguments):
        show_help(command, description, classes, defaults or {}, positionals or {}, not asked <= set(HELP[:2]))
    from datasets.utils.logging import set_verbosity as set_datasets_verbosity
    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        def _get_option_tuples(self, option_string: str) -> list[Any]:
            """As in `argparse`, but that `--model` may stand for a flag that is there with hyphens too."""
            return [*{found[0].dest: found for found in super()._get_option_tuples(option_string)[::-1]}.values()]

    set_datasets_verbosity(logging.CRITICAL)  # it logs what it raises
    _show_no_bar_of_single_files()
    loaded = [load_class(one) for one in classes]
    parser = Parser(loaded, prog=f"retromae-hf {command}", add_help=False)
    parser.error = _refuse
    for name in positionals or {}:
        parser.add_argument(name)
    values = dict(defaults or {})
    known = {action.dest: action for action in parser._actions}
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        recipe = read_recipe(arguments.pop(0))
        if unknown := recipe.keys() - known.keys():
            told = ", ".join(sorted(map(str, unknown)))
            raise RetroMAEError(f"the recipe has unknown arguments: {told}; {_new_names(unknown, known)}see --help")
        mappings = {one.name for cls in loaded for one in fields(cls) if "dict" in str(one.type)}
        values |= {
            name: _as_typed(name, value, known[name].nargs, name in mappings)
            for name, value in recipe.items()
            if value is not None
        }
    for name, value in values.items():
        known[name].required = False
        parser.set_defaults(**{name: value})
    try:
        *filled, unknown_arguments = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    except RetroMAEError:
        raise
    except Exception as error:  # what a dataclass raises about its values
        raise RetroMAEError(" ".join(str(error).split())) from error
    if unknown_arguments:
        told = " ".join(unknown_arguments)
        raise RetroMAEError(f"unknown arguments: {told}; {_new_names(unknown_arguments, known)}see --help")
    return tuple(filled)


def _new_names(unknown: Iterable[Any], known: Container[str]) -> str:
    """What those that have another name by now are called, as the middle of a sentence."""
    names = [str(one).lstrip("-").partition("=")[0].replace("-", "_") for one in unknown]
    new = {name: RENAMED[name] for name in names if name in RENAMED}
    told = [f"{old} is --{name}" for old, name in new.items() if name.replace(",", " ").partition(" ")[0] in known]
    told += [f"{old} is not needed any more" for old, name in new.items() if not name]
    return "".join(f"{one}; " for one in told)


def _show_no_bar_of_single_files() -> None:
    """Without the bars that transformers draws for each file of weights read or written; the Hub's stay."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    hidden = are_progress_bars_disabled()
    disable_progress_bar()
    if not hidden:
        enable_progress_bars()


def _refuse(message: str) -> NoReturn:
    raise RetroMAEError(f"{message}; see --help")


def _as_typed(name: str, value: Any, nargs: int | str | None, takes_mapping: bool) -> Any:
    """A recipe's value as it would be typed behind its flag: argparse converts and checks defaults that are strings."""
    if isinstance(value, dict):
        if not takes_mapping:
            raise RetroMAEError(f"{name} in the recipe is a mapping; give a single value")
        return value
    if "\0" in str(value):
        raise RetroMAEError(f"{name} in the recipe holds a NUL character; take it out")
    if not isinstance(value, list):
        return str(value) if nargs in (None, "?") else [str(value)]
    if nargs in (None, "?"):
        raise RetroMAEError(f"{name} in the recipe is a list; give a single value")
    return [str(item) for item in value]


def read_recipe(file: str) -> dict[str, Any]:
    """A recipe as it stands.

    Raises:
        RetroMAEError: it cannot be read, is no mapping, or grows beyond `LONGEST_RECIPE`.
    """
    import yaml

    try:
        loader = yaml.SafeLoader(Path(file).read_text(encoding="utf-8"))
        root = loader.get_single_node()
        # Aliases of aliases make of 500 bytes more than any memory holds, and an alias of what it stands in never ends.
        nodes, size = [root], 0
        while nodes and size <= LONGEST_RECIPE:
            node = nodes.pop()
            if isinstance(node, yaml.MappingNode):
                nodes += [one for pair in node.value for one in pair]
            elif isinstance(node, yaml.SequenceNode):
                nodes += node.value
            size += len(node.value) + 1 if isinstance(node, yaml.ScalarNode) else 1
        if size > LONGEST_RECIPE:
            raise RetroMAEError(
                f"the recipe {file} holds more than {LONGEST_RECIPE:,} characters where its aliases are written out; "
                "give single values, without aliases"
            )
        recipe = None if root is None else loader.construct_document(root)
        str(recipe)  # an integer of thousands of digits can be read, but not be written
    except RetroMAEError:
        raise
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RetroMAEError(f"the recipe {file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise RetroMAEError(f"the recipe {file} must be a YAML mapping of arguments to values")
    return recipe


def process_rank() -> int:
    """This process's number among those that a launcher has started, 0 without one."""
    return int(os.environ.get("RANK", 0))


def one_process(name: str) -> None:
    """Raise `RetroMAEError` where a launcher has started several processes of a command that works in one."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise RetroMAEError(f"{name} works in one process; start it without torchrun or accelerate launch")


def command(function: Callable[..., None]) -> Callable[..., int]:
    """Make a command's `main`: bad input is one sentence on standard error and exit status 2.

    Of several processes that find the same fault one tells it; what else ends a process stands in the launcher's
    report.
    """

    @functools.wraps(function)
    def main(argv: list[str] | None = None) -> int:
        rank = process_rank()
        logging.basicConfig(format="%(message)s")
        logging.getLogger("retromae_hf").setLevel(logging.ERROR if rank else logging.INFO)
        try:
            # What is logged stands on a line of its own, not behind a progress bar. transformers has its own handler.
            with logging_redirect_tqdm([logging.getLogger(), logging.getLogger("transformers")]):
                function(argv)
            status = 0
        except RetroMAEError as error:
            if rank:
                # The launcher ends this process as soon as the first one has told the same fault. Where the first one
                # has found none, this one tells it.
                time.sleep(FIRST_WORD_SECONDS)
            print(f"retromae-hf: error: {error}", file=sys.stderr)
            return 2
        except RunInterruptedError as interrupted:
            if not rank:  # all processes stop together
                print(f"retromae-hf: {interrupted}", file=sys.stderr)
            status = interrupted.status
        except KeyboardInterrupt:
            print("retromae-hf: stopped by SIGINT", file=sys.stderr)
            return 128 + signal.SIGINT
        except Exception as error:
            from torch.distributed.elastic.multiprocessing.errors import get_error_handler

            get_error_handler().record_exception(error)  # writes where a launcher has said, and else nowhere
            raise
        end_process_group()
        return status

    return main


def end_process_group() -> None:
    """Leave the process group, where there is one: left open, it may abort a process that ends in good order."""
    import torch.distributed as dist

    # So may native threads (gloo's, Arrow's) that ask for Python while it shuts down. What they belong to is held by
    # `Trainer`'s circles of references until somebody collects them.
    gc.collect()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.destroy_process_group()


def writable(file: str) -> Path:
    """The file, made sure that it can be written before anything is computed that it is to hold."""
    with in_one_sentence(f"output {file!r} cannot be written"):
        path = Path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a", encoding="utf-8").close()
    return path


def writable_folder(folder: str) -> Path:
    """The folder, made where it does not exist, and made sure that files can be written to it."""
    with in_one_sentence(f"the folder {folder!r} cannot be written to"):
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    return path
