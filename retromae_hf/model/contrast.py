"""Span contrast (coCondenser, arXiv 2108.05540, section 3.2; Contriever, arXiv 2112.09118, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .counting import count_processes, gather_rows
from .errors import RetroMAEError
from .losses import without_autocast


def contrast_logits(
    embeddings: Tensor, document_id: Tensor, temperature: float, gathered: bool = False
) -> tuple[Tensor, Tensor]:
    """How much every span is like every other one, and which of them is its partner.

    Spans of one document say nothing against each other: those that are no partners count neither way.

    Args:
        embeddings: `[2B, H]`, those of passage i in the rows i and B + i.
        document_id: int64 `[B]`, each passage's document.
        temperature: what the cosines are divided by.
        gathered: let the spans of all processes that train together be candidates; each of them has to call it.

    Returns:
        Logits `[2B, N]` in float32 or wider over the N candidates, -inf where a candidate does not count; and the
        partners' columns, int64 `[2B]`.

    Raises:
        RetroMAEError: there are not two embeddings a document.
    """
    if len(embeddings) != 2 * len(document_id):
        raise RetroMAEError(
            f"{len(embeddings)} rows are not the two spans of {len(document_id)} passages each; let a batch reach the "
            "model as DataCollatorForRetroMAE makes it, uncut"
        )
    spans = normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)
    documents = document_id.repeat(2)
    partners = torch.arange(len(spans), device=spans.device).roll(-len(document_id))
    candidates, of_candidates = spans, documents
    if gathered and count_processes() > 1:
        candidates, of_candidates = gather_rows(spans), gather_rows(documents)
        partners = partners + torch.distributed.get_rank() * len(spans)
    of_one_document = documents[:, None] == of_candidates
    hidden = of_one_document.scatter(1, partners[:, None], False)
    with without_autocast(spans):
        logits = spans @ candidates.T / temperature
    return logits.masked_fill(hidden, float("-inf")), partners
