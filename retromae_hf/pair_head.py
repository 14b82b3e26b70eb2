"""The two-way head of the pair objectives."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PairHead(nn.Module):
    """BERT's pooler and classifier: true or false pair, from the state of [CLS] (BERT, section 3.1, appendix A.2)."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.pooler = nn.Linear(hidden_size, hidden_size)
        self.classifier = nn.Linear(hidden_size, 2)

    def forward(self, sentence_embedding: Tensor) -> Tensor:
        """Logits `[B, 2]` of the labels 0 (true) and 1 (false) for embeddings `[B, H]`."""
        return self.classifier(torch.tanh(self.pooler(sentence_embedding)))
