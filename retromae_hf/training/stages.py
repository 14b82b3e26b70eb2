"""What a model's record says of a stage before it is trained, taken from the stage's arguments."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel

from ..arguments.finetuning import MINERS, FinetuneArguments
from ..arguments.pretraining import DataArguments, ModelArguments
from ..publishing.record import describe_source, describe_sources, describe_start


def describe_pretraining(
    args: DataArguments, model_args: ModelArguments, model: PreTrainedModel, documents: Dataset, passages: Any
) -> dict[str, Any]:
    """What is known of a pretraining stage.

    Args:
        args: data and masks.
        model_args: where it starts.
        model: the model to train.
        documents: the documents.
        passages: the passages to train on. Those of a stream are not counted, nor are its documents, of which only
            those are at hand that it is evaluated on.
    """
    counts = {}
    if isinstance(passages, Dataset):
        tokens = int(passages["length"][:].sum())
        counts = {"documents": len(documents), "passages": len(passages), "tokens": tokens}
    names = ["decoding", "pooling", "mlm_loss_weight", "pair_objective"]
    if model.config.decoding != "none":
        names += ["num_decoder_layers", "decoder_mask_ratio", "decoder_query"]
    if model.config.bow_loss_weight:
        names += ["bow_loss_weight", "final_bow_loss_weight", "bow_source"]
    if model.config.pair_objective == "contrast":
        names += ["contrast_loss_weight", "contrast_temperature"]
    objective = {name: getattr(model.config, name) for name in names}
    masks = {name: value for name, value in args.collator_options().items() if name != "pad_to_multiple_of"}
    return {
        "stage": "pretraining",
        "start": describe_start(model_args.model_name_or_path),
        "data": describe_sources(
            args.dataset,
            args.dataset_weights,
            args.dataset_config_name,
            args.dataset_split,
            **counts,
            max_length=args.max_length,
        ),
        "objective": objective | masks | {"attn_implementation": model_args.attn_implementation},
    }


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
