"""`python examples/bad_inputs.py`: bad inputs of every kind, each with the sentence that it gets.

Every input goes through a command or the package's public names, on tiny models in a temporary folder. Anything but one
sentence of a `RetroMAEError` fails, and so does code of a model's that ran. Prints the list and writes
runs/bad-inputs.json, of which examples/publish.py makes model_cards/bad-inputs.md.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_places
from datasets.utils.logging import disable_progress_bar
from transformers.utils import logging as transformers_logging

from retromae_hf import (
    RetroMAEConfig,
    RetroMAEError,
    RetroMAEForPreTraining,
    RetroMAEModel,
    export_encoder,
    load_documents,
    load_reference_checkpoint,
)
from retromae_hf.commands.main import main as command

OUTPUT = Path("runs/bad-inputs.json")
PREFIX = "retromae-hf: error: "
TRAIN = "--dataset {here}/good.txt --output_dir {here}/out --max_length 32 --use_cpu --disable_tqdm true"
TUNE = "--model_name_or_path {encoder} --output_dir {here}/out --use_cpu --disable_tqdm true --max_steps 1"
SMALL = "--hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --vocab_size 200 --max_steps 1"
TASK = "--dataset {here}/task"
PAIRS = "--dataset {here}/pairs.jsonl --output_dir {here}/out"
JUDGED = f"finetune {TUNE} --dataset {{here}}/train-task"

# What is wrong, and the command line that meets it.
COMMANDS = [
    # models
    ("a pickled encoder", f"pretrain {TRAIN} --model_name_or_path {{here}}/pickled"),
    ("a pickled checkpoint", f"pretrain {TRAIN} --model_name_or_path {{here}}/pickled-run"),
    ("a pickled checkpoint", "export --model_name_or_path {here}/pickled-run --output_dir {here}/out"),
    ("a pickled encoder", f"evaluate --model_name_or_path {{here}}/pickled {TASK}"),
    ("a pickled checkpoint", f"evaluate --model_name_or_path {{here}}/pickled-run {TASK}"),
    ("a pickled module of sentence-transformers", f"evaluate --model_name_or_path {{here}}/pickled-dense {TASK}"),
    ("a pickled encoder", f"finetune --model_name_or_path {{here}}/pickled {PAIRS}"),
    ("a pickled encoder", "search {here}/pickled anything"),
    ("a model that brings code", f"pretrain {TRAIN} --model_name_or_path {{here}}/coded"),
    ("a model that brings code", f"pretrain {TRAIN} --config_name {{here}}/coded"),
    ("a model that brings code", f"evaluate --model_name_or_path {{here}}/coded {TASK}"),
    ("a model that brings code", f"finetune --model_name_or_path {{here}}/coded {PAIRS}"),
    ("a model that brings code", "export --model_name_or_path {here}/coded --output_dir {here}/out"),
    ("a model that brings code", "search {here}/coded anything"),
    ("a tokenizer that brings code", f"pretrain {TRAIN} {SMALL} --tokenizer_name {{here}}/coded-tokenizer"),
    ("a module of sentence-transformers that is code", f"evaluate --model_name_or_path {{here}}/coded-module {TASK}"),
    ("a module of sentence-transformers that is code", f"finetune --model_name_or_path {{here}}/coded-module {PAIRS}"),
    ("an activation that is any function", f"evaluate --model_name_or_path {{here}}/coded-activation {TASK}"),
    ("a module outside of the model's folder", f"evaluate --model_name_or_path {{here}}/outside-module {TASK}"),
    ("a list of modules that is none", f"evaluate --model_name_or_path {{here}}/odd-modules {TASK}"),
    ("half a safetensors file", "export --model_name_or_path {here}/half --output_dir {here}/out"),
    ("a configuration that is no JSON", f"evaluate --model_name_or_path {{here}}/odd-config {TASK}"),
    ("no model at all", f"evaluate --model_name_or_path {{here}}/nowhere {TASK}"),
    (
        "an optimizer's state that is code",
        f"pretrain {TRAIN} --max_steps 4 --resume_from_checkpoint {{here}}/coded-run",
    ),
    # text
    ("a UTF-16 file", f"pretrain {TRAIN} --dataset {{here}}/utf16.txt"),
    ("a Latin-1 file", f"pretrain {TRAIN} --dataset {{here}}/latin.txt"),
    ("an empty file", f"pretrain {TRAIN} --dataset {{here}}/empty.txt"),
    ("white space alone", f"pretrain {TRAIN} {SMALL} --dataset {{here}}/white.txt"),
    ("control characters alone", f"pretrain {TRAIN} {SMALL} --dataset {{here}}/control.txt"),
    ("a folder without text", f"pretrain {TRAIN} --dataset {{here}}/nothing"),
    ("links in a circle", f"pretrain {TRAIN} --dataset {{here}}/circle.txt"),
    (
        "a broken line, which is to be an error",
        f"pretrain {TRAIN} --dataset {{here}}/broken.jsonl --on_broken_line error",
    ),
    ("broken lines alone", f"pretrain {TRAIN} --dataset {{here}}/all-broken.jsonl"),
    ("an unknown way with broken lines", f"pretrain {TRAIN} --on_broken_line mend"),
    ("numbers for text", f"pretrain {TRAIN} --dataset {{here}}/numbers.jsonl"),
    ("half a parquet file", f"pretrain {TRAIN} --dataset {{here}}/half.parquet"),
    ("a .csv of ragged rows", f"pretrain {TRAIN} --dataset {{here}}/ragged.csv"),
    ("a column that is not there", f"pretrain {TRAIN} --text_column body"),
    # arguments and recipes
    ("a recipe that asks for code", "pretrain {here}/code.yaml"),
    ("a recipe that is no YAML", "pretrain {here}/odd.yaml"),
    ("a recipe that is a list", "pretrain {here}/list.yaml"),
    ("a list for a single value", "pretrain {here}/list-value.yaml"),
    ("a mapping for a single value", "pretrain {here}/mapping-value.yaml"),
    ("text for a number", "pretrain {here}/text-value.yaml"),
    ("an unknown argument", "pretrain {here}/unknown.yaml"),
    ("a NUL byte in a path", "pretrain {here}/nul.yaml"),
    ("a path that is too long", "pretrain {here}/long.yaml"),
    ("a share that is no number", f"pretrain {TRAIN} --encoder_mask_ratio nan"),
    ("a share above 1", f"pretrain {TRAIN} --decoder_mask_ratio 1.5"),
    ("an unknown flag", f"pretrain {TRAIN} --no_such_flag 1"),
    ("a negative learning rate", f"pretrain {TRAIN} --learning_rate -1"),
    # evaluation
    ("a split that leads out of the folder", f"evaluate --model_name_or_path bm25 {TASK} --split ../../x"),
    ("a collection that leads out of the cache", "evaluate --model_name_or_path bm25 --dataset beir:../../x"),
    ("a broken corpus", "evaluate --model_name_or_path bm25 --dataset {here}/task-broken"),
    ("an id that stands twice", "evaluate --model_name_or_path bm25 --dataset {here}/task-twice"),
    ("judgments of other documents", "evaluate --model_name_or_path bm25 --dataset {here}/task-foreign"),
    ("a grade that is no number", "evaluate --model_name_or_path bm25 --dataset {here}/task-grade"),
    ("a run folder that is a file", f"evaluate --model_name_or_path bm25 {TASK} --run_dir {{here}}/good.txt"),
    ("a way of searching that is none", f"evaluate --model_name_or_path bm25 {TASK} --search fast"),
    ("batches of nothing", f"evaluate --model_name_or_path bm25 {TASK} --batch_size 0"),
    # fine-tuning
    ("a single column", f"finetune {TUNE} --dataset {{here}}/good.jsonl"),
    ("triples of two widths", f"finetune {TUNE} --dataset {{here}}/ragged.tsv"),
    ("a broken file of negatives", f"{JUDGED} --hard_negatives {{here}}/broken.jsonl"),
    ("negatives of other documents", f"{JUDGED} --hard_negatives {{here}}/foreign.jsonl"),
    (
        "scores of another length",
        f"{JUDGED} --hard_negatives {{here}}/negatives.jsonl --teacher_scores {{here}}/scores.jsonl --objective kl",
    ),
    ("a temperature of 0", f"finetune {TUNE} --dataset {{here}}/pairs.jsonl --temperature 0"),
    ("a training checkpoint", f"finetune --model_name_or_path {{run}} {PAIRS}"),
    # comparisons and exports
    ("an objective that leads out of the folder", "compare {here}/compare-name.yaml"),
    ("objectives that are a list", "compare {here}/compare-list.yaml"),
    ("a seed that is a path", "compare {here}/compare-seed.yaml"),
    ("text for a number", "compare {here}/compare-type.yaml"),
    ("no recipe", "compare"),
    ("a folder that is not empty", "export --model_name_or_path {run} --output_dir {here}/task"),
    ("a file for a folder", "export --model_name_or_path {run} --output_dir {here}/good.txt/out"),
    ("a model that is no checkpoint", "export --model_name_or_path {encoder} --output_dir {here}/out"),
    ("an unknown pooling", "export --model_name_or_path {run} --output_dir {here}/out --pooling '../x'"),
    ("a command that is none", "fly"),
]

CONFIGS: list[dict[str, Any]] = [
    {"decoding": "fancy"},
    {"decoding": ["enhanced"]},
    {"num_decoder_layers": "1"},
    {"num_decoder_layers": True},
    {"num_decoder_layers": 10**9},
    {"decoder_mask_ratio": "0.5"},
    {"decoder_mask_ratio": float("nan")},
    {"mlm_loss_weight": None},
    {"bow_loss_weight": -1},
    {"bow_loss_weight": float("inf")},
    {"pair_objective": 3},
    {"encoder_config": 5},
    {"encoder_config": {}},
    {"encoder_config": {"model_type": "nope"}},
    {"encoder_config": {"model_type": "retromae"}},
    {"encoder_config": {"model_type": "bert", "hidden_size": "x"}},
    {"encoder_config": {"model_type": "bert", "hidden_size": -5}},
    {"encoder_config": {"model_type": "bert", "vocab_size": 10**15}},
    {"encoder_config": {"model_type": "bert", "num_labels": 10**12}},
    {"vocab_size": 30522, "hidden_size": 768},
]
"""Fields of a config.json, each wrong by itself."""


def python_cases(here: Path, run: Path) -> dict[str, Callable[[], Any]]:
    """What is wrong, and the call that meets it."""
    config = RetroMAEConfig.from_pretrained(run).encoder_config
    model, tokenizer = bad_places.tiny_model(), bad_places.tokenizer()
    return {
        "RetroMAEForPreTraining.from_pretrained of a pickle": lambda: RetroMAEForPreTraining.from_pretrained(
            here / "pickled-run"
        ),
        "RetroMAEModel.from_pretrained of a pickle": lambda: RetroMAEModel.from_pretrained(here / "pickled-run"),
        "AutoModel.from_pretrained of a pickle": lambda: bad_places.AutoModel.from_pretrained(here / "pickled-run"),
        "from_encoder of a pickle": lambda: RetroMAEForPreTraining.from_encoder(str(here / "pickled")),
        "from_encoder of a model with code": lambda: RetroMAEForPreTraining.from_encoder(str(here / "coded")),
        "load_reference_checkpoint of a pickle": lambda: load_reference_checkpoint(
            here / "pickled" / "pytorch_model.bin", config
        ),
        "load_reference_checkpoint of other weights": lambda: load_reference_checkpoint(run, config),
        "export_encoder with an unknown pooling": lambda: export_encoder(model, tokenizer, here / "out", pooling="max"),
        "load_documents of bytes": lambda: load_documents(b"text"),
        "load_documents of numbers": lambda: load_documents([1, 2]),
        "load_documents of text and numbers": lambda: load_documents([{"text": "a"}, {"text": 5}]),
        "load_documents of a path with a NUL byte": lambda: load_documents("a\0b.txt"),
        "load_documents of a path that is too long": lambda: load_documents("/" + "a" * 5000),
        **{f"RetroMAEConfig({_written(fields)})": lambda fields=fields: RetroMAEConfig(**fields) for fields in CONFIGS},
    }


def main() -> int:
    """Try all of them; the exit status is 1 where one gets anything but a sentence."""
    quiet()
    results = attempt_all()
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    wrong = [result for result in results if not result["told"]]
    print(f"\n{conditions(results)} The list is in {OUTPUT}.")
    print("".join(f"NOT TOLD: {result['input']}: {result['sentence']}\n" for result in wrong), end="")
    return int(bool(wrong))


def quiet() -> None:
    """Leave the terminal to the list."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    disable_progress_bar()


