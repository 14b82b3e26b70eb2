"""Pickles of every published layout become safetensors that load, and hostile ones run nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from transformers import AutoModelForMaskedLM

from retromae_hf import RetroMAEError, RetroMAEForPreTraining
from retromae_hf.arguments.pretraining import StartArguments
from retromae_hf.checkpoints import foreign as unpickling
from retromae_hf.checkpoints.foreign import DECODER_MODULES, convert
from retromae_hf.checkpoints.loading import load_sentence_transformer
from retromae_hf.checkpoints.starting_model import load_model_and_tokenizer
from retromae_hf.commands.main import main


@pytest.fixture
def pickled(encoder_folder, tokenizer, tmp_path):
    """A masked LM as old repositories hold it: one pickle, with tied weights, beside other files."""
    model = AutoModelForMaskedLM.from_pretrained(encoder_folder)
    folder = tmp_path / "pickled"
    tokenizer.save_pretrained(folder)
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    for name in ("training_args.bin", "optimizer.pt", "tf_model.h5", ".gitattributes"):
        (folder / name).write_bytes(b"not to be read")
    return folder


def assert_same_model(folder, encoder_folder):
    ours, expected = (AutoModelForMaskedLM.from_pretrained(one).state_dict() for one in (folder, encoder_folder))
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


def test_a_repository_of_old_becomes_one_that_loads(pickled, encoder_folder, tmp_path, capsys):
    with pytest.raises(RetroMAEError, match=f"retromae-hf convert {pickled} FOLDER"):
        RetroMAEForPreTraining.from_encoder(str(pickled))
    assert main(["convert", str(pickled), str(tmp_path / "safe")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "safe")
    assert {file.name for file in (tmp_path / "safe").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert_same_model(tmp_path / "safe", encoder_folder)
    RetroMAEForPreTraining.from_encoder(str(tmp_path / "safe"))
    assert main(["convert", str(pickled), str(tmp_path / "safe")]) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err


def test_weights_in_several_files(pickled, encoder_folder, tmp_path):
    state = torch.load(pickled / "pytorch_model.bin")
    (pickled / "pytorch_model.bin").unlink()
    names = list(state)
    parts = {"pytorch_model-00001-of-00002.bin": names[:20], "pytorch_model-00002-of-00002.bin": names[20:]}
    for file, held in parts.items():
        torch.save({name: state[name] for name in held}, pickled / file)
    index = {"metadata": {}, "weight_map": {name: file for file, held in parts.items() for name in held}}
    (pickled / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_same_model(convert(str(pickled), str(tmp_path / "safe")), encoder_folder)


@pytest.fixture
def here(monkeypatch):
    """What the other process does, in this one."""
    monkeypatch.setattr(unpickling, "bound_memory", lambda spare: None)
    return lambda *files: unpickling.main([str(file) for file in files])


@pytest.mark.parametrize("layout", ["as it is", "of old", "in a checkpoint", "half", "ordered"])
def test_a_single_file_of_every_layout(pickled, layout, here, tmp_path):
    state = torch.load(pickled / "pytorch_model.bin")
    if layout == "half":
        state = {name: one.half() if one.is_floating_point() else one for name, one in state.items()}
    saved = {
        "in a checkpoint": {"epoch": 3, "lr": [0.1], "state_dict": state},
        "ordered": OrderedDict(state),
    }.get(layout, state)
    torch.save(saved, tmp_path / "one.bin", _use_new_zipfile_serialization=layout != "of old")
    assert here(tmp_path / "one.bin", tmp_path / "one.safetensors") == 0
    loaded = load_file(tmp_path / "one.safetensors")
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) and loaded[name].dtype == state[name].dtype for name in state)


def test_modules_of_sentence_transformers(pickled, tmp_path):
    encoder = load_sentence_transformer(str(convert(str(pickled), str(tmp_path / "safe"))))
    encoder.append(Dense(32, 8))
    encoder.save(str(tmp_path / "whole"))
    (weights,) = (tmp_path / "whole").glob("*Dense/model.safetensors")
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    folder = convert(str(tmp_path / "whole"), str(tmp_path / "again"))
    ours, expected = (
        SentenceTransformer(str(one), device="cpu").encode("hello") for one in (folder, tmp_path / "whole")
    )
    assert ours.tolist() == expected.tolist()
    assert not list(folder.rglob("*.bin"))


class Hostile:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("whole", [True, False])
def test_a_hostile_pickle_runs_nothing(whole, pickled, tmp_path):
    hostile = Hostile(tmp_path / "ran")
    torch.save(hostile if whole else {"weight": torch.zeros(2), "other": hostile}, pickled / "pytorch_model.bin")
    with pytest.raises(RetroMAEError, match=r"pytorch_model.bin cannot be converted: [^\n]+$"):
        convert(str(pickled), str(tmp_path / "safe"))
    assert not (tmp_path / "ran").exists()
    assert not list((tmp_path / "safe").iterdir())


def test_what_grows_when_it_is_read_is_refused(here, tmp_path, capsys):
    bomb, target = tmp_path / "bomb.bin", tmp_path / "bomb.safetensors"
    torch.save({"weight": torch.zeros(1).expand(10**11)}, bomb)
    assert here(bomb, target) == 1
    assert capsys.readouterr().err == "its tensors are larger than the file\n"
    torch.save({"a": 1}, bomb)
    assert here(bomb, target) == 1
    assert capsys.readouterr().err == "it holds no tensors by name\n"
    bomb.write_bytes(b"\x80\x04]")
    assert here(bomb, target) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not target.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bound a process's memory")
def test_memory_is_bounded():
    code = "from retromae_hf.checkpoints.foreign import bound_memory; bound_memory(1 << 28); "
    code += "bytearray(1 << 27); print('small'); bytearray(1 << 30)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "small\n"
    assert "MemoryError" in done.stderr


def test_nothing_to_convert(encoder_folder, tmp_path):
    with pytest.raises(RetroMAEError, match="holds no pytorch_model"):
        convert(encoder_folder, str(tmp_path / "safe"))
    with pytest.raises(RetroMAEError, match="is no file and no folder here, and no model on the Hub"):
        convert("nobody/nothing", str(tmp_path / "safe"))


@pytest.fixture
def released(model, tmp_path):
    """This package's tiny decoder in a training folder of the released code, pickled."""
    back = {ours: theirs for theirs, ours in DECODER_MODULES.items()}
    state = {f"lm.{name}": one for name, one in model.encoder.state_dict().items()}
    for name, tensor in model.decoder.state_dict().items():
        module, parameter = name.removeprefix("0.").split(".")
        state[f"c_head.{back[module]}.{parameter}"] = tensor
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(RetroMAEError, match="is to be a new"):
        convert(str(tmp_path / "pytorch_model.bin"), str(tmp_path / "released"))
    return convert(str(tmp_path / "pytorch_model.bin"), str(tmp_path / "released.safetensors"))


