"""Makes the RetroMAE classes known to the Auto classes of `transformers`.

Apart from the modelling files, because those travel with checkpoints: a copy that registered itself on import would
take the checkpoints of every other copy in the process for its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

AUTO_CLASSES = "transformers.models.auto.configuration_auto"
"""The first of the Auto classes' modules to be imported, whichever of them is asked for."""

WAITED_FOR = (__name__.partition(".")[0], "transformers")
"""Packages of which no file may be half imported when the classes are registered: their files need each other."""


def register_auto_classes() -> None:
    """Register the package's classes, to load checkpoints and to put their code beside the weights on saving.

    The code lets `AutoModel.from_pretrained(..., trust_remote_code=True)` load a checkpoint where this package is not
    installed. Where it is, `transformers` takes the package's classes and runs nothing from a checkpoint.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

    from ..model.configuration_retromae import RetroMAEConfig
    from ..model.modeling_retromae import RetroMAEForPreTraining, RetroMAEModel

    AutoConfig.register(RetroMAEConfig.model_type, RetroMAEConfig, exist_ok=True)
    AutoModel.register(RetroMAEConfig, RetroMAEModel, exist_ok=True)
    AutoModelForPreTraining.register(RetroMAEConfig, RetroMAEForPreTraining, exist_ok=True)
    RetroMAEConfig.register_for_auto_class()
    RetroMAEModel.register_for_auto_class("AutoModel")
    RetroMAEForPreTraining.register_for_auto_class("AutoModelForPreTraining")


def register_with_transformers() -> None:
    """Register now, or as soon as the Auto classes are imported: `import retromae_hf` does not wait for torch."""
    if AUTO_CLASSES in sys.modules:
        register_auto_classes()
    else:
        sys.meta_path.insert(0, _RegisterInTime())


class _RegisterInTime(MetaPathFinder):
    """Registers once the Auto classes are there and no file of `WAITED_FOR` is half imported."""

    def __init__(self) -> None:
        self.under_way = 0

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec of a file of `WAITED_FOR`, whose loader counts; None for others."""
        if fullname.partition(".")[0] not in WAITED_FOR:
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
