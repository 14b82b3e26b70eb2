"""Models are read from safetensors, and what they bring besides is not run unasked."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers.sentence_transformer.modules import Dense, Router
from transformers import AutoModel, Trainer, TrainerControl, TrainerState, TrainingArguments

from retromae_hf import (
    DataCollatorForRetroMAE,
    RetroMAEError,
    RetroMAEForPreTraining,
    RetroMAEModel,
    export_encoder,
    tokenize_passages,
)
from retromae_hf.checkpoints.loading import load_checkpoint, load_config, load_sentence_transformer, load_tokenizer
from retromae_hf.commands.main import main
from retromae_hf.retrieval.embedders import load_embedder


@pytest.fixture
def exported(model, tokenizer, tmp_path) -> Path:
    return export_encoder(model, tokenizer, tmp_path / "encoder")


@pytest.fixture
def code(tmp_path) -> tuple[str, Path]:
    """Code that leaves a mark, and the mark."""
    mark = tmp_path / "mark"
    return f"import os\nos.makedirs({str(mark)!r}, exist_ok=True)\n", mark


class Marking:
    """A pickle that leaves a mark when it is read as a whole."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def ask_for_a_pickle(folder: Path, mark: Path) -> None:
    """Lay a pickle that leaves a mark beside the weights, and have the folder's own files ask for it as a whole."""
    torch.save({"weight": Marking(mark)}, folder / "pytorch_model.bin")
    wanted = {"use_safetensors": False, "weights_only": False, "dtype": "auto"}
    change(folder / "sentence_bert_config.json", model_args=wanted)
    change(folder / "config.json", dtype=None)  # for which transformers looks into the weights


def route(folder: Path, name: str, kind: str) -> None:
    """Make a router of the only module, which leads to a module of that kind in a folder of that name."""
    (folder / "route").mkdir()
    config = {"types": {name: kind}, "structure": {"query": [name]}, "parameters": {}}
    (folder / "route" / "router_config.json").write_text(json.dumps(config))
    router = "sentence_transformers.sentence_transformer.modules.Router"
    (folder / "modules.json").write_text(json.dumps([{"name": "0", "path": "route", "type": router}]))


def change(file: Path, **fields) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize("model_class", [RetroMAEForPreTraining, RetroMAEModel, AutoModel])
def test_a_pickle_is_refused_by_every_class(model_class, model, tmp_path):
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(RetroMAEError, match=r"a pickle such as pytorch_model\.bin is not read"):
        model_class.from_pretrained(tmp_path)
    with pytest.raises(RetroMAEError, match=r"a pickle such as pytorch_model\.bin is not read"):
        model_class.from_pretrained(tmp_path.parent, subfolder=tmp_path.name, config=model.config)


def test_weights_beside_a_pickle_are_read(exported):
    (exported / "pytorch_model.bin").write_bytes(b"no weights")
    assert load_embedder(str(exported)).queries(["hello"]).shape == (1, 32)


def test_a_known_type_that_brings_code_is_loaded_without_it(exported, code):
    source, mark = code
    (exported / "own.py").write_text(source)
    change(exported / "config.json", auto_map={"AutoConfig": "own.Config", "AutoModelForMaskedLM": "own.Model"})
    assert load_config(str(exported)).model_type == "bert"
    assert RetroMAEForPreTraining.from_encoder(str(exported)).config.hidden_size == 32
    assert load_embedder(str(exported)).queries(["hello"]).shape == (1, 32)
    assert not mark.exists()


@pytest.mark.parametrize("load", [load_embedder, load_sentence_transformer])
def test_a_module_that_is_code_runs_where_it_is_trusted_alone(load, exported, code):
    source, mark = code
    (exported / "own.py").write_text(
        source + "from sentence_transformers.sentence_transformer.modules import Normalize as Own\n"
    )
    modules = json.loads((exported / "modules.json").read_text())
    (exported / "2_Own").mkdir()
    change_to = [*modules, {"idx": 2, "name": "2", "path": "2_Own", "type": "own.Own"}]
    (exported / "modules.json").write_text(json.dumps(change_to))
    with pytest.raises(RetroMAEError, match=r"its modules ask for .* --trust_remote_code true"):
        load(str(exported))
    assert not mark.exists()
    load(str(exported), trust_remote_code=True)
    assert mark.exists()


