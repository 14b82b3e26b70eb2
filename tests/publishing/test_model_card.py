"""Every run and every export describes itself, and what it says is true."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import publish
import pytest
import torch
from conftest import ROOT, write_beir
from huggingface_hub import ModelCard, metadata_eval_result
from torch.nn.functional import normalize
from transformers import TrainerState

from retromae_hf.commands.main import main
from retromae_hf.publishing.model_card import CARD_FILE, TEMPLATE, build_card
from retromae_hf.publishing.record import (
    MAX_LOGS,
    RECORD_FILE,
    RunClock,
    describe_model,
    describe_source,
    describe_start,
    is_tuned_retriever,
    model_name,
    new_record,
    public_name,
    read_record,
    thin,
)
from retromae_hf.studies.comparison_report import SIGNIFICANT

TRAINING = "--use_cpu --disable_tqdm true --report_to none --logging_steps 2 --save_strategy no"
SIZES = "--hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --vocab_size 200 --max_length 32"
PRETRAIN = f"{TRAINING} {SIZES} --max_steps 6 --eval_steps 3 --per_device_train_batch_size 8"
FINETUNE = f"{TRAINING} --max_steps 4 --per_device_train_batch_size 4 --query_prompt ask:"


def run(line: str) -> int:
    return main(line.split())


@pytest.fixture(scope="module")
def folders(tmp_path_factory, texts) -> dict[str, Path]:
    """A user's way from text to a fine-tuned and evaluated model, and a sparse one."""
    torch.set_num_threads(1)
    base = tmp_path_factory.mktemp("runs")
    corpus, task = base / "corpus.txt", write_beir(base / "zoo")
    corpus.write_text("\n".join(texts), encoding="utf-8")
    rows = [{"query": text[:30], "positive": text[30:]} for text in texts[:40]]
    (base / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = {"checkpoint": base / "mine", "encoder": base / "mine" / "encoder", "sparse-encoder": base / "lexical"}
    made["finetuned"] = base / "tuned"
    told = "--license mit --language en de"
    lines = [
        f"pretrain --dataset {corpus} --output_dir {made['checkpoint']} {PRETRAIN} {told}",
        f"export --model_name_or_path {made['checkpoint']} --output_dir {made['encoder']}",
        f"export --model_name_or_path {made['checkpoint']} --output_dir {made['sparse-encoder']} --sparse true",
        f"finetune --model_name_or_path {made['encoder']} --dataset {base / 'pairs.jsonl'} "
        f"--output_dir {made['finetuned']} {FINETUNE}",
        f"evaluate --model_name_or_path {made['finetuned']} --dataset {task} --bm25 true --output {base}/results.json",
        f"card {made['finetuned']} --results {base}/results.json",
    ]
    for line in lines:
        assert run(line) == 0
    return made


KINDS = ("checkpoint", "encoder", "sparse-encoder", "finetuned")


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_of_a_card_runs(folders, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (folders[kind] / CARD_FILE).read_text(encoding="utf-8")
    name = read_record(folders[kind])["name"]
    results = []
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert f'"{name}"' in block
        variables: dict = {}
        exec(compile(block.replace(f'"{name}"', repr(str(folders[kind]))), CARD_FILE, "exec"), variables)
        if kind == "sparse-encoder":
            continue  # of its blocks only the first cuts the smallest weights off
        found = [variables["embeddings"]] if kind == "checkpoint" else [variables["queries"], variables["passages"]]
        results.append(normalize(torch.cat([torch.as_tensor(one).detach() for one in found]), dim=1))
    if results:
        assert torch.allclose(*results, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_is_what_its_files_make_of_it_again(folders, kind):
    folder = folders[kind]
    pictures = sorted(file.name for file in folder.glob("training-*.png"))
    assert len(pictures) == (2 if kind == "finetuned" else 1)
    results = json.loads((folder / "evaluation.json").read_text()) if kind == "finetuned" else None
    text = (folder / CARD_FILE).read_text(encoding="utf-8")
    assert text.startswith(str(build_card(read_record(folder), results, pictures)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_a_card_is_in_its_files(folders, kind):
    folder = folders[kind]
    record = read_record(folder)
    known = [record] + [json.loads(file.read_text()) for file in folder.glob("evaluation.json")]
    text = (folder / CARD_FILE).read_text(encoding="utf-8")
    assert strange_numbers(text, known, []) == []
    assert strange_numbers(text + "\n\nIts MRR@10 is 0.987.", known, []) != []


def test_a_fine_tuned_model_has_seen_no_more_of_a_text_than_it_reads(folders):
    """`passage_length` is 140 by default; this encoder reads 32 tokens."""
    stage = read_record(folders["finetuned"])["stages"][-1]
    assert stage["data"]["max_length"] == stage["objective"]["passage_length"] == 32
    assert "on texts of at most 32 tokens" in (folders["finetuned"] / CARD_FILE).read_text(encoding="utf-8")


def strange_numbers(card: str, known: list, computed: list[str]) -> list[str]:
    """The numbers of a card's text that neither its JSON files hold nor its template; rounded ones count as held."""
    numbers: list[float] = []
    strings: set[str] = set(computed)

    def collect(value) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                collect(name)
                collect(inner)
        elif isinstance(value, list):
            for inner in value:
                collect(inner)
        elif isinstance(value, str):
            strings.update(re.findall(r"\d[\d.]*\d|\d", value))
        elif isinstance(value, int | float):
            numbers.append(value)

    collect(known)
    text = re.sub(r"```.*?```|<!--.*?-->", "", card, flags=re.DOTALL)
    text = re.sub(r"\A---.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"(arXiv|doi):\S+|\w+@\d+|^### \d+\.|training-\d\.png", "", text, flags=re.MULTILINE)
    template = TEMPLATE.read_text(encoding="utf-8")
    for line in ("6 x tokens", "between 0 and 1"):
        assert line in template
        text = text.replace(line, "")
    strange = []
    for token in re.findall(r"\d[\d,]*(?:\.\d+)*(?:e[+-]?\d+)?", text):
        plain = token.rstrip(",").replace(",", "")
        if plain in strings:
            continue
        if "e" in plain:
            held = any(f"{number:.2e}" == plain or number == float(plain) for number in numbers)
        else:
            digits = len(plain.partition(".")[2])
            held = any(f"{number / scale:.{digits}f}" == plain for number in numbers for scale in (1, 1e6))
        if not held:
            strange.append(token)
    return strange


def test_metadata_says_what_is_known_and_the_hub_s_parser_takes_it(folders):
    data = {kind: ModelCard.load(folders[kind] / CARD_FILE).data for kind in KINDS}
    assert data["checkpoint"].library_name == "transformers"
    assert all(data[kind].library_name == "sentence-transformers" for kind in KINDS[1:])
    assert data["encoder"].pipeline_tag == data["finetuned"].pipeline_tag == "sentence-similarity"
    assert all("retromae" in one.tags for one in data.values())
    assert "sparse-encoder" in data["sparse-encoder"].tags
    for kind in KINDS[:3]:
        assert (data[kind].license, data[kind].language) == ("mit", ["en", "de"]), "an export is the same weights"
    assert (data["finetuned"].license, data["finetuned"].language) == (None, None), "nobody has said it"
    assert all(one.base_model is None and one.datasets is None for one in data.values())


def test_results_are_in_the_model_index(folders):
    measured = json.loads((folders["finetuned"] / "evaluation.json").read_text())["tasks"]["zoo"]["measures"]
    data = ModelCard.load(folders["finetuned"] / CARD_FILE).data
    assert {one.metric_type.replace("_at_", "@"): one.metric_value for one in data.eval_results} == measured
    assert {one.dataset_name for one in data.eval_results} == {"zoo"}
    more = metadata_eval_result(
        model_pretty_name=data.model_name,
        task_pretty_name="Information retrieval",
        task_id="information-retrieval",
        metrics_pretty_name="nDCG@10",
        metrics_id="ndcg_at_10",
        metrics_value=measured["ndcg@10"],
        dataset_pretty_name="zoo",
        dataset_id="zoo",
    )
    assert more["model-index"][0]["name"] == data.to_dict()["model-index"][0]["name"]


def test_a_model_s_record_goes_back_to_its_first_weights(folders):
    first, second = read_record(folders["finetuned"])["stages"]
    assert [first] == read_record(folders["checkpoint"])["stages"] == read_record(folders["encoder"])["stages"]
    assert first["start"] is None
    assert second["start"] == {"name": "mine-encoder", "on_hub": False}
    assert second["objective"]["query_prompt"] == "ask:"
    assert first["data"]["documents"] == 120
    assert second["data"]["rows"] == 40
    assert first["training"]["steps"] == 6
    assert first["tokens_seen"] == pytest.approx(first["data"]["tokens"] * 6 * 8 / first["data"]["passages"], rel=0.02)
    assert first["flops"] > 0
    assert all(stage["seconds"] > 0 for stage in (first, second))
    assert {"mlm_loss", "decoder_loss", "eval_embedding_gap"} <= {name for entry in first["logs"] for name in entry}


def test_what_a_stream_does_not_tell_is_left_out(folders, tmp_path):
    corpus = folders["checkpoint"].parent / "corpus.txt"
    tokenizer = f"--tokenizer_name {folders['checkpoint']} --streaming true"
    assert run(f"pretrain --dataset {corpus} --output_dir {tmp_path} {PRETRAIN} {tokenizer}") == 0
    (stage,) = read_record(tmp_path)["stages"]
    assert stage["data"] == {"source": "corpus.txt", "on_hub": False, "max_length": 32}
    assert stage["tokens_seen"] is None
    assert "epochs" not in stage["training"]
    assert "epoch" not in (tmp_path / CARD_FILE).read_text()


def test_no_path_of_the_machine_is_told(folders):
    for folder in folders.values():
        for file in [*folder.glob("[!_]*.json"), *folder.glob("*_*/*.json"), folder / CARD_FILE]:
            assert str(folders["checkpoint"].parent) not in file.read_text(encoding="utf-8"), file
    assert "Evaluated as `tuned`." in (folders["finetuned"] / CARD_FILE).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("me/my-encoder", "me/my-encoder"),
        ("bert-base-uncased", "bert-base-uncased"),
        ("/home/me/runs/mine/", "mine"),
        ("../mine", "mine"),
        ("runs/mine/encoder/onnx/model_int8.onnx", "model_int8.onnx"),
        ("C:\\Users\\me\\mine", "mine"),
        ("~/mine", "mine"),
    ],
)
def test_of_a_path_the_last_part_is_told(named, told):
    assert public_name(named) == told


def test_a_model_in_the_home_folder_is_not_called_after_the_user(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert model_name(tmp_path / "encoder") == "encoder"
    assert model_name(tmp_path / "mine" / "encoder") == "mine-encoder"


def test_hub_names_become_base_model_and_datasets(encoder_config):
    stage = {
        "stage": "pretraining",
        "start": describe_start("google/bert"),
        "data": describe_source("user/texts", "small", "train", documents=7),
        "objective": {"decoding": "enhanced"},
        "training": {"steps": 1, "batch_size": 2},
        "logs": [],
    }
    tuned = stage | {"stage": "finetuning", "start": describe_start(str(ROOT)), "objective": {"objective": "kl"}}
    model = describe_model(encoder_config, 7, 32, pooling="cls", similarity="cosine")
    card = build_card(new_record("x", "encoder", model, [stage, tuned]))
    assert (card.data.base_model, card.data.datasets) == ("google/bert", ["user/texts"])
    assert "`user/texts` on the Hub, config `small`, split `train`; 7 documents" in card.text
    assert str(ROOT.parent) not in card.text


def test_a_tuned_retriever_is_told_from_one_that_was_only_pretrained(folders, encoder_folder, tmp_path):
    (tmp_path / "modules.json").write_text("[]")
    tuned = {name for name, folder in folders.items() if is_tuned_retriever(folder)}
    assert tuned == {"finetuned"}
    assert is_tuned_retriever(tmp_path), "a stranger's model without a record"
    assert not is_tuned_retriever(encoder_folder), "a plain masked LM"


def test_an_export_of_a_model_on_the_hub_names_it(encoder_config):
    model = describe_model(encoder_config, 7, 32, pooling="cls", similarity="cosine")
    record = new_record("x", "encoder", model, []) | {"source": describe_start("user/checkpoint")}
    card = build_card(record)
    assert card.data.base_model == "user/checkpoint"
    assert "Nobody wrote down how this model was trained" in card.text
    assert read_record("user/checkpoint") is None, "it cannot be reached"


def test_a_spoilt_record_does_not_end_a_run(folders, tmp_path, caplog):
    start, output = tmp_path / "start", tmp_path / "out"
    shutil.copytree(folders["encoder"], start)
    record = read_record(start)
    pairs = folders["checkpoint"].parent / "pairs.jsonl"
    for spoilt in ("no JSON", "[]", json.dumps(record | {"stages": 7}), json.dumps(record | {"stages": [{}]})):
        (start / RECORD_FILE).write_text(spoilt)
        line = f"finetune --model_name_or_path {start} --dataset {pairs} --output_dir {output} {FINETUNE}"
        assert run(f"{line} --overwrite_output_dir --max_steps 1") == 0
        assert (output / "model.safetensors").is_file()
    assert "has no card" in caplog.text


def test_a_card_of_somebody_else_stays(folders, encoder_folder, tmp_path, caplog):
    pairs = folders["checkpoint"].parent / "pairs.jsonl"
    line = f"finetune --model_name_or_path {encoder_folder} --dataset {pairs} --output_dir {tmp_path} {FINETUNE}"
    card = tmp_path / CARD_FILE
    card.write_text("# Mine\n")
    assert run(line) == 0
    assert card.read_text() == "# Mine\n"
    assert f"retromae-hf card {tmp_path} --overwrite true replaces it" in caplog.text
    for options, license in (("--overwrite true --license mit", "mit"), ("--license apache-2.0", "apache-2.0")):
        assert run(f"card {tmp_path} {options}") == 0
        assert ModelCard.load(card).data.license == license


def test_other_weights_do_not_keep_old_results(folders, tmp_path):
    corpus = folders["checkpoint"].parent / "corpus.txt"
    line = f"pretrain --dataset {corpus} --output_dir {tmp_path} {PRETRAIN} --save_strategy steps --save_steps 6"
    assert run(line) == 0
    evaluated = (
        f"evaluate --model_name_or_path {tmp_path} --dataset {corpus.parent}/zoo --output {tmp_path}/../own.json"
    )
    assert run(evaluated) == 0
    assert run(f"card {tmp_path} --results {tmp_path}/../own.json") == 0
    evaluated = (tmp_path / CARD_FILE).read_text()
    assert "| zoo |" in evaluated
    assert run(line) == 0, "a run that is at its end"
    assert (tmp_path / CARD_FILE).read_text() == evaluated
    assert run(f"{line} --overwrite_output_dir") == 0
    assert "| zoo |" not in (tmp_path / CARD_FILE).read_text()


def test_wrong_results_and_folders_are_refused(folders, tmp_path, capsys):
    results = tmp_path / "results.json"
    for content, sentence in (
        ("[]", "holds no results"),
        ("{", "cannot be read"),
        ('{"schema": 1, "model": "bm25", "tasks": {}}', "results of bm25, whose weights"),
    ):
        results.write_text(content)
        assert run(f"card {folders['finetuned']} --results {results}") == 2
        assert sentence in capsys.readouterr().err
    assert run(f"card {tmp_path}") == 2
    assert "has no training.json" in capsys.readouterr().err


def test_only_a_checkpoint_with_a_decoder_is_said_to_have_one(folders):
    record = read_record(folders["checkpoint"])
    for decoding in ("none", "enhanced"):
        record["stages"][-1]["objective"]["decoding"] = decoding
        text = str(build_card(record))
        for said in ("decoder included", "decoder it leaves out"):
            assert (said in text) == (decoding == "enhanced")


def test_results_of_another_model_are_refused_and_those_of_a_copy_are_not(folders, tmp_path, capsys):
    results = f"{folders['finetuned'].parent}/results.json"
    for folder in (folders["encoder"], folders["checkpoint"]):
        before = (folder / CARD_FILE).read_text()
        assert run(f"card {folder} --results {results}") == 2
        assert "holds results of tuned, whose weights or modules are not those in" in capsys.readouterr().err
        assert (folder / CARD_FILE).read_text() == before
        assert not (folder / "evaluation.json").exists()
    copy = Path(shutil.copytree(folders["finetuned"], tmp_path / "copy"))
    assert run(f"card {copy} --results {results}") == 0
    (pooling,) = copy.glob("*Pooling/config.json")
    pooling.write_text(pooling.read_text().replace("cls", "mean"))
    assert run(f"card {copy}") == 2, "the same weights, pooled otherwise"


def test_results_can_be_taken_out_again(folders, tmp_path):
    copy = Path(shutil.copytree(folders["finetuned"], tmp_path / "copy"))
    assert run(f"card {copy} --results none") == 0
    data = ModelCard.load(copy / CARD_FILE).data
    assert data.eval_results is None
    assert not (copy / "evaluation.json").exists()
    assert run(f"card {copy} --results none {copy.parent}/none.json") == 2
    assert run(f"card {copy} --results none {folders['finetuned'].parent}/results.json") == 0
    assert "| zoo |" in (copy / CARD_FILE).read_text()


def test_without_matplotlib_a_card_says_how_to_get_its_pictures(folders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / RECORD_FILE).write_text((folders["encoder"] / RECORD_FILE).read_text())
    assert run(f"card {tmp_path}") == 0
    text = (tmp_path / CARD_FILE).read_text()
    assert "![" not in text
    assert "retromae-hf[plot]" in text


def test_an_interrupted_run_counts_all_its_seconds(tmp_path):
    args = SimpleNamespace(output_dir=tmp_path, should_save=True)
    (tmp_path / RECORD_FILE).write_text("{}")
    stored = {"RunClock": {"args": {}, "attributes": {"seconds": 100.0}}}
    state, clock = TrainerState(global_step=5, stateful_callbacks=stored), RunClock()
    clock.on_train_begin(args, state, None)
    assert 100 <= clock.state()["attributes"]["seconds"] < 101
    clock.on_train_end(args, state, None)
    assert state.stateful_callbacks["RunClock"]["attributes"]["seconds"] > 100
    assert (tmp_path / RECORD_FILE).is_file()
    clock.on_train_begin(args, TrainerState(), None)
    assert not (tmp_path / RECORD_FILE).is_file(), "another run's"
    assert clock.seconds < 1


def test_a_long_run_keeps_a_curve_of_its_logs():
    history = [{"step": step, "loss": 1 / step, "grad_norm": 1.0} for step in range(1, 10_001)]
    history += [{"step": step, "eval_loss": 1.0} for step in range(500, 10_001, 500)]
    kept = thin([*history, {"step": 10_000, "train_runtime": 9.0}])
    assert sum("loss" in entry for entry in kept) <= MAX_LOGS
    assert sum("eval_loss" in entry for entry in kept) == 20
    assert {"step": 10_000, "loss": 1 / 10_000} in kept


def test_the_template_is_in_the_package():
    setuptools = pytest.importorskip("setuptools")
    distribution = setuptools.Distribution({"src_root": str(ROOT)})
    distribution.parse_config_files([str(ROOT / "pyproject.toml")])
    assert TEMPLATE.suffix == ".jinja"
    assert distribution.package_data["retromae_hf.publishing"] == ["*.jinja"]


@pytest.mark.parametrize("file", publish.cards(), ids=lambda file: file.parent.name)
def test_published_cards_are_those_of_the_results_beside_them(file):
    text = file.read_text(encoding="utf-8")
    assert publish.cards()[file] == text
    report = json.loads((file.parent / "results.json").read_text(encoding="utf-8"))
    seeds = len(report.get("recipe", {}).get("seeds", []))
    assert strange_numbers(text, [report, seeds], [str(SIGNIFICANT)]) == []
    data = ModelCard.load(file).data
    assert data.eval_results
    assert data.license is None
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (file.parent / picture).is_file()
