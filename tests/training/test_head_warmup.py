"""What a checkpoint does not have learns alone first; then everything does."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from transformers import BertForMaskedLM, TrainerCallback, TrainingArguments

from retromae_hf import DataCollatorForRetroMAE, RetroMAEError, RetroMAEForPreTraining, tokenize_passages
from retromae_hf.arguments.pretraining import RunArguments
from retromae_hf.commands.pretrain import main as pretrain
from retromae_hf.training.run_folder import Run
from retromae_hf.training.trainer import AccumulatingTrainer, HeadWarmup, plan_head_warmup


@pytest.fixture(scope="module")
def bare_encoder(tmp_path_factory, encoder_config, tokenizer) -> str:
    """A trained encoder without a masked-LM head."""
    folder = tmp_path_factory.mktemp("bare")
    BertForMaskedLM(encoder_config).bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def bare_model(bare_encoder):
    return RetroMAEForPreTraining.from_encoder(bare_encoder, pair_objective="sop")


class Weights(TrainerCallback):
    """The weights after each step."""

    def __init__(self):
        self.after = {}

    def on_step_end(self, args, state, control, model, **kwargs):
        self.after[state.global_step] = {name: weight.clone() for name, weight in model.named_parameters()}


@pytest.fixture
def make_trainer(tmp_path, bare_encoder, tokenizer, texts, one_thread):
    passages = tokenize_passages(Dataset.from_dict({"text": texts}), tokenizer, 32)

    def make(steps=3, callbacks=(), **arguments):
        torch.manual_seed(0)
        model = RetroMAEForPreTraining.from_encoder(bare_encoder)
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 4,
            "max_steps": 8,
            "learning_rate": 1e-3,
            "weight_decay": 0.1,
            "warmup_steps": 0.4,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        return AccumulatingTrainer(
            model=model,
            args=TrainingArguments(**defaults | arguments),
            train_dataset=passages,
            data_collator=DataCollatorForRetroMAE.from_config(tokenizer, model.config, seed=0),
            callbacks=list(callbacks),
            head_warmup=HeadWarmup(model.new_parameters, steps, 1e-2),
        )

    return make


def test_new_is_what_the_checkpoint_did_not_have(bare_model, encoder_folder):
    of_head = {name for name in bare_model.new_parameters if name.startswith("encoder.")}
    assert of_head == {
        f"encoder.cls.predictions.{name}"
        for name in (
            "bias",
            "transform.dense.weight",
            "transform.dense.bias",
            "transform.LayerNorm.weight",
            "transform.LayerNorm.bias",
        )
    }
    beside = {name for name, _ in bare_model.named_parameters() if not name.startswith("encoder.")}
    assert {name.partition(".")[0] for name in beside} == {"decoder", "pair_head"}
    assert bare_model.new_parameters == of_head | beside
    with_head = RetroMAEForPreTraining.from_encoder(encoder_folder)
    assert {name.partition(".")[0] for name in with_head.new_parameters} == {"decoder"}


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_encoder_stands_still_while_new_parts_learn(make_trainer, accumulated):
    weights = Weights()
    trainer = make_trainer(callbacks=[weights], gradient_accumulation_steps=accumulated)
    start = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    new = trainer.model.new_parameters
    for name, weight in start.items():
        assert torch.equal(weights.after[3][name], weight) == (name not in new), name
        # The first of the usual steps has a rate of 0.
        assert not torch.equal(weights.after[5][name], weights.after[4][name]), name


def test_the_encoders_gradients_do_not_shrink_the_steps_of_new_parts(make_trainer):
    """The norm that is clipped is that of the new parts alone, and the encoder's moments begin behind the warm-up."""

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            seen[state.global_step] = {name for name, weight in model.named_parameters() if weight.grad is not None}

    seen = {}
    trainer = make_trainer(callbacks=[Gradients()], max_grad_norm=1e-3)
    trainer.train()
    steps = {name: int(trainer.optimizer.state[one]["step"]) for name, one in trainer.model.named_parameters()}
    assert {steps[name] for name in trainer.model.new_parameters} == {8}
    assert {count for name, count in steps.items() if name not in trainer.model.new_parameters} == {5}
    everything = {name for name, _ in trainer.model.named_parameters()}
    assert [seen[step] == trainer.model.new_parameters for step in range(8)] == [True] * 3 + [False] * 5
    assert [seen[step] == everything for step in range(8)] == [False] * 3 + [True] * 5


def test_the_usual_schedule_follows_a_constant_rate_of_the_new_parts(make_trainer):
    """With its warm-up, two of five steps, and its decay; the logs name the rate of what learns."""
    trainer = make_trainer()
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    usual = [0, 5e-4, 1e-3, 1e-3 * 2 / 3, 1e-3 / 3]
    assert rates == pytest.approx([1e-2] * 3 + usual)
    bases, factors = lambdas_of(trainer)
    assert [bases[-1] * factors[-1](step) for step in range(8)] == pytest.approx([0] * 3 + usual)


def lambdas_of(trainer):
    """The rates of the optimizer's groups, and the functions of the step that they are multiplied by."""
    return trainer.lr_scheduler.base_lrs, trainer.lr_scheduler.lr_lambdas


