"""Pretraining: the text becomes passages, on which a model is trained; or streams by, and is never there as a whole."""

from __future__ import annotations

import logging
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import Trainer, TrainingArguments, set_seed

from ..arguments.pretraining import (
    LEARNING_RATE,
    TUNED_LEARNING_RATE,
    CardArguments,
    Cutting,
    Masking,
    RunArguments,
    StartArguments,
    TextSource,
)
from ..checkpoints.starting_model import load_model_and_tokenizer
from ..data.collator import DataCollatorForRetroMAE, check_label_ratio
from ..data.disk import read_json, write_json
from ..data.documents import fingerprint_of_files
from ..data.held_out import DEV_QUERIES, hold_out_head, load_held_out
from ..data.passages import PassageCutter, cut_documents
from ..data.pydocs import PYDOCS
from ..data.streams import DocumentStream, PassageStream
from ..data.text import MIN_BODY_WORDS, MIN_QUERY_WORDS
from ..data.words import chinese_segmenter
from ..model.configuration_retromae import SEGMENT_OBJECTIVES
from ..model.errors import RetroMAEError
from ..model.modeling_retromae import RetroMAEForPreTraining
from ..publishing.card_writer import describing
from ..publishing.record import describe_sources, describe_start, is_tuned_retriever
from ..retrieval.tasks import RetrievalTask, dev_task
from .trainer import check_model, plan_head_warmup, pretraining_trainer
from .training_run import begin_run, run_and_save

logger = logging.getLogger(__name__)

EVAL_PASSAGES = 256
"""Passages kept from training for the evaluation loss and the embedding gap."""

FOLDER = "_stream"
"""In the output folder; what begins so stays behind when `Trainer` pushes to the Hub."""
SETTINGS_FILE = "settings.json"


def pretrain(
    text: TextSource,
    cutting: Cutting,
    masking: Masking,
    start: StartArguments,
    training_args: TrainingArguments,
    run_args: RunArguments | None = None,
    card_args: CardArguments | None = None,
) -> Trainer:
    """Prepare the data, train, and save checkpoint, tokenizer, `trainer_state.json` and card in the output folder.

    A learning rate of None becomes the one that suits the start. Bad input is refused before anything is trained.
    """
    run_args = run_args or RunArguments()
    complete_arguments(training_args, start)
    started_from = (start.model_name_or_path, start.config_name, start.tokenizer_name)
    arguments = (text, cutting, masking, start, run_args)
    run = begin_run(training_args, run_args.overwrite_output_dir, True, started_from, *arguments)
    set_seed(training_args.seed)
    with training_args.main_process_first(desc="preparing the data"):
        segmenter = chinese_segmenter() if masking.segment_chinese else None
        if text.streaming:
            check_streaming(text, start, training_args, run.checkpoint is not None)
        documents, task, stream = read_text(text, training_args.seed)
        files = [fingerprint_of_files(source) for source in text.dataset] if text.streaming else []
        run.take_data(documents.select_columns("text"), *files)
        model, tokenizer = load_model_and_tokenizer(start, documents["text"], cutting.max_length, run.checkpoint)
        check_model(training_args, model, task)
        check_label_ratio(masking.decoder_label_ratio, model.config.decoding)
        warmup = plan_head_warmup(run_args, training_args, model, run)
        objective = model.config.pair_objective
        cutter = PassageCutter(cutting, tokenizer, training_args.seed, objective in SEGMENT_OBJECTIVES, segmenter)
        passages = cut_documents(documents, cutter, text.preprocessing_num_workers).with_format("numpy")
        if stream is None:
            trained, evaluated = split_passages(passages)
        else:
            trained = open_passage_stream(stream, cutter, text, objective, training_args, run.checkpoint)
            evaluated = passages.select(spread_rows(passages, EVAL_PASSAGES))
    partners = trained if objective == "nsp" else None
    options = {"seed": training_args.seed, "compact": True, "pair_partners": partners, **masking.collator_options()}
    collator = DataCollatorForRetroMAE.from_config(tokenizer, model.config, **options)
    data = (trained, evaluated)
    trainer = pretraining_trainer(model, training_args, run_args, collator, data, task, cutting.max_length, warmup)
    stage = describe_pretraining(text, cutting, masking, start, model, documents, trained)
    with describing(trainer, stage, start.model_name_or_path, card_args):
        run_and_save(trainer, run)
    return trainer


