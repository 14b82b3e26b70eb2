"""A text and an encoder become an adapted encoder, with what it was and is on a task that nothing was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import sentences
from datasets import Dataset
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM

from retromae_hf import export_encoder
from retromae_hf.arguments.finetuning import AdaptArguments
from retromae_hf.commands.main import main
from retromae_hf.data.held_out import choose_pairs, hold_out_pairs
from retromae_hf.model.errors import RetroMAEError
from retromae_hf.publishing.pictures import before_after_table, verdict
from retromae_hf.retrieval.evaluation import evaluate_model
from retromae_hf.retrieval.tasks import load_beir
from retromae_hf.training import adaptation
from retromae_hf.training.adaptation import adapt

pytestmark = pytest.mark.usefixtures("one_thread")


def write_texts(file: Path, texts: list[str]) -> Path:
    lines = (json.dumps({"name": f"n{number}", "text": text}) for number, text in enumerate(texts))
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


@pytest.fixture
def text(tmp_path) -> Path:
    return write_texts(tmp_path / "texts.jsonl", sentences(200))


@pytest.fixture
def tuned(encoder_folder, tmp_path) -> str:
    """A sentence-transformers folder without a record, as people find them."""
    model, tokenizer = (auto.from_pretrained(encoder_folder) for auto in (AutoModelForMaskedLM, AutoTokenizer))
    folder = export_encoder(model, tokenizer, tmp_path / "tuned", pooling="mean")
    (folder / "training.json").unlink()
    return str(folder)


def documents(texts: list[str], **columns: list) -> Dataset:
    return Dataset.from_dict({"text": texts, **columns})


def test_a_tuned_retriever_goes_to_the_pairs_at_once_and_the_figures_can_be_checked(tuned, text, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["adapt", "--model_name_or_path", tuned, "--dataset", str(text), "--output_dir", str(out)]
    assert main([*command, "--minutes", "0.3"]) == 0
    shown = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert shown.startswith(report["verdict"])
    assert report["table"] in shown
    assert not (out / "pretrained").exists()
    task = load_beir(out / "held-out")
    for when, model in (("before", tuned), ("after", "adapted" if not report["is_better"] else "encoder")):
        kept = json.loads((out / f"{when}.json").read_text())["tasks"]["held-out"]
        again = evaluate_model(str(out / model), [task], bm25=True)["tasks"]["held-out"]
        assert again["measures"] == pytest.approx(kept["measures"])
        assert again["hybrid"]["measures"] == pytest.approx(kept["hybrid"]["measures"])
    card = (out / ("encoder" if report["is_better"] else "adapted") / "README.md").read_text()
    assert report["table"] in card
    assert "adaptation.png" in card
    trained = (out / "text.jsonl").read_text()
    assert not [query for query in task.queries.values() if query in trained]
    # Once more: everything is there, and nothing is done anew.
    assert main([*command, "--minutes", "0.3"]) == 0
    assert json.loads((out / "report.json").read_text()) == report
    assert main([*command, "--minutes", "0.4"]) == 2
    assert "another minutes; give the same, or another output_dir" in capsys.readouterr().err


def test_a_masked_lm_is_pretrained_first_and_goes_on_where_it_was_cut_off(
    encoder_config, tokenizer, text, tmp_path, monkeypatch
):
    longer = encoder_config.to_dict() | {"max_position_embeddings": 128}
    BertForMaskedLM(BertConfig(**longer)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    args = AdaptArguments(str(tmp_path / "bert"), str(text), str(tmp_path / "out"), minutes=0.4, pairs="crop")

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(adaptation, "_keep", killed)
        with pytest.raises(KeyboardInterrupt):
            adapt(args)
    pretrained = tmp_path / "out/pretrained/encoder/model.safetensors"
    before, plan = pretrained.stat().st_mtime_ns, json.loads((tmp_path / "out/adapt.json").read_text())
    assert plan["plan"]["pretraining_steps"] >= 1
    report = adapt(args)
    assert pretrained.stat().st_mtime_ns == before
    assert json.loads((tmp_path / "out/adapt.json").read_text()) == plan
    assert report["pairs"] == "crop"
    assert (Path(report["encoder"]) / "modules.json").is_file()


def test_what_is_not_better_is_said_and_the_encoder_stays(tuned, text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(adaptation, "is_better", lambda tests: False)
    assert main(["adapt", "--model_name_or_path", tuned, "--dataset", str(text), "--output_dir", str(tmp_path / "o"),
                 "--minutes", "0.3"]) == 0  # fmt: skip
    first = capsys.readouterr().out.splitlines()[0]
    assert f"{tmp_path}/o/encoder is {tuned} as it was; the adapted one is in {tmp_path}/o/adapted." in first
    entries = [
        evaluate_model(one, [load_beir(tmp_path / "o/held-out")])["tasks"]["held-out"]["measures"]
        for one in (tuned, str(tmp_path / "o/encoder"))
    ]
    assert entries[0] == entries[1]


@pytest.mark.parametrize(
    ("difference", "chance", "told"),
    [(0.1, 0.01, "Better than it was"), (0.1, 0.3, "Better, which may be chance"), (-0.1, 0.01, "Not better"),
     (0.0, 1.0, "Not better")],
)  # fmt: skip
def test_the_verdict(difference, chance, told):
    assert verdict({"ndcg@10": {"difference": difference, "p_value": chance}}).startswith(
        f"{told} (" if "may" in told else told
    )


def test_the_table_marks_the_best_and_what_is_no_chance():
    measures = {"ndcg@10": 0.5, "mrr@10": 0.4, "recall@100": 0.9, "map@100": 0.4}
    before = {"measures": measures, "bm25": {"measures": measures}, "hybrid": {"measures": measures}}
    better = {name: value + 0.05 for name, value in measures.items()}
    after = before | {"measures": better}
    tests = {name: {"difference": 0.05, "p_value": 0.01} for name in measures}
    assert "| adapted | **0.550** * | **0.450** * | **0.950** * | **0.450** * |" in before_after_table(
        before, after, tests
    )


def test_the_pairs_are_the_first_kind_that_the_text_yields():
    texts = sentences(40)
    assert choose_pairs(documents(texts), 0) == "first-sentence"
    lower = [text.lower() for text in texts]
    assert choose_pairs(documents(lower, title=[f"number {n}" for n in range(40)]), 0) == "title"
    assert choose_pairs(documents(lower, title=[None] * 40), 0) == "crop"
    assert choose_pairs(documents(lower), 0) == "crop"


def test_a_held_out_document_is_trained_on_nowhere_and_the_order_does_not_matter():
    texts = sentences(200)
    task, rest = hold_out_pairs(documents([*texts, *texts[:50]]), "first-sentence", 0, queries=35, bodies=100)
    assert 30 <= len(task.queries) <= 35
    assert len(task.documents) <= 100
    assert len({*rest["text"][:]}) == 165
    turned, _ = hold_out_pairs(documents(texts[::-1]), "first-sentence", 0, queries=35, bodies=100)
    assert {*turned.queries.values()} == {*task.queries.values()}
    for query, relevant in task.qrels.items():
        (document,) = relevant
        assert f"{task.queries[query]} {task.documents[document]}" in texts


def test_too_short_a_text_is_one_sentence_before_anything_is_loaded(tmp_path, tuned):
    file = write_texts(tmp_path / "short.jsonl", sentences(100))
    with pytest.raises(RetroMAEError, match="100 different documents are too few to hold a task out of them"):
        adapt(AdaptArguments(tuned, str(file), str(tmp_path / "out")))
    with pytest.raises(RetroMAEError, match="no document is long enough for pairs=crop"):
        hold_out_pairs(documents([f"Three words {n}." for n in range(300)]), "crop", 0, 50, 300)


def test_too_few_minutes_name_how_many_are_needed_and_more_may_follow(tuned, text, tmp_path):
    args = {"model_name_or_path": tuned, "dataset": str(text), "output_dir": str(tmp_path / "out")}
    with pytest.raises(RetroMAEError, match=r"--minutes 0.0001 is too few for one step .* about \d"):
        adapt(AdaptArguments(**args, minutes=0.0001))
    measured = (tmp_path / "out/before.json").read_text()
    adapt(AdaptArguments(**args, minutes=0.3))
    assert (tmp_path / "out/before.json").read_text() == measured
