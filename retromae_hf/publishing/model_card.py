"""Text from outside, such as names in a stranger's record, as a card may show it: it never becomes Markdown or HTML."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from ..data.disk import write_json
from ..model.errors import RetroMAEError, in_one_sentence
from ..retrieval.embedders import model_fingerprint
from ..retrieval.evaluation import BM25, HYBRID, SCHEMA
from ..retrieval.measures import MEASURE_NAMES
from .pictures import draw_pictures, has_curve
from .record import RECORD_FILE, public_name

logger = logging.getLogger(__name__)

_PLAIN = re.compile(
    r"(?!.*(://|www\.))([^\W_]([^\W_]|(?<=[^\W_])_(?=[^\W_])|[ .,:/+()%='-]|@\d+(?![\w.-]))*)?", re.IGNORECASE
)
"""What means nothing in Markdown, wherever it stands within a line, and is made no link."""


def as_text(value: Any) -> Any:
    """A value whose strings, keys and those in lists and mappings included, are plain text or code, of one line."""
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else _span(value)
    if isinstance(value, dict):
        return {as_text(name): as_text(inner) for name, inner in value.items()}
    return [as_text(inner) for inner in value] if isinstance(value, list) else value


def code(text: str) -> str:
    """What `as_text` has made, as code."""
    return text if text.startswith("`") else _span(text)


def _span(text: str) -> str:
    """A text as code that holds in a table and outside of it: no escape of backticks and bars does in both."""
    printable = "".join(one if one.isprintable() else " " for one in text)
    return f"`{' '.join(printable.split()).replace('`', chr(39)).replace('|', '¦') or ' '}`"


FOLDER = ".eval_results"
NOTES = "nDCG@10 in percent, by retromae-hf evaluate, without instructions"
"""By which a file is known as ours."""


def write_eval_results(folder: Path, results: dict[str, Any] | None) -> None:
    """Write a file for each task of MTEB among a model's results, and take away those of earlier results.

    Nobody else's benchmark is on the Hub under a name that leaderboards know: pydocs and folders have no file.

    Args:
        folder: the model's.
        results: as `evaluation` describes them; None where there are none.
    """
    place = folder / FOLDER
    for file in place.glob("*.yaml"):
        if NOTES in file.read_text(encoding="utf-8", errors="replace"):
            file.unlink()
    entries: dict[str, list[EvalResultEntry]] = {}
    for task in (results or {"tasks": {}})["tasks"].values():
        if (one := task.get("benchmark")) is not None:
            entry = EvalResultEntry(
                dataset_id=one["dataset"],
                task_id=f"{one['task']}_{one['subset']}_{one['split']}",  # as MTEB registers them
                value=round(100 * task["measures"]["ndcg@10"], 3),
                dataset_revision=one["revision"],
                notes=NOTES,
            )
            entries.setdefault(one["task"], []).append(entry)
    for name, of_task in entries.items():
        place.mkdir(exist_ok=True)
        text = yaml.safe_dump(eval_result_entries_to_yaml(of_task), sort_keys=False)
        (place / f"{name}.yaml").write_text(text, encoding="utf-8")


CARD_FILE = "README.md"
RESULTS_FILE = "evaluation.json"
NO_RESULTS = "none"
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")

DECODINGS = {
    "enhanced": "RetroMAE with enhanced decoding (arXiv:2205.12035)",
    "basic": "RetroMAE with basic decoding (arXiv:2205.12035)",
    "condenser": "Condenser (arXiv:2104.08253)",
    "none": "masked language modelling",
}
BAG_OF_WORDS = "predicting a bag of words from the sentence embedding (BoW-DPR, arXiv:2401.11248)"
PAIRS = {
    "nsp": "next-sentence prediction",
    "sop": "sentence order prediction",
    "contrast": "contrast of spans (arXiv:2108.05540, arXiv:2112.09118)",
}
FINETUNINGS = {
    "contrastive": "contrastive learning",
    "kl": "distillation from a cross-encoder (KL divergence)",
    "margin_mse": "distillation from a cross-encoder (MarginMSE)",
}
STAGES = {"pretraining": ("Pretraining", "pretrained"), "finetuning": ("Fine-tuning", "fine-tuned")}

_MARK = re.compile(r"\n\n<!-- made by retromae-hf: (\w{16}) -->\n\Z")


def build_card(
    record: dict[str, Any],
    results: dict[str, Any] | None = None,
    pictures: Sequence[str] = (),
    comparison: str = "",
) -> ModelCard:
    """The card of a model.

    Args:
        record: as `record` describes it.
        results: as `evaluation` describes them; None where it was not evaluated.
        pictures: files beside the card that show its training.
        comparison: Markdown on how the model compares with others.
    """
    data, python = card_data(record, results), {"repository": record.get("repository") or record["name"]}
    prompts, max_length = record["model"]["prompts"], record["model"]["max_length"]
    python |= {
        "query": (prompts.get("query") or "") + "a query",
        "passages": [(prompts.get("document") or "") + text for text in ("a passage", "another passage")],
    }
    record, results = as_text(record), as_text(results)
    tasks = {} if results is None else results["tasks"]
    measured = [measure for measure in MEASURE_NAMES if any(measure in task["measures"] for task in tasks.values())]
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        record=record,
        repository=record.get("repository") or record["name"],
        python={name: json.dumps(value) for name, value in python.items()},
        code=code,
        summary=_summary(record),
        has_decoder=record["format"] == "checkpoint" and _decodings(record["stages"][-1:]) != {"none"},
        length_option=f", max_length={max_length:d}" if max_length else "",
        pictures=pictures,
        curves=any(has_curve(stage["logs"]) for stage in record["stages"]),
        results=results,
        measures=[MEASURE_NAMES[measure] for measure in measured],
        rows=[row for name, task in tasks.items() for row in _rows(name, task, measured)],
        comparison=comparison,
        limits=list(_limits(record, tasks)),
        count="{:,}".format,
        scientific="{:.2e}".format,
        seconds=lambda number: f"{number:,.0f} s" if number >= 10 else f"{number:.2f} s",
        energy=lambda stage: f"{kilowatt_hours(stage):.2g}",
        title=lambda stage: f"{STAGES[stage['stage']][0]}: {stage_title(stage)}",
        start=_start,
        data=_data,
        training=_training,
        machine=_machine,
        settings=lambda stage: [
            (name, code(value if isinstance(value, str) else json.dumps(value)))
            for name, value in (stage["objective"] | stage["training"]).items()
            if value is not None
        ],
    )


def card_data(record: dict[str, Any], results: dict[str, Any] | None) -> ModelCardData:
    """The card's metadata, of which the Hub makes filters; what is not known is left out."""
    stages, form = record["stages"], record["format"]
    starts = [*(stage["start"] for stage in stages), record["source"]]
    starts_on_hub = [start["name"] for start in starts if start is not None and start["on_hub"]]
    sources = [one["source"] for stage in stages for one in _sources(stage) if one["on_hub"]]
    kinds = _decodings(stages)
    tags = ["retrieval", *(["retromae"] if kinds & {"enhanced", "basic"} else [])]
    if form != "checkpoint":
        tags += ["sentence-transformers", "sentence-similarity", "feature-extraction"]
    if form == "sparse-encoder":
        tags += ["sparse-encoder", "sparse"]
    return ModelCardData(
        license=record["license"],
        language=record["language"],
        library_name="transformers" if form == "checkpoint" else "sentence-transformers",
        pipeline_tag="sentence-similarity" if form == "encoder" else "feature-extraction",
        tags=tags,
        base_model=starts_on_hub[-1] if starts_on_hub else None,
        datasets=list(dict.fromkeys(sources)) or None,
        model_name=record["name"] if results else None,
        eval_results=_eval_results(results) if results else None,
    )


