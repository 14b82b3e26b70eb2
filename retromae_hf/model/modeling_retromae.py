"""The RetroMAE models: one to pretrain with, and the encoder alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .backbones import backbone_for
from .bag_of_words import bag_of_words_loss
from .configuration_retromae import RetroMAEConfig
from .decoder import DecoderLayer, PairHead, VisibleRows
from .distributed import average_over_processes, sharded_by_accelerate
from .errors import RetroMAEError, in_one_sentence
from .losses import count_labels, grouped_cross_entropy, labelled_rows, linear_cross_entropy, token_accuracy
from .masking import visibility_mask
from .trust import check_code, safetensors_only

LONG_PASSAGE = 1024
"""Tokens up to which a passage's visibility mask is made as a whole."""


@dataclass
class RetroMAEPreTrainingOutput(ModelOutput):
    """What `RetroMAEForPreTraining` returns. A loss is None where its labels or its part of the model are absent.

    Where several processes train together, a loss is the sum over this process's labels (or passages) divided by the
    average number of them in a process: its mean over the processes is the mean over all their labels.

    Attributes:
        loss: scalar, the weighted sum of the parts that are there; the one to differentiate.
        mlm_loss: scalar, the encoder's mean cross-entropy over its masked tokens; for the logs, without gradient.
        decoder_loss: scalar, the decoder's mean cross-entropy over its labelled tokens; likewise.
        bow_loss: scalar, the bag-of-words loss (DupMAE), before its weight.
        pair_loss: scalar, the mean cross-entropy of the pair objective.
        sentence_embedding: `[B, H]`, the final hidden state of [CLS].
    """

    loss: Tensor | None = None
    mlm_loss: Tensor | None = None
    decoder_loss: Tensor | None = None
    bow_loss: Tensor | None = None
    pair_loss: Tensor | None = None
    sentence_embedding: Tensor | None = None


