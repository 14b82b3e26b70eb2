"""A model's card, made of its record and its evaluation results, and the files that go with it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from ..data.disk import write_json
from ..model.errors import RetroMAEError, in_one_sentence
from ..retrieval.embedders import model_fingerprint
from ..retrieval.evaluation import BM25, HYBRID, SCHEMA
from ..retrieval.measures import MEASURE_NAMES, markdown_table
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

    No other benchmark is on the Hub under a name that leaderboards know: pydocs and folders get no file.
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

MARK = "<!-- made by retromae-hf -->"
"""The last line of a card, by which it is known as ours."""


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
        table=_results_table(tasks),
        comparison=comparison,
        tasks=tasks,
        longest=max((stage["data"].get("max_length", 0) for stage in record["stages"]), default=0),
        reads_pydocs=any(one["source"] == "pydocs" for stage in record["stages"] for one in _sources(stage)),
        only_pretrained={stage["stage"] for stage in record["stages"]} == {"pretraining"},
        behind_bm25=[name for name, task in tasks.items() if BM25 in task and _ndcg(task) < _ndcg(task[BM25])],
        sampled=[name for name, task in tasks.items() if task.get("max_documents") is not None],
        prompted=[
            name for name, task in tasks.items() if {task.get("query_prompt"), task.get("passage_prompt")} != {None}
        ],
        count="{:,}".format,
        scientific="{:.2e}".format,
        seconds=lambda number: f"{number:,.0f} s" if number >= 10 else f"{number:.2f} s",
        title=lambda stage: f"{STAGES[stage['stage']][0]}: {stage_title(stage)}",
        data=_data,
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


def _ndcg(ranking: dict[str, Any]) -> float:
    return ranking["measures"].get("ndcg@10", 0)


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


def _results_table(tasks: dict[str, Any]) -> str:
    measured = [measure for measure in MEASURE_NAMES if any(measure in task["measures"] for task in tasks.values())]
    rows = []
    for name, task in tasks.items():
        sizes = [f"{task['num_queries']:,}", f"{task['num_documents']:,}"]
        rankings = {name: task, f"{name}, BM25": task.get(BM25), f"{name}, both joined": task.get(HYBRID)}
        for who, ranking in rankings.items():
            if ranking is not None:
                found = ranking["measures"]
                rows.append([who, *sizes, *(f"{found[one]:.3f}" if one in found else "-" for one in measured)])
    return markdown_table(["task", "queries", "documents", *(MEASURE_NAMES[one] for one in measured)], rows)


def write_card(
    folder: str | Path,
    record: dict[str, Any],
    results: dict[str, Any] | None = None,
    overwrite: bool = False,
    comparison: str = "",
) -> bool:
    """Write a model's record, results, pictures and card into its folder, and take results of other weights away.

    Returns:
        Whether the card was written: without `overwrite` a README.md of somebody else stays, and a warning says so.
    """
    folder = Path(folder)
    text = str(build_card(record, results, draw_pictures(record["stages"], folder), comparison))
    write_json(folder / RECORD_FILE, record)
    if results is None:
        (folder / RESULTS_FILE).unlink(missing_ok=True)
    else:
        write_json(folder / RESULTS_FILE, results)
    write_eval_results(folder, results)
    card = folder / CARD_FILE
    if not overwrite and card.exists() and MARK not in card.read_text(encoding="utf-8", errors="replace"):
        logger.warning(
            "%s was not written by retromae-hf, and stays; retromae-hf card %s --overwrite true replaces it",
            card,
            folder,
        )
        return False
    card.write_text(f"{text}\n\n{MARK}\n", encoding="utf-8")
    return True


def read_results(folder: str | Path, files: Sequence[str]) -> dict[str, Any] | None:
    """The results that a model's folder holds, with those of files of `retromae-hf evaluate` added; None without any.

    "none" as the first of the files leaves out what the folder holds. The results name no path of this machine.
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
