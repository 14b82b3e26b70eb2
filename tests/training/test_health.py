"""A run whose numbers are not finite stops, or skips the batch; one whose embeddings collapse says so."""

from __future__ import annotations

import functools
import json
import math

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from retromae_hf import (
    DataCollatorForRetroMAE,
    RetroMAECallback,
    RetroMAEConfig,
    RetroMAEError,
    RetroMAEForPreTraining,
    tokenize_passages,
)
from retromae_hf.training.callbacks import mean_cosine
from retromae_hf.training.health import BAD_BATCHES_FILE, HealthCallback
from retromae_hf.training.saving import SavingCallback


class Poisoned(RetroMAEForPreTraining):
    """A model whose loss, or whose gradient alone, is not finite where a batch holds a certain passage."""

    poisoned_passage = -1
    poison = "loss"
    hook = None

    @functools.wraps(RetroMAEForPreTraining.forward)
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        if self.hook is not None:
            self.hook.remove()
        if self.poisoned_passage in kwargs["passage_id"].tolist() and self.training:
            if self.poison == "loss":
                output["loss"] = output["loss"] * math.nan
            else:
                weight = self.get_input_embeddings().weight
                self.hook = weight.register_hook(lambda gradient: gradient * math.inf)
        return output


@pytest.fixture
def make_trainer(tmp_path, encoder_config, tokenizer, texts):
    def make(health, poison="loss", **arguments):
        torch.manual_seed(0)
        model = Poisoned(RetroMAEConfig(encoder_config=encoder_config))
        defaults = {
            "output_dir": str(tmp_path),
            "per_device_train_batch_size": 16,
            "num_train_epochs": 1,
            "save_steps": 2,
            "logging_steps": 5,
            "use_cpu": True,
            "disable_tqdm": True,
            "logging_nan_inf_filter": False,
        }
        passages = tokenize_passages(Dataset.from_dict({"text": texts}), tokenizer, 32)
        if poison is not None:
            model.poison, model.poisoned_passage = poison, passages["passage_id"][17]
        return Trainer(
            model=model,
            args=TrainingArguments(**defaults | arguments),
            train_dataset=passages,
            data_collator=DataCollatorForRetroMAE.from_config(tokenizer, model.config, seed=0),
            callbacks=[RetroMAECallback(), SavingCallback(), health],
        )

    return make


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_run_stops_where_its_numbers_are_not_finite(make_trainer, tmp_path, poison):
    trainer = make_trainer(HealthCallback(), poison)
    with pytest.raises(RetroMAEError) as stopped:
        trainer.train()
    line = json.loads((tmp_path / BAD_BATCHES_FILE).read_text())
    step, message = line["step"], str(stopped.value)
    assert trainer.model.poisoned_passage in line["passage_ids"]
    assert len(line["passage_ids"]) == 16
    assert f"of step {step} is not finite (passages {', '.join(map(str, line['passage_ids']))})" in message
    last = tmp_path / f"checkpoint-{(step - 1) // 2 * 2}"
    assert f"the last whole checkpoint is {last if last.is_dir() else 'none'};" in message
    for file in tmp_path.glob("checkpoint-*/model.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_skipped_batch_leaves_the_weights_as_they_are(make_trainer, tmp_path, poison, caplog):
    seen = {}

    class Watch(HealthCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            seen[state.global_step] = model.get_input_embeddings().weight.detach().clone()
            super().on_pre_optimizer_step(args, state, control, **kwargs)

        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            same = torch.equal(seen[state.global_step - 1], model.get_input_embeddings().weight)
            unchanged.extend([state.global_step] if same else [])

    unchanged = []
    # No warm-up, or the first step would leave the weights too.
    trainer = make_trainer(Watch(1), poison, save_strategy="no")
    model = trainer.model
    trainer.train()
    assert "the batch is skipped, 1 of 1" in caplog.text
    assert unchanged == [json.loads((tmp_path / BAD_BATCHES_FILE).read_text())["step"]]
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_more_bad_batches_than_may_be_skipped_stop_the_run(make_trainer):
    trainer = make_trainer(HealthCallback(1), num_train_epochs=3, save_strategy="no")
    with pytest.raises(RetroMAEError, match="is not finite"):
        trainer.train()


def test_weights_that_a_step_of_finite_numbers_spoils_are_not_saved(make_trainer, tmp_path):
    trainer = make_trainer(HealthCallback(), None, learning_rate=3e38, lr_scheduler_type="constant", save_steps=1)
    with pytest.raises(RetroMAEError, match=r"the weights after step 1 are not finite.* whole checkpoint is none; low"):
        trainer.train()
    assert not any(tmp_path.glob("**/model.safetensors"))


def test_a_run_does_not_start_from_weights_that_are_not_finite(make_trainer):
    trainer = make_trainer(HealthCallback(), None)
    with torch.no_grad():
        next(trainer.model.parameters())[0, 0] = math.inf
    with pytest.raises(RetroMAEError, match="the weights to start from are not finite"):
        trainer.train()


def test_healthy_runs_are_left_alone(make_trainer, caplog):
    trainer = make_trainer(HealthCallback(), None, max_steps=6)
    trainer.train()
    assert trainer.state.global_step == 6
    assert "not finite" not in caplog.text


def warnings_at(step: int, caplog, logs=None, **metrics: float) -> str:
    caplog.clear()
    health, state = HealthCallback(), TrainerState(global_step=step, max_steps=100)
    for _ in range(2):
        health.on_evaluate(None, state, TrainerControl(), metrics={f"eval_{k}": v for k, v in metrics.items()})
        health.on_log(None, state, TrainerControl(), logs=logs or {})
    return caplog.text


def test_collapse_is_told_in_words_and_once(caplog):
    alike = warnings_at(50, caplog, mean_cosine=0.95, embedding_gap=1.0)
    assert alike.count("nearly alike (mean cosine 0.95)") == 1
    assert "makes no use" not in alike
    assert warnings_at(50, caplog, embedding_gap=0.001).count("makes no use of the sentence embedding") == 1
    assert warnings_at(50, caplog, logs={"loss": 0.0}).count("exactly 0") == 1
    assert warnings_at(50, caplog, mean_cosine=0.5, embedding_gap=0.5, logs={"loss": 0.1}) == ""
    assert warnings_at(10, caplog, mean_cosine=0.95, embedding_gap=0.0) == ""  # a new model's are all alike


def test_the_mean_cosine_is_that_of_all_pairs():
    embeddings = torch.randn(5, 7)
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    pairs = [(unit[i] @ unit[j]).item() for i in range(5) for j in range(5) if i != j]
    assert mean_cosine(embeddings).item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert mean_cosine(torch.ones(3, 4)).item() == pytest.approx(1.0)
