"""The collator that turns tokenised passages into RetroMAE's training batches."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import get_worker_info
from transformers import PreTrainedTokenizerBase

from ..model.configuration_retromae import (
    DEFAULT_DECODER_MASK_RATIO,
    DEFAULT_DECODING,
    SEGMENT_OBJECTIVES,
    RetroMAEConfig,
    check_ratio,
    check_replacement,
    check_shared,
)
from ..model.counting import counts_of
from ..model.errors import RetroMAEError, check_at_least
from ..model.masking import IGNORE_INDEX
from .draws import (
    DECODER_ACTION,
    DECODER_CHOOSE,
    DECODER_REPLACEMENT,
    Corruption,
    corrupt_tokens,
    draw_rows,
    passage_seeds,
)
from .pairs import SEGMENT_COLUMNS, PairMaker, Row, draw_spans
from .words import number_words, word_starts, word_table

SHARED_WITH_MODEL = ("decoding", "decoder_mask_ratio", "pair_objective", "bow_source")
"""Arguments that the model's configuration has too, and that must be the same there."""


def check_label_ratio(ratio: float, decoding: str) -> None:
    if ratio == 1:
        return
    check_ratio("decoder_label_ratio", ratio)
    if decoding != "enhanced":
        raise RetroMAEError(f"decoder_label_ratio={ratio} is for decoding='enhanced', not {decoding!r}; leave it at 1")


