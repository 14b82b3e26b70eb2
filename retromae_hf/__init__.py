"""Retrieval-oriented pretraining (RetroMAE, arXiv 2205.12035) for the Hugging Face stack."""

from .callbacks import RetrievalCallback, RetroMAECallback
from .configuration_retromae import RetroMAEConfig
from .corpus import load_documents, tokenize_passages
from .data_collator import DataCollatorForRetroMAE
from .errors import RetroMAEError
from .export import export_encoder
from .modeling_retromae import RetroMAEForPreTraining, RetroMAEModel, RetroMAEPreTrainingOutput
from .reference import load_reference_checkpoint

__version__ = "0.1.0"

__all__ = [
    "DataCollatorForRetroMAE",
    "RetrievalCallback",
    "RetroMAECallback",
    "RetroMAEConfig",
    "RetroMAEError",
    "RetroMAEForPreTraining",
    "RetroMAEModel",
    "RetroMAEPreTrainingOutput",
    "export_encoder",
    "load_documents",
    "load_reference_checkpoint",
    "tokenize_passages",
]