def test_a_released_decoder_beside_an_encoder(released, model, encoder_folder, texts):
    start, decoder = str(encoder_folder), str(released)
    ours, _ = load_model_and_tokenizer(StartArguments(start, decoder_from=decoder), texts, 32)
    for name, tensor in model.decoder.state_dict().items():
        assert torch.equal(ours.decoder.state_dict()[name], tensor), name
    assert ours.new_parameters == set(), "nothing is new, so that no warm-up is asked for"
    other, _ = load_model_and_tokenizer(StartArguments(start), texts, 32)
    assert torch.equal(ours.get_input_embeddings().weight, other.get_input_embeddings().weight)
    for wrong, told in (
        ({"num_decoder_layers": 2}, "one layer of the released code"),
        ({"decoding": "none"}, "one layer of the released code"),
        ({"decoder_from": f"{encoder_folder}/model.safetensors"}, "holds no decoder of the released"),
        ({"decoder_from": str(released.with_name("pytorch_model.bin"))}, "retromae-hf convert IN OUT"),
    ):
        with pytest.raises(RetroMAEError, match=told):
            load_model_and_tokenizer(StartArguments(start, **({"decoder_from": decoder} | wrong)), texts, 32)
    with pytest.raises(RetroMAEError, match="give model_name_or_path"):
        StartArguments(decoder_from=decoder)
