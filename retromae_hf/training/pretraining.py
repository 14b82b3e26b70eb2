"""Pretraining on a stream: what is held out, what the run takes from it, and where a resumed run goes on."""

from __future__ import annotations

import logging
import shlex
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed

from ..arguments.pretraining import TUNED_LEARNING_RATE, CardArguments, DataArguments, ModelArguments
from ..checkpoints.starting_model import load_model_and_tokenizer
from ..data.collator import check_label_ratio
from ..data.disk import read_json, write_json
from ..data.documents import (
    fingerprint_of_files,
    fingerprint_of_tokenizer,
    load_documents,
    mix_documents,
    sample_documents,
)
from ..data.files import check_whole
from ..data.passages import cut_passages, cutting_options, tokenize_passages
from ..data.pydocs import (
    DEV_QUERIES,
    MIN_BODY_WORDS,
    MIN_QUERY_WORDS,
    PYDOCS,
    SEARCHED_BODIES,
    HeldOut,
    hold_out,
    load_held_out_pydocs,
)
from ..data.streams import Bookmarks, DocumentStream, PassageStream
from ..data.words import WordSegmenter, chinese_segmenter
from ..model.configuration_retromae import SEGMENT_OBJECTIVES
from ..model.errors import RetroMAEError, in_one_sentence
from ..publishing.card_writer import describing
from ..publishing.record import is_tuned_retriever
from ..retrieval.tasks import RetrievalTask, dev_task
from .resuming.training_run import begin_run, check_trainable, run_and_save
from .stages import describe_pretraining
from .trainer import (
    AccumulatingTrainer,
    check_gradient_checkpointing,
    check_metric,
    plan_head_warmup,
    pretraining_trainer,
)

logger = logging.getLogger(__name__)

FOLDER = "_stream"
"""In the output folder; what begins so stays behind when `Trainer` pushes to the Hub."""

SETTINGS_FILE = "settings.json"


def check_streaming(args: DataArguments, model_args: ModelArguments, run: TrainingArguments, resumed: bool) -> None:
    """Raise `RetroMAEError` for what a stream cannot give."""
    if PYDOCS in args.dataset:
        raise RetroMAEError("'pydocs' is read from this Python environment and is no stream; leave streaming out")
    if run.max_steps < 1:
        raise RetroMAEError("a stream has no known end, so the run needs one; give --max_steps")
    if not (resumed or model_args.model_name_or_path or model_args.tokenizer_name):
        raise RetroMAEError(
            "a new tokenizer is trained on the whole corpus, which is not at hand in a stream; name one with "
            "--tokenizer_name, or start from a checkpoint with --model_name_or_path"
        )
    if not run.dataloader_in_order:
        raise RetroMAEError("a stream is resumed by the order of its batches; leave dataloader_in_order at true")


