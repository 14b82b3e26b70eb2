"""LoRA of PEFT in the encoder alone or in the whole model: new parts learn in full, and what is exported is merged."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from transformers import CONFIG_MAPPING, AutoModel, Trainer, TrainingArguments

from retromae_hf import (
    DataCollatorForRetroMAE,
    RetroMAECallback,
    RetroMAEConfig,
    RetroMAEForPreTraining,
    export_encoder,
    tokenize_passages,
)
from retromae_hf.checkpoints.starting_model import new_encoder_config
from retromae_hf.model.families import BACKBONES
from retromae_hf.publishing.export import merged
from retromae_hf.training.callbacks import train_new_parts_in_full, without_adapters

QUERY = "encoder.bert.encoder.layer.0.attention.self.query"
HEAD = "encoder.cls.predictions.transform.dense"


@pytest.fixture
def collator(tokenizer, encoder_config):
    return DataCollatorForRetroMAE.from_config(tokenizer, RetroMAEConfig(encoder_config=encoder_config), seed=0)


@pytest.fixture
def passages(texts, tokenizer):
    return tokenize_passages(Dataset.from_dict({"text": texts}), tokenizer, 32)


@pytest.fixture
def bare(encoder_config):
    torch.manual_seed(0)
    return RetroMAEForPreTraining(RetroMAEConfig(encoder_config=encoder_config))


@pytest.fixture
def make_trainer(tmp_path, passages, collator):
    def make(model, folder="run", **options):
        defaults = {"per_device_train_batch_size": 8, "max_steps": 4, "learning_rate": 1e-2, "save_steps": 2}
        args = TrainingArguments(
            str(tmp_path / folder), use_cpu=True, disable_tqdm=True, report_to="none", **defaults | options
        )
        return Trainer(
            model=model, args=args, train_dataset=passages, data_collator=collator, callbacks=[RetroMAECallback()]
        )

    return make


def adapted(model, way, target_modules="all-linear"):
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=target_modules)
    if way == "whole":
        return get_peft_model(model, config)
    model.encoder = get_peft_model(model.encoder, config)
    return model


@pytest.mark.parametrize("way", ["whole", "encoder"])
def test_new_parts_learn_in_full_and_the_encoder_by_adapters_alone(way, bare, make_trainer, tokenizer, tmp_path):
    before = copy.deepcopy(bare.state_dict())
    model = adapted(bare, way)
    trainer = make_trainer(model)
    trainer.train()
    learnt = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("lora_" in name and ".bert." in name for name in learnt)
    assert not any("lora_" in name and ("decoder.0" in name or "transform" in name) for name in learnt)
    after = merged(model).state_dict()
    assert after.keys() == before.keys()
    for part in (*(name for name in before if name.startswith("decoder.")), f"{HEAD}.weight", f"{QUERY}.weight"):
        assert not torch.equal(after[part], before[part]), part
    for part in ("encoder.bert.embeddings.word_embeddings.weight", f"{QUERY}.bias"):
        assert torch.equal(after[part], before[part]), part
    assert any("lora_" in name for name, _ in model.named_parameters()), "the model itself is not merged"
    export_encoder(model, tokenizer, tmp_path / "encoder")
    exported = AutoModel.from_pretrained(tmp_path / "encoder").eval()
    inputs = tokenizer(["the quick fox", "an otter"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = without_adapters(model).eval().encode(inputs["input_ids"], inputs["attention_mask"])
        assert torch.allclose(exported(**inputs).last_hidden_state, expected, atol=1e-5)


def test_what_was_saved_goes_on_and_comes_back(bare, make_trainer, passages, collator, tmp_path):
    fresh = copy.deepcopy(bare)
    uncut = adapted(copy.deepcopy(bare), "whole")
    make_trainer(uncut, "uncut").train()
    cut = adapted(bare, "whole")
    make_trainer(cut).train(resume_from_checkpoint=str(tmp_path / "uncut/checkpoint-2"))
    for (name, one), other in zip(uncut.named_parameters(), cut.parameters(), strict=True):
        assert torch.equal(one, other), name
    back = PeftModel.from_pretrained(fresh, tmp_path / "uncut/checkpoint-4")
    batch = collator([passages[number] for number in range(4)])
    with torch.no_grad():
        assert torch.equal(back.eval()(**batch).loss, uncut.eval()(**batch).loss)


@pytest.mark.parametrize("family", sorted(BACKBONES.keys() & CONFIG_MAPPING.keys()))
def test_the_head_of_every_family_is_found(family, tokenizer):
    tokenizer = copy.copy(tokenizer)
    if BACKBONES[family].padding_id is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(BACKBONES[family].padding_id)
    config = RetroMAEConfig(encoder_config=new_encoder_config(family, tokenizer, 32, 1, 2, 32))
    model = RetroMAEForPreTraining(config)
    words = model.masked_lm.get_input_embeddings().weight.shape
    model = adapted(model, "whole")
    train_new_parts_in_full(model)
    full = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    assert len(full) > 1
    for module in full:
        assert all(parameter.requires_grad for parameter in module.modules_to_save.parameters())
        assert all(parameter.shape != words for parameter in module.parameters())
        assert not any("lora_" in name for name, _ in module.named_parameters())
