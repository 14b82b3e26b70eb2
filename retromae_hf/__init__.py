"""Retrieval-oriented pretraining (RetroMAE, arXiv 2205.12035) for the Hugging Face stack."""

from .checkpoints.auto_classes import register_auto_classes
from .checkpoints.positions import extend_positions
from .checkpoints.reference import load_reference_checkpoint
from .data.collator import DataCollatorForRetroMAE
from .data.passages import tokenize_passages
from .data.sources import load_documents
from .data.words import chinese_segmenter
from .explanation import EmbeddingExplanation, explain_embedding
from .model.configuration_retromae import RetroMAEConfig
from .model.errors import RetroMAEError
from .model.modeling_retromae import RetroMAEForPreTraining, RetroMAEModel, RetroMAEPreTrainingOutput
from .publishing.export import export_encoder, export_sparse_encoder
from .training.callbacks import RetrievalCallback, RetroMAECallback

__version__ = "0.1.0"

register_auto_classes()

__all__ = [
    "DataCollatorForRetroMAE",
    "EmbeddingExplanation",
    "RetrievalCallback",
    "RetroMAECallback",
    "RetroMAEConfig",
    "RetroMAEError",
    "RetroMAEForPreTraining",
    "RetroMAEModel",
    "RetroMAEPreTrainingOutput",
    "chinese_segmenter",
    "explain_embedding",
    "export_encoder",
    "export_sparse_encoder",
    "extend_positions",
    "load_documents",
    "load_reference_checkpoint",
    "tokenize_passages",
]
