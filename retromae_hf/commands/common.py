"""What the commands share: arguments from a recipe and flags, and errors as one sentence."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import tempfile
import time
from argparse import Action, ArgumentDefaultsHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from datasets.utils.logging import set_verbosity as set_datasets_verbosity
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import HfArgumentParser

from ..model.distributed import end_process_group
from ..model.errors import RetroMAEError, RunInterruptedError, in_one_sentence

FIRST_WORD_SECONDS = 10
"""How long the other processes of a run wait for the first one to tell a fault. A launcher ends them well before."""


class _HelpFormatter(ArgumentDefaultsHelpFormatter):
    """Names a flag once, though it may be typed with hyphens too, and a default only where there is one."""

    def _format_action_invocation(self, action: Action) -> str:
        shown = copy(action)
        shown.option_strings = [name for name in action.option_strings if "-" not in name[2:]]
        return super()._format_action_invocation(shown)

    def _get_help_string(self, action: Action) -> str | None:
        if any(name == f"--no_{action.dest}" for name in action.option_strings):
            return f"The opposite of --{action.dest}."  # HfArgumentParser repeats the help of that
        if action.required and action.option_strings:
            return f"{action.help} (required)"
        if action.default is None or action.nargs == 0:
            return action.help
        return super()._get_help_string(action)


class _Parser(HfArgumentParser):
    """Tells what is wrong in one sentence, not below a page of usage."""

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

    Args:
        command: name of the command, for the help.
        description: what it does, likewise.
        classes: dataclasses as `HfArgumentParser` takes them.
        argv: the arguments; None takes those of the process.
        defaults: defaults that differ from the classes' own.
        positionals: names and help of arguments without a flag.

    Returns:
        The dataclasses, and a namespace of the positional arguments where there are any.

    Raises:
        RetroMAEError: the recipe cannot be read or names an argument that does not exist.
    """
    parser = _Parser(
        list(classes),
        prog=f"retromae-hf {command}",
        description=description,
        formatter_class=_HelpFormatter,
        usage=" ".join(["%(prog)s [RECIPE.yaml]", *(name.upper() for name in positionals or {}), "[flags]"]),
    )
    for name, text in (positionals or {}).items():
        parser.add_argument(name, help=text)
    arguments = list(sys.argv[1:] if argv is None else argv)
    values = dict(defaults or {})
    known = {action.dest: action for action in parser._actions if action.dest != "help"}
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        recipe = read_recipe(arguments.pop(0))
        if unknown := recipe.keys() - known.keys():
            raise RetroMAEError(f"the recipe has unknown arguments: {', '.join(sorted(map(str, unknown)))}; see --help")
        mappings = {one.name for cls in classes for one in fields(cls) if "dict" in str(one.type)}
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
        raise RetroMAEError(f"unknown arguments: {' '.join(unknown_arguments)}; see --help")
    return tuple(filled)


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
        RetroMAEError: it cannot be read, or is no mapping.
    """
    try:
        recipe = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RetroMAEError(f"the recipe {file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise RetroMAEError(f"the recipe {file} must be a YAML mapping of arguments to values")
    return recipe


def command(function: Callable[..., None]) -> Callable[..., int]:
    """Make a command's `main`: bad input is one sentence on standard error and exit status 2.

    Of several processes that find the same fault one tells it; what else ends a process stands in the launcher's
    report.
    """

    @functools.wraps(function)
    def main(argv: list[str] | None = None) -> int:
        rank = int(os.environ.get("RANK", 0))
        logging.basicConfig(format="%(message)s")
        logging.getLogger("retromae_hf").setLevel(logging.ERROR if rank else logging.INFO)
        set_datasets_verbosity(logging.CRITICAL)  # it logs what it raises
        try:
            # What is logged stands on a line of its own, not behind a progress bar. transformers has its own handler.
            with logging_redirect_tqdm([logging.getLogger(), logging.getLogger("transformers")]):
                function(argv)
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
            end_process_group()
            return interrupted.status
        except KeyboardInterrupt:
            print("retromae-hf: stopped by SIGINT", file=sys.stderr)
            return 128 + signal.SIGINT
        except Exception as error:
            get_error_handler().record_exception(error)  # writes where a launcher has said, and else nowhere
            raise
        end_process_group()
        return 0

    return main


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
