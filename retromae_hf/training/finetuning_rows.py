"""The rows that fine-tuning trains on, as the losses take them: query, positive, negatives, label."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset, concatenate_datasets, load_from_disk
from transformers import PreTrainedTokenizerBase, TrainingArguments

from ..model.errors import RetroMAEError
from .finetuning_arguments import MINERS, FinetuneArguments
from .pretraining_data import load_held_out
from .rows.finetuning_data import JudgedCorpus, load_training_data, read_hard_negatives, read_scored_negatives, shorten
from .rows.negatives import checked, mine_with_bm25, mine_with_model
from .rows.text_pairs import pairs_from_text

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)


def prepare_rows(
    args: FinetuneArguments, model: SentenceTransformer, training_args: TrainingArguments, resumes: bool
) -> Dataset:
    """`training_rows`; mined ones are kept in the output folder, for the other processes and to resume with."""
    if args.hard_negatives not in MINERS:
        return training_rows(args, model, training_args.seed)
    kept = Path(training_args.output_dir) / "_mined-negatives"  # "_" keeps Trainer from pushing the texts to the Hub
    if training_args.process_index == 0 and not (resumes and kept.is_dir()):
        aside = kept.with_name("_mined-negatives-new")
        shutil.rmtree(aside, ignore_errors=True)  # of a run that was cut off
        training_rows(args, model, training_args.seed).save_to_disk(aside)
        shutil.rmtree(kept, ignore_errors=True)  # of an earlier run
        aside.rename(kept)
    return load_from_disk(kept)


def training_rows(args: FinetuneArguments, model: SentenceTransformer, seed: int) -> Dataset:
    """Rows as the loss takes them: query, positive, negatives, label."""
    mined = args.hard_negatives in MINERS
    source = args.dataset, args.dataset_config_name, args.dataset_split
    if args.pairs is not None:
        held_out = load_held_out(*source, args.text_column, args.dev_queries)
        if args.dev_queries:
            logger.info("%d first sentences are held out, and their documents make no pairs", len(held_out.queries))
        data: JudgedCorpus | Dataset = pairs_from_text(held_out.untouched, args.pairs, seed)
    else:
        data = load_training_data(*source, 0 if mined else args.num_negatives, args.objective, seed, args.columns())
    if args.hard_negatives is None or mined:
        rows = whole_rows(data.pairs() if isinstance(data, JudgedCorpus) else data, args.dataset)
        if mined:
            rows = mined_rows(args, rows, data if isinstance(data, JudgedCorpus) else None, model, seed)
    elif not isinstance(data, JudgedCorpus):
        raise RetroMAEError("a file of hard_negatives names ids; it goes with a folder in BEIR's layout")
    elif args.teacher_scores is None:
        rows = whole_rows(read_hard_negatives(args.hard_negatives, data, args.num_negatives, seed), args.dataset)
    else:
        scored = read_scored_negatives(args.hard_negatives, args.teacher_scores, data, args.num_negatives)
        rows = whole_rows(scored, args.dataset)
    if args.objective != "contrastive" and "label" not in rows.column_names:
        raise RetroMAEError(
            f"objective={args.objective} needs a teacher's scores; give teacher_scores, or rows with a column label"
        )
    if args.max_train_samples is not None:
        rows = rows.shuffle(seed).select(range(min(args.max_train_samples, len(rows))))
    texts = [name for name in rows.column_names if name != "label"]
    if args.objective == "margin_mse":
        rows = with_margins(rows)
    lengths = {name: args.query_length if name == "query" else args.passage_length for name in texts}
    prompts = {name: (args.query_prompt if name == "query" else args.passage_prompt) or "" for name in texts}
    if not isinstance(model.tokenizer, PreTrainedTokenizerBase):  # a static model, which reads all of a text
        return rows
    return shorten(rows, model.tokenizer, lengths, prompts)


def mined_rows(
    args: FinetuneArguments, pairs: Dataset, corpus: JudgedCorpus | None, model: SentenceTransformer, seed: int
) -> Dataset:
    """Pairs with hard negatives out of their corpus, or of all positives; no query finds a document that it is itself.

    Raises:
        RetroMAEError: no query has enough.
    """
    documents = [text for text in (corpus.documents.values() if corpus else pairs["positive"][:]) if text.strip()]
    own = {(query, query) for query in {*pairs["query"][:]}.intersection(documents)}
    own |= {(query, document) for query, document in (corpus.own_documents() if corpus else []) if document.strip()}
    own -= set(zip(pairs["query"][:], pairs["positive"][:], strict=True))
    # Miners keep a query's positives from its negatives, so for as long as they work these are some.
    columns = {"query": [query for query, _ in sorted(own)], "positive": [document for _, document in sorted(own)]}
    known = concatenate_datasets([pairs, Dataset.from_dict(columns, features=pairs.features)])
    options = args.num_negatives, args.negative_depth
    if args.hard_negatives == "bm25":
        found = mine_with_bm25(known, documents, *options, seed)
    else:
        found = mine_with_model(known, documents, model, *options, args.mini_batch_size, seed)
    kept = found.filter(lambda *pair: pair not in own, input_columns=["query", "positive"])
    return checked(kept, pairs, args.num_negatives)


def whole_rows(rows: Dataset, source: str) -> Dataset:
    """The rows that have all their texts; how many have not is said.

    Raises:
        RetroMAEError: none has.
    """
    texts = [name for name in rows.column_names if name != "label"]
    whole = rows.filter(lambda *row: all(text and text.strip() for text in row), input_columns=texts)
    if len(whole) < len(rows):
        logger.warning("%d rows have an empty query or a text missing and were dropped", len(rows) - len(whole))
    if len(whole) == 0:
        raise RetroMAEError(f"{source} holds no rows to train on; give query and positive as text")
    return whole


def with_margins(rows: Dataset) -> Dataset:
    """Rows whose `label`, the scores of all passages, becomes the margins between the positive's and each other."""
    labels = [[scores[0] - other for other in scores[1:]] for scores in rows["label"][:]]
    return rows.remove_columns("label").add_column("label", labels)