@dataclass
class DataCollatorForRetroMAE:
    """Corrupts and pads passages for `RetroMAEForPreTraining`; a plain `DataCollator` for a plain `Trainer`.

    With `seed` and a dataset that has a column `passage_id`, every draw is a pure function of (seed, epoch, passage
    id): it depends neither on the batch nor on the number of workers or processes. The epoch is the dataset's column
    `epoch`, as streams have it, or set by `RetroMAECallback`; without either the masks of a passage stay the same in
    every epoch. Without `seed` or without ids, seeds come from torch's generator, afresh every time.

    Args:
        tokenizer: must have a mask token and a padding token.
        encoder_mask_ratio: share of the ordinary tokens that the encoder has to predict, in (0, 1).
        decoder_mask_ratio: share of the tokens hidden from the decoder, in (0, 1). This, `decoding`, `pair_objective`
            and `bow_source` must be the model's own, which is checked when training starts; `from_config` sees to it.
        decoder_label_ratio: share of the tokens that enhanced decoding rebuilds, in (0, 1], drawn anew in every epoch;
            the loss of these is an unbiased estimate of that of all. The paper rebuilds all; a small encoder with a
            large vocabulary makes more steps in a second with fewer.
        decoding: "enhanced", "basic", "condenser" or "none".
        whole_word_mask: mask words as a whole, and hide them as a whole from the decoder. A word is what BERT's
            tokenizer takes for one, or what the dataset's column `word_ids` says (Chinese words: `tokenize_passages`).
        pad_to_multiple_of: pad the batch's length up to a multiple of this.
        seed: seed of the run.
        mask_replace_prob: share of the chosen tokens that become [MASK], BERT's 0.8.
        random_replace_prob: share of the chosen tokens that become a random token, BERT's 0.1; the others stay.
        static_masking: every epoch draws the same masks (BERT's masking); otherwise each draws its own (RoBERTa's).
            Needs `seed` and a dataset with ids.
        compact: ship 32-bit integers, which this package's model takes and which are half the bytes; other models want
            their labels in 64.
        pair_objective: None, "nsp", "sop" or "contrast".
        bow_source: "tokens" or "sentence".
        pair_partners: for "nsp", the passages that false successors are drawn from, the training set as a rule.

    Raises:
        RetroMAEError: a value is out of range or the tokenizer lacks a token.
    """

    tokenizer: PreTrainedTokenizerBase
    encoder_mask_ratio: float = 0.3
    decoder_mask_ratio: float = DEFAULT_DECODER_MASK_RATIO
    decoder_label_ratio: float = 1.0
    decoding: str = DEFAULT_DECODING
    whole_word_mask: bool = False
    pad_to_multiple_of: int | None = None
    seed: int | None = None
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1
    static_masking: bool = False
    compact: bool = False
    pair_objective: str | None = None
    bow_source: str = "tokens"
    pair_partners: Dataset | None = field(repr=False, default=None)

    def __post_init__(self) -> None:
        check_shared(self)
        check_ratio("encoder_mask_ratio", self.encoder_mask_ratio)
        check_replacement(self.mask_replace_prob, self.random_replace_prob)
        check_label_ratio(self.decoder_label_ratio, self.decoding)
        check_at_least(1, pad_to_multiple_of=self.pad_to_multiple_of)
        if self.static_masking and self.seed is None:
            raise RetroMAEError("static_masking draws the same masks in every epoch and needs a seed; give one")
        for name, token_id in (("mask", self.tokenizer.mask_token_id), ("padding", self.tokenizer.pad_token_id)):
            if token_id is None:
                raise RetroMAEError(f"the tokenizer has no {name} token; use a masked language model's tokenizer")
        self._special_ids = set(self.tokenizer.all_special_ids)
        token_ids = torch.tensor(list(self.tokenizer.get_vocab().values()))
        self._ordinary = torch.zeros(int(token_ids.max()) + 1, dtype=torch.bool)
        self._ordinary[token_ids] = True
        self._ordinary[list(self._special_ids)] = False
        self._ordinary_ids = self._ordinary.nonzero().squeeze(1)
        self._word_table = word_table(self.tokenizer) if self.whole_word_mask else None
        self._pair_maker: PairMaker | None = None
        if self.pair_objective in SEGMENT_OBJECTIVES:
            self._pair_maker = PairMaker(str(self.pair_objective), self.tokenizer, self.pair_partners)
        # For passages without ids: of this collator's own where there is a seed, None is torch's default.
        self._generator: torch.Generator | None = None
        # In shared memory, so that workers that live on through the epochs see what `set_epoch` writes; -1 is unknown.
        self._epoch = torch.tensor(-1).share_memory_()

    @classmethod
    def from_config(
        cls, tokenizer: PreTrainedTokenizerBase, config: RetroMAEConfig, **kwargs: Any
    ) -> DataCollatorForRetroMAE:
        """A collator with what it must share with the model.

        Args:
            tokenizer: the model's tokenizer.
            config: the model's configuration, which names what is in `SHARED_WITH_MODEL`.
            **kwargs: the other arguments of the class.

        Returns:
            The collator.

        Raises:
            RetroMAEError: a value is out of range or the tokenizer lacks a token.
        """
        return cls(tokenizer, **{name: getattr(config, name) for name in SHARED_WITH_MODEL}, **kwargs)

    def set_epoch(self, epoch: int) -> None:
        """Draw the masks of this pass over the data, counted from 0, from now on."""
        self._epoch.fill_(epoch)

    def check_matches(self, config: RetroMAEConfig) -> None:
        """Raise `RetroMAEError` where the model was configured otherwise than this collator."""
        for name in SHARED_WITH_MODEL:
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
                where there are any, `attention_mask` (1 at tokens, 0 at padding behind them), `passage_id` (int),
                `token_type_ids`, `word_ids` and `document_id` (int).

        Returns:
            int64 `[B, L]`: `input_ids`, `attention_mask` (where there is padding), `labels`; for basic and enhanced
            decoding `decoder_input_ids` and `decoder_labels`; with a sentence embedding that predicts words
            `bow_labels`. For enhanced decoding also `visibility_seed`, int64 `[B]`, `decoder_rows`, int64 `[B, R]`,
            where not all are rebuilt, and `word_ids`, int32 `[B, L]`, where words are masked as a whole. For NSP and
            SOP `pair_labels`, int64 `[B]`. `passage_id`, int64 `[B]`, where the dataset has one: for those who watch
            over the training. For span contrast there are 2B rows, the first spans of all passages and then the second
            ones, and `document_id`, int64 `[B]`. `label_slots` and `decoder_label_slots`, `[B, T, 0]`, tell by their
            shape how many labels there are.
        """
        if "input_ids" not in features[0]:
            raise RetroMAEError("the rows have no column input_ids; tokenise the text first, with tokenize_passages")
        rows = [_without_padding(feature) for feature in features]
        if ordinary := {int(row["input_ids"][0]) for row in rows} - self._special_ids:
            raise RetroMAEError(
                f"a passage begins with the ordinary token {min(ordinary)} in the place of [CLS], the sentence "
                "embedding; tokenise with special tokens, as tokenize_passages does"
            )
        batch = {"passage_id": _integers(features, "passage_id")} if "passage_id" in features[0] else {}
        seeds = self._seeds(features, batch.get("passage_id"))
        if self._pair_maker is not None:
            rows, batch["pair_labels"] = self._pair_maker(rows, seeds)
        elif self.pair_objective == "contrast":
            if "document_id" not in rows[0]:
                raise RetroMAEError(
                    "pair_objective='contrast' needs the column document_id; make the passages with tokenize_passages"
                )
            batch["document_id"] = _integers(rows, "document_id")
            rows, seeds = draw_spans(rows, seeds)
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        multiple = self.pad_to_multiple_of or 1
        size = -(-int(lengths.max()) // multiple) * multiple
        real = torch.arange(size) < lengths[:, None]
        input_ids = _pad(rows, "input_ids", real, self.tokenizer.pad_token_id)
        if "token_type_ids" in rows[0]:
            batch["token_type_ids"] = _pad(rows, "token_type_ids", real, 0)
        least, most = (int(bound) for bound in input_ids.aminmax())
        if least < 0 or most >= len(self._ordinary):
            raise RetroMAEError(
                f"token ids go from {least} to {most}, and the tokenizer's end at {len(self._ordinary) - 1}; "
                "tokenise with the tokenizer that the collator has"
            )
        candidates = self._ordinary[input_ids] & real
        word_ids = None
        if self._word_table is not None:
            if "word_ids" in rows[0]:
                word_ids = _pad(rows, "word_ids", real, 0).to(torch.int32)
            elif "word_starts" in rows[0]:
                word_ids = number_words(_pad(rows, "word_starts", real, 1).bool())
            else:
                word_ids = number_words(word_starts(self._word_table, input_ids))
        if lengths.min() < size:  # attention is quicker without a mask, and only here it costs nothing to know
            batch["attention_mask"] = real.to(torch.int64)
        shares = self.mask_replace_prob, self.random_replace_prob
        corruption = Corruption(self.tokenizer.mask_token_id, self._ordinary_ids, *shares)
        corrupt = partial(corrupt_tokens, input_ids, candidates, seeds, corruption=corruption, word_ids=word_ids)
        batch["input_ids"], batch["labels"] = corrupt(self.encoder_mask_ratio)
        passage = input_ids.masked_fill(~candidates, IGNORE_INDEX)
        if self.bow_source == "sentence":
            batch["bow_labels"] = passage
        if self.decoding == "enhanced":
            batch |= {"decoder_input_ids": input_ids, "decoder_labels": passage, "visibility_seed": seeds}
            if self.decoder_label_ratio < 1:
                batch["decoder_rows"] = draw_rows(candidates, seeds, self.decoder_label_ratio)
            if word_ids is not None:
                batch["word_ids"] = word_ids
        elif self.decoding == "basic":
            streams = (DECODER_CHOOSE, DECODER_ACTION, DECODER_REPLACEMENT)
            batch["decoder_input_ids"], batch["decoder_labels"] = corrupt(self.decoder_mask_ratio, streams=streams)
        # A shape is known on the host, a count on a GPU only to those who wait for it.
        for name, count in zip(("labels", "decoder_labels"), counts_of(batch).tolist(), strict=False):
            if name in batch:
                batch[f"{name.removesuffix('s')}_slots"] = torch.empty(len(rows), count, 0)
        if self.compact:
            # A seed needs its 64 bits, and a pair has one label.
            wide = [name for name, tensor in batch.items() if tensor.dtype == torch.int64 and tensor.dim() == 2]
            batch |= {name: batch[name].to(torch.int32) for name in wide}
        return batch

    def _seeds(self, features: Sequence[Mapping[str, Any]], passage_ids: Tensor | None) -> Tensor:
        """One seed a passage, int64 `[B]`."""
        if self.seed is None or passage_ids is None:
            if self.static_masking:
                raise RetroMAEError("static_masking needs a column passage_id; add one of unique integers")
            if self.seed is not None and self._generator is None:
                worker = get_worker_info()
                seed = self.seed if worker is None else self.seed ^ worker.seed
                self._generator = torch.Generator().manual_seed(seed)
            return torch.randint(-(2**63), 2**63 - 1, (len(features),), generator=self._generator)
        epoch: Tensor | int = 0 if self.static_masking else int(self._epoch)
        if "epoch" in features[0] and not self.static_masking:
            epoch = _integers(features, "epoch")
        elif epoch == -1:
            epoch = 0
            warnings.warn(
                "the collator was not told the epoch, so every epoch draws the same masks; add RetroMAECallback to "
                "the Trainer or call set_epoch",
                stacklevel=3,
            )
        return passage_seeds(self.seed, epoch, passage_ids)


def _without_padding(feature: Mapping[str, Any]) -> Row:
    """A passage's columns as far as its attention mask goes."""
    mask = feature.get("attention_mask")
    length = len(feature["input_ids"]) if mask is None else int(sum(mask) if isinstance(mask, list) else mask.sum())
    if mask is not None and length < len(mask) and not mask[0]:
        raise RetroMAEError("a passage is padded on the left; tokenise with padding_side='right' or without padding")
    if length < 2:
        raise RetroMAEError("a passage has fewer than two tokens; tokenise with special tokens, or drop it")
    row = {name: feature[name][:length] for name in SEGMENT_COLUMNS if name in feature}
    return row | {name: feature[name] for name in ("document_id",) if name in feature}


def _integers(rows: Sequence[Mapping[str, Any]], name: str) -> Tensor:
    return torch.tensor([int(row[name]) for row in rows])


def _pad(rows: Sequence[Row], name: str, real: Tensor, value: int) -> Tensor:
    """A column of ragged rows as one int64 tensor of the shape of `real`, which is True where they go."""
    parts = [row[name] for row in rows]
    if isinstance(parts[0], list):
        flat = np.fromiter(chain.from_iterable(parts), dtype=np.int64)
    else:
        flat = np.concatenate([np.asarray(part) for part in parts]).astype(np.int64, copy=False)
    padded = torch.full(real.shape, value)
    padded[real] = torch.from_numpy(flat)
    return padded
