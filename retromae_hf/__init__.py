"""Retrieval-oriented pretraining (RetroMAE, arXiv 2205.12035) for the Hugging Face stack."""

from importlib import import_module
from typing import Any

from .checkpoints.auto_classes import register_with_transformers

__version__ = "0.1.0"

HOMES = {
    "Backbone": "model.families",
    "DataCollatorForRetroMAE": "data.collator",
    "EmbeddingExplanation": "explanation",
    "RetrievalCallback": "training.callbacks",
    "RetroMAECallback": "training.callbacks",
    "RetroMAEConfig": "model.configuration_retromae",
    "RetroMAEError": "model.errors",
    "RetroMAEForPreTraining": "model.modeling_retromae",
    "RetroMAEModel": "model.modeling_retromae",
    "RetroMAEPreTrainingOutput": "model.modeling_retromae",
    "chinese_segmenter": "data.words",
    "explain_embedding": "explanation",
    "export_encoder": "publishing.export",
    "export_sparse_encoder": "publishing.export",
    "extend_positions": "checkpoints.starting_model",
    "load_documents": "data.documents",
    "load_reference_checkpoint": "checkpoints.foreign",
    "predict_words": "explanation",
    "register_backbone": "model.families",
    "tokenize_passages": "data.passages",
}
"""What is importable from the package, and the file that each name lives in, which is imported when it is asked for."""

__all__ = list(HOMES)

register_with_transformers()


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{HOMES[name]}", __name__), name)