@pytest.mark.parametrize("kind", ["polynomial", "cosine_with_min_lr"])
def test_schedules_that_know_their_rate_keep_it(make_trainer, kind):
    options = {"min_lr": 5e-4} if kind == "cosine_with_min_lr" else {"lr_end": 5e-4}
    trainer = make_trainer(lr_scheduler_type=kind, lr_scheduler_kwargs=options)
    trainer.create_optimizer_and_scheduler(8)
    rates = [base * factor(8) for base, factor in zip(*lambdas_of(trainer), strict=True)]
    assert rates == pytest.approx([5e-4] * 4)


def test_weights_decay_as_without(make_trainer):
    trainer = make_trainer()
    groups = trainer.create_optimizer().param_groups
    decayed = {id(one) for group in groups if group["weight_decay"] for one in group["params"]}
    trainer.optimizer, trainer.head_warmup = None, None
    plain = trainer.create_optimizer().param_groups
    assert decayed == {id(one) for one in plain[0]["params"]}
    assert sum(len(group["params"]) for group in groups) == sum(len(group["params"]) for group in plain)


def test_by_default_a_tenth_of_the_steps_and_not_too_many():
    plan = HeadWarmup([], None, 1e-3)
    assert [plan.steps_of(total) for total in (5, 30, 1999, 100_000)] == [0, 3, 199, 200]


@pytest.fixture
def plan(tmp_path):
    def plan(model, steps=None, checkpoint=None, noted=None, **arguments):
        run = Run(tmp_path, {}, checkpoint, noted or {}, None, None)
        args = TrainingArguments(str(tmp_path), use_cpu=True, **arguments)
        return plan_head_warmup(RunArguments(head_warmup_steps=steps), args, model, run), run

    return plan


@pytest.mark.parametrize(
    ("asked", "start", "planned"),
    [(None, "bare", True), (0, "bare", False), (5, "bare", True), (None, "whole", False), (5, "whole", True)],
)
def test_it_is_on_where_the_head_is_new(bare_model, encoder_folder, plan, asked, start, planned):
    model = bare_model if start == "bare" else RetroMAEForPreTraining.from_encoder(encoder_folder)
    warmup, run = plan(model, asked)
    assert (warmup is not None) == planned
    assert run.arguments["new_parameters"] == sorted(model.new_parameters)


def test_from_scratch_there_is_none(model, plan):
    assert plan(model)[0] is None
    with pytest.raises(RetroMAEError, match="head_warmup_steps=5 needs new parts beside a trained encoder"):
        plan(model, 5)


def test_a_run_that_goes_on_cannot_have_another_one(model, plan):
    noted = {"new_parameters": ["decoder.x"], "head_warmup_steps": 5, "head_learning_rate": 1e-3}
    warmup, _ = plan(model, 5, "run/checkpoint-3", noted)
    assert (warmup.names, warmup.steps) == (["decoder.x"], 5)
    with pytest.raises(RetroMAEError, match="of a run with head_warmup_steps=5, not 7"):
        plan(model, 7, "run/checkpoint-3", noted)


def test_what_cannot_be_is_told_before_the_data_are_there(bare_model, plan):
    plan(bare_model, 5000)  # of epochs that nobody has counted yet
    plan(bare_model, 7, max_steps=8)
    with pytest.raises(RetroMAEError, match="head_warmup_steps=8 leaves none of the run's 8 steps"):
        plan(bare_model, 8, max_steps=8)
    with pytest.raises(RetroMAEError, match="head_learning_rate=0 must be above 0"):
        RunArguments(head_learning_rate=0)


def test_cut_runs_go_on_to_the_same_bits(bare_encoder, texts, tmp_path, one_thread, caplog):
    """Cut while the new parts learn alone and after it; a checkpoint has no word of what was new."""
    train = tmp_path / "train.txt"
    train.write_text("\n".join(texts))
    common = (
        f"--dataset {train} --model_name_or_path {bare_encoder} --max_length 32 --head_warmup_steps 3 --max_steps 6 "
        "--per_device_train_batch_size 4 --eval_strategy no --dev_queries 0 --logging_steps 1 --use_cpu true "
        "--disable_tqdm true --report_to none --save_steps 2"
    ).split()
    run = tmp_path / "run"
    assert pretrain([*common, "--output_dir", str(run)]) == 0
    caplog.clear()
    uncut = RetroMAEForPreTraining.from_pretrained(run).state_dict()
    for step in (2, 4):
        folder = tmp_path / f"from-{step}"
        resume = ["--resume_from_checkpoint", str(run / f"checkpoint-{step}")]
        assert pretrain([*common, "--output_dir", str(folder), *resume]) == 0
        resumed = RetroMAEForPreTraining.from_pretrained(folder).state_dict()
        assert all(torch.equal(uncut[name], resumed[name]) for name in uncut), step
    said = [record.message for record in caplog.records if "train the new parts alone" in record.message]
    assert len(said) == 1  # of the one that was cut before its third step
    assert said[0].startswith("the first 3 of 6 steps train the new parts alone")
    record = json.loads((run / "training.json").read_text())
    assert record["stages"][-1]["training"]["head_warmup_steps"] == 3
