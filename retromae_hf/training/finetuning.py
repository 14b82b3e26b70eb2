"""What fine-tuning is watched on: its queries and documents, and when the run evaluates and stops."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from datasets import Dataset
from transformers import EarlyStoppingCallback, TrainingArguments, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..arguments.finetuning import MINERS, FinetuneArguments
from ..arguments.pretraining import CardArguments
from ..checkpoints.loading import load_sentence_transformer
from ..data.held_out import hold_out_queries, judged_rows
from ..model.encoders import use_attention
from ..model.errors import RetroMAEError, check_choice, in_one_sentence
from ..publishing.card_writer import describing
from ..publishing.record import describe_source, describe_start
from ..retrieval.embedders import sentence_embedder
from ..retrieval.evaluation import evaluate_embedder
from ..retrieval.measures import DEFAULT_MEASURES
from ..retrieval.tasks import RetrievalTask, load_beir, sampled
from .health import HealthCallback
from .resuming.training_run import begin_run, run_and_save
from .rows.training_rows import load_training_data, prepare_rows, whole_rows

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.base.evaluation import BaseEvaluator
    from torch import nn

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
    return _watched(RetrievalTask("dev", *judged_rows(pairs, pairs["query"][:])))


def _watched(task: RetrievalTask) -> RetrievalTask:
    """The task, or a sample of it; how large it is is said."""
    task = sampled(task, MAX_DOCUMENTS)
    logger.info(
        "nDCG@10 is watched on %s queries among %s documents", f"{len(task.queries):,}", f"{len(task.documents):,}"
    )
    return task


def dev_evaluator(task: RetrievalTask, batch_size: int) -> BaseEvaluator:
    """What gives sentence-transformers' trainer `eval_ndcg@10` and the other measures that `evaluate` gives."""
    from sentence_transformers.base.evaluation import BaseEvaluator

    class RetrievalEvaluator(BaseEvaluator):
        def __call__(self, model: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
            return evaluate_embedder(task, sentence_embedder(model, batch_size, progress=False))

    return RetrievalEvaluator()


def finetune(
    args: FinetuneArguments, training_args: TrainingArguments, card_args: CardArguments | None = None
) -> SentenceTransformerTrainer:
    """Prepare the data, train, and save a sentence-transformers model and its card in the output folder.

    Args:
        args: what to do.
        training_args: `SentenceTransformerTrainingArguments`.
        card_args: what the user says of the model.

    Raises:
        RetroMAEError: bad input, found before anything is trained.
    """
    if training_args.prompts is not None:
        raise RetroMAEError("prompts are named query_prompt and passage_prompt here; give those")
    plan_evaluations(args, training_args)
    watches = args.eval_dataset is not None
    run = begin_run(training_args, args.overwrite_output_dir, watches, [args.model_name_or_path], args)
    set_seed(training_args.seed)
    model = starting_encoder(args)
    with training_args.main_process_first(local=False, desc="preparing the data"):
        task = load_dev_set(args)
        rows = prepare_rows(args, model, training_args, resumes=run.checkpoint is not None)
        if args.eval_share is not None:
            judged, rows = hold_out_queries(rows, args.eval_share)
            task = _watched(RetrievalTask("dev", *judged))
        run.take_data(rows)
    trainer = finetuning_trainer(args, training_args, model, rows, task)
    longest = min(max(args.query_length, args.passage_length), model.max_seq_length or args.passage_length)
    stage = describe_finetuning(args, rows, int(longest))
    with describing(trainer, stage, args.model_name_or_path, card_args):
        run_and_save(trainer, run)
    return trainer


def describe_finetuning(args: FinetuneArguments, rows: Dataset, max_length: int) -> dict[str, Any]:
    """What is known of a fine-tuning stage, in which the model reads `max_length` tokens."""
    mined = args.hard_negatives
    objective = {
        "objective": args.objective,
        "pairs": args.pairs,
        "similarity": args.similarity,
        "matryoshka_dims": args.matryoshka_dims,
        "temperature": args.temperature,
        "hard_negatives": mined if mined in (None, *MINERS) else "a file",
        "num_negatives": None if mined is None else args.num_negatives,
        "query_length": min(args.query_length, max_length),
        "passage_length": min(args.passage_length, max_length),
        "query_prompt": args.query_prompt,
        "passage_prompt": args.passage_prompt,
        "attn_implementation": args.attn_implementation,
    }
    return {
        "stage": "finetuning",
        "start": describe_start(args.model_name_or_path),
        "data": describe_source(
            args.dataset, args.dataset_config_name, args.dataset_split, rows=len(rows), max_length=max_length
        ),
        "objective": objective,
    }


def starting_encoder(args: FinetuneArguments) -> SentenceTransformer:
    """The model to train, which compares, reads and prompts texts as the arguments say."""
    from sentence_transformers.base.modules import Transformer

    model = load_sentence_transformer(args.model_name_or_path, args.trust_remote_code)
    use_attention(model, args.attn_implementation)
    model.similarity_fn_name = args.similarity  # type: ignore[assignment]
    longest = max(args.query_length, args.passage_length)
    for part in model.modules():
        if isinstance(part, Transformer):  # of which a router may have two, and a static model none
            part.max_seq_length = min(longest, part.max_seq_length or args.passage_length)
    prompts = {"query": args.query_prompt, "document": args.passage_prompt}
    model.prompts |= {name: prompt for name, prompt in prompts.items() if prompt is not None}
    return model


def finetuning_trainer(
    args: FinetuneArguments,
    training_args: TrainingArguments,
    model: SentenceTransformer,
    rows: Dataset,
    task: RetrievalTask | None = None,
) -> SentenceTransformerTrainer:
    """sentence-transformers' trainer on rows of `prepare_rows`, watched on a task where there is one.

    Raises:
        RetroMAEError: the rows fill no batch, or an argument cannot be used.
    """
    from sentence_transformers import SentenceTransformerTrainer
    from sentence_transformers.base.modules import Router
    from sentence_transformers.training_args import BatchSamplers

    if args.objective == "contrastive" and training_args.batch_sampler == BatchSamplers.BATCH_SAMPLER:
        # A text that stands in a batch twice would be its own negative.
        training_args.batch_sampler = BatchSamplers.NO_DUPLICATES
    passages = [name for name in rows.column_names if name not in ("query", "label")]
    training_args.prompts = {
        **({"query": args.query_prompt} if args.query_prompt else {}),
        **(dict.fromkeys(passages, args.passage_prompt) if args.passage_prompt else {}),
    } or None
    with_negatives = f" with {len(passages) - 1} negatives each" * (len(passages) > 1)
    logger.info("fine-tuning on %s rows%s", f"{len(rows):,}", with_negatives)
    if any(isinstance(part, Router) for part in model):
        training_args.router_mapping = {"query": "query", **dict.fromkeys(passages, "document")}
    batch = training_args.per_device_train_batch_size * training_args.world_size
    if training_args.dataloader_drop_last and len(rows) < batch:
        raise RetroMAEError(f"{len(rows)} rows fill no batch of {batch}; lower per_device_train_batch_size")
    model.model_card_data.generate_widget_examples = False  # it would tokenise the whole dataset
    at_once = training_args.per_device_train_batch_size <= args.mini_batch_size
    loss = loss_of(args, model, training_args.world_size > 1, at_once)
    with in_one_sentence("the training arguments cannot be used"):
        evaluator = None if task is None else dev_evaluator(task, training_args.per_device_eval_batch_size)
        trainer = SentenceTransformerTrainer(
            model=model, args=training_args, train_dataset=rows, loss=loss, evaluator=evaluator
        )
    trainer.add_callback(HealthCallback(loss=loss))
    if args.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
    # The trainer would read a pickle there, as a whole where the checkpoint's own files ask for it.
    trainer._load_from_checkpoint = lambda folder: model.load_state_dict(  # type: ignore[assignment, method-assign]
        load_sentence_transformer(folder, args.trust_remote_code).state_dict()
    )
    return trainer


def loss_of(args: FinetuneArguments, model: SentenceTransformer, several_processes: bool, at_once: bool) -> nn.Module:
    """sentence-transformers' loss of the arguments; `at_once` where a batch need not be cut, which takes less time."""
    loss = _loss_of_objective(args, model, several_processes, at_once)
    if args.matryoshka_dims is None:
        return loss
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

    size = model.get_embedding_dimension()
    if size is not None and max(args.matryoshka_dims) > size:
        raise RetroMAEError(f"matryoshka_dims={args.matryoshka_dims} are more than the {size} numbers of an embedding")
    return MatryoshkaLoss(model, loss, args.matryoshka_dims)


def _loss_of_objective(
    args: FinetuneArguments, model: SentenceTransformer, several_processes: bool, at_once: bool
) -> nn.Module:
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        DistillKLDivLoss,
        MarginMSELoss,
        MultipleNegativesRankingLoss,
    )
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from sentence_transformers.util import cos_sim, dot_score, pairwise_cos_sim, pairwise_dot_score

    if args.objective == "contrastive":
        options: dict[str, Any] = {
            "scale": 1 / args.temperature,
            "similarity_fct": cos_sim if args.similarity == "cosine" else dot_score,
            "gather_across_devices": several_processes,
        }
        if at_once or any(isinstance(part, StaticEmbedding) for part in model.modules()):  # its batches cannot be cut
            return MultipleNegativesRankingLoss(model, **options)
        return CachedMultipleNegativesRankingLoss(model, mini_batch_size=args.mini_batch_size, **options)
    pairwise = pairwise_cos_sim if args.similarity == "cosine" else pairwise_dot_score
    if args.objective == "kl":
        # The loss's own temperature would divide the teacher's scores too.
        return DistillKLDivLoss(model, similarity_fct=lambda a, b: pairwise(a, b) / args.temperature)
    return MarginMSELoss(model, similarity_fct=pairwise)