def test_a_router_leads_to_no_code(exported, code):
    source, mark = code
    (exported / "own.py").write_text(source)
    route(exported, "inner", "own.Own")
    with pytest.raises(RetroMAEError, match=r"its modules ask for .* --trust_remote_code true"):
        load_sentence_transformer(str(exported))
    assert not mark.exists()


def test_a_router_leads_to_no_pickle(exported, tmp_path):
    """A whole model within a model is opened by sentence-transformers without what it was told for the outer one."""
    mark = tmp_path / "mark"
    inner = shutil.copytree(exported, tmp_path / "inner")
    ask_for_a_pickle(inner, mark)
    route(exported, "inner", "sentence_transformers.SentenceTransformer")
    shutil.move(inner, exported / "route")
    with pytest.raises(RetroMAEError, match=r"a pickle such as pytorch_model\.bin is not read"):
        load_sentence_transformer(str(exported))
    assert not mark.exists()


@pytest.mark.parametrize("activation", ["own.Own", "transformers.activations.NewGELUActivation", "torch.hub.load"])
def test_an_activation_that_is_code_is_refused(activation, exported, code, tmp_path):
    source, mark = code
    model = load_sentence_transformer(str(exported), device="cpu")
    model.append(Dense(32, 8))
    model.save_pretrained(str(tmp_path / "dense"))
    (tmp_path / "dense" / "own.py").write_text(source)
    change(tmp_path / "dense" / "2_Dense" / "config.json", activation_function=activation)
    with pytest.raises(RetroMAEError, match=r"its modules ask for .* --trust_remote_code true"):
        load_sentence_transformer(str(tmp_path / "dense"))
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../1_Pooling", "/etc"])
def test_no_module_lies_outside_of_the_folder(name, exported):
    pooling = "sentence_transformers.sentence_transformer.modules.Pooling"
    modules = json.loads((exported / "modules.json").read_text())
    (exported / "modules.json").write_text(json.dumps([modules[0], modules[1] | {"path": name}]))
    with pytest.raises(RetroMAEError, match="Invalid model path"):
        load_sentence_transformer(str(exported))
    route(exported, name, pooling)
    with pytest.raises(RetroMAEError, match="Invalid model path"):
        load_sentence_transformer(str(exported))


@pytest.mark.parametrize("layout", ["", "2_Asym/config.json", "2_Router/router_config.json"])
@pytest.mark.parametrize("weights", ["tensors", "code"])
def test_a_pickled_module_is_read_as_tensors_alone(layout, weights, exported, tmp_path):
    """Also in a router, whose types stand in one of two files; a legacy router's routes have names of their own."""
    mark, folder = tmp_path / "mark", tmp_path / "dense"
    model = load_sentence_transformer(str(exported), device="cpu")
    routes = {"query": [Dense(32, 8)], "doc": [Dense(32, 8)]}
    model.append(Router(routes, allow_empty_key=False) if layout else Dense(32, 8))
    model.save_pretrained(str(folder), create_model_card=False)
    if layout:
        place = layout.partition("/")[0]
        (folder / "2_Router").rename(folder / place)
        (folder / place / "router_config.json").rename(folder / layout)
        modules = json.loads((folder / "modules.json").read_text())
        modules[2] |= {"path": place, "type": "sentence_transformers.models.Asym"}
        (folder / "modules.json").write_text(json.dumps(modules))
    for file in folder.rglob("*_Dense/model.safetensors"):
        torch.save(load_file(file) if weights == "tensors" else Marking(mark), file.with_name("pytorch_model.bin"))
        file.unlink()
    if weights == "tensors":
        loaded = load_sentence_transformer(str(folder), device="cpu")
        expected = model.encode("hello", task="doc") if layout else model.encode("hello")
        assert (loaded.encode_document("hello") == expected).all()
    else:
        with pytest.raises(RetroMAEError, match=r"a pickle such as pytorch_model\.bin is not read"):
            load_sentence_transformer(str(folder))
    assert not mark.exists()


def test_a_configuration_that_is_code_runs_where_it_is_trusted_alone(exported, code):
    source, mark = code
    (exported / "own.py").write_text(
        source + "from transformers import BertConfig\nclass Config(BertConfig):\n    model_type = 'own'\n"
    )
    change(exported / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})
    with pytest.raises(RetroMAEError, match=r"config\.json asks for by auto_map"):
        load_config(str(exported))
    assert not mark.exists()
    assert load_config(str(exported), trust_remote_code=True).hidden_size == 32
    assert mark.exists()


