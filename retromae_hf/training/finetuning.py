"""Fine-tunes an embedder on sentence-transformers' trainer, watched on a dev set where there is one."""

from __future__ import annotations

import logging
from dataclasses import replace
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
from ..retrieval.tasks import RetrievalTask, find_file, load_beir, sampled
from .health import HealthCallback
from .training_rows import TrainingData, load_training_data, prepare_rows, read_training_data, whole_rows
from .training_run import begin_run, run_and_save

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from torch import nn

logger = logging.getLogger(__name__)

MAX_DOCUMENTS = 2000
"""Documents that are searched at most, as `pretrain` has them; more would take longer than the training."""

BEST = "ndcg@10"
EVALUATIONS = 10


def plan_evaluations(args: FinetuneArguments, training_args: TrainingArguments) -> None:
    """Let a run with a dev set evaluate and save in turns and keep the best checkpoint, unless it says otherwise."""
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


def read_data(args: FinetuneArguments, seed: int) -> tuple[TrainingData, RetrievalTask | None]:
    """What is trained on and what is watched, of which nothing is trained on, nor a negative of others."""
    task = None if args.eval_dataset is None or args.eval_share is not None else load_dev_set(args)
    data = read_training_data(args, seed)
    if args.eval_share is not None:
        judged, rest = hold_out_queries(data.rows, args.eval_share)
        task = RetrievalTask("dev", *judged)
        held_out = frozenset(data.rows["positive"][:]) - frozenset(rest["positive"][:])
        data = replace(data, rows=rest, held_out=held_out)
    if task is not None:
        task = sampled(task, MAX_DOCUMENTS)
        sizes = f"{len(task.queries):,}", f"{len(task.documents):,}"
        logger.info("nDCG@10 is watched on %s queries among %s documents", *sizes)
    return data, task


def load_dev_set(args: FinetuneArguments) -> RetrievalTask:
    """What `eval_dataset` names: a folder in BEIR's layout, or rows whose query and positive are called as in training.

    They need no negatives and no scores.
    """
    source, folder = str(args.eval_dataset), Path(str(args.eval_dataset)).expanduser()
    if find_file(folder, "corpus.jsonl"):
        return load_beir(folder, args.eval_split or "dev")
    dev = FinetuneArguments(
        args.model_name_or_path,
        source,
        args.dataset_config_name,
        dataset_split=args.eval_split or args.dataset_split,
        query_column=args.query_column,
        positive_column=args.positive_column,
    )
    rows = whole_rows(cast(Dataset, load_training_data(dev, num_negatives=0)), source)
    return RetrievalTask("dev", *judged_rows(rows, rows["query"][:]))


def finetune(
    args: FinetuneArguments, training_args: TrainingArguments, card_args: CardArguments | None = None
) -> SentenceTransformerTrainer:
    """Prepare the data, train, and save a sentence-transformers model and its card in the output folder.

    Bad input is refused before anything is trained.
    """
    if training_args.prompts is not None:
        raise RetroMAEError("prompts are named query_prompt and passage_prompt here; give those")
    plan_evaluations(args, training_args)
    watches, start = args.eval_dataset is not None, args.model_name_or_path
    run = begin_run(training_args, args.overwrite_output_dir, watches, [start], args)
    set_seed(training_args.seed)
    model = starting_encoder(args)
    with training_args.main_process_first(local=False, desc="preparing the data"):
        data, task = read_data(args, training_args.seed)
        rows = prepare_rows(args, training_args, model, data, resumes=run.checkpoint is not None)
        run.take_data(rows)
    trainer = finetuning_trainer(args, training_args, model, rows, task)
    longest = min(max(args.query_length, args.passage_length), model.max_seq_length or args.passage_length)
    stage = describe_finetuning(args, rows, int(longest))
    with describing(trainer, stage, start, card_args):
        run_and_save(trainer, run)
    return trainer


def describe_finetuning(args: FinetuneArguments, rows: Dataset, max_length: int) -> dict[str, Any]:
    """What a model's record says of the stage, in which the model reads `max_length` tokens."""
    mined = args.hard_negatives
    names = ("objective", "pairs", "similarity", "matryoshka_dims", "temperature", "query_prompt", "passage_prompt",
             "attn_implementation")  # fmt: skip
    objective = {name: getattr(args, name) for name in names} | {
        "hard_negatives": mined if mined in (None, *MINERS) else "a file",
        "num_negatives": None if mined is None else args.num_negatives,
        "query_length": min(args.query_length, max_length),
        "passage_length": min(args.passage_length, max_length),
    }
    data = (args.dataset, args.dataset_config_name, args.dataset_split)
    return {
        "stage": "finetuning",
        "start": describe_start(args.model_name_or_path),
        "data": describe_source(*data, rows=len(rows), max_length=max_length),
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
    """sentence-transformers' trainer on rows of `prepare_rows`, watched on a task where there is one."""
    from sentence_transformers import SentenceTransformerTrainer
    from sentence_transformers.base.evaluation import BaseEvaluator
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
    loss = make_loss(args, training_args, model)

    class RetrievalEvaluator(BaseEvaluator):
        def __call__(self, model: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
            assert task is not None
            embedder = sentence_embedder(model, training_args.per_device_eval_batch_size, progress=False)
            return evaluate_embedder(cast(RetrievalTask, task), embedder)

    with in_one_sentence("the training arguments cannot be used"):
        evaluator = None if task is None else RetrievalEvaluator()
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


def make_loss(args: FinetuneArguments, training_args: TrainingArguments, model: SentenceTransformer) -> nn.Module:
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        DistillKLDivLoss,
        MarginMSELoss,
        MatryoshkaLoss,
        MultipleNegativesRankingLoss,
    )
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from sentence_transformers.util import cos_sim, dot_score, pairwise_cos_sim, pairwise_dot_score

    loss: nn.Module
    cosine = args.similarity == "cosine"
    pairwise = pairwise_cos_sim if cosine else pairwise_dot_score
    if args.objective == "kl":
        # The loss's own temperature would divide the teacher's scores too.
        loss = DistillKLDivLoss(model, similarity_fct=lambda a, b: pairwise(a, b) / args.temperature)
    elif args.objective == "margin_mse":
        loss = MarginMSELoss(model, similarity_fct=pairwise)
    else:
        options: dict[str, Any] = {
            "scale": 1 / args.temperature,
            "similarity_fct": cos_sim if cosine else dot_score,
            "gather_across_devices": training_args.world_size > 1,
        }
        fits = training_args.per_device_train_batch_size <= args.mini_batch_size
        if fits or any(isinstance(part, StaticEmbedding) for part in model.modules()):  # its batches cannot be cut
            loss = MultipleNegativesRankingLoss(model, **options)
        else:
            loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=args.mini_batch_size, **options)
    if args.matryoshka_dims is None:
        return loss
    size = model.get_embedding_dimension()
    if size is not None and max(args.matryoshka_dims) > size:
        raise RetroMAEError(f"matryoshka_dims={args.matryoshka_dims} are more than the {size} numbers of an embedding")
    return MatryoshkaLoss(model, loss, args.matryoshka_dims)
