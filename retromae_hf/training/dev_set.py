"""What fine-tuning is watched on: its queries and documents, and when the run evaluates and stops."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from datasets import Dataset
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..model.errors import RetroMAEError, check_choice
from ..retrieval.embedders import sentence_embedder
from ..retrieval.evaluation import evaluate_embedder
from ..retrieval.measures import DEFAULT_MEASURES
from ..retrieval.tasks import RetrievalTask, in_random_order, load_beir, sampled
from .finetuning_arguments import FinetuneArguments
from .finetuning_rows import whole_rows
from .rows.finetuning_data import load_training_data

if TYPE_CHECKING:
    from sentence_transformers.base.evaluation import BaseEvaluator

logger = logging.getLogger(__name__)

MAX_DOCUMENTS = 2000
"""Documents that are searched at most, as `pretrain` has them; more would take longer than the training."""

BEST = "ndcg@10"
EVALUATIONS = 10
"""Of a run that says nothing of them."""


def plan_evaluations(args: FinetuneArguments, training_args: TrainingArguments) -> None:
    """Let a run with a dev set evaluate and save in turns and keep the best checkpoint, unless it says otherwise.

    Raises:
        RetroMAEError: it is to evaluate without a dev set, or to choose by something that is not measured.
    """
    if args.eval_dataset is None:
        if training_args.eval_strategy != IntervalStrategy.NO:
            raise RetroMAEError(
                "eval_strategy needs something to evaluate on; give --eval_dataset too, 0.05 for a share of the rows"
            )
        return
    if training_args.eval_strategy == IntervalStrategy.NO:
        training_args.eval_strategy, training_args.save_strategy = IntervalStrategy.STEPS, SaveStrategy.STEPS
        training_args.eval_steps = training_args.save_steps = training_args.eval_steps or 1 / EVALUATIONS
        training_args.save_total_limit = training_args.save_total_limit or 1  # the best and the last one
        training_args.load_best_model_at_end = training_args.eval_on_start = True
    if training_args.metric_for_best_model in (None, "loss"):  # of a dev set there is none
        training_args.metric_for_best_model, training_args.greater_is_better = BEST, True
    check_choice("metric_for_best_model", training_args.metric_for_best_model.removeprefix("eval_"), DEFAULT_MEASURES)


def load_dev_set(args: FinetuneArguments) -> RetrievalTask | None:
    """What `eval_dataset` names; None where that is nothing, or a share of rows that are not there yet.

    Raises:
        RetroMAEError: it cannot be read.
    """
    if args.eval_dataset is None or args.eval_share is not None:
        return None
    folder = Path(args.eval_dataset).expanduser()
    if (folder / "corpus.jsonl").is_file():
        return _watched(load_beir(folder, args.eval_split or "dev"))
    split = args.eval_split or args.dataset_split
    pairs = load_training_data(args.eval_dataset, args.dataset_config_name, split, columns=args.columns())
    pairs = whole_rows(cast(Dataset, pairs), args.eval_dataset)
    return _watched(task_of_rows(pairs, pairs["query"][:]))


def _watched(task: RetrievalTask) -> RetrievalTask:
    """The task, or a sample of it; how large it is is said."""
    task = sampled(task, MAX_DOCUMENTS)
    logger.info(
        "nDCG@10 is watched on %s queries among %s documents", f"{len(task.queries):,}", f"{len(task.documents):,}"
    )
    return task


def hold_out_queries(rows: Dataset, share: float) -> tuple[RetrievalTask, Dataset]:
    """A share of the queries, with all their rows, as a task among the positives of all rows; and the other rows.

    The choice follows from the texts of the queries alone.

    Raises:
        RetroMAEError: nothing would be left on one side.
    """
    queries = dict.fromkeys(rows["query"][:])
    count = round(share * len(queries))
    if not 0 < count < len(queries):
        raise RetroMAEError(f"a share of {share} of {len(queries)} queries leaves none on one side; take another one")
    chosen = set(in_random_order(queries)[:count])
    task = _watched(task_of_rows(rows, chosen))
    return task, rows.filter(lambda query: query not in chosen, input_columns="query")


def task_of_rows(rows: Dataset, queries: Any) -> RetrievalTask:
    """Some queries of rows of `query` and `positive`, to be searched for among the positives of all rows."""
    ids = {text: f"d{number}" for number, text in enumerate(in_random_order(rows["positive"][:]), 1)}
    wanted = {text: f"q{number}" for number, text in enumerate(dict.fromkeys(queries), 1)}
    qrels: dict[str, dict[str, int]] = {}
    for query, positive in zip(rows["query"][:], rows["positive"][:], strict=True):
        if query in wanted:
            qrels.setdefault(wanted[query], {})[ids[positive]] = 1
    texts = {name: text for text, name in wanted.items()}
    return RetrievalTask("dev", texts, {name: text for text, name in ids.items()}, qrels)


def dev_evaluator(task: RetrievalTask, batch_size: int) -> BaseEvaluator:
    """What gives sentence-transformers' trainer `eval_ndcg@10` and the other measures that `evaluate` gives."""
    from sentence_transformers.base.evaluation import BaseEvaluator

    class RetrievalEvaluator(BaseEvaluator):
        def __call__(self, model: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
            return evaluate_embedder(task, sentence_embedder(model, batch_size, progress=False))

    return RetrievalEvaluator()
