"""Pushed to a Hub and loaded from it by name, with and without this package; the Hub is `hub_server`."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from hub_server import TOKEN, HubServer, Repo

from retromae_hf import RetroMAEConfig, RetroMAEForPreTraining

CUT = {"tester/cut-in-upload": "lfs_upload", "tester/cut-in-commit": "commit"}

MODEL = {"model-00001-of-00002.safetensors", "model.safetensors.index.json", "onnx/model.onnx", "2_Dense/config.json"}
OTHERS = {"figure.png", "last-checkpoint/model.safetensors"}
EARLIER = dict.fromkeys(MODEL | OTHERS, b"of an earlier push")


@pytest.fixture(scope="module")
def hub():
    with HubServer() as hub:
        hub.cut = CUT
        hub.repos["tester/again"] = Repo("tester/again", private=False)
        hub.repos["tester/again"].commit("main", EARLIER)
        hub.repos["tester/pickled"] = Repo("tester/pickled", private=False)
        pickled = io.BytesIO()
        torch.save({"weight": torch.ones(2)}, pickled)
        of_old = {"pytorch_model.bin": pickled.getvalue(), "config.json": b"{}", "tf_model.h5": b"large"}
        hub.repos["tester/pickled"].commit("main", of_old)
        yield hub


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """Start a function of `hub_client` against the Hub, with empty caches; returns what waits for its report."""

    def start(function: str, folder: Path, token: str | None) -> Callable[[], dict]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment = ours | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path_factory.mktemp("home")),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
            **({} if token is None else {"HF_TOKEN": token}),
        }
        command = [sys.executable, str(Path(__file__).with_name("hub_client.py")), function]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, env=environment, cwd=folder, **pipes)

        def report() -> dict:
            said, errors = process.communicate()
            assert process.returncode == 0, errors[-3000:]
            return json.loads(said.splitlines()[-1])

        return report

    return start


@pytest.fixture(scope="module")
def pushed(client, hub, tmp_path_factory, encoder_config, tokenizer, texts):
    """What the pushing process reports; everything else finds on the Hub what it has pushed."""
    folder = tmp_path_factory.mktemp("push")
    torch.manual_seed(0)
    model = RetroMAEForPreTraining(RetroMAEConfig(encoder_config=encoder_config))
    for each in (model, tokenizer):
        each.save_pretrained(folder / "checkpoint")
    (folder / "texts.txt").write_text("\n".join(texts[:40]))
    report = client("push", folder, TOKEN)()
    # A revision with other code, as time brings it.
    repo = hub.repos["tester/checkpoint"]
    files = dict(hub.files("tester/checkpoint"))
    code = files["losses.py"].decode()
    files["losses.py"] = code.replace("return losses, grad_features", "return 2 * losses, grad_features").encode()
    assert files["losses.py"].decode() != code
    repo.commit("doubled", files)
    return report | {"folder": folder}


@pytest.fixture(scope="module")
def loaded(client, pushed, tmp_path_factory):
    """What the loading processes report, which run beside each other: without the package, and with it."""
    waiting = [
        client("load_without_the_package", tmp_path_factory.mktemp("without"), TOKEN),
        client("load_with_the_package", tmp_path_factory.mktemp("with"), None),
    ]
    return [report() for report in waiting]


@pytest.fixture
def without_the_package(loaded):
    return loaded[0]


@pytest.fixture
def with_the_package(loaded):
    return loaded[1]


def test_an_encoder_is_pushed_in_one_commit(pushed, hub):
    assert pushed["export"] == {"status": 0, "errors": []}
    repo = hub.repos["tester/encoder"]
    assert repo.private
    assert len(repo.commits) == 2  # the one that makes a repository, and ours
    local = {
        file.relative_to(pushed["folder"] / "encoder").as_posix()
        for file in (pushed["folder"] / "encoder").rglob("*")
        if file.is_file()
    }
    assert hub.files("tester/encoder").keys() - {".gitattributes"} == local
    assert not any(name.endswith(".py") for name in local)


def test_nothing_of_an_earlier_model_stays_beside_a_new_one(pushed, hub):
    assert pushed["export again"]["status"] == 0
    files = hub.files("tester/again").keys()
    assert files == hub.files("tester/encoder").keys() - {".gitattributes"} | OTHERS


def test_an_encoder_loads_by_name_without_the_package(without_the_package):
    encoder = without_the_package
    assert encoder["class"] == "BertModel"
    assert encoder["AutoModel"] == pytest.approx(encoder["SentenceTransformer"], abs=1e-6)


def test_a_training_checkpoint_loads_by_name_without_the_package(without_the_package):
    assert "trust_remote_code=True" in without_the_package["not trusted"]
    assert without_the_package["checkpoint"] == pytest.approx(without_the_package["AutoModel"], abs=1e-6)
    assert {"modeling_retromae.py", "losses.py", "config.json"} <= set(without_the_package["saved again"])


def test_with_the_package_its_own_classes_are_taken(with_the_package, without_the_package):
    assert {module.split(".")[0] for module in with_the_package["modules"]} == {"retromae_hf"}
    assert with_the_package["loss"] == pytest.approx(without_the_package["loss"], rel=1e-6)


def test_copies_of_several_revisions_do_not_meet(with_the_package, without_the_package):
    for report in (with_the_package, without_the_package):
        assert report["doubled loss"] == pytest.approx(2 * report["loss"], rel=1e-6)
    assert with_the_package["loss afterwards"] == with_the_package["loss"]


def test_a_training_checkpoint_carries_the_model_code_and_no_more(pushed, hub):
    code = {name for name in hub.files("tester/checkpoint") if name.endswith(".py")}
    assert code == {file.name for file in (ROOT / "retromae_hf/model").glob("*.py")} - {"__init__.py"}


def test_a_training_run_pushes_whole_checkpoints(pushed, hub):
    assert pushed["pretrain"] == {"status": 0, "errors": []}
    _, *commits = hub.repos["tester/run"].commits.values()
    assert len(commits) >= 2
    for files in commits:
        assert {
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "modeling_retromae.py",
            "losses.py",
        } <= files.keys()
        assert not any(TOKEN.encode() in content for content in files.values())
    assert commits[-1]["model.safetensors"] == (pushed["folder"] / "run" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["encoder", "run"])
def test_a_card_names_its_repository(pushed, hub, name):
    files = hub.files(f"tester/{name}")
    assert f'name = "tester/{name}"' in files["README.md"].decode()
    assert json.loads(files["training.json"])["repository"] == f"tester/{name}"


@pytest.mark.parametrize("name", ["cut-in-upload", "cut-in-commit"])
def test_a_cut_upload_publishes_nothing(pushed, hub, name):
    assert pushed[name]["status"] == 2
    (sentence,) = pushed[name]["errors"]
    assert f"could not be pushed to tester/{name}: the connection to {hub.url} failed" in sentence
    assert f"push it with: hf upload tester/{name}" in sentence
    assert hub.files(f"tester/{name}").keys() == {".gitattributes"}


def test_a_run_whose_push_is_cut_says_where_its_model_is(pushed):
    assert pushed["pretrain cut"]["status"] == 2
    (sentence,) = pushed["pretrain cut"]["errors"]
    assert "the model in run-cut could not be pushed to cut-in-commit: the connection" in sentence
    assert (pushed["folder"] / "run-cut" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("not mine", "somebody/model cannot be pushed to: there is no such repository on the Hub, or no access to it"),
        ("pretrain revision", "cannot be pushed to at hub_revision=nowhere: the repository has no such revision"),
        ("pretrain token", "hub_token would stand in the list of processes and the shell's history"),
    ],
)
def test_what_cannot_be_pushed_is_told_before_anything_is_done(pushed, what, said):
    assert pushed[what]["status"] == 2
    (sentence,) = pushed[what]["errors"]
    assert said in sentence
    assert not (pushed["folder"] / "not-mine").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tester/encoder", "or no access to it; check the name, and log in with hf auth login"),
        ("tester/nothing", "or no access to it; check the name, and log in with hf auth login"),
        ("no/such/folder", "there is no such folder, and on the Hub a name is USER/NAME"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_a_sentence(with_the_package, name, said):
    assert with_the_package[name]["status"] == 2
    (sentence,) = with_the_package[name]["errors"]
    assert f"{name} holds no model that can be loaded: " in sentence
    assert said in sentence


def test_a_checkpoint_is_exported_by_name(with_the_package):
    assert with_the_package["by name"] == {"status": 0, "errors": []}


def test_pickled_weights_are_converted_by_name(with_the_package):
    assert with_the_package["convert"] == {"status": 0, "errors": []}
    assert with_the_package["converted"] == ["config.json", "model.safetensors"]


def test_a_wrong_revision_is_named(with_the_package):
    assert "nowhere is not a valid git identifier" in with_the_package["revision"]
