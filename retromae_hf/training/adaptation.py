"""The whole job for one who has text and an encoder: adapt it, and know whether that has paid.

A task is held out of the text, the encoder is measured on it, trained for as many steps as the minutes allow, measured
again and exported. Every stage leaves its result in the output folder, so that the same command goes on behind it:

    held-out/        the task in BEIR's layout, by which anybody can check the figures
    text.jsonl       the text to train on
    adapt.json       the arguments, and the plan: steps by measured speed
    before.json      the encoder as it was, BM25 and both joined, see `retrieval.evaluation`; its runs in runs/before/
    pretrained/      of a masked LM: the RetroMAE checkpoint
    finetuned/       fine-tuned on pairs of the text
    adapted/         the same as it is used: it reads texts as long as it did before
    after.json       the adapted encoder, likewise; its runs in runs/after/
    report.json      what is printed, and the paired tests; the folders of the better encoder and of the other one;
                     whether BM25 joined with it is better still, and whether the text is embedded already
    encoder/         the better one of both, which is the encoder as it was or what was adapted/ until then
"""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments

from ..arguments.finetuning import DEFAULT_FINETUNING_ARGUMENTS, AdaptArguments, FinetuneArguments
from ..arguments.pretraining import DEFAULT_TRAINING_ARGUMENTS, Cutting, Masking, StartArguments, TextSource
from ..checkpoints.loading import load_sentence_transformer
from ..data.disk import folder_written_aside, read_json, vacant, write_json
from ..data.documents import load_documents
from ..data.held_out import MIN_QUERIES, choose_pairs, hold_out_pairs
from ..model.errors import RetroMAEError
from ..publishing.card_writer import describe_sentence_transformer
from ..publishing.export import export_encoder
from ..publishing.model_card import write_card
from ..publishing.pictures import MEASURE, before_after_table, draw_before_after, is_better, verdict
from ..publishing.record import RECORD_FILE, is_tuned_retriever, model_name, require_record, seconds_of
from ..retrieval.embedders import load_embedder
from ..retrieval.evaluation import HYBRID, evaluate_model
from ..retrieval.measures import paired_test, score_queries
from ..retrieval.rankings import import_bm25s, read_trec_run
from ..retrieval.search import load_index
from ..retrieval.tasks import RetrievalTask, load_beir, save_beir
from .finetuning import finetune
from .pretraining import pretrain
from .training_run import check_reporters

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)

TASK = "held-out"
MAX_QUERIES = 300
DOCUMENTS_A_MINUTE, MAX_DOCUMENTS = 200, 10_000
"""Documents of the held-out task: all are embedded twice, and the time goes off training."""
CPU_BATCH, BATCH, MIN_BATCHES = 32, 128, 2
"""Pairs of a step, on a CPU and elsewhere; fewer where the text yields fewer than so many batches."""
MAX_EPOCHS = {"pretraining": 10, "finetuning": 3}
"""Beyond them an encoder learns such a text by heart."""
PRETRAINING_SHARE = 2 / 3
"""Of the time for training, where there is pretraining."""
TRIAL_STEPS = 4


def adapt(args: AdaptArguments) -> dict[str, Any]:
    """Adapt an encoder to a text, or go on with it; returns what report.json holds."""
    started, folder, start = time.monotonic(), Path(args.output_dir), args.model_name_or_path
    import_bm25s()
    check_reporters(args.report_to)
    noted = _begin(args)
    tuned = is_tuned_retriever(start)
    pretrains = not tuned if args.pretrain is None else args.pretrain
    if "pairs" not in noted:
        noted |= _hold_out(args)
        write_json(folder / "adapt.json", noted)
    task = load_beir(folder / TASK)
    before = _measure(args, start, task, "before")
    if "plan" not in noted:
        noted["plan"] = _plan(args, noted, pretrains, before, started)
        write_json(folder / "adapt.json", noted)
    if pretrains:
        encoder, checkpoint = folder / "pretrained" / "encoder", folder / "pretrained"
        if vacant(encoder):
            trainer = _pretraining(args, checkpoint, noted["plan"]["pretraining_steps"])
            with folder_written_aside(encoder) as aside:
                export_encoder(trainer.model, trainer.processing_class, aside, source=str(checkpoint))
        start = str(encoder)
    if not (folder / "after.json").is_file():
        _finetune(args, noted, start, folder / "finetuned", noted["plan"]["finetuning_steps"])
        if vacant(folder / "adapted"):
            _keep(args, folder / "finetuned", folder / "adapted")
    after = _measure(args, str(folder / "adapted"), task, "after")
    return _report(args, noted, task, before, after)