def _decodings(stages: Sequence[dict[str, Any]]) -> set[str | None]:
    return {stage["objective"].get("decoding") for stage in stages}


def _eval_results(results: dict[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="information-retrieval",
            task_name="Information retrieval",
            dataset_type=name,
            dataset_name=name,
            metric_type=measure.replace("@", "_at_"),
            metric_name=MEASURE_NAMES.get(measure, measure),
            metric_value=value,
        )
        for name, task in results["tasks"].items()
        for measure, value in task["measures"].items()
    ]


def kilowatt_hours(stage: dict[str, Any]) -> float:
    """The energy of a stage: its time at the power that was assumed."""
    return stage["power"]["watts"] * stage["seconds"] / 3.6e6


def stage_title(stage: dict[str, Any]) -> str:
    """The objective of a stage, with the paper."""
    objective = stage["objective"]
    if stage["stage"] == "finetuning":
        return FINETUNINGS[objective["objective"]]
    name = DECODINGS[objective["decoding"]]
    if objective.get("bow_loss_weight"):
        if objective.get("bow_source") != "sentence":
            name = "DupMAE (arXiv:2211.08769)"
        elif objective["decoding"] == "none":
            name = BAG_OF_WORDS
        else:
            name += f" and {BAG_OF_WORDS}"
    if objective.get("pooling") == "mean":
        name += " through the mean of the tokens' states"
    pair = objective.get("pair_objective")
    return f"{name} and {PAIRS[pair]}" if pair else name


