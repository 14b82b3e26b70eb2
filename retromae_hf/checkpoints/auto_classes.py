"""Makes the RetroMAE classes known to the Auto classes of `transformers`.

Apart from the modelling files, because those travel with checkpoints: a copy that registered itself on import would
take the checkpoints of every other copy in the process for its own.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from ..model.configuration_retromae import RetroMAEConfig
from ..model.modeling_retromae import RetroMAEForPreTraining, RetroMAEModel


def register_auto_classes() -> None:
    """Register the package's classes, to load checkpoints and to put their code beside the weights on saving.

    The code lets `AutoModel.from_pretrained(..., trust_remote_code=True)` load a checkpoint where this package is not
    installed. Where it is, `transformers` takes the package's classes and runs nothing from a checkpoint.
    """
    AutoConfig.register(RetroMAEConfig.model_type, RetroMAEConfig, exist_ok=True)
    AutoModel.register(RetroMAEConfig, RetroMAEModel, exist_ok=True)
    AutoModelForPreTraining.register(RetroMAEConfig, RetroMAEForPreTraining, exist_ok=True)
    RetroMAEConfig.register_for_auto_class()
    RetroMAEModel.register_for_auto_class("AutoModel")
    RetroMAEForPreTraining.register_for_auto_class("AutoModelForPreTraining")
