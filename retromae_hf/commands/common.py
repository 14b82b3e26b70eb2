"""What the commands share: their help, their arguments from a recipe and flags, and how they end."""

from __future__ import annotations

import functools
import gc
import logging
import os
import signal
import sys
import tempfile
import time
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from inspect import get_annotations
from pathlib import Path
from typing import Any, NoReturn, get_origin, get_type_hints

from tqdm.contrib.logging import logging_redirect_tqdm

from ..arguments.filling import fill, refuse_unknown, types_of
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


FIRST_WORD_SECONDS = 10
"""How long the other processes of a run wait for the first one to report a fault. A launcher ends them well before."""

MOST_ALIASES = 20
"""Aliases in a recipe. Aliases of aliases make of 500 bytes more than any memory holds."""


class Parser(ArgumentParser):
    """An `ArgumentParser` that raises, where the base class ends the process."""

    def error(self, message: str) -> NoReturn:
        raise RetroMAEError(f"{message}; see --help")


def parse(
    command: str,
    description: str,
    classes: Sequence[Any],
    argv: list[str] | None,
    defaults: Mapping[str, Any] | None = None,
    positionals: Mapping[str, str] | None = None,
) -> tuple[Any, ...]:
    """Fill dataclasses from an optional YAML recipe, named first, and from flags, which go before the recipe.

    A dataclass of a library is given by its dotted name: it takes seconds to import, so `--help` shows what stands in
    `RUN` in its place, and only `--help-all` lists its arguments. `defaults` are those that differ from the classes'
    own, `positionals` the names and the help of arguments without a flag, of which a namespace comes last.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    asked = set(HELP) & set(arguments)
    if not asked or asked - set(HELP[:2]):
        classes = [_load_class(one) if isinstance(one, str) else one for one in classes]
    defaults, positionals = defaults or {}, positionals or {}
    names = [name.upper() for name in positionals]
    words = " ".join(["%(prog)s", *(["[RECIPE.yaml]", *names, "[flags]"] if classes else names)])
    parser = Parser(
        prog=f"retromae-hf {command}",
        usage=f"{words}\n\nexample:\n  %(prog)s {EXAMPLES[command]}",
        description=description,
        add_help=False,
        argument_default=SUPPRESS,
    )
    for name, described in positionals.items():
        parser.add_argument(name, help=described)
    for cls in classes:
        _add_flags(parser, cls, defaults)
    if asked:
        parser.print_help()
        raise SystemExit(0)
    _quiet_libraries()
    recipe = read_recipe(arguments.pop(0)) if arguments and arguments[0].endswith((".yaml", ".yml")) else {}
    flags, unknown = parser.parse_known_args([_with_underscores(one) for one in arguments])
    if unknown:
        refuse_unknown(unknown, {one.name for cls in classes for one in fields(cls)})
    given = vars(flags)
    named = Namespace(**{name: given.pop(name) for name in positionals})
    given = {**defaults, **{name: value for name, value in recipe.items() if value is not None}, **given}
    return (*fill(given, classes, ""), *([named] if positionals else []))


def _load_class(name: str) -> Any:
    module, _, cls = name.rpartition(".")
    return getattr(import_extra(module, "this command", "retrieval"), cls)


def _with_underscores(word: str) -> str:
    """A flag as it is named, where it was typed with hyphens."""
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if word.startswith("--") else word


def _add_flags(parser: ArgumentParser, cls: Any, defaults: Mapping[str, Any]) -> None:
    """Add the fields of a dataclass, each group under the first line of the docstring of the base that has them."""
    if isinstance(cls, str):
        group = parser.add_argument_group(f"The run; the other arguments of {cls} are taken too, see --help-all")
        for name, described in RUN.items():
            default = f" (default: {defaults[name]})" if defaults.get(name) is not None else ""
            group.add_argument(f"--{name}", metavar=name.upper(), help=described + default)
        return
    hints = get_type_hints(cls)
    for base in reversed(cls.__mro__):
        if members := [one for one in fields(cls) if one.init and one.name in get_annotations(base)]:
            group = parser.add_argument_group(str(base.__doc__).partition("\n")[0].rstrip("."))
            for one in members:
                _add_flag(group, one, hints[one.name], defaults)


def _add_flag(group: Any, one: Field, hint: Any, defaults: Mapping[str, Any]) -> None:
    own_default = one.default if one.default_factory is MISSING else one.default_factory()
    default = defaults.get(one.name, own_default)
    told = " (required)" if default is MISSING else f" (default: {default})" if default is not None else ""
    types = [get_origin(kind) or kind for kind in types_of(hint)]
    is_list = list in types and str not in types
    group.add_argument(
        f"--{one.name}",
        metavar="{true,false}" if types == [bool] else one.name.upper(),
        nargs="?" if bool in types else "+" if is_list else None,
        const=True if bool in types else None,
        help=" ".join(str(one.metadata.get("help", "")).split()) + told,
    )
    if own_default is True:
        group.add_argument(f"--no_{one.name}", dest=one.name, action="store_false", help=SUPPRESS)


def _quiet_libraries() -> None:
    """Libraries neither log what they raise nor draw a bar for each file of weights; the Hub's bars stay."""
    from datasets.utils.logging import set_verbosity
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    set_verbosity(logging.CRITICAL)
    hidden = are_progress_bars_disabled()
    disable_progress_bar()
    if not hidden:
        enable_progress_bars()


def read_recipe(file: str) -> dict[str, Any]:
    """A recipe as it stands; `RetroMAEError` where it cannot be read or is no mapping."""
    import yaml

    try:
        text = Path(file).read_text(encoding="utf-8")
        aliases = sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader))
        if aliases > MOST_ALIASES:
            raise RetroMAEError(f"the recipe {file} holds {aliases} aliases; write the values out")
        recipe = yaml.safe_load(text)
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
        is_new = not path.exists()
        path.open("a", encoding="utf-8").close()
        if is_new:
            path.unlink()  # a run that fails leaves no empty file
    return path


def writable_folder(folder: str) -> Path:
    """The folder, made where it does not exist, and made sure that files can be written to it."""
    with in_one_sentence(f"the folder {folder!r} cannot be written to"):
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    return path