class RetroMAEPreTrainedModel(PreTrainedModel):
    """What both models share: an encoder, a plain `*ForMaskedLM`, under the name `encoder`."""

    config_class = RetroMAEConfig
    base_model_prefix = "retromae"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: RetroMAEConfig):
        super().__init__(config)
        self.backbone = backbone_for(config.encoder_config)
        with in_one_sentence(f"no {config.encoder_config.model_type} encoder can be made of this configuration"):
            self.encoder = AutoModelForMaskedLM.from_config(config.encoder_config)
        self.supports_gradient_checkpointing = self.encoder.supports_gradient_checkpointing

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers`, from safetensors alone: a pickle can run code when it is read.

        Raises:
            RetroMAEError: the weights are pickled.
        """
        kwargs["use_safetensors"] = True
        with safetensors_only(pretrained_model_name_or_path or "", kwargs.get("subfolder") or ""):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module | None:
        """The encoder's word embeddings; None where accelerate shards the model, see `get_output_embeddings`."""
        return None if sharded_by_accelerate() else self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the encoder's word embeddings."""
        self.encoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The encoder's output projection; None where accelerate shards the model.

        It asks for both to give them units of their own, whose weights are whole only while the modules are called.
        The losses read weight and bias without calling, and masked-LM heads share them with other modules, so they
        have to stay in the root's unit, which is whole from the forward pass to the end of the backward pass.
        """
        return None if sharded_by_accelerate() else self.encoder.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the encoder's output projection."""
        self.encoder.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Resize the encoder's vocabulary; its configuration, which is part of this one, follows."""
        return self.encoder.resize_token_embeddings(*args, **kwargs)

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """The encoder's last hidden states `[B, L, H]`; the sentence embedding is position 0.

        `input_ids` may be word embeddings `[B, L, E]` as well.

        Raises:
            RetroMAEError: the batch is longer than the encoder's positions.
        """
        self._check_length(input_ids)
        return self.backbone.token_states(self.encoder, input_ids, attention_mask, token_type_ids)

    def _check_length(self, tokens: Tensor) -> None:
        limit = self.backbone.max_positions(self.encoder.config)
        if tokens.shape[1] > limit:
            raise RetroMAEError(
                f"passages of {tokens.shape[1]} tokens do not fit the encoder's {limit} positions; "
                f"prepare them with max_length={limit} or less"
            )


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
            Token states `[B, L, H]` as `last_hidden_state`, sentence embeddings `[B, H]`, which are the final states of
            [CLS], as `pooler_output`.
        """
        states = self.encode(input_ids, attention_mask, token_type_ids)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=states[:, 0])


class RetroMAEForPreTraining(RetroMAEPreTrainedModel):
    """Encoder and decoder with the RetroMAE objective (arXiv 2205.12035, section 3).

    `save_pretrained` keeps both, so training can go on from what it wrote; `export_encoder` hands over the encoder,
    which is the plain `*ForMaskedLM` model `encoder`.

    Args:
        config: of the encoder and the decoder, whose weights are new; `from_encoder` starts from a trained encoder.

    Raises:
        RetroMAEError: the encoder's family is not known, or does not go with the decoder.
    """

    # The losses are divided by counts of their own labels: Trainer must not rescale them by a count of its own.
    accepts_loss_kwargs = False

    def __init__(self, config: RetroMAEConfig):
        super().__init__(config)
        if config.decoding != "none":
            shape = self.backbone.decoder_shape(config.encoder_config)
            self.decoder = nn.ModuleList(DecoderLayer(shape) for _ in range(config.num_decoder_layers))
            # A Condenser reads token states, which hold their positions already.
            if config.decoding != "condenser" and not self.backbone.has_position_table(config.encoder_config):
                limit = self.backbone.max_positions(config.encoder_config)
                self.decoder_positions = nn.Embedding(limit, config.hidden_size)
            if config.decoder_query == "embedded":
                size = self.backbone.embedding_size(config.encoder_config)
                if size != config.hidden_size:
                    raise RetroMAEError(
                        f"decoder_query='embedded' puts the sentence embedding of size {config.hidden_size} through an "
                        f"embedding module of size {size}; use decoder_query='sum' with this encoder"
                    )
        if config.pair_objective is not None:
            self.pair_head = PairHead(config.hidden_size)
        self.post_init()
        # FSDP's units, beside the root's. Some families name their embeddings too, whose weights the head shares.
        layers = {type(module).__name__ for module in self.modules() if isinstance(module, GradientCheckpointingLayer)}
        self._no_split_modules = layers

    @classmethod
    def from_encoder(cls, name_or_path: str, **config: Any) -> RetroMAEForPreTraining:
        """Start from any masked-LM checkpoint, with a new decoder.

        Args:
            name_or_path: a folder or a Hub name that `AutoModelForMaskedLM` loads, from safetensors.
            **config: fields of `RetroMAEConfig`.

        Returns:
            The model, in float32.

        Raises:
            RetroMAEError: the encoder's family is not known, its weights are pickled, or the checkpoint is itself a
                RetroMAE checkpoint.
        """
        check_code(name_or_path, trust_remote_code=False)
        encoder_config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
        if isinstance(encoder_config, RetroMAEConfig):
            raise RetroMAEError(
                f"{name_or_path} is a RetroMAE checkpoint; continue it with RetroMAEForPreTraining.from_pretrained"
            )
        model = cls(RetroMAEConfig(encoder_config=encoder_config, **config))
        # float32 whatever the file holds: the optimizer's small steps are lost in half precision.
        with safetensors_only(name_or_path):
            model.encoder = AutoModelForMaskedLM.from_pretrained(
                name_or_path,
                config=encoder_config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,  # the backbones know the classes of transformers alone
            )
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
        pair_labels: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        word_ids: Tensor | None = None,
        label_slots: Tensor | None = None,
        decoder_label_slots: Tensor | None = None,
        step_counts: Tensor | None = None,
        passage_id: Tensor | None = None,
        document_id: Tensor | None = None,
        length: Tensor | None = None,
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
            pair_labels: int64 `[B]`, of a pair objective: 0 where the second segment follows the first, else 1.
            token_type_ids: int64 `[B, L]`, segment ids of encoder and decoder, for encoders that tell segments apart.
            word_ids: int32 `[B, L]`, the number of each token's word, where the drawn mask hides words as a whole.
            label_slots: of no content, `[B, T, 0]`: its shape says that there are T labels in the batch, or fewer. The
                shape is known on the host, so that nobody waits for an accelerator to count them.
            decoder_label_slots: likewise for `decoder_labels`.
            step_counts: int64 `[batches, 3]`, the numbers of encoder labels, decoder labels and passages in each batch
                of a step that accumulates gradients; their averages then take the place of the batch's own counts.
            passage_id: not used. Its name here keeps `Trainer` from dropping the column before the collator, which
                derives the seeds from it, and lets a callback tell which passages a batch holds.
            document_id: not used, likewise; the collator draws false successors from other documents.
            length: not used, likewise; `Trainer` groups passages by it, and without it reads them all to know.

        Returns:
            `RetroMAEPreTrainingOutput`.

        Raises:
            RetroMAEError: inputs do not go together, or the passages are too long for the encoder.
        """
        if decoder_labels is not None and decoder_input_ids is not None:
            # In one lookup, because the gradient of each is as large as the whole table.
            words = self.encoder.get_input_embeddings()(torch.cat([input_ids, decoder_input_ids]))
            input_ids, decoder_input_ids = words.split(len(input_ids))
        states, middle_states = self.encode_for_decoder(input_ids, attention_mask, token_type_ids)
        if self.config.decoding == "condenser":
            decoder_labels, decoder_label_slots = labels, label_slots  # its head predicts what the encoder has to
        sentence_embedding = states[:, 0]
        to_predict: dict[str, tuple[Tensor, Tensor]] = {}
        if labels is not None:
            to_predict["mlm_loss"] = labelled_rows(states, labels, label_slots)
        if decoder_labels is not None:
            to_predict["decoder_loss"] = self.decode(
                sentence_embedding,
                decoder_input_ids,
                decoder_labels,
                attention_mask,
                visibility_seed,
                decoder_visibility,
                token_type_ids,
                word_ids,
                middle_states,
                decoder_label_slots,
            )
        *label_counts, passage_count = self._counts(to_predict, sentence_embedding, step_counts)
        loss, parts = self._token_losses(to_predict, label_counts)
        if decoder_labels is not None and self.config.bow_loss_weight > 0:
            parts["bow_loss"] = self.bow_loss(states, attention_mask, decoder_labels) * len(states) / passage_count
            loss = loss + self.config.bow_loss_weight * parts["bow_loss"]
        if pair_labels is not None:
            logits = self.pair_logits(sentence_embedding)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            parts["pair_loss"] = cross_entropy(logits, pair_labels, reduction="sum") / passage_count
            loss = parts["pair_loss"] + (0 if loss is None else loss)
        # A clone, because FSDP warns of outputs that are views, as is right where somebody writes to them.
        return RetroMAEPreTrainingOutput(loss=loss, sentence_embedding=sentence_embedding.clone(), **parts)

    def _counts(
        self, to_predict: dict[str, tuple[Tensor, Tensor]], sentence_embedding: Tensor, step_counts: Tensor | None
    ) -> Tensor:
        """What the sums of the losses are divided by: the labels of each kind, and behind them the passages.

        In training these are averages over the processes and over the batches of a step, which then equals that of one
        process on one batch of them all; a mean of means would count a label of a short batch for more than others.
        """
        if step_counts is None:
            passages = torch.zeros_like(sentence_embedding[:, 0], dtype=torch.int64)  # none of them is IGNORE_INDEX
            counts = count_labels([*(labels for _, labels in to_predict.values()), passages])
        else:
            encoder, decoder, passages = (step_counts.sum(0) / len(step_counts)).unbind()
            kinds = {"mlm_loss": encoder, "decoder_loss": encoder if self.config.decoding == "condenser" else decoder}
            counts = torch.stack([*(kinds[name] for name in to_predict), passages])
        return average_over_processes(counts) if self.training else counts

    def _token_losses(
        self, to_predict: dict[str, tuple[Tensor, Tensor]], counts: Sequence[Tensor]
    ) -> tuple[Any, dict[str, Tensor]]:
        """The weighted sum of the losses of the given states and labels, `[T, H]` and `[T]`, and each by itself.

        All go through the head at once, so that the large gradient of its projection is made once.
        """
        if not to_predict:
            return None, {}
        states, labels = zip(*to_predict.values(), strict=True)
        total, means = grouped_cross_entropy(
            self.backbone.head_features(self.encoder, torch.cat(states)),
            *self.backbone.output_projection(self.encoder),
            torch.cat(labels),
            sizes=[len(part) for part in labels],
            group_weights=[self.config.mlm_loss_weight if name == "mlm_loss" else 1.0 for name in to_predict],
            counts=counts,
        )
        return total, dict(zip(to_predict, means, strict=True))

    def encode_for_decoder(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The last hidden states `[B, L, H]`, and for a Condenser those of the middle layer beside them."""
        if self.config.decoding != "condenser":
            return self.encode(input_ids, attention_mask, token_type_ids), None
        self._check_length(input_ids)
        return self.backbone.last_and_middle_states(self.encoder, input_ids, attention_mask, token_type_ids)

    def decode(
        self,
        sentence_embedding: Tensor,
        decoder_input_ids: Tensor | None,
        decoder_labels: Tensor,
        attention_mask: Tensor | None = None,
        visibility_seed: Tensor | None = None,
        decoder_visibility: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        word_ids: Tensor | None = None,
        middle_states: Tensor | None = None,
        decoder_label_slots: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Rebuild the labelled tokens from a sentence embedding `[B, H]`; most other arguments are `forward`'s.

        `decoder_input_ids` may be word embeddings `[B, L, E]` as well. A Condenser takes `middle_states` `[B, L, H]`,
        those of the encoder's middle layer, instead.

        Returns:
            States `[T, H]` and labels `[T]` of the T labelled positions, row by row.
        """
        if self.config.decoding == "none":
            raise RetroMAEError("this model has no decoder (decoding='none'); leave decoder_labels out")
        h = sentence_embedding[:, None]
        rows: Tensor
        visible: Tensor | VisibleRows | None
        if self.config.decoding == "condenser":
            tokens = cast(Tensor, middle_states)
        elif decoder_input_ids is None:
            raise RetroMAEError("decoder_labels need decoder_input_ids; DataCollatorForRetroMAE makes both")
        else:
            embedded = self.backbone.embed(self.encoder, decoder_input_ids, token_type_ids)
            tokens = self._with_own_positions(embedded)
        context = torch.cat([h, tokens[:, 1:]], dim=1)
        two_streams = self.config.decoding == "enhanced"
        if two_streams:
            rows = self._queries(h, context.shape[1])
            visible = self._visibility(attention_mask, visibility_seed, decoder_visibility, word_ids, context)
        else:
            rows, visible = context, None if attention_mask is None else attention_mask[:, None].bool()
        *lower, last = cast(list[DecoderLayer], list(self.decoder))
        for layer in lower:
            rows = layer.feed_forward(layer.attend(rows, context if two_streams else rows, visible))
        rows = last.attend(rows, context if two_streams else rows, visible)
        # Enhanced decoding computes no row 0, which carries no label.
        rows, row_labels = labelled_rows(rows, decoder_labels[:, -rows.shape[1] :], decoder_label_slots)
        return last.feed_forward(rows), row_labels

    def token_loss(self, states: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of `states` `[T, H]` against `labels` `[T]` through the encoder's masked-LM head."""
        features = self.backbone.head_features(self.encoder, states)
        return linear_cross_entropy(features, *self.backbone.output_projection(self.encoder), labels)

    def bow_loss(self, states: Tensor, attention_mask: Tensor | None, labels: Tensor) -> Tensor:
        """DupMAE's bag-of-words loss of the encoder's states `[B, L, H]` against the ordinary tokens `labels` `[B, L]`.

        As in the released code the max-pooling runs over every position but [CLS] and padding.
        """
        features = self.backbone.head_features(self.encoder, states[:, 1:])
        labels = labels.to(torch.int64)
        real = torch.ones_like(labels[:, 1:]) if attention_mask is None else attention_mask[:, 1:]
        return bag_of_words_loss(features, *self.backbone.output_projection(self.encoder), real.bool(), labels)

    def pair_logits(self, sentence_embedding: Tensor) -> Tensor:
        """Logits `[B, 2]` of the pair objective for sentence embeddings `[B, H]`."""
        if self.config.pair_objective is None:
            raise RetroMAEError("this model has no pair objective (pair_objective=None); leave pair_labels out")
        return self.pair_head(sentence_embedding)

    def token_accuracy(self, states: Tensor, labels: Tensor) -> Tensor:
        """Share of `states` `[T, H]` whose most probable token is the one in `labels` `[T]`."""
        features = self.backbone.head_features(self.encoder, states)
        return token_accuracy(features, *self.backbone.output_projection(self.encoder), labels)

    def _queries(self, h: Tensor, length: int) -> Tensor:
        """The query stream H1 of enhanced decoding without its row 0, `[B, L - 1, H]` (section 3.3, equation 4)."""
        if self.config.decoder_query == "embedded":
            embedded = self.backbone.embed(self.encoder, h.expand(-1, length, -1))
            return self._with_own_positions(embedded)[:, 1:]
        positions = self.backbone.position_embeddings(self.encoder, length)
        return h + (self.decoder_positions.weight[:length] if positions is None else positions)[1:]

    def _with_own_positions(self, embedded: Tensor) -> Tensor:
        """Embedded tokens `[B, L, H]` with the decoder's own positions, where the encoder embeds none."""
        if not hasattr(self, "decoder_positions"):
            return embedded
        return embedded + self.decoder_positions.weight[: embedded.shape[1]]

    def _visibility(
        self,
        attention_mask: Tensor | None,
        seed: Tensor | None,
        given: Tensor | None,
        word_ids: Tensor | None,
        context: Tensor,
    ) -> Tensor | VisibleRows:
        """The visibility mask of enhanced decoding without its row 0, bool `[B, L - 1, L]`.

        For long passages a function that makes it for some rows.
        """
        batch, length = context.shape[:2]
        device = context.device
        if given is not None:
            if given.shape != (batch, length, length):
                raise RetroMAEError(
                    f"decoder_visibility has shape {list(given.shape)} and needs {[batch, length, length]}"
                )
            visible = given[:, 1:].bool()
            sees_nothing = ~visible.any(dim=2, keepdim=True)
            return visible | (sees_nothing & (torch.arange(length, device=device) == 0))
        if seed is None:
            # The full range of int64 but its last value, which randint cannot name.
            seed = torch.randint(-(2**63), 2**63 - 1, (batch,), device=device)
        lengths = torch.full((batch,), length, device=device) if attention_mask is None else attention_mask.sum(1)
        ratio = self.config.decoder_mask_ratio
        if length <= LONG_PASSAGE:
            return visibility_mask(seed, lengths, ratio, length, word_ids, (1, length))
        return lambda start, stop: visibility_mask(seed, lengths, ratio, length, word_ids, (start + 1, stop + 1))
