"""What a comparison sets beside our pretraining: TSDAE (arXiv 2104.06979), SimCSE (arXiv 2104.08821), and averages."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, TrainingArguments, set_seed
from transformers.utils import SAFE_WEIGHTS_NAME

from ..arguments.pretraining import Cutting, TextSource
from ..checkpoints.loading import load_config, load_tokenizer
from ..data.held_out import load_held_out
from ..data.passages import PassageCutter, cut_documents
from ..model.families import backbone_for

if TYPE_CHECKING:
    from torch import nn

BASELINES = ("tsdae", "simcse", "none", "longer", "average")
"""What stands in a comparison beside our pretraining: the objectives of sentence-transformers; no pretraining; none but
a longer fine-tuning, for as many seconds as the slowest objective takes in all; the mean of the weights of what is
started from and of what all start from."""
SHARED = ("max_steps", "per_device_train_batch_size", "learning_rate", "warmup_steps", "bf16", "use_cpu",
          "logging_steps", "seed", "report_to", "disable_tqdm")  # fmt: skip
"""Arguments of a run that a baseline has in common with our pretraining."""
DELETED = 0.6
"""Share of the words that TSDAE deletes, its paper's choice."""
DROPOUT = 0.1
"""SimCSE's two views of a text differ in nothing but dropout."""


def train_baseline(
    kind: str, text: TextSource, cutting: Cutting, training_args: TrainingArguments, encoder: Path, output: Path
) -> dict[str, Any]:
    """Train an exported encoder with an objective of sentence-transformers, on the passages that `pretrain` makes.

    `tokens` in what it returns are those that were trained on, padding excluded; `logs` are Trainer's.
    """
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import DenoisingAutoEncoderLoss, MultipleNegativesRankingLoss

    set_seed(training_args.seed)
    tokenizer = load_tokenizer(str(encoder))
    documents = load_held_out(text, training_args.seed).pretraining
    passages = cut_documents(documents, PassageCutter(Cutting(cutting.max_length), tokenizer))
    texts = tokenizer.batch_decode(passages["input_ids"][:], skip_special_tokens=True)
    own_config = load_config(str(encoder))
    names = backbone_for(own_config).config_names
    dropout = {names.get(name, name): DROPOUT for name in ("hidden_dropout", "attention_dropout")}
    model = SentenceTransformer(
        str(encoder), model_kwargs={"use_safetensors": True}, config_kwargs=dropout if kind == "simcse" else {}
    )
    loss: nn.Module
    if kind == "tsdae":
        rows = Dataset.from_dict({"damaged": delete_words(texts, training_args.seed), "text": texts})
        loss = DenoisingAutoEncoderLoss(model, str(encoder), tie_encoder_decoder=True)
    else:
        rows = Dataset.from_dict({"text": texts, "again": texts})
        loss = MultipleNegativesRankingLoss(model)
    args = SentenceTransformerTrainingArguments(
        output_dir=str(output), save_strategy="no", **{name: getattr(training_args, name) for name in SHARED}
    )
    model.model_card_data.generate_widget_examples = False  # it would tokenise the whole dataset
    trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=rows, loss=loss)
    trainer.train()
    if kind == "simcse":
        # The dropout was part of the objective; what follows is trained as everything else is.
        trained = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
        trained.config.update({name: getattr(own_config, name) for name in dropout})
    model.save_pretrained(str(output))
    mean_length = sum(passages["length"][:]) / len(passages)
    return {
        "tokens": round(trainer.state.global_step * training_args.train_batch_size * mean_length),
        "seconds": trainer.state.log_history[-1]["train_runtime"],
        "logs": trainer.state.log_history,
    }


def average(encoder: Path, other: Path, output: Path) -> None:
    """Write the mean of two exported encoders' weights (arXiv 2109.01903), as a copy of the first."""
    shutil.copytree(encoder, output)
    weights, others = (load_file(folder / SAFE_WEIGHTS_NAME) for folder in (encoder, other))
    mean = {name: torch.lerp(weight, others.get(name, weight), 0.5) for name, weight in weights.items()}
    save_file(mean, output / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})


def delete_words(texts: list[str], seed: int) -> list[str]:
    """The texts without a random share of their words, one word at least left to each."""
    draw = random.Random(seed)
    damaged = []
    for text in texts:
        words = text.split()
        kept = [word for word in words if draw.random() >= DELETED]
        damaged.append(" ".join(kept or [draw.choice(words)] if words else []))
    return damaged