def _summary(record: dict[str, Any]) -> str:
    what = {
        "checkpoint": "A training checkpoint of retromae_hf, to go on training with or to export an encoder from.",
        "encoder": "An encoder of texts for dense retrieval.",
        "sparse-encoder": "An encoder of texts for sparse retrieval: a weight for each entry of the vocabulary.",
    }[record["format"]]
    done = [f"{STAGES[stage['stage']][1]} by {stage_title(stage)}" for stage in record["stages"]]
    if not done:
        return what
    told = ", then ".join(done)
    if all(stage["stage"] == "pretraining" for stage in record["stages"]):
        told += "; not fine-tuned"
    return f"{what} {told[0].upper()}{told[1:]}."


def _start(stage: dict[str, Any]) -> str:
    if stage["start"] is None:
        return "random weights"
    return f"{code(stage['start']['name'])}{' on the Hub' if stage['start']['on_hub'] else ', a local model'}"


def _sources(stage: dict[str, Any]) -> list[dict[str, Any]]:
    return stage["data"].get("sources") or [stage["data"]]


def _source(data: dict[str, Any]) -> str:
    if data["source"] == "pydocs":
        return "`pydocs`, the docstrings of the Python packages that were installed where it was trained"
    if data["on_hub"]:
        parts = [f"{name} {code(data[name])}" for name in ("config", "split") if data.get(name)]
        return ", ".join([f"{code(data['source'])} on the Hub", *parts])
    return f"{code(data['source'])}, a local file or folder"


def _data(stage: dict[str, Any]) -> str:
    data, sources = stage["data"], [_source(one) for one in _sources(stage)]
    if weights := data.get("weights"):
        sources = [f"{weight:.0%} of {source}" for weight, source in zip(weights, sources, strict=True)]
    source = "; ".join(sources)
    counts = [f"{data[name]:,} {name}" for name in ("documents", "passages", "rows", "tokens") if name in data]
    if "max_length" in data:
        counts.append(f"at most {data['max_length']:,} tokens each")
    return f"{source}; {', '.join(counts)}" if counts else source


def _training(stage: dict[str, Any]) -> str:
    training = stage["training"]
    told = f"{training['steps']:,} steps of {training['batch_size']:,}"
    epochs = training.get("epochs")
    return told if epochs is None else f"{told}, {epochs:g} epoch{'s' * (epochs != 1)}"


def _machine(stage: dict[str, Any]) -> str:
    environment = dict(stage["environment"])
    device, processes = environment.pop("device"), environment.pop("processes", None)
    threads = environment.pop("threads", None)
    parts = [device]
    if processes is not None:
        parts.append(f"{processes} process{'es' * (processes > 1)}")
    if threads is not None:
        parts.append(f"{threads} thread{'s' * (threads > 1)}{' each' if (processes or 1) > 1 else ''}")
    return ", ".join([*parts, *(f"{package} {number}" for package, number in environment.items())])


def _rows(name: str, task: dict[str, Any], measured: list[str]) -> Iterator[list[str]]:
    sizes = [f"{task['num_queries']:,}", f"{task['num_documents']:,}"]
    for who, ranking in ((name, task), (f"{name}, BM25", task.get(BM25)), (f"{name}, both joined", task.get(HYBRID))):
        if ranking is not None:
            measures = ranking["measures"]
            values = [f"{measures[measure]:.3f}" if measure in measures else "-" for measure in measured]
            yield [who, *sizes, *values]


