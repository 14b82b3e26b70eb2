"""What is special about RetroMAE's training, as callbacks of a plain `Trainer`; new parts learn beside PEFT's too."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Set
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import BatchSamplerShard, get_sampler
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import normalize
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..data.collator import DataCollatorForRetroMAE
from ..data.draws import passage_seeds
from ..model.counting import average_over_processes, count_processes, labelled_rows
from ..model.encoders import RetroMAEPreTrainedModel
from ..model.errors import RetroMAEError
from ..model.losses import contrast_logits
from ..model.modeling_retromae import DecoderInputs, RetroMAEForPreTraining, RetroMAEPreTrainingOutput
from ..retrieval.embedders import checkpoint_embedder
from ..retrieval.evaluation import evaluate_embedder
from ..retrieval.tasks import RetrievalTask

COMPONENTS = ("mlm_loss", "decoder_loss", "bow_loss", "pair_loss", "contrast_loss")
MEASURED = (
    "embedding_gap",
    "bow_gap",
    "mean_cosine",
    "encoder_accuracy",
    "decoder_accuracy",
    "pair_accuracy",
    "contrast_accuracy",
)
"""What `measure_decoder` tells."""


def without_adapters(model: Any) -> RetroMAEPreTrainedModel:
    """The model itself, where PEFT has wrapped it as a whole."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def train_new_parts_in_full(model: Any) -> None:
    """Let decoder and MLM head learn in full beside adapters of PEFT, which freeze all that there is.

    They are new, or were taught something else, and a low rank is no change of what is random. PEFT trains and saves
    them as its `modules_to_save`, without adapters in them; what the head shares with the word embeddings stays frozen.
    The model may be wrapped by `get_peft_model`, or its `encoder`; a plain one is left as it is.
    """
    own = without_adapters(model)
    encoder = own.masked_lm
    wrapped, inside = (own.encoder, encoder) if own is model else (model, own)
    if wrapped is inside:
        return
    from peft.utils.other import set_additional_trainable_modules

    shared = {*encoder.get_input_embeddings().parameters()}
    names = [*_parts_beside(encoder, encoder.base_model_prefix, shared)]
    if inside is own:
        names = [*_parts_beside(own, "encoder"), *(f"encoder.{name}" for name in names)]
    for name, layer in [*inside.named_modules()]:
        if hasattr(layer, "get_base_layer") and any(name.startswith(f"{one}.") or name == one for one in names):
            parent, _, child = name.rpartition(".")
            setattr(inside.get_submodule(parent), child, layer.get_base_layer())
    config = wrapped.active_peft_config
    # What is saved says so, that it is put together again alike.
    config.exclude_modules = "|".join(rf"{re.escape(name)}(\..*)?" for name in names)
    config.modules_to_save = [*(config.modules_to_save or []), *(f"model.{name}" for name in names)]
    set_additional_trainable_modules(wrapped, config, None, wrapped.active_adapter)


def _parts_beside(model: nn.Module, left_out: str, shared: Set[nn.Parameter] = frozenset()) -> Iterator[str]:
    """The names of the largest modules without the shared parameters, of all but one child; of a list its members."""
    for name, module in model.named_children():
        parameters = {*module.parameters()}
        if name == left_out or not parameters:
            continue
        if isinstance(module, nn.ModuleList) or parameters & shared:
            yield from (f"{name}.{part}" for part in _parts_beside(module, "", shared))
        else:
            yield name


