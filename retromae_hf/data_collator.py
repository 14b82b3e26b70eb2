"""The collator that turns tokenised passages into RetroMAE's training batches."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from transformers import PreTrainedTokenizerBase

from .configuration_retromae import (
    DEFAULT_DECODER_MASK_RATIO,
    DEFAULT_DECODING,
    RetroMAEConfig,
    check_decoding,
    check_ratio,
)
from .errors import RetroMAEError
from .masking import (
    DECODER_ACTION,
    DECODER_CHOOSE,
    DECODER_REPLACEMENT,
    IGNORE_INDEX,
    corrupt_tokens,
    passage_seeds,
)

_EPOCH_NOT_TOLD = -1


@dataclass
class DataCollatorForRetroMAE:
    """Corrupts and pads passages for `RetroMAEForPreTraining`; a plain `DataCollator` for a plain `Trainer`.

    With `seed` and a dataset that has a `passage_id` column, every draw is a pure function of (seed, epoch, passage
    id): it depends neither on the batch nor on the number of workers or processes. `RetroMAECallback` tells the
    collator the epoch; without it the masks of a passage stay the same in every epoch. Without `seed` or without ids,
    seeds come from torch's generator, afresh every time.

    Args:
        tokenizer: must have a mask token and a padding token.
        encoder_mask_ratio: share of the ordinary tokens that the encoder has to predict, in (0, 1).
        decoder_mask_ratio: share of the tokens hidden from the decoder, in (0, 1); the model's own, checked when
            training starts. `from_config` takes it over.
        decoding: "enhanced", "basic" or "none"; the model's own, likewise.
        whole_word_mask: not available yet.
        pad_to_multiple_of: pad the batch's length up to a multiple of this.
        seed: seed of the run.

    Raises:
        RetroMAEError: a value is out of range or the tokenizer lacks a token.
    """

    tokenizer: PreTrainedTokenizerBase
    encoder_mask_ratio: float = 0.3
    decoder_mask_ratio: float = DEFAULT_DECODER_MASK_RATIO
    decoding: str = DEFAULT_DECODING
    whole_word_mask: bool = False
    pad_to_multiple_of: int | None = None
    seed: int | None = None
    _ordinary: Tensor = field(init=False, repr=False)
    _ordinary_ids: Tensor = field(init=False, repr=False)
    _epoch: Tensor = field(init=False, repr=False)
    _generator: torch.Generator | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        check_decoding(self.decoding)
        check_ratio("encoder_mask_ratio", self.encoder_mask_ratio)
        check_ratio("decoder_mask_ratio", self.decoder_mask_ratio)
        if self.whole_word_mask:
            raise RetroMAEError("whole-word masking is not available yet; leave whole_word_mask at False")
        if self.pad_to_multiple_of is not None and self.pad_to_multiple_of < 1:
            raise RetroMAEError(f"pad_to_multiple_of={self.pad_to_multiple_of} must be at least 1")
        for name, token_id in (("mask", self.tokenizer.mask_token_id), ("padding", self.tokenizer.pad_token_id)):
            if token_id is None:
                raise RetroMAEError(f"the tokenizer has no {name} token; use a masked language model's tokenizer")
        token_ids = torch.tensor(list(self.tokenizer.get_vocab().values()))
        self._ordinary = torch.zeros(int(token_ids.max()) + 1, dtype=torch.bool)
        self._ordinary[token_ids] = True
        self._ordinary[self.tokenizer.all_special_ids] = False
        self._ordinary_ids = self._ordinary.nonzero().squeeze(1)
        if len(self._ordinary_ids) == 0:
            raise RetroMAEError("the tokenizer has no ordinary tokens, only special ones; train it on more text")
        # In shared memory, so that workers that live on through the epochs see what `set_epoch` writes.
        self._epoch = torch.tensor(_EPOCH_NOT_TOLD).share_memory_()

    @classmethod
    def from_config(
        cls, tokenizer: PreTrainedTokenizerBase, config: RetroMAEConfig, **kwargs: Any
    ) -> DataCollatorForRetroMAE:
        """A collator with the model's own decoding and decoder mask ratio; `kwargs` are the other arguments."""
        return cls(tokenizer, decoding=config.decoding, decoder_mask_ratio=config.decoder_mask_ratio, **kwargs)

    def set_epoch(self, epoch: int) -> None:
        """Draw the masks of this pass over the data, counted from 0, from now on."""
        self._epoch.fill_(epoch)

    def check_matches(self, config: RetroMAEConfig) -> None:
        """Raise `RetroMAEError` where the model was configured otherwise than this collator."""
        for name in ("decoding", "decoder_mask_ratio"):
            mine, models = getattr(self, name), getattr(config, name)
            if mine != models:
                raise RetroMAEError(
                    f"the collator has {name}={mine!r} and the model {models!r}; "
                    "build it with DataCollatorForRetroMAE.from_config(tokenizer, model.config)"
                )

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Build a batch.

        Args:
            features: one mapping a passage with `input_ids` (a list, array or tensor, special tokens included) and,
                where there are any, `attention_mask` (1 at tokens, 0 at padding behind them), `passage_id` (int) and
                `token_type_ids`.

        Returns:
            `input_ids`, `attention_mask`, `labels` and, with a decoder, `decoder_input_ids` and `decoder_labels`,
            all int64 `[B, L]`; for enhanced decoding also `visibility_seed`, int64 `[B]`.
        """
        rows = [_without_padding(feature) for feature in features]
        lengths = torch.tensor([len(row) for row in rows])
        size = int(lengths.max())
        if self.pad_to_multiple_of is not None:
            size = -(-size // self.pad_to_multiple_of) * self.pad_to_multiple_of
        real = torch.arange(size) < lengths[:, None]
        input_ids = _pad(rows, real, self.tokenizer.pad_token_id)
        candidates = self._ordinary[input_ids] & real
        seeds = self._seeds(features)
        mask_id = self.tokenizer.mask_token_id
        corrupted, labels = corrupt_tokens(
            input_ids, candidates, seeds, self.encoder_mask_ratio, mask_id, self._ordinary_ids
        )
        batch = {"input_ids": corrupted, "attention_mask": real.to(torch.int64), "labels": labels}
        if "token_type_ids" in features[0]:
            types = [feature["token_type_ids"][: len(row)] for feature, row in zip(features, rows, strict=True)]
            batch["token_type_ids"] = _pad(types, real, 0)
        if self.decoding == "enhanced":
            batch["decoder_input_ids"] = input_ids
            batch["decoder_labels"] = input_ids.masked_fill(~candidates, IGNORE_INDEX)
            batch["visibility_seed"] = seeds
        elif self.decoding == "basic":
            streams = (DECODER_CHOOSE, DECODER_ACTION, DECODER_REPLACEMENT)
            batch["decoder_input_ids"], batch["decoder_labels"] = corrupt_tokens(
                input_ids, candidates, seeds, self.decoder_mask_ratio, mask_id, self._ordinary_ids, streams
            )
        return batch

    def _seeds(self, features: Sequence[Mapping[str, Any]]) -> Tensor:
        """One seed a passage, int64 `[B]`."""
        if self.seed is None or "passage_id" not in features[0]:
            return torch.randint(-(2**63), 2**63 - 1, (len(features),), generator=self._fallback_generator())
        epoch = int(self._epoch)
        if epoch == _EPOCH_NOT_TOLD:
            warnings.warn(
                "the collator was not told the epoch, so every epoch draws the same masks; add RetroMAECallback to "
                "the Trainer or call set_epoch",
                stacklevel=3,
            )
            epoch = 0
        return passage_seeds(self.seed, epoch, torch.tensor([int(feature["passage_id"]) for feature in features]))

    def _fallback_generator(self) -> torch.Generator | None:
        """A generator of this collator's own where there is a seed but there are no ids; None is torch's default."""
        if self.seed is not None and self._generator is None:
            worker = get_worker_info()
            self._generator = torch.Generator().manual_seed(self.seed if worker is None else self.seed ^ worker.seed)
        return self._generator


def _without_padding(feature: Mapping[str, Any]) -> Any:
    """A passage's ids as far as its attention mask goes."""
    row, mask = feature["input_ids"], feature.get("attention_mask")
    if mask is None:
        return row
    length = sum(mask) if isinstance(mask, list) else int(mask.sum())
    if length == len(row):
        return row
    if not mask[0]:
        raise RetroMAEError("a passage is padded on the left; tokenise with padding_side='right' or without padding")
    return row[:length]


def _pad(rows: Sequence[Any], real: Tensor, value: int) -> Tensor:
    """Ragged rows as one int64 tensor of the shape of `real`, which is True where they go."""
    if isinstance(rows[0], list):
        flat = np.fromiter(chain.from_iterable(rows), dtype=np.int64)
    else:
        flat = np.concatenate([np.asarray(row) for row in rows]).astype(np.int64, copy=False)
    padded = torch.full(real.shape, value)
    padded[real] = torch.from_numpy(flat)
    return padded