def _limits(record: dict[str, Any], tasks: dict[str, Any]) -> Iterator[str]:
    stages, max_length = record["stages"], record["model"]["max_length"]
    if max_length:
        yield f"Of a text the first {max_length:,} tokens are read; what follows is not in the embedding."
    lengths = [stage["data"]["max_length"] for stage in stages if "max_length" in stage["data"]]
    if lengths:
        yield f"It was trained on texts of at most {max(lengths):,} tokens; how it does on longer ones is not known."
    if any(one["source"] == "pydocs" for stage in stages for one in _sources(stage)):
        yield (
            "It has read documentation of Python packages: English for the most part, with code in it. Other subjects "
            "and other languages it has hardly seen."
        )
    elif not record["language"]:
        yield "Nobody stated the language of its texts; do not expect it to understand any other."
    if stages and all(stage["stage"] == "pretraining" for stage in stages):
        yield (
            "It was never shown a query and the passage that answers it. Fine-tune it before it serves: similarities "
            "straight from pretraining are crude."
        )
    behind = [
        name
        for name, task in tasks.items()
        if BM25 in task and task["measures"].get("ndcg@10", 0) < task[BM25]["measures"].get("ndcg@10", 0)
    ]
    if behind:
        yield f"BM25, which needs no training, is ahead of it on {', '.join(behind)}."
    if samples := [name for name, task in tasks.items() if task.get("max_documents") is not None]:
        yield (
            f"Of {', '.join(samples)} a sample of the documents was searched; among all of them the right ones are "
            "harder to find."
        )
    prompts = ("query_prompt", "passage_prompt")
    if prompted := [name for name, task in tasks.items() if any(task.get(one) is not None for one in prompts)]:
        yield f"On {', '.join(prompted)} other prompts than its own stood in front of the texts (evaluation.json)."
    if tasks:
        yield f"It was judged on {', '.join(tasks)} alone; how it does on other collections is not known."
    else:
        yield "It was not judged by any retrieval task."
    yield (
        "Nobody has looked for prejudice, errors or personal data in its training text, or for their trace in what it "
        "ranks first. A ranking is no statement of fact."
    )


def write_card(
    folder: str | Path,
    record: dict[str, Any],
    results: dict[str, Any] | None = None,
    overwrite: bool = False,
    comparison: str = "",
) -> bool:
    """Write a model's record, its results, its pictures and its card into its folder.

    Args:
        folder: the model's.
        record: what to write as `training.json`.
        results: what to write as `evaluation.json`; None takes an old one away, which is of other weights.
        overwrite: whether a README.md goes that somebody else has written, or edited.
        comparison: Markdown on how the model compares with others.

    Returns:
        Whether the card was written: somebody else's stays, and a warning says so.
    """
    folder = Path(folder)
    text = str(build_card(record, results, draw_pictures(record["stages"], folder), comparison))
    write_json(folder / RECORD_FILE, record)
    if results is None:
        (folder / RESULTS_FILE).unlink(missing_ok=True)
    else:
        write_json(folder / RESULTS_FILE, results)
    write_eval_results(folder, results)
    if not overwrite and not may_be_replaced(folder):
        logger.warning(
            "%s was not written by retromae-hf, or was edited since, and stays; "
            "retromae-hf card %s --overwrite true replaces it",
            folder / CARD_FILE,
            folder,
        )
        return False
    (folder / CARD_FILE).write_text(f"{text}\n\n<!-- made by retromae-hf: {_digest(text)} -->\n", encoding="utf-8")
    return True


def may_be_replaced(folder: Path) -> bool:
    """Whether a folder has no card, or one that is as `write_card` has written it."""
    try:
        text = (folder / CARD_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError):
        return False
    mark = _MARK.search(text)
    return mark is not None and mark[1] == _digest(text[: mark.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_results(folder: str | Path, files: Sequence[str]) -> dict[str, Any] | None:
    """The results that a model's folder holds, with those of files of `retromae-hf evaluate` added; None without any.

    Args:
        folder: the model's.
        files: names of files; "none" first leaves out what the folder holds.

    Returns:
        The results, which name no path of this machine.

    Raises:
        RetroMAEError: a file cannot be read, holds something else or results of another model.
    """
    kept = Path(folder) / RESULTS_FILE
    anew = list(files[:1]) == [NO_RESULTS]
    named = files[1:] if anew else [*([str(kept)] if kept.is_file() else []), *files]
    fingerprint = model_fingerprint(str(folder)) if named else None
    found = None
    for file in named:
        with in_one_sentence(f"the results {file} cannot be read"):
            results = json.loads(Path(file).read_text(encoding="utf-8"))
        known = isinstance(results, dict) and results.get("schema") == SCHEMA and isinstance(results.get("tasks"), dict)
        if not known:
            raise RetroMAEError(f"{file} holds no results; name what retromae-hf evaluate --output has written")
        name = public_name(str(results.get("model")))
        if results.get("fingerprint") != fingerprint:
            raise RetroMAEError(
                f"{file} holds results of {name}, whose weights or modules are not those in {folder}; "
                f"evaluate {folder} itself, or begin with --results {NO_RESULTS}, which takes out what its card has"
            )
        found = results | {"model": name, "tasks": {**(found["tasks"] if found else {}), **results["tasks"]}}
    return found