def complete_arguments(training_args: TrainingArguments, start: StartArguments) -> None:
    """Give a run the learning rate that suits its start, where it has none, and refuse what no model here can do."""
    if training_args.label_smoothing_factor:
        raise RetroMAEError("label_smoothing_factor needs logits, which this model never holds; leave it at 0")
    source = start.model_name_or_path
    if tuned := source is not None and is_tuned_retriever(source):
        logger.warning(
            "%s was tuned for retrieval already; fine-tuning it on pairs as it is usually gives more: "
            "retromae-hf finetune --model_name_or_path %s",
            source,
            shlex.quote(str(source)),
        )
    if training_args.learning_rate is None:
        training_args.learning_rate = TUNED_LEARNING_RATE if tuned else LEARNING_RATE
    if training_args.eval_strategy == "no":
        training_args.eval_on_start = False


def check_streaming(text: TextSource, start: StartArguments, training_args: TrainingArguments, resumes: bool) -> None:
    if PYDOCS in text.dataset:
        raise RetroMAEError("'pydocs' is read from this Python environment and is no stream; leave streaming out")
    if training_args.max_steps < 1:
        raise RetroMAEError("a stream has no known end, so the run needs one; give --max_steps")
    if not (resumes or start.model_name_or_path or start.tokenizer_name):
        raise RetroMAEError(
            "a new tokenizer is trained on the whole corpus, which is not at hand in a stream; name one with "
            "--tokenizer_name, or a checkpoint with --model_name_or_path"
        )


def read_text(text: TextSource, seed: int) -> tuple[Dataset, RetrievalTask | None, DocumentStream | None]:
    """The documents to train on, the task to watch where the text yields one, and the stream where it is one.

    Of a stream the documents are those at its head, which are evaluated on.
    """
    stream = DocumentStream(text, seed) if text.streaming else None
    held_out = load_held_out(text, seed) if stream is None else hold_out_head(stream.hold_out_head(), text.dev_queries)
    if stream is not None:
        documents = f"{len(held_out.pretraining):,}"
        logger.info("training on a stream of %d shards, its first %s documents held out", stream.num_shards, documents)
    watched = DEV_QUERIES if text.dataset == [PYDOCS] else len(held_out.queries)  # there are those of the test too
    queries = min(text.dev_queries, watched)
    if text.dev_queries and not queries:
        logger.info(
            "retrieval is not watched while training: too few documents have a first sentence of %d words and %d more",
            MIN_QUERY_WORDS,
            MIN_BODY_WORDS,
        )
    return held_out.pretraining, dev_task(held_out, queries) if queries else None, stream