def _begin(args: AdaptArguments) -> dict[str, Any]:
    """What the folder notes of an adaptation that was cut off, or a new note."""
    folder = Path(args.output_dir)
    wanted = {name: value for name, value in asdict(args).items() if name not in ("output_dir", "report_to")}
    noted = read_json(folder / "adapt.json")
    if noted is None:
        if folder.is_dir() and any(folder.iterdir()):
            raise RetroMAEError(f"{folder} is not empty and holds no adaptation; name another output_dir")
        folder.mkdir(parents=True, exist_ok=True)
        return {"arguments": wanted}
    fixed = wanted.keys() - ({"minutes", "pretrain"} if "plan" not in noted else set())
    if changed := [name for name in wanted if name in fixed and noted["arguments"].get(name) != wanted[name]]:
        raise RetroMAEError(
            f"{folder} holds an adaptation with another {' and '.join(changed)}; give the same, or another output_dir"
        )
    return noted | {"arguments": wanted}


def _hold_out(args: AdaptArguments) -> dict[str, Any]:
    """Divide the text into the task and what is trained on."""
    documents = load_documents(args.dataset, args.dataset_config_name, args.dataset_split, args.text_column)
    documents = documents.select_columns([name for name in ("text", "title") if name in documents.column_names])
    kind = args.pairs or choose_pairs(documents, args.seed)
    size = min(MAX_DOCUMENTS, round(DOCUMENTS_A_MINUTE * args.minutes))
    queries = max(min(MAX_QUERIES, size // 4), MIN_QUERIES)
    judged, rest = hold_out_pairs(documents, kind, args.seed, queries, size)
    task = RetrievalTask(TASK, *judged)
    logger.info("Held out of %s documents: %s queries (%s pairs)", f"{len(documents):,}", len(task.queries), kind)
    save_beir(task, Path(args.output_dir, TASK))
    rest.to_json(Path(args.output_dir, "text.jsonl"), force_ascii=False)
    return {"pairs": kind, "num_documents": len(documents), "num_trained": len(rest)}


def _measure(args: AdaptArguments, name_or_path: str, task: RetrievalTask, when: str) -> dict[str, Any]:
    file, runs = Path(args.output_dir, f"{when}.json"), Path(args.output_dir, "runs", when)
    if (measured := read_json(file)) is not None:
        return measured
    logger.info("Measuring %s", name_or_path)
    runs.mkdir(parents=True, exist_ok=True)
    embedder = load_embedder(name_or_path, trust_remote_code=args.trust_remote_code)
    measured = evaluate_model(embedder, [task], bm25=True, run_dir=runs)
    assert measured is not None  # one process
    write_json(file, measured)
    return measured


def _entry(results: dict[str, Any]) -> dict[str, Any]:
    (entry,) = results["tasks"].values()
    return entry


def _plan(
    args: AdaptArguments, noted: dict[str, Any], pretrains: bool, before: dict[str, Any], started: float
) -> dict[str, Any]:
    """The steps that the minutes allow, by the speed of a few."""
    logger.info("Measuring how long a step takes")
    trial, entry = Path(args.output_dir, "_trial"), _entry(before)
    shutil.rmtree(trial, ignore_errors=True)
    trainer = _finetune(args, noted, args.model_name_or_path, trial / "pairs", TRIAL_STEPS)
    seconds = {"finetuning": seconds_of(trainer.state) / TRIAL_STEPS}
    if pretrains:
        seconds["pretraining"] = seconds_of(_pretraining(args, trial / "text", TRIAL_STEPS).state) / TRIAL_STEPS
    shutil.rmtree(trial)
    left = 60 * args.minutes - (time.monotonic() - started) - entry["seconds"]["embed"]
    index = entry["seconds"]["embed"] * noted["num_documents"] / entry["num_documents"]
    whole = (args.dataset_config_name, args.dataset_split, args.text_column) == (None, "train", "text")
    indexes = whole and index < left / 2
    left -= index if indexes else 0
    if left < sum(seconds.values()):
        needed = args.minutes + (sum(seconds.values()) - left) / 60
        raise RetroMAEError(
            f"--minutes {args.minutes:g} is too few for one step of each training on this machine; about "
            f"{needed:.1f} are needed for that, and many more to learn something"
        )
    share = {"pretraining": PRETRAINING_SHARE, "finetuning": 1 - PRETRAINING_SHARE} if pretrains else {"finetuning": 1}
    batches = {"finetuning": _batch(), "pretraining": DEFAULT_TRAINING_ARGUMENTS["per_device_train_batch_size"]}
    steps = {}
    for stage, part in share.items():
        longest = max(MAX_EPOCHS[stage] * noted["num_trained"] // batches[stage], 1)
        steps[stage] = min(max(int(part * left / seconds[stage]), 1), longest)
    told = " and ".join(f"{count:,} steps of {stage}" for stage, count in steps.items())
    logger.info("%s, in about %.0f minutes", told, sum(steps[stage] * seconds[stage] for stage in steps) / 60)
    planned = {f"{stage}_steps": count for stage, count in steps.items()}
    return {"seconds_a_step": seconds, "indexes": indexes} | planned


def _common(args: AdaptArguments, folder: Path, steps: int) -> dict[str, Any]:
    trial = steps <= TRIAL_STEPS
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "seed": args.seed,
        "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        "save_strategy": "steps",
        "save_steps": max(steps // 4, 25),
        "save_total_limit": 1,
        "logging_strategy": "no" if trial else "steps",
        "logging_steps": max(min(steps // 10, 50), 1),
        "eval_strategy": "no",
        "report_to": "none" if trial else args.report_to,
    }


def _pretraining(args: AdaptArguments, folder: Path, steps: int) -> Trainer:
    text = TextSource([str(Path(args.output_dir) / "text.jsonl")], dev_queries=0)
    start = StartArguments(model_name_or_path=args.model_name_or_path, trust_remote_code=args.trust_remote_code)
    training = TrainingArguments(**DEFAULT_TRAINING_ARGUMENTS | _common(args, folder, steps))
    return pretrain(text, Cutting(), Masking(), start, training)


def _finetune(args: AdaptArguments, noted: dict[str, Any], start: str, folder: Path, steps: int) -> Trainer:
    from sentence_transformers import SentenceTransformerTrainingArguments

    tuning = FinetuneArguments(
        model_name_or_path=start,
        dataset=str(Path(args.output_dir, "text.jsonl")),
        pairs=noted["pairs"],
        dev_queries=0,
        query_length=64,
        passage_length=128,
        mini_batch_size=_batch(),
        trust_remote_code=args.trust_remote_code,
    )
    batch = min(_batch(), max(noted["num_trained"] // 2 // MIN_BATCHES, 2))
    values = DEFAULT_FINETUNING_ARGUMENTS | _common(args, folder, steps) | {"per_device_train_batch_size": batch}
    return finetune(tuning, SentenceTransformerTrainingArguments(**values))


def _batch() -> int:
    return BATCH if torch.accelerator.is_available() else CPU_BATCH


def _keep(args: AdaptArguments, finetuned: Path, adapted: Path) -> None:
    """Save what was fine-tuned as it is used: what reads short texts in training for speed reads them whole."""
    model = load_sentence_transformer(str(finetuned), args.trust_remote_code)
    model.max_seq_length = load_sentence_transformer(args.model_name_or_path, args.trust_remote_code).max_seq_length
    record = require_record(finetuned) | {"model": describe_sentence_transformer(model), "name": model_name(adapted)}
    with folder_written_aside(adapted) as aside:
        model.save_pretrained(str(aside), create_model_card=False)
        write_json(aside / RECORD_FILE, record)


def _report(
    args: AdaptArguments, noted: dict[str, Any], task: RetrievalTask, before: dict[str, Any], after: dict[str, Any]
) -> dict[str, Any]:
    """Compare before and after, let encoder/ be the better one, and embed the text with it."""
    folder, adapted = Path(args.output_dir), Path(args.output_dir, "adapted")
    now, then = (
        score_queries(task.qrels, read_trec_run(folder / "runs" / when / f"{task.name}-dense.trec"))
        for when in ("after", "before")
    )
    tests = {measure: paired_test(now[measure], then[measure]) for measure in now}
    table = before_after_table(_entry(before), _entry(after), tests)
    table += (
        f"\n\n{len(task.queries):,} held-out queries against {len(task.documents):,} documents; the queries and their "
        f"documents ({noted['pairs']} pairs) were in no training. *: differs from the encoder as it was by more than "
        "chance (paired randomisation test, p < 0.05)."
    )
    if adapted.is_dir():
        comparison = f"{verdict(tests)}, when it was adapted:\n\n{table}"
        if draw_before_after(_entry(before), _entry(after), adapted / "adaptation.png"):
            comparison += "\n\n![Before and after](adaptation.png)"
        write_card(adapted, require_record(adapted), after, comparison=comparison)
    better, encoder = is_better(tests), folder / "encoder"
    if vacant(encoder) and better:
        shutil.rmtree(encoder, ignore_errors=True)
        adapted.rename(encoder)
    elif vacant(encoder):
        model = load_sentence_transformer(args.model_name_or_path, args.trust_remote_code)
        with folder_written_aside(encoder) as aside:
            model.save_pretrained(str(aside))
    chosen = _entry(after if better else before)
    indexed = noted["plan"]["indexes"]
    if indexed:
        logger.info("Embedding the text for the search")
        load_index(str(encoder), args.dataset, trust_remote_code=args.trust_remote_code)
    report = {
        "verdict": verdict(tests),
        "table": table,
        "tests": tests,
        "pairs": noted["pairs"],
        "encoder": str(encoder),
        "is_better": better,
        "other": args.model_name_or_path if better else str(adapted),
        "hybrid": chosen[HYBRID]["measures"][MEASURE] > chosen["measures"][MEASURE],
        "indexed": indexed,
    }
    write_json(folder / "report.json", report)
    return report
