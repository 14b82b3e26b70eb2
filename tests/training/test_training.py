"""A plain `Trainer` trains the model, logs what matters and goes on where it stopped."""

from __future__ import annotations

import json
import math

import pytest
import torch
from datasets import Column, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from retromae_hf import (
    DataCollatorForRetroMAE,
    RetrievalCallback,
    RetroMAECallback,
    RetroMAEConfig,
    RetroMAEError,
    RetroMAEForPreTraining,
    tokenize_passages,
)
from retromae_hf.explanation import predict_words, words_as_table
from retromae_hf.retrieval.tasks import RetrievalTask
from retromae_hf.training.callbacks import measure_decoder


@pytest.fixture
def passages(texts, tokenizer):
    return tokenize_passages(Dataset.from_dict({"text": texts}), tokenizer, 32)


@pytest.fixture
def make_trainer(tmp_path, encoder_config, tokenizer, passages):
    def make(folder="run", callbacks=(), config=None, **arguments):
        torch.manual_seed(0)
        model = RetroMAEForPreTraining(RetroMAEConfig(encoder_config=encoder_config, **(config or {})))
        defaults = {
            "output_dir": str(tmp_path / folder),
            "per_device_train_batch_size": 16,
            "num_train_epochs": 2,
            "learning_rate": 3e-3,
            "logging_steps": 5,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        return Trainer(
            model=model,
            args=TrainingArguments(**defaults | arguments),
            train_dataset=passages,
            eval_dataset=passages.select(range(20)),
            data_collator=DataCollatorForRetroMAE.from_config(tokenizer, model.config, seed=0),
            processing_class=tokenizer,
            callbacks=[RetroMAECallback(), *callbacks],
        )

    return make


def test_workers_length_groups_and_bf16(make_trainer):
    trainer = make_trainer(
        dataloader_num_workers=2, train_sampling_strategy="group_by_length", bf16=True, num_train_epochs=4
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1]["loss"] < logs[0]["loss"]
    for entry in logs:
        assert entry["loss"] == pytest.approx(entry["mlm_loss"] + entry["decoder_loss"], abs=1e-2)


def test_the_parts_of_the_loss_are_in_trainer_state(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.train()
    trainer.save_state()
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert all({"mlm_loss", "decoder_loss"} <= entry.keys() for entry in history if "loss" in entry)
    assert not any("bow_loss" in entry for entry in history)


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_an_uncut_run_and_a_resumed_one_end_alike(make_trainer, tmp_path, strategy):
    uncut = make_trainer(folder="uncut", train_sampling_strategy=strategy)
    uncut.train()
    first = make_trainer(folder="cut", train_sampling_strategy=strategy, save_strategy="steps", save_steps=10)
    first.train()
    assert first.state.num_train_epochs == 2
    assert 10 < first.state.max_steps / 2 < 20  # one checkpoint in each epoch
    for step, workers in ((10, 2), (20, 0)):
        resumed = make_trainer(folder="cut", train_sampling_strategy=strategy, dataloader_num_workers=workers)
        resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{step}"))
        for (name, one), other in zip(uncut.model.named_parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(one, other), (step, name)


def test_every_epoch_draws_afresh(make_trainer):
    seen = {}

    class Watch(RetroMAECallback):
        def on_train_begin(self, args, state, control, model, **kwargs):
            super().on_train_begin(args, state, control, model=model, **kwargs)
            model.register_forward_pre_hook(self.note, with_kwargs=True)

        def note(self, module, args, kwargs):
            for seed in kwargs["visibility_seed"].tolist():
                seen[seed] = seen.get(seed, 0) + 1

    trainer = make_trainer(callbacks=[Watch()], num_train_epochs=3)
    trainer.train()
    assert len(seen) == 3 * len(trainer.train_dataset)
    assert set(seen.values()) == {1}


def test_a_collator_that_differs_from_the_model_stops_the_start(make_trainer, tokenizer):
    trainer = make_trainer(config={"decoder_mask_ratio": 0.7})
    trainer.data_collator = DataCollatorForRetroMAE(tokenizer, seed=0)
    with pytest.raises(RetroMAEError, match=r"decoder_mask_ratio=0\.5 and the model 0\.7"):
        trainer.train()


@pytest.mark.parametrize("decoding", ["enhanced", "basic", "condenser", "none"])
def test_retrieval_and_the_gap_are_logged_at_every_evaluation(make_trainer, texts, decoding):
    trainer = make_trainer(config={"decoding": decoding}, eval_strategy="steps", eval_steps=10, num_train_epochs=2)
    task = RetrievalTask(
        "dev",
        {str(index): text[:40] for index, text in enumerate(texts[:10])},
        {str(index): text[40:] for index, text in enumerate(texts[:30])},
        {str(index): {str(index): 1} for index in range(10)},
    )
    trainer.add_callback(RetrievalCallback(trainer, task, max_length=32))
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "eval_ndcg@10" in entry]
    assert len(logged) == trainer.state.max_steps // 10
    assert logged[-1]["eval_encoder_accuracy"] > 0
    assert ("eval_embedding_gap" in logged[-1]) == (decoding != "none")
    assert any("eval_loss" in entry for entry in trainer.state.log_history)
    assert "eval_mrr@10" in trainer.evaluate()


def test_the_bag_of_words_weighs_less_and_less_and_an_embedding_names_its_words(make_trainer, tokenizer, texts):
    weights = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            weights.append(model.bow_loss_weight.item())

    options = {"decoding": "none", "bow_source": "sentence", "bow_loss_weight": 1.0, "final_bow_loss_weight": 0.1}
    trainer = make_trainer(config=options, callbacks=[Watch()], num_train_epochs=8, logging_steps=1)
    trainer.train()
    steps = trainer.state.max_steps
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]
    assert weights == pytest.approx(expected)
    entries = [entry for entry in trainer.state.log_history if "bow_loss" in entry]
    for entry, weight in zip(entries, weights, strict=True):
        assert entry["loss"] == pytest.approx(entry["mlm_loss"] + weight * entry["bow_loss"], abs=2e-3)
    assert trainer.model.bow_loss_weight is None
    batches = [dict(batch) for batch in trainer.get_eval_dataloader()]
    assert measure_decoder(trainer.model, batches)["bow_gap"] > 0.05
    words = predict_words(trainer.model, tokenizer, texts[0], count=10)
    assert [word.probability for word in words] == sorted((word.probability for word in words), reverse=True)
    assert sum(word.present for word in words) >= 5
    assert f"Of the 10 likeliest words {sum(word.present for word in words)} are" in words_as_table(words)
    with pytest.raises(RetroMAEError, match="not trained to predict words"):
        predict_words(make_trainer().model, tokenizer, texts[0])


def test_the_gap_is_zero_when_all_embeddings_are_one(make_trainer, passages, monkeypatch):
    trainer = make_trainer()
    batches = [dict(batch) for batch in trainer.get_eval_dataloader()][:1]
    model = trainer.model
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda *inputs: encode(*inputs)[:1].expand(len(inputs[0]), -1, -1))
    assert measure_decoder(model, batches)["embedding_gap"] == pytest.approx(0, abs=1e-6)
    assert model.training


