"""Retrieval-oriented pretraining (RetroMAE, arXiv 2205.12035) for the Hugging Face stack."""

from .auto_classes import register_auto_classes
from .callbacks import RetrievalCallback, RetroMAECallback
from .configuration_retromae import RetroMAEConfig
from .corpus import load_documents
from .data_collator import DataCollatorForRetroMAE
from .errors import RetroMAEError
from .explanation import EmbeddingExplanation, explain_embedding
from .export import export_encoder, export_sparse_encoder
from .modeling_retromae import RetroMAEForPreTraining, RetroMAEModel, RetroMAEPreTrainingOutput
from .passages import tokenize_passages
from .positions import extend_positions
from .reference import load_reference_checkpoint
from .words import chinese_segmenter

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
