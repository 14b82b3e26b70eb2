"""Gradient accumulation that equals one large batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import Trainer

from ..model.bookkeeping import counts_of


class AccumulatingTrainer(Trainer):
    """`Trainer` whose accumulated steps are those of one large batch.

    `Trainer` by itself takes the mean of the batches' means, in which a label of a batch with few counts for more than
    one of a batch with many. It tells models one count of labels a step, and RetroMAE has several kinds of them.
    """

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Any]:
        """The batches of a step, each with the counts of all of them."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if len(batches) > 1:
            counts = torch.stack([counts_of(batch) for batch in batches])
            for batch in batches:
                batch["step_counts"] = counts
        return batches, items

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """`Trainer`'s warnings, but for tied weights: a checkpoint holds them once, and they are not missing."""
        tied = self.model.all_tied_weights_keys
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)
