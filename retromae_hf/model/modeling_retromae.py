"""RetroMAE (arXiv 2205.12035, section 3): a passage X = x_1 .. x_N is rebuilt from its sentence embedding h.

    h  = encoder(X, 15-30 % masked) at [CLS]              encode, pool: h is the bottleneck          (1)
    H1 = [h + p_0, ..., h + p_N]                          the decoder's queries hold no token        (4)
    H2 = [h, e(x_1) + p_1, ..., e(x_N) + p_N]             its keys and values do                     (2, 4)
    A  = softmax(Q(H1) K(H2)^T / sqrt(d) + M) V(H2)       one layer; M lets row i see h and a sample
                                                          of X drawn for that row, never x_i         (5, 7)
    L  = CE(masked x_i | encoder) + CE(all x_i | H1 + A)  two cross-entropies through one head       (6)

That is enhanced decoding. Basic decoding has one stream, H2 with 50-70 % masked, and predicts what is masked (3).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .configuration_retromae import SEGMENT_OBJECTIVES, RetroMAEConfig
from .contrast import contrast_logits
from .counting import divisors, labelled_rows, signature_for_trainer, warn_of_missing_labels
from .decoder import Decoder, PairHead, VisibleRows
from .encoders import RetroMAEPreTrainedModel, load_encoder, use_attention
from .errors import RetroMAEError
from .losses import bag_of_words_loss, grouped_cross_entropy
from .masking import LONG_PASSAGE, visibility_mask


@dataclass
class RetroMAEPreTrainingOutput(ModelOutput):
    """What `RetroMAEForPreTraining` returns. A loss is None where its labels or its part of the model are absent.

    Where several processes train together, a loss is the sum over this process's labels (or passages) divided by the
    average number of them in a process: its mean over the processes is the mean over all their labels.

    Attributes:
        loss: scalar, the weighted sum of the parts that are there; the one to differentiate.
        mlm_loss: scalar, the encoder's mean cross-entropy over its masked tokens; for the logs, without gradient.
        decoder_loss: scalar, the decoder's mean cross-entropy over its labelled tokens; likewise.
        bow_loss: scalar, the bag-of-words loss (DupMAE, BoW-DPR), before its weight.
        pair_loss: scalar, the mean cross-entropy of NSP or SOP.
        contrast_loss: scalar, the mean cross-entropy of finding a span's partner, before its weight.
        sentence_embedding: `[B, H]`, the final hidden state of [CLS], or what else `pooling` says.
    """

    loss: Tensor | None = None
    mlm_loss: Tensor | None = None
    decoder_loss: Tensor | None = None
    bow_loss: Tensor | None = None
    pair_loss: Tensor | None = None
    contrast_loss: Tensor | None = None
    sentence_embedding: Tensor | None = None


class DecoderInputs(NamedTuple):
    """What the decoder is given beside the sentence embedding: arguments of `forward`, and what that has at hand.

    `decoder_input_ids` may be word embeddings `[B, L, E]` as well. A Condenser takes `middle_states` `[B, L, H]`, those
    of the encoder's middle layer, instead.
    """

    decoder_input_ids: Tensor | None
    decoder_labels: Tensor
    attention_mask: Tensor | None = None
    visibility_seed: Tensor | None = None
    decoder_visibility: Tensor | None = None
    decoder_rows: Tensor | None = None
    token_type_ids: Tensor | None = None
    word_ids: Tensor | None = None
    middle_states: Tensor | None = None
    decoder_label_slots: Tensor | None = None


class RetroMAEForPreTraining(RetroMAEPreTrainedModel):
    """Encoder and decoder with the RetroMAE objective (arXiv 2205.12035, section 3).

    `save_pretrained` keeps both, so training can go on from what it wrote; `export_encoder` hands over the encoder,
    which is the plain `*ForMaskedLM` model `encoder`.

    Args:
        config: of the encoder and the decoder, whose weights are new; `from_encoder` starts from a trained encoder.

    Attributes:
        new_parameters: names of those that the encoder's checkpoint did not have, after `from_encoder`.
        bow_loss_weight: scalar on the model's device, the weight at this step in training, which `RetroMAECallback`
            tells where it falls; None is the configuration's.

    Raises:
        RetroMAEError: the encoder's family is not known, or does not go with the decoder.
    """

    new_parameters: Collection[str] = ()
    bow_loss_weight: Tensor | None = None
    # The losses are divided by counts of their own labels: Trainer must not rescale them by a count of its own.
    accepts_loss_kwargs = False

    def __init__(self, config: RetroMAEConfig):
        super().__init__(config)
        if config.decoding != "none":
            self.decoder = Decoder(self.backbone.decoder_shape(config.encoder_config), config.num_decoder_layers)
            # A Condenser reads token states, which hold their positions already.
            if config.decoding != "condenser" and not self.backbone.has_position_table(config.encoder_config):
                positions = self.backbone.max_positions(config.encoder_config)
                self.decoder_positions = nn.Embedding(positions, config.hidden_size)
            size = self.backbone.embedding_size(config.encoder_config)
            if config.decoder_query == "embedded" and size != config.hidden_size:
                raise RetroMAEError(
                    f"decoder_query='embedded' puts the sentence embedding of size {config.hidden_size} through an "
                    f"embedding module of size {size}; use decoder_query='sum' with this encoder"
                )
        if config.pair_objective in SEGMENT_OBJECTIVES:
            self.pair_head = PairHead(config.hidden_size)
        self.post_init()

    @classmethod
    def from_encoder(
        cls, name_or_path: str, attn_implementation: str | None = None, **config: Any
    ) -> RetroMAEForPreTraining:
        """Start from any masked-LM checkpoint, with a new decoder.

        Args:
            name_or_path: a folder or a Hub name that `AutoModelForMaskedLM` loads, from safetensors, or a model of
                sentence-transformers with such an encoder in it, whose pooling and other settings the model takes. A
                family without [CLS] is pooled by the mean.
            attn_implementation: see `use_attention`.
            **config: fields of `RetroMAEConfig`, which go before what the model says.

        Returns:
            The model, in float32.

        Raises:
            RetroMAEError: the encoder's family is not known, weights of it are pickled or missing, the checkpoint is
                itself a RetroMAE checkpoint, or it pools otherwise than by [CLS] or the mean.
        """
        encoder, missing, settings = load_encoder(name_or_path, repooled="pooling" in config)
        model = cls(RetroMAEConfig(**(settings | config)))
        model.encoder = encoder
        use_attention(model, attn_implementation)
        loaded = {f"encoder.{name}" for name in encoder.state_dict() if name not in missing}
        model.new_parameters = {name for name, _ in model.named_parameters() if name not in loaded}
        return model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_labels: Tensor | None = None,
        visibility_seed: Tensor | None = None,
        decoder_visibility: Tensor | None = None,
        decoder_rows: Tensor | None = None,
        pair_labels: Tensor | None = None,
        bow_labels: Tensor | None = None,
        document_id: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        word_ids: Tensor | None = None,
        **bookkeeping: Any,
    ) -> RetroMAEPreTrainingOutput:
        """Encode, and rebuild what carries a label.

        Args:
            input_ids: int64 `[B, L]`, the encoder's corrupted passage, [CLS] first, padding last.
            attention_mask: `[B, L]`, 1 at tokens and 0 at padding; all tokens by default.
            labels: int64 `[B, L]`, the encoder's labels, -100 where there is none.
            decoder_input_ids: int64 `[B, L]`, the decoder's view of the passage: the whole passage for enhanced
                decoding, the masked one for basic decoding.
            decoder_labels: int64 `[B, L]`, the decoder's labels, -100 where there is none; position 0 never has one.
            visibility_seed: int64 `[B]`, one seed a passage, from which enhanced decoding draws its visibility mask;
                by default drawn from torch's generator.
            decoder_visibility: bool `[B, L, L]`, True = row i may see column j; overrides the drawn mask. A row that
                sees nothing is shown column 0.
            decoder_rows: integers `[B, R]`, the positions that enhanced decoding rebuilds, 0 where a passage has fewer
                of them; by default all that have a label. The others are not computed.
            pair_labels: int64 `[B]`, of NSP or SOP: 0 where the second segment follows the first, else 1.
            bow_labels: int64 `[B, L]`, the ordinary tokens that the sentence embedding has to predict as a bag of
                words, -100 elsewhere, where `bow_source` is "sentence".
            document_id: int64 `[B / 2]`, of the span contrast: the document of whose passage rows i and B / 2 + i are.
            token_type_ids: int64 `[B, L]`, segment ids of encoder and decoder, for encoders that tell segments apart.
            word_ids: int32 `[B, L]`, the number of each token's word, where the drawn mask hides words as a whole.
            **bookkeeping: see `Bookkeeping`; no loss depends on it but for the counts of an accumulated step.

        Returns:
            `RetroMAEPreTrainingOutput`.

        Raises:
            RetroMAEError: inputs do not go together, or the passages are too long for the encoder.
        """
        if self.training and labels is not None:
            given = {"decoder_labels": decoder_labels, "pair_labels": pair_labels}
            warn_of_missing_labels(self.config, **given, bow_labels=bow_labels, document_id=document_id)
        if decoder_labels is not None and decoder_input_ids is not None:
            # In one lookup, because the gradient of each is as large as the whole table.
            words = self.masked_lm.get_input_embeddings()(torch.cat([input_ids, decoder_input_ids]))
            input_ids, decoder_input_ids = words.split(len(input_ids))
        else:  # of ids some families look whether there is padding, and the host waits
            input_ids = self.masked_lm.get_input_embeddings()(input_ids)
        slots, decoder_slots = bookkeeping.get("label_slots"), bookkeeping.get("decoder_label_slots")
        if self.config.decoding == "condenser":  # its head predicts what the encoder has to
            decoder_labels, decoder_slots = labels, slots

        # Encode: everything that the decoder is to know of the passage goes through h.
        states, middle_states = self.encode_for_decoder(input_ids, attention_mask, token_type_ids)
        h = self.pool(states, attention_mask)

        # States [T, H] and labels [T] of what the encoder, and what the decoder has to predict.
        predicted: dict[str, tuple[Tensor, Tensor]] = {}
        if labels is not None:
            predicted["mlm_loss"] = labelled_rows(states, labels, slots)
        if decoder_labels is not None:
            inputs = DecoderInputs(
                decoder_input_ids=decoder_input_ids,
                decoder_labels=decoder_labels,
                attention_mask=attention_mask,
                visibility_seed=visibility_seed,
                decoder_visibility=decoder_visibility,
                decoder_rows=decoder_rows,
                token_type_ids=token_type_ids,
                word_ids=word_ids,
                middle_states=middle_states,
                decoder_label_slots=decoder_slots,
            )
            predicted["decoder_loss"] = self.decode(h, inputs)

        # The two cross-entropies, and what stands beside them.
        counts = divisors(predicted, h, bookkeeping.get("step_counts"), self.training)
        loss, parts = self._token_losses(predicted, counts)
        predicting, mask = h[:, None], None
        if self.config.bow_loss_weight > 0 and self.config.bow_source == "tokens":
            predicting, mask, bow_labels = states[:, 1:], attention_mask, decoder_labels
        if bow_labels is not None:
            parts["bow_loss"] = self.bow_loss(predicting, bow_labels, mask) * len(states) / counts["passages"]
            falling = self.bow_loss_weight if self.training else None
            loss = loss + (self.config.bow_loss_weight if falling is None else falling) * parts["bow_loss"]
        if pair_labels is not None:
            parts["pair_loss"] = cross_entropy(self.pair_logits(h), pair_labels, reduction="sum") / counts["passages"]
            loss = loss + parts["pair_loss"]
        if document_id is not None and self.config.pair_objective == "contrast":
            found = contrast_logits(h, document_id, self.config.contrast_temperature, gathered=self.training)
            parts["contrast_loss"] = cross_entropy(*found, reduction="sum") / counts["passages"]
            loss = loss + self.config.contrast_loss_weight * parts["contrast_loss"]
        # A clone, because FSDP warns of outputs that are views, as is right where somebody writes to them.
        return RetroMAEPreTrainingOutput(loss=loss if parts else None, sentence_embedding=h.clone(), **parts)

    forward.__signature__ = signature_for_trainer(forward)  # type: ignore[attr-defined]

    def encode_for_decoder(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The last hidden states `[B, L, H]`, and for a Condenser those of the middle layer beside them."""
        if self.config.decoding != "condenser":
            return self.encode(input_ids, attention_mask, token_type_ids), None
        self._check_length(input_ids)
        return self.backbone.last_and_middle_states(self.masked_lm, input_ids, attention_mask, token_type_ids)

    def decode(self, sentence_embedding: Tensor, inputs: DecoderInputs) -> tuple[Tensor, Tensor]:
        """Rebuild the labelled tokens from a sentence embedding `[B, H]`.

        Returns:
            States `[T, H]` and labels `[T]` of the T labelled positions, row by row.
        """
        if self.config.decoding == "none":
            raise RetroMAEError("this model has no decoder (decoding='none'); leave decoder_labels out")
        h, labels = sentence_embedding[:, None], inputs.decoder_labels
        if self.config.decoding == "condenser":
            tokens = cast(Tensor, inputs.middle_states)
        elif inputs.decoder_input_ids is None:
            raise RetroMAEError("decoder_labels need decoder_input_ids; DataCollatorForRetroMAE makes both")
        else:
            embedded = self.backbone.embed(self.masked_lm, inputs.decoder_input_ids, inputs.token_type_ids)
            tokens = self._with_own_positions(embedded)
        context = torch.cat([h, tokens[:, 1:]], dim=1)
        if self.config.decoding != "enhanced":
            real = None if inputs.attention_mask is None else inputs.attention_mask[:, None].bool()
            return self.decoder(context, None, real, labels, inputs.decoder_label_slots)
        queries, rows = self._queries(h, context.shape[1]), torch.arange(1, context.shape[1], device=h.device)
        if inputs.decoder_rows is not None:
            drawn = inputs.decoder_rows.to(torch.int64)
            labels = labels.take_along_dim(drawn, 1)
            rows = drawn.clamp(min=1)  # position 0 has neither a label nor a query
            queries = queries.take_along_dim(rows[:, :, None] - 1, 1)
        visible = self._visibility(rows, inputs, len(context), context.shape[1])
        return self.decoder(queries, context, visible, labels, inputs.decoder_label_slots)

    def _queries(self, h: Tensor, length: int) -> Tensor:
        """The queries H1 of enhanced decoding without their row 0, which carries no label: `[B, L - 1, H]` (eq. 4)."""
        if self.config.decoder_query == "embedded":
            embedded = self.backbone.embed(self.masked_lm, h.expand(-1, length, -1))
            return self._with_own_positions(embedded)[:, 1:]
        positions = self.backbone.position_embeddings(self.masked_lm, length)
        return h + (self.decoder_positions.weight[:length] if positions is None else positions)[1:]

    def _with_own_positions(self, embedded: Tensor) -> Tensor:
        """Embedded tokens `[B, L, H]` with the decoder's own positions, where the encoder embeds none."""
        if not hasattr(self, "decoder_positions"):
            return embedded
        return embedded + self.decoder_positions.weight[: embedded.shape[1]]

    def _visibility(self, rows: Tensor, inputs: DecoderInputs, batch: int, length: int) -> Tensor | VisibleRows:
        """What rows `[R]` or `[B, R]` may see, bool `[B, R, L]` (eq. 7); for long passages what makes it by rows."""
        device, ratio = rows.device, self.config.decoder_mask_ratio
        seed, given, mask = inputs.visibility_seed, inputs.decoder_visibility, inputs.attention_mask
        if given is not None:
            if given.shape != (batch, length, length):
                needed = [batch, length, length]
                raise RetroMAEError(f"decoder_visibility has shape {list(given.shape)} and needs {needed}")
            visible = given.bool().take_along_dim(rows.expand(batch, -1)[:, :, None], 1)
            sees_nothing = ~visible.any(dim=2, keepdim=True)
            return visible | (sees_nothing & (torch.arange(length, device=device) == 0))
        if seed is None:
            # The full range of int64 but its last value, which randint cannot name.
            seed = torch.randint(-(2**63), 2**63 - 1, (batch,), device=device)
        lengths = torch.full((batch,), length, device=device) if mask is None else mask.sum(1)
        if length <= LONG_PASSAGE:
            return visibility_mask(seed, lengths, ratio, length, inputs.word_ids, rows)
        return lambda start, stop: visibility_mask(seed, lengths, ratio, length, inputs.word_ids, rows[..., start:stop])

    def _token_losses(
        self, predicted: dict[str, tuple[Tensor, Tensor]], counts: dict[str, Tensor]
    ) -> tuple[Any, dict[str, Tensor]]:
        """The weighted sum of the cross-entropies of states `[T, H]` against labels `[T]`, and each by itself (eq. 6).

        All go through the head at once, so that the large gradient of its projection is made once.
        """
        if not predicted:
            return 0, {}
        states, labels = zip(*predicted.values(), strict=True)
        weights = [self.config.mlm_loss_weight if name == "mlm_loss" else 1.0 for name in predicted]
        divided_by = [counts[name] for name in predicted]
        total, means = grouped_cross_entropy(*self.head(torch.cat(states)), labels, weights, divided_by)
        return total, dict(zip(predicted, means, strict=True))

    def bow_loss(self, states: Tensor, labels: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The bag-of-words loss of states `[B, P, H]` against the ordinary tokens `labels` `[B, L]`.

        The logits are max-pooled over the P states: in DupMAE, as in the released code, those of every position but
        [CLS] and padding, in BoW-DPR the sentence embedding by itself. The mask's last P columns say which are real.
        """
        real = torch.ones_like(states[:, :, 0]) if attention_mask is None else attention_mask[:, -states.shape[1] :]
        return bag_of_words_loss(*self.head(states), real.bool(), labels.to(torch.int64))

    def pair_logits(self, sentence_embedding: Tensor) -> Tensor:
        """Logits `[B, 2]` of the pair objective for sentence embeddings `[B, H]`."""
        if self.config.pair_objective not in SEGMENT_OBJECTIVES:
            raise RetroMAEError(f"pair_objective={self.config.pair_objective!r} has no labels; leave pair_labels out")
        return self.pair_head(sentence_embedding)


class RetroMAEModel(RetroMAEPreTrainedModel):
    """The encoder of a RetroMAE checkpoint, without the decoder; what `AutoModel` makes of such a checkpoint.

    Args:
        config: the checkpoint's; of the decoder's fields none is used.

    Raises:
        RetroMAEError: the encoder's family is not known.
    """

    _keys_to_ignore_on_load_unexpected = (r"^(decoder|decoder_positions|pair_head)\.",)

    def __init__(self, config: RetroMAEConfig):
        super().__init__(config)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """Encode passages.

        Args:
            input_ids: int64 `[B, L]`, [CLS] first, padding last.
            attention_mask: `[B, L]`, 1 at tokens and 0 at padding; all tokens by default.
            token_type_ids: int64 `[B, L]`, segment ids, for encoders that tell segments apart.

        Returns:
            Token states `[B, L, H]` as `last_hidden_state`, sentence embeddings `[B, H]` as `pooler_output`.
        """
        states = self.encode(input_ids, attention_mask, token_type_ids)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=self.pool(states, attention_mask))
