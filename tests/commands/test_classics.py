"""BERT, RoBERTa and ALBERT as their papers describe them: from a text file by one command to `AutoModelForMaskedLM`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TEXTS
from datasets import Dataset
from transformers import AutoModelForMaskedLM, AutoTokenizer

from retromae_hf import DataCollatorForRetroMAE, RetroMAEConfig, tokenize_passages
from retromae_hf.commands.main import main

COMMANDS = {
    "bert": "nsp.yaml --config_name bert --tokenizer_type wordpiece",
    "roberta": "mlm.yaml --config_name roberta --tokenizer_type bpe --lowercase false --encoder_mask_ratio 0.15",
    "albert": "sop.yaml --config_name albert --tokenizer_type unigram",
}
SIZES = "--hidden_size 160 --num_hidden_layers 3 --num_attention_heads 2 --vocab_size 300"
RUN = "--max_length 48 --max_steps 6 --logging_steps 3 --per_device_train_batch_size 8 --use_cpu --disable_tqdm true"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """By family: the folder of the run and the exported encoder in it, made on first demand."""
    folders = {}

    def make(family: str) -> Path:
        if family not in folders:
            folder = folders[family] = tmp_path_factory.mktemp(family)
            (folder / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
            line = f"pretrain {ROOT}/examples/recipes/{COMMANDS[family]} --dataset {folder}/texts.txt {SIZES} {RUN}"
            assert main(f"{line} --output_dir {folder}/run --bf16 false --eval_strategy no".split()) == 0
            assert main(f"export --model_name_or_path {folder}/run --output_dir {folder}/encoder".split()) == 0
        return folders[family]

    return make


def batches_of(folder: Path, epochs: int = 2):
    """Passages, and the batches that the run's recipe makes of them in some epochs."""
    config = RetroMAEConfig.from_pretrained(folder / "run")
    tokenizer = AutoTokenizer.from_pretrained(folder / "run")
    objective = json.loads((folder / "run" / "training.json").read_text())["stages"][0]["objective"]
    names = ("encoder_mask_ratio", "static_masking", "mask_replace_prob", "random_replace_prob")
    passages = tokenize_passages(
        Dataset.from_dict({"text": TEXTS}), tokenizer, 48, pairs=config.pair_objective is not None
    )
    options = {name: objective[name] for name in names}
    collator = DataCollatorForRetroMAE.from_config(tokenizer, config, seed=0, pair_partners=passages, **options)
    made = []
    for epoch in range(epochs):
        collator.set_epoch(epoch)
        made.append(collator(list(passages)))
    return passages, made, tokenizer


@pytest.mark.parametrize("family", COMMANDS)
def test_it_fills_masks_without_this_package(made, family):
    model = AutoModelForMaskedLM.from_pretrained(made(family) / "encoder").eval()
    tokenizer = AutoTokenizer.from_pretrained(made(family) / "encoder")
    assert model.config.model_type == family
    inputs = tokenizer(f"The quick {tokenizer.mask_token} jumps over the river.", return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape == (1, inputs["input_ids"].shape[1], model.config.vocab_size)
    logs = json.loads((made(family) / "run" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["mlm_loss"] for entry in logs if "mlm_loss" in entry]
    assert losses[-1] < losses[0]
    names = {name for entry in logs for name in entry}
    assert ("pair_loss" in names) == (family != "roberta")
    assert "decoder_loss" not in names


@pytest.mark.parametrize("family", COMMANDS)
def test_of_the_chosen_tokens_80_percent_are_masked_and_10_replaced(made, family):
    _, (batch, _), tokenizer = batches_of(made(family))
    real = batch["attention_mask"].bool()
    ordinary = real & ~torch.isin(batch["input_ids"], torch.tensor(tokenizer.all_special_ids))
    chosen = batch["labels"] != -100
    count = chosen.sum().item()
    assert abs(count / (ordinary | chosen).sum().item() - 0.15) < 0.02
    masked = (batch["input_ids"] == tokenizer.mask_token_id) & chosen
    kept = (batch["input_ids"] == batch["labels"]) & chosen
    assert abs(masked.sum().item() / count - 0.8) < 0.04
    assert abs(kept.sum().item() / count - 0.1) < 0.04  # of the random ones few are the same by chance


def test_bert_is_wordpiece_static_masks_and_the_next_sentence(made):
    passages, (first, second), tokenizer = batches_of(made("bert"))
    assert any(token.startswith("##") for token in tokenizer.get_vocab())
    assert torch.equal(first["labels"], second["labels"])
    assert torch.equal(first["input_ids"], second["input_ids"])
    assert set(first["pair_labels"].tolist()) == {0, 1}
    assert set(first["token_type_ids"].unique().tolist()) == {0, 1}
    true = first["pair_labels"] == 0
    original = [row["input_ids"] for row in passages]
    whole = torch.where(first["labels"] == -100, first["input_ids"], first["labels"])
    for place in true.nonzero().flatten().tolist():
        assert whole[place][: len(original[place])].tolist() == original[place]


def test_roberta_is_bytes_dynamic_masks_and_no_pairs(made):
    _, (first, second), tokenizer = batches_of(made("roberta"))
    for text in ("naïve Ωmega 🦊 fox", "日本\u00a0語"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert not torch.equal(first["labels"], second["labels"])
    assert "pair_labels" not in first
    assert tokenizer.cls_token == "<s>"


def test_albert_is_small_embeddings_shared_layers_and_the_order_of_sentences(made):
    model = AutoModelForMaskedLM.from_pretrained(made("albert") / "encoder")
    passages, (first, _), tokenizer = batches_of(made("albert"))
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), 128)  # and not 160
    assert model.config.num_hidden_layers == 3
    assert len(model.albert.encoder.albert_layer_groups) == 1
    assert any(token.startswith("\u2581") for token in tokenizer.get_vocab())  # as SentencePiece writes a space
    whole = torch.where(first["labels"] == -100, first["input_ids"], first["labels"])
    swapped = 0
    for place, row in enumerate(passages):
        ids, (cut,) = row["input_ids"], [i for i, one in enumerate(row["token_type_ids"]) if one == 1][:1]
        one, other = ids[1 : cut - 1], ids[cut:-1]
        if first["pair_labels"][place]:
            one, other, swapped = other, one, swapped + 1
        rebuilt = [ids[0], *one, ids[cut - 1], *other, ids[-1]]
        assert whole[place][: len(ids)].tolist() == rebuilt
    assert 0 < swapped < len(passages)
