"""Pretraining from a text source to a checkpoint, with the plain `Trainer`."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import (
    BertConfig,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from .backbones import backbone_for
from .callbacks import RetrievalCallback, RetroMAECallback
from .checkpoints import load_checkpoint, load_config, load_tokenizer
from .configuration_retromae import RetroMAEConfig, check_ratio
from .corpus import load_documents, tokenize_passages
from .data_collator import DataCollatorForRetroMAE
from .errors import RetroMAEError, check_at_least, in_one_sentence
from .evaluation import RetrievalTask, dev_task
from .modeling_retromae import RetroMAEForPreTraining
from .pydocs import DEV_QUERIES, SEARCHED_BODIES, hold_out, load_held_out_pydocs
from .vocabulary import train_wordpiece

logger = logging.getLogger(__name__)

DEFAULT_TRAINING_ARGUMENTS: dict[str, Any] = {
    "learning_rate": 1e-4,
    "warmup_steps": 0.1,  # below 1 it is a share of the steps
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 32,
    "train_sampling_strategy": "group_by_length",
    "logging_steps": 50,
    "eval_strategy": "steps",
    "eval_steps": 500,
    "ddp_find_unused_parameters": False,  # every parameter takes part in every step
}
"""What `retromae-hf pretrain` sets otherwise than `TrainingArguments`; flags and recipes go before it."""

MODEL_OPTIONS = ("decoding", "num_decoder_layers", "decoder_mask_ratio", "bow_loss_weight", "decoder_query")
"""Arguments of `retromae-hf pretrain` that are fields of `RetroMAEConfig`."""

EVAL_PASSAGES = 256
"""Passages kept from training for the evaluation loss and the embedding gap."""


@dataclass
class PretrainArguments:
    """What to pretrain, and on which text."""

    dataset: str = field(
        metadata={"help": "'pydocs', a .txt/.jsonl/.json/.csv/.parquet file, a folder of them, or a Hub dataset."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a Hub dataset."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Masked-LM checkpoint to start from, or a RetroMAE checkpoint to go on with."},
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer; by default the model's, or a new WordPiece one on the corpus."}
    )
    vocab_size: int = field(default=8192, metadata={"help": "From scratch: entries of a new tokenizer at most."})
    hidden_size: int = field(default=256, metadata={"help": "From scratch: hidden size of the BERT encoder."})
    num_hidden_layers: int = field(default=4, metadata={"help": "From scratch: its layers."})
    num_attention_heads: int = field(default=4, metadata={"help": "From scratch: its attention heads."})
    max_length: int = field(default=128, metadata={"help": "Tokens of a passage at most, special tokens included."})
    short_seq_prob: float = field(
        default=0.0, metadata={"help": "Probability that a passage aims at a random shorter length."}
    )
    encoder_mask_ratio: float = field(default=0.3, metadata={"help": "Share of the tokens masked for the encoder."})
    decoder_mask_ratio: float | None = field(
        default=None,
        metadata={"help": "Share of tokens hidden from the decoder; default: the checkpoint's or 0.5."},
    )
    decoding: str | None = field(
        default=None, metadata={"help": "enhanced, basic or none (MLM alone); default: the checkpoint's or enhanced."}
    )
    num_decoder_layers: int | None = field(
        default=None, metadata={"help": "Layers of the decoder; default: the checkpoint's or 1, as in the paper."}
    )
    bow_loss_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of DupMAE's bag-of-words loss, 0.1 there; default: the checkpoint's or 0."},
    )
    decoder_query: str | None = field(
        default=None,
        metadata={"help": "sum (RetroMAE) or embedded (DupMAE); default: the checkpoint's or sum."},
    )
    dev_queries: int = field(
        default=DEV_QUERIES,
        metadata={"help": "First sentences held out to watch retrieval while training; 0 for none."},
    )
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes to prepare data with."})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Start anew in a folder that holds a run; its checkpoints are deleted."},
    )

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "preprocessing_num_workers")
        check_at_least(1, **{name: getattr(self, name) for name in sizes})
        check_at_least(0, dev_queries=self.dev_queries)
        check_ratio("encoder_mask_ratio", self.encoder_mask_ratio)
        RetroMAEConfig(**self.model_options())  # for its checks, before any text is read

    def model_options(self) -> dict[str, Any]:
        """The fields of `RetroMAEConfig` that were given."""
        return {name: value for name in MODEL_OPTIONS if (value := getattr(self, name)) is not None}


def pretrain(args: PretrainArguments, training_args: TrainingArguments) -> Trainer:
    """Prepare the data, train, and save the checkpoint, the tokenizer and `trainer_state.json` in the output folder.

    Raises:
        RetroMAEError: bad input, found before anything is trained.
    """
    check_training_arguments(training_args)
    checkpoint = prepare_output_dir(args, training_args)
    set_seed(training_args.seed)
    with training_args.main_process_first(desc="preparing the data"):
        documents, task = load_text(args)
        model, tokenizer = load_model_and_tokenizer(args, documents, checkpoint)
        passages = tokenize_passages(
            documents,
            tokenizer,
            args.max_length,
            args.short_seq_prob,
            training_args.seed,
            args.preprocessing_num_workers,
        )
    # Trainer looks for every label that `forward` names, among them those of objectives that are not in use.
    training_args.label_names = ["labels"]
    train_passages, eval_passages = split_passages(passages)
    logger.info(
        "%d passages, %d tokens; the model has %.1f million parameters",
        len(train_passages),
        train_passages.with_format("numpy")["length"][:].sum(),
        model.num_parameters() / 1e6,
    )
    with in_one_sentence("the training arguments cannot be used"):
        trainer = Trainer(
            model=model,
            args=training_args,
            train_dataset=train_passages,
            eval_dataset=eval_passages,
            data_collator=DataCollatorForRetroMAE.from_config(
                tokenizer, model.config, encoder_mask_ratio=args.encoder_mask_ratio, seed=training_args.seed
            ),
            processing_class=tokenizer,
        )
    # Before the reporters (TensorBoard and the like), so that they see the parts of the loss.
    trainer.callback_handler.callbacks.insert(0, RetroMAECallback())
    trainer.add_callback(RetrievalCallback(trainer, task, args.max_length))
    if checkpoint is None and trainer.is_world_process_zero():
        # Of an earlier run; not before everything has been checked that may be wrong with this one.
        for old in Path(training_args.output_dir).glob("checkpoint-*"):
            shutil.rmtree(old)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    return trainer


def check_training_arguments(args: TrainingArguments) -> None:
    """Raise `RetroMAEError` for values that `TrainingArguments` lets pass and that fail only after the preparation."""
    positive = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
    check_at_least(1, **{name: getattr(args, name) for name in positive})
    check_at_least(0, **{name: getattr(args, name) for name in ("learning_rate", "seed", "dataloader_num_workers")})
    if args.max_steps == 0 or args.max_steps < -1 or (args.max_steps == -1 and args.num_train_epochs <= 0):
        raise RetroMAEError(
            f"max_steps={args.max_steps} and num_train_epochs={args.num_train_epochs} leave nothing to train; "
            "one of them must be above 0"
        )
    if args.label_smoothing_factor:
        raise RetroMAEError("label_smoothing_factor needs logits, which this model never holds; leave it at 0")


def prepare_output_dir(args: PretrainArguments, training_args: TrainingArguments) -> str | None:
    """The checkpoint to resume from, or None to start; an output folder that holds a run is refused otherwise."""
    folder = Path(training_args.output_dir)
    resume = training_args.resume_from_checkpoint
    if resume is not None and str(resume).lower() != "false":
        last = str(resume).lower() == "true"
        checkpoint = get_last_checkpoint(folder) if last and folder.is_dir() else str(resume)
        if checkpoint is None or not (Path(checkpoint) / "trainer_state.json").is_file():
            raise RetroMAEError(f"there is no checkpoint to resume from in {folder if last else resume}")
        return checkpoint
    if folder.exists() and not folder.is_dir():
        raise RetroMAEError(f"output_dir={folder} is a file; name a folder")
    runs = [*folder.glob("checkpoint-*"), *folder.glob("config.json"), *folder.glob("*.safetensors")]
    if runs and not args.overwrite_output_dir:
        raise RetroMAEError(
            f"{folder} already holds a run; go on with --resume_from_checkpoint true, "
            "start anew with --overwrite_output_dir, or name another folder"
        )
    with in_one_sentence(f"output_dir={training_args.output_dir!r} cannot be written"):
        os.makedirs(training_args.output_dir, exist_ok=True)
    if args.model_name_or_path is not None and folder.resolve() in Path(args.model_name_or_path).resolve().parents:
        raise RetroMAEError(
            f"the model to start from, {args.model_name_or_path}, lies in {folder}, which is to be overwritten; "
            "name another output folder"
        )
    return None


def load_text(args: PretrainArguments) -> tuple[Dataset, RetrievalTask | None]:
    """The documents to train on, without the held-out queries, and the task to watch, where the text yields one.

    Of "pydocs" the reported test's queries are always held out.
    """
    if args.dataset == "pydocs":
        held_out = load_held_out_pydocs(args.preprocessing_num_workers)
        queries = min(args.dev_queries, DEV_QUERIES)
    else:
        documents = load_documents(
            args.dataset,
            args.dataset_config_name,
            args.dataset_split,
            args.text_column,
            args.preprocessing_num_workers,
        )
        documents = documents.select_columns("text").add_column("name", [str(row) for row in range(len(documents))])
        held_out = hold_out(documents, min(args.dev_queries, len(documents) // 10), SEARCHED_BODIES)
        queries = len(held_out.queries)
    if queries == 0:
        return held_out.pretraining, None
    return held_out.pretraining, dev_task(held_out, queries)


def load_model_and_tokenizer(
    args: PretrainArguments, documents: Dataset, checkpoint: str | None
) -> tuple[RetroMAEForPreTraining, PreTrainedTokenizerBase]:
    """The model to train: from the checkpoint to resume, from a given one, or from scratch."""
    source = checkpoint or args.model_name_or_path
    tokenizer_source = args.tokenizer_name or source
    if tokenizer_source is None:
        tokenizer = train_wordpiece(documents["text"], args.vocab_size, args.max_length)
    else:
        tokenizer = load_tokenizer(tokenizer_source)
    if tokenizer.mask_token_id is None:
        raise RetroMAEError(f"the tokenizer {tokenizer_source} has no mask token; use a masked language model's")
    model = _load_model(args, source, tokenizer)
    check_vocabulary(tokenizer, model.config)
    limit = model.backbone.max_positions(model.config.encoder_config)
    if args.max_length > limit:
        raise RetroMAEError(
            f"max_length={args.max_length} is over the encoder's {limit} positions; lower it to {limit} or less"
        )
    return model, tokenizer


def _load_model(
    args: PretrainArguments, source: str | None, tokenizer: PreTrainedTokenizerBase
) -> RetroMAEForPreTraining:
    if source is None:
        if args.hidden_size % args.num_attention_heads:
            raise RetroMAEError(
                f"hidden_size={args.hidden_size} is not a multiple of num_attention_heads={args.num_attention_heads}"
            )
        encoder_config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=args.hidden_size,
            num_hidden_layers=args.num_hidden_layers,
            num_attention_heads=args.num_attention_heads,
            intermediate_size=4 * args.hidden_size,
            max_position_embeddings=args.max_length,
            pad_token_id=tokenizer.pad_token_id,
            # As in ModernBERT: pretraining sees a text a few times at most, so there is nothing to regularise.
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        return RetroMAEForPreTraining(RetroMAEConfig(encoder_config=encoder_config, **args.model_options()))
    config = load_config(source)
    if not isinstance(config, RetroMAEConfig):
        backbone_for(config)
        with in_one_sentence(f"{source} holds no weights that can be loaded"):
            return RetroMAEForPreTraining.from_encoder(source, **args.model_options())
    model = load_checkpoint(RetroMAEForPreTraining, source)
    for name, value in args.model_options().items():
        trained = getattr(model.config, name)
        if name in ("decoding", "num_decoder_layers") and value != trained:
            raise RetroMAEError(f"{source} was trained with {name}={trained!r}; leave --{name} out to go on with it")
        setattr(model.config, name, value)
    model.config.check_values()
    return model


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: RetroMAEConfig) -> None:
    """Raise `RetroMAEError` where tokenizer and model do not share a vocabulary.

    A model may have a few rows more than its tokenizer has tokens: some are padded to round numbers.
    """
    tokens, rows = len(tokenizer), config.vocab_size
    if tokens > rows or tokens < 0.99 * rows:
        raise RetroMAEError(
            f"the tokenizer has {tokens} tokens and the model {rows}; use the tokenizer that belongs to the model"
        )


def split_passages(passages: Dataset) -> tuple[Dataset, Dataset]:
    """Passages to train on and to evaluate on: `EVAL_PASSAGES` spread evenly over the corpus, at most a tenth.

    What lies between those to evaluate on is put together again as slices: a list of indices would make every read
    slower, and `Trainer` reads all passages once to group them by length.
    """
    if len(passages) < 2:
        raise RetroMAEError("the corpus holds a single passage; give a source with more text")
    count = max(min(EVAL_PASSAGES, len(passages) // 10), 1)
    held_out = np.linspace(0, len(passages) - 1, count, dtype=int).tolist()
    between = zip([-1, *held_out], [*held_out, len(passages)], strict=True)
    slices = [passages.select(range(start + 1, stop)) for start, stop in between if stop - start > 1]
    return concatenate_datasets(slices), passages.select(held_out)