def test_a_tokenizer_that_is_code_runs_where_it_is_trusted_alone(exported, code):
    source, mark = code
    (exported / "own.py").write_text(
        source + "from transformers import BertTokenizer\nclass Own(BertTokenizer):\n    pass\n"
    )
    change(exported / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]})
    change(exported / "config.json", model_type="own")
    with pytest.raises(RetroMAEError, match="its tokenizer asks for"):
        load_tokenizer(str(exported))
    assert not mark.exists()
    change(exported / "config.json", model_type="bert")
    assert load_tokenizer(str(exported), trust_remote_code=True)("hello")["input_ids"]
    assert mark.exists()


def resumed(exported: Path, checkpoint: Path) -> int:
    """The exit status of a fine-tuning that goes on from a checkpoint of another program."""
    state = TrainerState(train_batch_size=1, stateful_callbacks=[TrainerControl()])
    state.save_to_json(str(checkpoint / "trainer_state.json"))
    pairs = checkpoint.with_name("pairs.jsonl")
    pairs.write_text('{"query": "fox", "positive": "the fox"}\n')
    line = f"finetune --model_name_or_path {exported} --dataset {pairs} --output_dir {exported}-out --use_cpu"
    line += f" --max_steps 1 --per_device_train_batch_size 1 --resume_from_checkpoint {checkpoint}"
    return main(line.split())


def test_a_fine_tuning_is_not_resumed_from_code(exported, code, tmp_path, capsys):
    source, mark = code
    checkpoint = tmp_path / "checkpoint-1"
    shutil.copytree(exported, checkpoint)
    (checkpoint / "own.py").write_text(source + "from torch.nn import Identity as Own\n")
    (checkpoint / "modules.json").write_text(json.dumps([{"path": "", "type": "own.Own"}]))
    assert resumed(exported, checkpoint) == 2
    assert "its modules ask for" in capsys.readouterr().err
    assert not mark.exists()


def test_a_fine_tuning_is_resumed_from_safetensors_whatever_the_checkpoint_asks_for(exported, tmp_path):
    mark = tmp_path / "mark"
    checkpoint = shutil.copytree(exported, tmp_path / "checkpoint-1")
    ask_for_a_pickle(checkpoint, mark)
    assert resumed(exported, checkpoint) == 0
    assert not mark.exists()


def test_a_run_is_resumed_from_tensors_alone(model, tokenizer, texts, tmp_path, monkeypatch, one_thread):
    """Of both versions of transformers that are tested: no file of a checkpoint is unpickled as a whole."""
    from datasets import Dataset

    passages = tokenize_passages(Dataset.from_dict({"text": texts[:20]}), tokenizer, 32)

    def trainer(steps):
        args = TrainingArguments(
            str(tmp_path), max_steps=steps, save_steps=1, use_cpu=True, report_to="none", disable_tqdm=True
        )
        collator = DataCollatorForRetroMAE.from_config(tokenizer, model.config, seed=0)
        return Trainer(model=model, args=args, data_collator=collator, train_dataset=passages)

    trainer(1).train()
    (tmp_path / "checkpoint-1" / "training_args.bin").write_bytes(b"nothing that can be read")
    read = []

    def load(file, *args, **options):
        read.append((Path(str(file)).name, options.get("weights_only")))
        return loads(file, *args, **options)

    loads = torch.load
    monkeypatch.setattr(torch, "load", load)
    trainer(2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert {name for name, _ in read} == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert {weights_only for _, weights_only in read} == {True}


def test_an_encoder_that_was_saved_alone_is_no_checkpoint_to_go_on_from(model, tmp_path):
    """Its decoder would be a random one, after a warning at most."""
    model.save_pretrained(tmp_path / "whole")
    RetroMAEModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "encoder")
    with pytest.raises(RetroMAEError, match=r"lacks 16 of its model's weights, decoder\S+ for one"):
        load_checkpoint(RetroMAEForPreTraining, str(tmp_path / "encoder"))
    for folder in ("whole", "encoder"):
        assert isinstance(load_checkpoint(RetroMAEModel, str(tmp_path / folder)), RetroMAEModel)