def split_passages(passages: Dataset) -> tuple[Dataset, Dataset]:
    """Passages to train on and to evaluate on: `EVAL_PASSAGES` spread evenly over the corpus, at most a tenth.

    What lies between those to evaluate on is put together again as slices: a list of indices would make every read
    slower, and `Trainer` reads all passages once to group them by length.
    """
    if len(passages) < 2:
        raise RetroMAEError("the corpus holds a single passage; give a source with more text")
    held_out = spread_rows(passages, max(min(EVAL_PASSAGES, len(passages) // 10), 1))
    between = zip([-1, *held_out], [*held_out, len(passages)], strict=True)
    trained = concatenate_datasets(
        [passages.select(range(start + 1, stop)) for start, stop in between if stop - start > 1]
    )
    logger.info("training on %s passages, %s tokens", f"{len(trained):,}", f"{trained['length'][:].sum():,}")
    return trained, passages.select(held_out)


def spread_rows(passages: Dataset, count: int) -> list[int]:
    return np.linspace(0, len(passages) - 1, min(count, len(passages)), dtype=int).tolist()


def open_passage_stream(
    documents: DocumentStream,
    cutter: PassageCutter,
    text: TextSource,
    pair_objective: str | None,
    args: TrainingArguments,
    checkpoint: str | None,
) -> PassageStream:
    """The passages that the run trains on, in the order of the run that is resumed where there is one."""
    if pair_objective == "nsp":
        raise RetroMAEError(
            "NSP draws its false successors from the whole corpus, which is not at hand in a stream; take another "
            "--pair_objective, or leave streaming out"
        )
    identity = cutter.identity | {
        "num_shards": documents.num_shards,
        "first_document": documents.first,
        "pair_objective": pair_objective,
        "segment_chinese": cutter.word_segmenter is not None,
        "shuffle_buffer_size": text.shuffle_buffer_size,
    }
    lanes = args.world_size * max(args.dataloader_num_workers, 1)
    settings = identity | {"lanes": lanes, "batch_size": args.train_batch_size}
    folder = Path(args.output_dir) / FOLDER
    left = Path(checkpoint).parent / FOLDER if checkpoint else folder  # by the run that is resumed
    earlier = (read_json(left / SETTINGS_FILE) if checkpoint else None) or {}
    if changed := [name for name in identity if earlier and identity[name] != earlier.get(name)]:
        raise RetroMAEError(
            f"{checkpoint} is of a run on another stream, which differs in {', '.join(changed)}; resume it with "
            "the arguments and the data that it was started with"
        )
    settings |= earlier
    if args.local_process_index == 0:
        folder.mkdir(parents=True, exist_ok=True)
        if not earlier or left.resolve() != folder.resolve():
            for old in folder.glob("lane-*.jsonl"):
                old.unlink()
            if earlier:
                shutil.copytree(left, folder, dirs_exist_ok=True)
        write_json(folder / SETTINGS_FILE, settings)
    args.train_sampling_strategy = "sequential"  # the order is the stream's own
    # Of a data set that is not one of `datasets`, Trainer would drop the columns that the collator needs.
    args.remove_unused_columns = False
    length = args.max_steps * args.gradient_accumulation_steps * args.train_batch_size * args.world_size
    order = settings["batch_size"], settings["lanes"], text.shuffle_buffer_size
    return PassageStream(documents, cutter, length, *order, folder)


def describe_pretraining(
    text: TextSource,
    cutting: Cutting,
    masking: Masking,
    start: StartArguments,
    model: RetroMAEForPreTraining,
    documents: Dataset,
    passages: Dataset | PassageStream,
) -> dict[str, Any]:
    """What a model's record says of the stage before it is trained; what a stream holds is not counted."""
    counts: dict[str, Any] = {}
    if isinstance(passages, Dataset):
        counts = {"documents": len(documents), "passages": len(passages)}
        counts["tokens"] = int(passages["length"][:].sum())
    config = model.config
    names = ["decoding", "pooling", "mlm_loss_weight", "pair_objective"]
    if config.decoding != "none":
        names += ["num_decoder_layers", "decoder_mask_ratio", "decoder_query"]
    if config.bow_loss_weight:
        names += ["bow_loss_weight", "final_bow_loss_weight", "bow_source"]
    if config.pair_objective == "contrast":
        names += ["contrast_loss_weight", "contrast_temperature"]
    objective = {name: getattr(config, name) for name in names} | masking.collator_options()
    del objective["pad_to_multiple_of"]
    data = (text.dataset, text.dataset_weights, text.dataset_config_name, text.dataset_split)
    return {
        "stage": "pretraining",
        "start": describe_start(start.model_name_or_path),
        "data": describe_sources(*data, **counts, max_length=cutting.max_length),
        "objective": objective | {"attn_implementation": start.attn_implementation},
    }