def held_out_head(documents: DocumentStream, dev_queries: int) -> tuple[Dataset, RetrievalTask | None]:
    """The documents to evaluate on, taken from the head of the stream, and the task to watch, where they yield one."""
    texts = documents.hold_out_head()
    head = Dataset.from_dict({"name": [str(row) for row in range(len(texts))], "text": texts})
    held_out = hold_out(head, min(dev_queries, len(texts) // 5), SEARCHED_BODIES)
    task = dev_task(held_out, len(held_out.queries)) if held_out.queries else None
    return held_out.pretraining, task


def open_passage_stream(
    documents: DocumentStream,
    tokenizer: PreTrainedTokenizerBase,
    pair_objective: str | None,
    word_segmenter: WordSegmenter | None,
    args: DataArguments,
    run: TrainingArguments,
    checkpoint: str | None,
) -> PassageStream:
    """The passages that the run trains on, in the order of the run that is resumed where there is one.

    Args:
        documents: the stream, its head held out.
        tokenizer: the model's.
        pair_objective: likewise.
        word_segmenter: as `tokenize_passages` takes it.
        args: how passages are cut, and how many are shuffled among themselves.
        run: its loader is told to leave the order alone.
        checkpoint: the one to resume from.

    Raises:
        RetroMAEError: an argument is out of range, or the run that is resumed read another stream.
    """
    if pair_objective == "nsp":
        raise RetroMAEError(
            "NSP draws its false successors from the whole corpus, which is not at hand in a stream; "
            "take --pair_objective contrast, sop or none, or leave streaming out"
        )
    pairs = pair_objective in SEGMENT_OBJECTIVES
    options = cutting_options(
        tokenizer,
        args.max_length,
        args.short_seq_prob,
        run.seed,
        pairs,
        word_segmenter,
        args.stride,
        args.max_passages_per_document,
    )
    identity = {
        "num_shards": documents.num_shards,
        "first_document": documents.first,
        "seed": run.seed,
        "pair_objective": pair_objective,
        **{
            name: getattr(args, name)
            for name in (
                "max_length",
                "short_seq_prob",
                "stride",
                "max_passages_per_document",
                "segment_chinese",
                "shuffle_buffer_size",
            )
        },
        "tokenizer": fingerprint_of_tokenizer(tokenizer),
    }
    lanes = run.world_size * max(run.dataloader_num_workers, 1)
    a_step = run.gradient_accumulation_steps * run.train_batch_size * run.world_size
    settings = identity | {"lanes": lanes, "batch_size": run.train_batch_size}
    folder = Path(run.output_dir) / FOLDER
    left = Path(checkpoint).parent / FOLDER if checkpoint else None  # by the run that is resumed
    earlier = read_json(left / SETTINGS_FILE) if left else None
    if left and not earlier:
        logger.warning("%s holds no settings of a stream; it is read from the start to where the run stopped", left)
    if earlier:
        if changed := [name for name in identity if identity[name] != earlier.get(name)]:
            raise RetroMAEError(
                f"{checkpoint} is of a run on another stream, which differs in {', '.join(changed)}; resume it with "
                "the arguments and the data that it was started with"
            )
        settings |= earlier
    if run.local_process_index == 0:
        _prepare_folder(folder, settings, left if earlier else None)
    # The order is the stream's own.
    run.train_sampling_strategy = "sequential"
    # Of a data set that is not one of `datasets`, Trainer would drop the columns that the collator needs.
    run.remove_unused_columns = False
    return PassageStream(
        documents,
        partial(cut_passages, **options),
        run.max_steps * a_step,
        settings["batch_size"],
        settings["lanes"],
        args.shuffle_buffer_size,
        Bookmarks(folder),
    )


def _prepare_folder(folder: Path, settings: dict[str, Any], earlier: Path | None) -> None:
    """Make the folder of the bookmarks, with those of the run that is resumed and of no other."""
    with in_one_sentence(f"the folder {folder} cannot be written"):
        folder.mkdir(parents=True, exist_ok=True)
        if earlier is None or earlier.resolve() != folder.resolve():
            for old in folder.glob("lane-*.jsonl"):
                old.unlink()
            if earlier is not None:
                shutil.copytree(earlier, folder, dirs_exist_ok=True)
        write_json(folder / SETTINGS_FILE, settings)


EVAL_PASSAGES = 256
"""Passages kept from training for the evaluation loss and the embedding gap."""


@dataclass(frozen=True)
class PretrainingText:
    """The text of a run.

    Attributes:
        documents: what is at hand (`text`): the documents to train on, without the held-out queries; of a stream those
            at its head, which are held out and on which it is evaluated.
        task: held-out first sentences to watch retrieval on, where the text yields some.
        stream: the documents to train on, where they are a stream.
        segmenter: what tells Chinese words apart, where that was asked for.
    """

    documents: Dataset
    task: RetrievalTask | None
    stream: DocumentStream | None
    segmenter: WordSegmenter | None


def read_text(
    args: DataArguments, model_args: ModelArguments, training_args: TrainingArguments, checkpoint: str | None
) -> PretrainingText:
    """The text that a run trains on; what it cannot be is told before any of it is read.

    Args:
        args: which text.
        model_args: where the run starts; a stream needs a tokenizer that is there.
        training_args: the run.
        checkpoint: the one to go on from.
    """
    segmenter = chinese_segmenter() if args.segment_chinese else None
    if args.streaming:
        check_streaming(args, model_args, training_args, checkpoint is not None)
        stream = DocumentStream.open(
            args.dataset,
            args.dataset_config_name,
            args.dataset_split,
            args.text_column,
            training_args.seed,
            args.on_broken_line,
            args.title_column,
            args.document_separator,
        )
        text = PretrainingText(*held_out_head(stream, args.dev_queries), stream, segmenter)
    else:
        text = PretrainingText(*load_text(args, training_args.seed), None, segmenter)
    if text.task is None and args.dev_queries:
        logger.info(
            "retrieval is not watched while training: too few documents have a first sentence of %d words and %d more",
            MIN_QUERY_WORDS,
            MIN_BODY_WORDS,
        )
    return text


def load_text(args: DataArguments, seed: int) -> tuple[Dataset, RetrievalTask | None]:
    """The documents to train on, without the held-out queries, and the task to watch, where the text yields one."""
    if args.dataset == [PYDOCS]:
        held_out = _pydocs(args)
        queries = min(args.dev_queries, DEV_QUERIES)
    else:
        texts = [(source, _text_of(source, args)) for source in args.dataset]
        held_out = hold_out_of(mix_documents(texts, args.dataset_weights, args.max_documents, seed), args.dev_queries)
        queries = len(held_out.queries)
    documents = sample_documents(held_out.pretraining, args.max_documents, seed)
    return documents, dev_task(held_out, queries) if queries else None


def _text_of(source: str, args: DataArguments) -> Dataset:
    """The documents of one of several sources; of "pydocs" those that are in no test."""
    if source == PYDOCS:
        return _pydocs(args).pretraining
    return load_documents(
        source,
        args.dataset_config_name,
        args.dataset_split,
        args.text_column,
        args.preprocessing_num_workers,
        args.on_broken_line,
        args.title_column,
        args.document_separator,
    )


def _pydocs(args: DataArguments) -> HeldOut:
    check_whole(PYDOCS, args.dataset_config_name, args.dataset_split)
    return load_held_out_pydocs(args.preprocessing_num_workers)


def load_held_out(source: str, config_name: str | None, split: str, text_column: str, dev_queries: int) -> HeldOut:
    """Any text, without the first sentences that are held out of it whatever is trained on it.

    Args:
        source: what `load_documents` takes, as the next three are.
        config_name: likewise.
        split: likewise.
        text_column: likewise.
        dev_queries: see `hold_out_of`; of "pydocs" always `DEV_QUERIES` and those of the reported test.
    """
    if source == PYDOCS:
        check_whole(source, config_name, split)
        return load_held_out_pydocs()
    return hold_out_of(load_documents(source, config_name, split, text_column), dev_queries)


def hold_out_of(documents: Dataset, dev_queries: int) -> HeldOut:
    """Documents without so many first sentences, of a tenth of them at most."""
    texts = documents.select_columns([name for name in documents.column_names if name in ("text", "title")])
    texts = texts.add_column("name", [str(row) for row in range(len(texts))])
    return hold_out(texts, min(dev_queries, len(texts) // 10), SEARCHED_BODIES)


def make_passages(
    text: PretrainingText,
    tokenizer: PreTrainedTokenizerBase,
    pair_objective: str | None,
    args: DataArguments,
    training_args: TrainingArguments,
    checkpoint: str | None,
) -> tuple[Dataset | PassageStream, Dataset]:
    """The passages to train on and those to evaluate on.

    Args:
        text: the documents.
        tokenizer: the model's.
        pair_objective: the model's.
        args: how passages are cut.
        training_args: the run; a stream's loader is told to leave the order alone.
        checkpoint: the one to go on from.
    """
    passages = tokenize_passages(
        text.documents,
        tokenizer,
        args.max_length,
        args.short_seq_prob,
        training_args.seed,
        args.preprocessing_num_workers,
        pairs=pair_objective in SEGMENT_OBJECTIVES,
        word_segmenter=text.segmenter,
        stride=args.stride,
        max_passages_per_document=args.max_passages_per_document,
    )
    # Arrays, which the loader need not take apart into Python's numbers.
    passages = passages.with_format("numpy")
    if text.stream is None:
        train_passages, held_out = split_passages(passages)
        tokens = train_passages["length"][:].sum()
        logger.info("training on %s passages, %s tokens", f"{len(train_passages):,}", f"{tokens:,}")
        return train_passages, held_out
    held_out = passages.select(evaluated_rows(passages, EVAL_PASSAGES))
    streamed = open_passage_stream(
        text.stream, tokenizer, pair_objective, text.segmenter, args, training_args, checkpoint
    )
    shards, documents = text.stream.num_shards, len(text.documents)
    logger.info("training on a stream of %d shards, its first %s documents held out", shards, f"{documents:,}")
    return streamed, held_out


def split_passages(passages: Dataset) -> tuple[Dataset, Dataset]:
    """Passages to train on and to evaluate on: `EVAL_PASSAGES` spread evenly over the corpus, at most a tenth.

    What lies between those to evaluate on is put together again as slices: a list of indices would make every read
    slower, and `Trainer` reads all passages once to group them by length.
    """
    if len(passages) < 2:
        raise RetroMAEError("the corpus holds a single passage; give a source with more text")
    count = max(min(EVAL_PASSAGES, len(passages) // 10), 1)
    held_out = evaluated_rows(passages, count)
    between = zip([-1, *held_out], [*held_out, len(passages)], strict=True)
    slices = [passages.select(range(start + 1, stop)) for start, stop in between if stop - start > 1]
    return concatenate_datasets(slices), passages.select(held_out)


def evaluated_rows(passages: Dataset, count: int) -> list[int]:
    """So many rows at most, spread evenly."""
    return np.linspace(0, len(passages) - 1, min(count, len(passages)), dtype=int).tolist()


def pretrain(
    args: DataArguments,
    model_args: ModelArguments,
    training_args: TrainingArguments,
    card_args: CardArguments | None = None,
    default_rate: bool = False,
) -> Trainer:
    """Prepare the data, train, and save checkpoint, tokenizer, `trainer_state.json` and card in the output folder.

    Args:
        args: data and masks.
        model_args: which model, and where it starts.
        training_args: the run.
        card_args: what the user says of the model.
        default_rate: whether the learning rate is nobody's choice; that of a tuned retriever is `TUNED_LEARNING_RATE`
            then.

    Raises:
        RetroMAEError: bad input, found before anything is trained.
    """
    if training_args.label_smoothing_factor:
        raise RetroMAEError("label_smoothing_factor needs logits, which this model never holds; leave it at 0")
    start = model_args.model_name_or_path
    if start is not None and _is_tuned(start) and default_rate:
        training_args.learning_rate = TUNED_LEARNING_RATE
    started_from = (start, model_args.config_name, model_args.tokenizer_name)
    run = begin_run(training_args, args.overwrite_output_dir, True, started_from, args, model_args)
    if training_args.eval_strategy == "no":
        training_args.eval_on_start = False
    set_seed(training_args.seed)
    with training_args.main_process_first(desc="preparing the data"):
        text = read_text(args, model_args, training_args, run.checkpoint)
        files = [fingerprint_of_files(source) for source in args.dataset] if args.streaming else []
        run.take_data(text.documents.select_columns("text"), *files)
        texts = text.documents["text"]
        model, tokenizer = load_model_and_tokenizer(model_args, texts, args.max_length, run.checkpoint)
        check_gradient_checkpointing(training_args, model)
        check_metric(training_args, text.task)
        check_label_ratio(args.decoder_label_ratio, model.config.decoding)
        warmup = plan_head_warmup(args, model, run)
        check_trainable(training_args, model, True, partial(AccumulatingTrainer, head_warmup=warmup))
        pair_objective = model.config.pair_objective
        passages = make_passages(text, tokenizer, pair_objective, args, training_args, run.checkpoint)
    trainer = pretraining_trainer(args, training_args, model, tokenizer, *passages, text.task, warmup)
    stage = describe_pretraining(args, model_args, model, text.documents, passages[0])
    with describing(trainer, stage, start, card_args):
        run_and_save(trainer, run)
    return trainer


def _is_tuned(start: str) -> bool:
    """Whether a run starts from a tuned retriever, which is told: fine-tuning that is the better way as a rule."""
    tuned = is_tuned_retriever(start)
    if tuned:
        logger.warning(
            "%s was tuned for retrieval already; fine-tuning it on pairs as it is usually gives more: "
            "retromae-hf finetune --model_name_or_path %s",
            start,
            shlex.quote(start),
        )
    return tuned
