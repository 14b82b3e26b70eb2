"""LoRA and other adapters of PEFT: put into the encoder, beside new parts that are trained in full."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from typing import Any

from torch import nn

from ..model.encoders import RetroMAEPreTrainedModel


def without_adapters(model: Any) -> RetroMAEPreTrainedModel:
    """The model itself, where PEFT has wrapped it as a whole."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def train_new_parts_in_full(model: Any) -> None:
    """Let decoder and MLM head learn in full beside adapters, which freeze all that there is.

    They are new, or were taught something else, and a low rank is no change of what is random. PEFT trains and saves
    them as its `modules_to_save`, without adapters in them; what the head shares with the word embeddings stays frozen.

    Args:
        model: what a `Trainer` has: one that `get_peft_model` has wrapped, or whose `encoder` it has, or a plain one,
            which is left as it is.
    """
    own = without_adapters(model)
    encoder = own.masked_lm
    wrapped, inside = (own.encoder, encoder) if own is model else (model, own)
    if wrapped is inside:
        return
    from peft.utils.other import set_additional_trainable_modules

    shared = {*encoder.get_input_embeddings().parameters()}
    names = [*_parts_beside(encoder, encoder.base_model_prefix, shared)]
    if inside is own:
        names = [*_parts_beside(own, "encoder"), *(f"encoder.{name}" for name in names)]
    for name, layer in [*inside.named_modules()]:
        if hasattr(layer, "get_base_layer") and any(name.startswith(f"{one}.") or name == one for one in names):
            parent, _, child = name.rpartition(".")
            setattr(inside.get_submodule(parent), child, layer.get_base_layer())
    config = wrapped.active_peft_config
    # What is saved says so, that it is put together again alike.
    config.exclude_modules = "|".join(rf"{re.escape(name)}(\..*)?" for name in names)
    config.modules_to_save = [*(config.modules_to_save or []), *(f"model.{name}" for name in names)]
    set_additional_trainable_modules(wrapped, config, None, wrapped.active_adapter)


def _parts_beside(model: nn.Module, left_out: str, shared: Set[nn.Parameter] = frozenset()) -> Iterator[str]:
    """The names of the largest modules without the shared parameters, of all but one child; of a list its members."""
    for name, module in model.named_children():
        parameters = {*module.parameters()}
        if name == left_out or not parameters:
            continue
        if isinstance(module, nn.ModuleList) or parameters & shared:
            yield from (f"{name}.{part}" for part in _parts_beside(module, "", shared))
        else:
            yield name