class RetroMAECallback(TrainerCallback):
    """Tells collator and sampler the epoch, checks that the collator fits the model, and logs the parts of the loss.

    The parts stand beside `loss` in the logs and in `trainer_state.json`, each the mean since the last log. They are
    summed on the device, so that only logging waits for it. Training does not start, with a `RetroMAEError`, where
    collator and model were configured differently.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._epoch = 0
        self._collator: DataCollatorForRetroMAE | None = None
        self._order: torch.Generator | None = None
        self._hook: Any = None

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        train_new_parts_in_full(model)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        self._go_first()
        loader = kwargs["train_dataloader"]
        collator = getattr(loader, "collate_fn", None)
        collator = getattr(collator, "data_collator", collator)  # Trainer's RemoveColumnsCollator
        if isinstance(collator, DataCollatorForRetroMAE):
            self._collator = collator
            collator.check_matches(model.config)
        if args.n_gpu > 1 and model.config.pair_objective == "contrast":
            raise RetroMAEError(
                "several GPUs in one process (DataParallel) part the two spans of a passage; start a process for each, "
                "with accelerate launch"
            )
        shard = loader.batch_sampler  # where several processes share the batches the sampler lies one level deeper
        sampler = shard.batch_sampler.sampler if isinstance(shard, BatchSamplerShard) else get_sampler(loader)
        if isinstance(sampler, LengthGroupedSampler):
            # Of the batches of all processes, so that none waits for one with longer passages, and so that the order
            # does not depend on how many processes share a batch.
            sampler.batch_size *= args.world_size
            # It sorts by single lengths, and a column of a dataset is slow to give them one by one.
            sampler.lengths = np.asarray(sampler.lengths[:]).tolist()
            if sampler.generator is None:
                # Otherwise it draws from torch's own generator, which stands elsewhere when a run is resumed.
                self._order = sampler.generator = torch.Generator()
        self._epoch = int(state.epoch or 0)
        self._set_epoch()  # for an evaluation before the first step
        self._hook = model.register_forward_hook(self._add_components)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._set_epoch()  # one that a resumed run goes on with has its old number
        if self._order is not None:
            seed = args.seed if args.data_seed is None else args.data_seed
            self._order.manual_seed(int(passage_seeds(seed, self._epoch, torch.tensor(0))))
        self._epoch += 1

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        """Give the model the weight of its bag of words at this step, where it falls (arXiv 2401.11248)."""
        if (final := model.config.final_bow_loss_weight) is not None:
            share = (1 + math.cos(math.pi * state.global_step / state.max_steps)) / 2
            weight = final + share * (model.config.bow_loss_weight - final)
            # Filled on the device: a copy of a number from the host would wait for what is queued there.
            without_adapters(model).bow_loss_weight = torch.full((), weight, device=args.device)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" not in logs:
            return
        means = {name: reduce(total / self._counts[name], "mean").item() for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        logs.update(means)
        state.log_history[-1].update(means)  # Trainer has already copied `logs` into it

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        self._hook.remove()
        without_adapters(model).bow_loss_weight = None

    def _set_epoch(self) -> None:
        if self._collator is not None:
            self._collator.set_epoch(self._epoch)

    def _go_first(self) -> None:
        """Take the first place among the callbacks, so that all others, and every reporter, see the parts in the logs.

        `Trainer` puts its reporters before a user's callbacks, and hands no callback the list of them.
        """
        frame = inspect.currentframe()
        while frame is not None:
            handler = frame.f_locals.get("self")
            if isinstance(handler, CallbackHandler):
                handler.callbacks.remove(self)
                handler.callbacks.insert(0, self)
                return
            frame = frame.f_back

    @torch.compiler.disable  # it holds state that changes with every step, each time a new graph
    def _add_components(self, module: nn.Module, inputs: Any, outputs: RetroMAEPreTrainingOutput) -> None:
        if not module.training:
            return
        for name in COMPONENTS:
            if (loss := outputs.get(name)) is not None:
                loss = loss.detach().float()
                self._sums[name] = self._sums[name] + loss if name in self._sums else loss
                self._counts[name] = self._counts.get(name, 0) + 1


class RetrievalCallback(TrainerCallback):
    """At every evaluation, logs zero-shot retrieval on a small task and what the embedding is worth to the decoder.

    `eval_ndcg@10`, `eval_mrr@10`, `eval_recall@100` and `eval_map@100` are those of the sentence embedding by cosine.
    `eval_embedding_gap`, in nats a token, is the decoder's loss when the batch's embeddings are exchanged among its
    passages minus its loss with the right ones: 0 means that the decoder does not use the embedding. `eval_bow_gap` is
    the same of the bag of words that the sentence embedding predicts.
    `eval_mean_cosine` is that of the embeddings of random passages: towards 1 they collapse.
    `eval_encoder_accuracy` and `eval_decoder_accuracy` are shares of the labelled tokens, `eval_pair_accuracy`
    one of the pairs. In a distributed run every process searches with the same embeddings, so that sharded models work
    too, and has evaluation batches of its own; all get the means, so that they agree on which checkpoint is the best.

    Args:
        trainer: the trainer that the callback is added to, for its logs and its evaluation batches.
        task: the retrieval task; None leaves the retrieval measures out.
        max_length: tokens of a text at most.
        batches: evaluation batches that the gap and the accuracies are measured on.
    """

    def __init__(self, trainer: Trainer, task: RetrievalTask | None, max_length: int, batches: int = 4):
        self.trainer = trainer
        self.task = task
        self.max_length = max_length
        self.batches = batches

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        with self.trainer.accelerator.autocast(), gathered(model):
            measured = {}
            if self.task is not None:
                tokenizer, batch_size = self.trainer.processing_class, args.per_device_eval_batch_size
                embedder = checkpoint_embedder(model, tokenizer, self.max_length, batch_size, progress=False)
                measured = evaluate_embedder(self.task, embedder)
            batches = islice(self.trainer.get_eval_dataloader(), self.batches)
            measured |= measure_decoder(model, [self.trainer._prepare_inputs(batch) for batch in batches])
            if count_processes() > 1:
                means = average_over_processes(torch.tensor([*measured.values()], device=args.device))
                measured = dict(zip(measured, means.tolist(), strict=True))
        measured = {f"eval_{name}": value for name, value in measured.items()}
        kwargs["metrics"].update(measured)  # so that metric_for_best_model can name them
        self.trainer.log(measured)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """A sharded model (FSDP2) whose methods beside `forward` can be called; its layers gather their own weights."""
    if isinstance(model, FSDPModule):
        model.unshard()
    try:
        yield
    finally:
        if isinstance(model, FSDPModule):
            model.reshard()


@torch.no_grad()
def measure_decoder(model: RetroMAEForPreTraining, batches: list[dict[str, Tensor]]) -> dict[str, float]:
    """`MEASURED`, means over batches; one of a single passage has no other embedding to compare with."""
    was_training = model.training
    model.eval()
    try:
        measured = [_measure_batch(model, batch) for batch in batches]
    finally:
        model.train(was_training)
    names = dict.fromkeys(name for one in measured for name in one)
    return {name: torch.stack([one[name].float() for one in measured if name in one]).mean().item() for name in names}


def _measure_batch(model: RetroMAEForPreTraining, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    measured = {}
    states, middle_states = model.encode_for_decoder(
        batch["input_ids"], batch.get("attention_mask"), batch.get("token_type_ids")
    )
    embedding = model.pool(states, batch.get("attention_mask"))
    passages = embedding[: len(batch.get("document_id", embedding))]  # a span's partner is much like it
    if len(passages) > 1:
        measured["mean_cosine"] = mean_cosine(passages)
    measured["encoder_accuracy"] = model.token_accuracy(*labelled_rows(states, batch["labels"]))
    if "bow_labels" in batch and len(embedding) > 1:
        own, others = (model.bow_loss(one[:, None], batch["bow_labels"]) for one in (embedding, embedding.roll(1, 0)))
        measured["bow_gap"] = others - own
    if "pair_labels" in batch:
        right = model.pair_logits(embedding).argmax(1) == batch["pair_labels"]
        measured["pair_accuracy"] = right.float().mean()
    if "document_id" in batch:
        logits, partners = contrast_logits(embedding, batch["document_id"], model.config.contrast_temperature)
        measured["contrast_accuracy"] = (logits.argmax(1) == partners).float().mean()
    if model.config.decoding == "none":
        return measured
    inputs: dict[str, Any] = {
        "decoder_input_ids": None,  # a Condenser has none
        "decoder_labels": batch["labels"],
        "middle_states": middle_states,
    }
    inputs |= {name: batch[name] for name in DecoderInputs._fields if name in batch}
    rebuilt = model.decode(embedding, DecoderInputs(**inputs))
    measured["decoder_accuracy"] = model.token_accuracy(*rebuilt)
    if len(embedding) > 1:
        other = model.decode(embedding.roll(1, dims=0), DecoderInputs(**inputs))
        measured["embedding_gap"] = model.token_loss(*other) - model.token_loss(*rebuilt)
    return measured


def mean_cosine(embeddings: Tensor) -> Tensor:
    """The mean cosine of `embeddings` `[B, H]` of different passages, a scalar; B is at least 2."""
    total = normalize(embeddings.float(), dim=1).sum(dim=0)
    return (total @ total - len(embeddings)) / (len(embeddings) * (len(embeddings) - 1))
