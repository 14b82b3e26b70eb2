"""More positions than a checkpoint was trained with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..model.errors import RetroMAEError, check_choice
from ..model.pretrained_model import RetroMAEPreTrainedModel

METHODS = ("tile", "interpolate")


def extend_positions(model: RetroMAEPreTrainedModel, max_length: int, method: str = "tile") -> None:
    """Give a model learned positions for longer passages, in place; training must teach it what they mean.

    The encoder's table of position embeddings grows, and the decoder's own where it has one. Rotary and relative
    encoders have no table to grow, only a limit. What was done is written into the encoder's configuration, as
    `position_extension`, and so goes with every checkpoint and export.

    Args:
        model: the model.
        max_length: tokens of the longest passage from now on, special tokens included.
        method: "tile" repeats the learned positions one after another, so that every neighbourhood is one that the
            encoder knows; "interpolate" stretches them linearly, so that the whole range is used once.

    Raises:
        RetroMAEError: `method` is unknown, or the model has as many positions already.
    """
    check_choice("extend_positions", method, METHODS)
    config = model.config.encoder_config
    backbone = model.backbone
    before = backbone.max_positions(config)
    if max_length <= before:
        raise RetroMAEError(f"the encoder has {before} positions, no fewer than max_length={max_length}; leave them")
    if backbone.has_position_table(config):
        embeddings = model.encoder.base_model.embeddings
        _extend(embeddings.position_embeddings, max_length, method, backbone.position_offset(config))
        for name in ("position_ids", "token_type_ids"):  # constants, one for each position
            if isinstance(old := getattr(embeddings, name, None), Tensor):
                size = max_length + backbone.position_offset(config)
                new = torch.arange(size, device=old.device) if name == "position_ids" else old.new_zeros(size)
                setattr(embeddings, name, new[None])
    if hasattr(model, "decoder_positions"):
        _extend(model.decoder_positions, max_length, method)
    # The model's and its parts' configurations may be copies of one another.
    first = getattr(config, "position_extension", {}).get("from", before)
    for each in {id(c): c for c in (config, model.encoder.config, model.encoder.base_model.config)}.values():
        backbone.set_max_positions(each, max_length)
        each.position_extension = {"from": first, "to": max_length, "method": method}


@torch.no_grad()
def _extend(table: nn.Embedding, length: int, method: str, offset: int = 0) -> None:
    """Make a table `length` positions long; its first `offset` rows, which are of no position, stay as they are."""
    unused, learned = table.weight[:offset], table.weight[offset:]
    if method == "tile":
        extended = learned[torch.arange(length, device=learned.device) % len(learned)]
    else:
        extended = interpolate(learned.T[None], size=length, mode="linear", align_corners=True)[0].T
    table.weight = nn.Parameter(torch.cat([unused, extended]), requires_grad=table.weight.requires_grad)
    table.num_embeddings = len(table.weight)
