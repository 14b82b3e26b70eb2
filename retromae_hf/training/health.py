"""Watches over a training run: numbers that are not finite, and embeddings that collapse."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, reduce
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback, TrainerState, TrainingArguments

from ..model.errors import RetroMAEError
from .saving import last_complete_checkpoint, weights_are_finite

logger = logging.getLogger(__name__)

CHECK_AT_LEAST_EVERY = 100
"""Steps after which the host looks, where nothing is logged or saved before. It waits for the device each time."""
BAD_BATCHES_FILE = "non-finite-batches.jsonl"
"""In the output folder, one line for each step whose loss or gradient was not finite."""
SHOWN_PASSAGES = 16
ALIKE = 0.9
"""Mean cosine of random passages above which their embeddings are called alike."""
NO_GAP = 0.01
"""Nats a token below which the decoder makes no use of the embedding."""
SETTLED = 0.25
"""Share of the steps before which nothing is said of collapse: a new model's embeddings are all alike."""


class HealthCallback(TrainerCallback):
    """Stops a run, or skips the batch, where the loss or the gradient is not finite, and warns of collapse in words.

    The device keeps one flag a step, and the host reads them before it logs, evaluates or saves: the steps themselves
    wait for nothing. Before it evaluates or saves it looks at the weights themselves, which a step may spoil whose
    numbers were finite. With `max_skipped_batches` the host looks at every step, before the optimizer does. Add it
    behind `RetrievalCallback`, whose measures it reads. `loss` returns the loss, where that is not the model.
    """

    def __init__(self, max_skipped_batches: int = 0, loss: nn.Module | None = None):
        self.max_skipped_batches = max_skipped_batches
        self.loss = loss
        self._skipped = 0
        self._batches: list[tuple[Tensor, Tensor | None]] = []
        self._steps: list[tuple[int, Tensor, list[tuple[Tensor, Tensor | None]]]] = []
        self._said: set[str] = set()
        self._hook: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        if not weights_are_finite(model):
            raise RetroMAEError("the weights to start from are not finite; take another model or an earlier checkpoint")
        self._batches, self._steps = [], []
        self._hook = (self.loss or model).register_forward_hook(self._note_batch, with_kwargs=True)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        finite = torch.stack([loss.isfinite() for loss, _ in self._batches]).all()
        if not args.fp16:  # its scaler tries out how far it can go, and skips the steps that went too far
            norm = get_total_norm([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
            whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of a sharded model
            finite = finite & whole.isfinite()
        self._steps.append((state.global_step + 1, finite, self._batches))
        self._batches = []
        if self.max_skipped_batches and self._look(args):
            model.zero_grad(set_to_none=True)  # without gradients the optimizer leaves everything as it is

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        known = control.should_evaluate or control.should_save or control.should_training_stop
        if known or control.should_log or len(self._steps) >= CHECK_AT_LEAST_EVERY:
            self._look(args)
        if known:
            self._look_at_weights(args, state, model)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        self._look(args)
        self._look_at_weights(args, state, model)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if logs.get("loss") == 0:  # which no cross-entropy over a vocabulary reaches
            self._warn("the loss is exactly 0: half precision has probably collapsed; train in bf16 or float32")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        if state.global_step < SETTLED * state.max_steps:
            return
        cosine, gap = metrics.get("eval_mean_cosine", 0.0), metrics.get("eval_embedding_gap", 1.0)
        if cosine > ALIKE:
            self._warn(
                f"the embeddings of unrelated passages are nearly alike (mean cosine {cosine:.2f}); their order may "
                "still serve, and fine-tuning spreads them, but if it goes on rising, lower the learning rate"
            )
        if gap < NO_GAP:
            self._warn(
                f"the decoder makes no use of the sentence embedding (gap {gap:.3f} nats a token); train longer or "
                "raise decoder_mask_ratio"
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._hook.remove()

    @torch.compiler.disable  # it holds state that changes with every step, each time a new graph
    def _note_batch(self, module: nn.Module, inputs: Any, kwargs: dict[str, Any], outputs: Any) -> None:
        if module.training:
            loss = outputs if isinstance(outputs, Tensor) else outputs["loss"]
            self._batches.append((loss.detach(), kwargs.get("passage_id")))

    def _look(self, args: TrainingArguments) -> bool:
        """Whether a batch is to be skipped, by what every process has seen since the last look."""
        steps, self._steps = self._steps, []
        if not steps:
            return False
        bad = reduce(torch.stack([~finite for _, finite, _ in steps]).float(), "sum").tolist()
        first = next((step for step, count in zip(steps, bad, strict=True) if count), None)
        if first is None:
            return False
        number, _, batches = first
        on_host = [(bool(loss.isfinite()), [] if ids is None else ids.tolist()) for loss, ids in batches]
        gathered = gather_object(on_host)
        # All of them are suspects where only the gradient is not finite.
        suspects = [ids for finite, ids in gathered if not finite] or [ids for _, ids in gathered]
        ids = [number for one in suspects for number in one]
        if args.should_save:
            with Path(args.output_dir, BAD_BATCHES_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": number, "passage_ids": ids}) + "\n")
        told = ", ".join(map(str, ids[:SHOWN_PASSAGES])) or "unknown, without a column passage_id"
        more = f" and {len(ids) - SHOWN_PASSAGES} more in {BAD_BATCHES_FILE}" if len(ids) > SHOWN_PASSAGES else ""
        what = f"the loss or the gradient of step {number} is not finite"
        what += f" (passages {told}{more})" if self.loss is None else ""
        if self._skipped < self.max_skipped_batches:
            self._skipped += 1
            logger.warning("%s; the batch is skipped, %d of %d", what, self._skipped, self.max_skipped_batches)
            return True
        raise self._stop(what, args)

    def _look_at_weights(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        if not weights_are_finite(model):
            raise self._stop(f"the weights after step {state.global_step} are not finite, and are not saved", args)

    def _stop(self, what: str, args: TrainingArguments) -> RetroMAEError:
        last = last_complete_checkpoint(Path(args.output_dir))
        again = "go on with --resume_from_checkpoint true" if last else "start anew with --overwrite_output_dir"
        skip = "or allow some such batches with --max_skipped_batches, " if self.loss is None else ""
        return RetroMAEError(
            f"{what}; the last whole checkpoint is {last or 'none'}; lower the learning rate, train in bf16 or "
            f"float32, {skip}and {again}"
        )

    def _warn(self, sentence: str) -> None:
        """Once for each kind of warning, which its first words tell."""
        if (kind := sentence[:30]) not in self._said:
            self._said.add(kind)
            logger.warning("%s", sentence)
