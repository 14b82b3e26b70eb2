"""Retrieval-oriented pretraining (RetroMAE, arXiv 2205.12035) for the Hugging Face stack."""

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

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


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{HOMES[name]}", __name__), name)


AUTO_CLASSES = "transformers.models.auto.configuration_auto"
"""The first of the Auto classes' modules to be imported, whichever of them is asked for."""


def register_auto_classes() -> None:
    """Register the package's classes, to load checkpoints and to put their code beside the weights on saving.

    Not in the modelling files, because those travel with checkpoints: a copy that registered itself on import would
    take the checkpoints of every other copy in the process for its own. Where this package is not installed, the code
    lets `AutoModel.from_pretrained(..., trust_remote_code=True)` load a checkpoint.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

    from .model.configuration_retromae import RetroMAEConfig
    from .model.modeling_retromae import RetroMAEForPreTraining, RetroMAEModel

    AutoConfig.register(RetroMAEConfig.model_type, RetroMAEConfig, exist_ok=True)
    AutoModel.register(RetroMAEConfig, RetroMAEModel, exist_ok=True)
    AutoModelForPreTraining.register(RetroMAEConfig, RetroMAEForPreTraining, exist_ok=True)
    RetroMAEConfig.register_for_auto_class()
    RetroMAEModel.register_for_auto_class("AutoModel")
    RetroMAEForPreTraining.register_for_auto_class("AutoModelForPreTraining")


class _RegisterInTime(MetaPathFinder):
    """Registers as soon as the Auto classes are imported, so that `import retromae_hf` does not wait for torch.

    No file of either package may be half imported then: their files need each other.
    """

    def __init__(self) -> None:
        self.under_way = 0

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec of a file of the two packages, whose loader counts; None for others."""
        if fullname.partition(".")[0] not in (__name__, "transformers"):
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = partial(self._execute, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec

    def _execute(self, execute: Callable[[ModuleType], None], module: ModuleType) -> None:
        self.under_way += 1
        try:
            execute(module)
        finally:
            self.under_way -= 1
        if self.under_way == 0 and AUTO_CLASSES in sys.modules and self in sys.meta_path:
            sys.meta_path.remove(self)
            register_auto_classes()


if AUTO_CLASSES in sys.modules:
    register_auto_classes()
else:
    sys.meta_path.insert(0, _RegisterInTime())
