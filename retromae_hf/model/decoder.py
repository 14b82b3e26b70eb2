"""What is trained beside the encoder: the decoder (RetroMAE, sections 3.2 and 3.3), and the head of pair objectives."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers.activations import ACT2FN

from .counting import labelled_rows
from .families import DecoderShape

BLOCK_ROWS = 256
"""Rows of attention at a time where the mask is made on the way; measured to be as fast as all at once on a CPU."""

VisibleRows = Callable[[int, int], Tensor]
"""What rows from one number to another may see, bool `[B, rows, K]`."""


class Decoder(nn.ModuleList):
    """The decoder's layers, one in the paper."""

    def __init__(self, shape: DecoderShape, num_layers: int):
        super().__init__(DecoderLayer(shape) for _ in range(num_layers))

    def forward(
        self,
        rows: Tensor,
        context: Tensor | None,
        visible: Tensor | VisibleRows | None,
        labels: Tensor,
        slots: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Rebuild the labelled tokens.

        Args:
            rows: `[B, Q, H]`, the last Q positions of the passage.
            context: see `DecoderLayer.attend`; the same in every layer.
            visible: see there.
            labels: integers `[B, L]`, -100 where there is none.
            slots: see `labelled_rows`.

        Returns:
            States `[T, H]` and labels `[T]` of the T labelled rows.
        """
        *lower, last = cast(list[DecoderLayer], list(self))
        for layer in lower:
            rows = layer.feed_forward(layer.attend(rows, context, visible))
        rows = last.attend(rows, context, visible)
        rows, found = labelled_rows(rows, labels[:, -rows.shape[1] :], slots)
        return last.feed_forward(rows), found


class DecoderLayer(nn.Module):
    """A post-norm transformer layer whose queries come from another stream than its keys and values.

    Attention and feed-forward are separate calls: rows never mix after the attention, so only those that carry a label
    need the feed-forward.
    """

    def __init__(self, shape: DecoderShape):
        super().__init__()
        hidden = shape.hidden_size
        self.num_heads = shape.num_attention_heads
        self.attention_dropout = shape.attention_dropout
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.attention_output = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=shape.layer_norm_eps)
        self.intermediate = nn.Linear(hidden, shape.intermediate_size)
        self.activation = ACT2FN[shape.hidden_act]
        self.output = nn.Linear(shape.intermediate_size, hidden)
        self.output_norm = nn.LayerNorm(hidden, eps=shape.layer_norm_eps)
        self.dropout = nn.Dropout(shape.hidden_dropout)

    def attend(self, queries: Tensor, context: Tensor | None, visible: Tensor | VisibleRows | None) -> Tensor:
        """`norm(queries + attention(queries, context))`, equation 5 with its residual on the queries.

        Args:
            queries: `[B, Q, H]`.
            context: `[B, K, H]`, the keys and values of two streams; None where the queries see one another.
            visible: bool, broadcasts to `[B, Q, K]`, True where a row may see a column; every row must see some
                column. A function makes it for some rows at a time, so that no `[Q, K]` tensor is held for long
                passages. None: all see all.

        Returns:
            `[B, Q, H]`.
        """
        context = queries if context is None else context
        projected = (self.query(queries), self.key(context), self.value(context))
        # [B, L, H] -> [B, heads, L, H / heads]
        query, key, value = (states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for states in projected)
        dropout = self.attention_dropout if self.training else 0.0
        if visible is None or isinstance(visible, Tensor):
            mask = None if visible is None else visible[:, None]
            attended = scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        else:
            attended = _attend_by_blocks(query, key, value, visible, dropout)
        attended = attended.transpose(1, 2).flatten(2)
        return self.attention_norm(queries + self.dropout(self.attention_output(attended)))

    def feed_forward(self, states: Tensor) -> Tensor:
        """`norm(states + mlp(states))` over the last dimension, which is H."""
        return self.output_norm(states + self.dropout(self.output(self.activation(self.intermediate(states)))))


def _attend_by_blocks(query: Tensor, key: Tensor, value: Tensor, visible: VisibleRows, dropout: float) -> Tensor:
    """Attention `[B, heads, Q, D]` some rows at a time."""

    def attend(rows: Tensor, start: int) -> Tensor:
        mask = visible(start, start + rows.shape[2])[:, None]
        return scaled_dot_product_attention(rows, key, value, attn_mask=mask, dropout_p=dropout)

    # Each block is computed once more in the backward pass, because what the kernels keep until then, the masks and
    # with dropout the attention weights, would be the [Q, K] tensor again.
    starts = range(0, query.shape[2], BLOCK_ROWS)
    blocks = [checkpoint(attend, query[:, :, at : at + BLOCK_ROWS], at, use_reentrant=False) for at in starts]
    return torch.cat(blocks, dim=2)


class PairHead(nn.Module):
    """BERT's pooler and classifier: true or false pair, from the state of [CLS] (BERT, section 3.1, appendix A.2)."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.pooler = nn.Linear(hidden_size, hidden_size)
        self.classifier = nn.Linear(hidden_size, 2)

    def forward(self, sentence_embedding: Tensor) -> Tensor:
        """Logits `[B, 2]`, float32 at least, of the labels 0 (true) and 1 (false) for embeddings `[B, H]`."""
        logits = self.classifier(torch.tanh(self.pooler(sentence_embedding)))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))