def test_passages_are_not_read_to_know_their_lengths(make_trainer, passages):
    trainer = make_trainer(train_sampling_strategy="group_by_length")
    sampler = trainer._get_train_sampler(trainer._remove_unused_columns(trainer.train_dataset, description="training"))
    assert sampler.lengths[:] == passages["length"][:]
    assert isinstance(sampler.lengths, Column)


def test_an_evaluation_has_a_loss_by_default(make_trainer):
    assert "eval_loss" in make_trainer().evaluate()
    trainer = make_trainer(
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=10,
        save_steps=10,
        max_steps=20,
        load_best_model_at_end=True,
    )
    trainer.train()
    assert trainer.state.best_metric == min(row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row)


def test_every_callback_and_every_reporter_sees_the_parts_of_the_loss(make_trainer, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    seen = []

    class Watch(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            seen.append(dict(logs))

    trainer = make_trainer(report_to="tensorboard", max_steps=10)
    trainer.pop_callback(RetroMAECallback)
    trainer.add_callback(Watch())  # before ours
    trainer.add_callback(RetroMAECallback())
    trainer.train()
    assert all({"mlm_loss", "decoder_loss"} <= logs.keys() for logs in seen if "loss" in logs)
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert {"train/loss", "train/mlm_loss", "train/decoder_loss"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("train/decoder_loss")) == 2


def test_weights_and_biases_sees_them_too(make_trainer, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    make_trainer(report_to="wandb", max_steps=10).train()
    assert {"train/mlm_loss", "train/decoder_loss"} <= dict(wandb.run.summary).keys()
    wandb.finish()
