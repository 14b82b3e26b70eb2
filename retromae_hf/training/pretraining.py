"""Pretraining from a text source to a checkpoint, with the plain `Trainer`."""

from __future__ import annotations

import logging
import shlex
from functools import partial

from transformers import Trainer, TrainingArguments, set_seed

from ..checkpoints.arguments import ModelArguments
from ..checkpoints.hub import loading
from ..checkpoints.starting_model import load_model_and_tokenizer
from ..data.collator import check_label_ratio
from ..data.fingerprints import fingerprint_of_files
from ..model.errors import RetroMAEError
from ..publishing.arguments import CardArguments
from ..publishing.card_writer import describing
from ..publishing.record import is_tuned_retriever
from .arguments import TUNED_LEARNING_RATE, DataArguments
from .head_warmup import plan_head_warmup
from .pretraining_data import make_passages, read_text
from .resuming.training_run import begin_run, check_trainable, run_and_save
from .stages import describe_pretraining
from .trainer import AccumulatingTrainer, check_gradient_checkpointing, check_metric, pretraining_trainer

logger = logging.getLogger(__name__)


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
    with loading(f"{start} holds no model that can be loaded"):
        tuned = is_tuned_retriever(start)
    if tuned:
        logger.warning(
            "%s was tuned for retrieval already; fine-tuning it on pairs as it is usually gives more: "
            "retromae-hf finetune --model_name_or_path %s",
            start,
            shlex.quote(start),
        )
    return tuned