def attempt_all() -> list[dict[str, Any]]:
    """Every input with what came of it: `wrong`, `input`, `sentence`, and `told`, whether that is one sentence.

    The last entry is about code: whether any of the models' code ran.
    """
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder).resolve()
        names = bad_places.make(here)
        results = []
        for wrong, line in COMMANDS:
            results.append(
                {"wrong": wrong, "input": f"retromae-hf {line}", **_told(functools.partial(_run, line, names))}
            )
        for wrong, call in python_cases(here, names["run"]).items():
            results.append({"wrong": wrong, "input": wrong, **_told(call)})
        for result in results:
            result["sentence"] = result["sentence"].replace(str(here), "{here}")
        ran = os.path.exists(here / bad_places.CANARY)
    sentence = "code of a model ran" if ran else "none of the code in these models ran"
    return [*results, {"wrong": "code in all of these models", "input": "", "sentence": sentence, "told": not ran}]


def _run(line: str, names: dict[str, Any]) -> None:
    """A command line; its error is raised again as it was printed."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        status = command([part.format(**names).strip("'") for part in line.split()])
    said = errors.getvalue().strip().splitlines()
    if status == 2 and said and said[-1].startswith("retromae-hf: error: "):
        raise RetroMAEError(said[-1].removeprefix(PREFIX))


def _told(call: Callable[[], Any]) -> dict[str, Any]:
    try:
        call()
    except RetroMAEError as error:
        sentence = str(error)
        return {"sentence": sentence, "told": bool(sentence) and "\n" not in sentence and "Traceback" not in sentence}
    except (Exception, SystemExit) as error:
        return {"sentence": f"{type(error).__name__}: {error}", "told": False}
    return {"sentence": "accepted", "told": False}


def _written(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in fields.items())


def table(results: list[dict[str, Any]]) -> str:
    """The list as Markdown."""
    lines = ["| what is wrong | input | the sentence |", "|---|---|---|"]
    lines += [
        f"| {result['wrong']} | {_code(result['input'])} | {result['sentence'].replace('|', '&#124;')} |"
        for result in results
    ]
    return "\n".join(lines)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def conditions(results: list[dict[str, Any]]) -> str:
    """How many there are, and how many got their sentence."""
    return f"{len(results)} entries, {sum(result['told'] for result in results)} as they should be."


def page(results: list[dict[str, Any]]) -> str:
    """The list as a page."""
    return (
        "# Bad inputs, and the sentence that each gets\n\nWritten by `examples/publish.py` from what "
        f"`python examples/bad_inputs.py` found. {conditions(results)}\n\n{table(results)}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
