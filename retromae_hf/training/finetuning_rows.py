"""The rows that fine-tuning trains on, as the losses take them: query, positive, negatives, label."""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, load_from_disk
from transformers import PreTrainedTokenizerBase, TrainingArguments

from ..model.errors import RetroMAEError
from .arguments import MINERS, FinetuneArguments
from .finetuning_data import JudgedCorpus, load_training_data, read_hard_negatives, read_scored_negatives, shorten
from .negatives import mine_with_bm25, mine_with_model

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
    data = load_training_data(args.dataset, args.dataset_config_name, args.dataset_split)
    if args.hard_negatives in MINERS:
        pairs = data.pairs() if isinstance(data, JudgedCorpus) else data.select_columns(["query", "positive"])
        documents = list(data.documents.values()) if isinstance(data, JudgedCorpus) else pairs["positive"][:]
        if args.hard_negatives == "bm25":
            rows = mine_with_bm25(pairs, documents, args.num_negatives, args.negative_depth, seed)
        else:
            rows = mine_with_model(
                pairs, documents, model, args.num_negatives, args.negative_depth, args.mini_batch_size, seed
            )
    elif args.hard_negatives is not None:
        if not isinstance(data, JudgedCorpus):
            raise RetroMAEError("a file of hard_negatives names ids; it goes with a folder in BEIR's layout")
        if args.teacher_scores is None:
            rows = read_hard_negatives(args.hard_negatives, data, args.num_negatives, seed)
        else:
            rows = read_scored_negatives(args.hard_negatives, args.teacher_scores, data, args.num_negatives)
    else:
        rows = data.pairs() if isinstance(data, JudgedCorpus) else data
    if args.objective == "contrastive" and "label" in rows.column_names:
        rows = rows.remove_columns("label")
    if args.objective != "contrastive" and "label" not in rows.column_names:
        raise RetroMAEError(
            f"objective={args.objective} needs a teacher's scores; give teacher_scores, or rows with a column label"
        )
    texts = [name for name in rows.column_names if name != "label"]
    whole = rows.filter(
        lambda *row: all(text is not None for text in row) and bool(row[0].strip()), input_columns=texts
    )
    if len(whole) < len(rows):
        logger.warning("%d rows have an empty query or a text missing and were dropped", len(rows) - len(whole))
    if len(whole) == 0:
        raise RetroMAEError(f"{args.dataset} holds no rows to train on; give query and positive as text")
    rows = whole if args.objective == "contrastive" else with_labels(whole, args.objective, len(texts) - 1)
    lengths = {name: args.query_length if name == "query" else args.passage_length for name in texts}
    prompts = {name: (args.query_prompt if name == "query" else args.passage_prompt) or "" for name in texts}
    if not isinstance(model.tokenizer, PreTrainedTokenizerBase):  # a static model, which reads all of a text
        return rows
    return shorten(rows, model.tokenizer, lengths, prompts)


def with_labels(rows: Dataset, objective: str, passages: int) -> Dataset:
    """Rows whose `label` is as the loss takes it: scores of all passages for kl, margins for margin_mse.

    Args:
        rows: with a column `label`.
        objective: kl or margin_mse.
        passages: columns of passages.

    Raises:
        RetroMAEError: the labels are not that.
    """
    if passages < 2:
        raise RetroMAEError(f"objective={objective} compares passages of a query; give rows with negatives")
    accepted = {"kl": {passages}, "margin_mse": {passages, passages - 1}}[objective]

    def checked(label: Any, row: int) -> list[float]:
        scores = label if isinstance(label, list) else [label]
        numbers = all(isinstance(score, int | float) and math.isfinite(score) for score in scores)
        if not numbers or len(scores) not in accepted:
            wanted = f"a list of {passages} scores, the positive's and those of its negatives"
            if objective == "margin_mse":
                wanted += f", or of {passages - 1} margins"
            raise RetroMAEError(f"row {row + 1} has the label {label!r}; objective={objective} takes {wanted}")
        if objective == "margin_mse" and len(scores) == passages:
            scores = [scores[0] - other for other in scores[1:]]
        return [float(score) for score in scores]

    labels = [checked(label, row) for row, label in enumerate(rows["label"][:])]
    return rows.remove_columns("label").add_column("label", labels)
