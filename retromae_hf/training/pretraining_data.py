"""What a pretraining run trains and is evaluated on: the text, and passages of it, all at once or as a stream."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase, TrainingArguments

from ..checkpoints.arguments import ModelArguments
from ..data.document_stream import DocumentStream
from ..data.passage_stream import PassageStream
from ..data.passages import tokenize_passages
from ..data.reading.mixtures import mix_documents, sample_documents
from ..data.reading.pydocs import (
    DEV_QUERIES,
    MIN_BODY_WORDS,
    MIN_QUERY_WORDS,
    PYDOCS,
    SEARCHED_BODIES,
    HeldOut,
    hold_out,
    load_held_out_pydocs,
)
from ..data.reading.source_files import check_whole
from ..data.reading.sources import load_documents
from ..data.words import WordSegmenter, chinese_segmenter
from ..model.configuration_retromae import SEGMENT_OBJECTIVES
from ..model.errors import RetroMAEError
from ..retrieval.tasks import RetrievalTask, dev_task
from .arguments import DataArguments
from .streaming import check_streaming, held_out_head, open_passage_stream

logger = logging.getLogger(__name__)

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
