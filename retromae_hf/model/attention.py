"""Which of transformers' implementations of attention a model computes with."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from .errors import RetroMAEError, first_line


def use_attention(model: nn.Module, implementation: str | None) -> None:
    """Let a model, and every model of transformers within it, compute its attention so.

    Args:
        model: of this package, of transformers or of sentence-transformers.
        implementation: "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention" or a kernel on the
            Hub, such as "kernels-community/flash-attn2"; None leaves what transformers takes, which is "sdpa" where a
            family has it.

    Raises:
        RetroMAEError: there is no such implementation, its package is missing, or a family does not have it.
    """
    if implementation is None:
        return
    for part in model.modules():
        if not isinstance(part, PreTrainedModel):
            continue
        before = part.config._attn_implementation
        try:
            part.set_attn_implementation(implementation)
        except (ImportError, ValueError) as error:  # the package is missing; there is no such implementation
            raise RetroMAEError(f"attn_implementation={implementation} cannot be used: {first_line(error)}") from error
        # transformers warns where a family has attention of its own, and goes on with that.
        if implementation != before == part.config._attn_implementation:
            raise RetroMAEError(
                f"attn_implementation={implementation} is not there for encoders of type {part.config.model_type!r}, "
                f"which compute theirs as {before}; leave it out"
            )
