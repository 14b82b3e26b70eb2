"""One transformer layer that rebuilds a passage from its sentence embedding (RetroMAE, sections 3.2 and 3.3)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.activations import ACT2FN

from .backbones import DecoderShape


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

    def attend(self, queries: Tensor, context: Tensor, visible: Tensor | None) -> Tensor:
        """`norm(queries + attention(queries, context))`, equation 6 with its residual on the queries.

        Args:
            queries: `[B, Q, H]`.
            context: `[B, K, H]`, the keys and values.
            visible: bool, broadcasts to `[B, Q, K]`, True where a row may see a column; every row must see some
                column. None: all see all.

        Returns:
            `[B, Q, H]`.
        """
        attended = scaled_dot_product_attention(
            self._split_heads(self.query(queries)),
            self._split_heads(self.key(context)),
            self._split_heads(self.value(context)),
            attn_mask=None if visible is None else visible[:, None],
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        attended = attended.transpose(1, 2).flatten(2)
        return self.attention_norm(queries + self.dropout(self.attention_output(attended)))

    def feed_forward(self, states: Tensor) -> Tensor:
        """`norm(states + mlp(states))` over the last dimension, which is H."""
        return self.output_norm(states + self.dropout(self.output(self.activation(self.intermediate(states)))))

    def _split_heads(self, states: Tensor) -> Tensor:
        """`[B, L, H]` -> `[B, heads, L, H / heads]`."""
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
