"""Retrieval tasks as they are read and checked."""

from __future__ import annotations

import gzip
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from conftest import write_beir
from datasets import Dataset
from huggingface_hub import parse_eval_result_entries

from retromae_hf import RetroMAEError
from retromae_hf.publishing.model_card import write_eval_results
from retromae_hf.retrieval.evaluation import evaluate_bm25
from retromae_hf.retrieval.tasks import (
    RetrievalTask,
    load_beir,
    load_tasks,
    sampled,
    write_mteb_results,
)


def test_beir_layout(tmp_path):
    folder = write_beir(tmp_path / "task")
    (task,) = load_tasks([str(folder)])
    assert task.queries == {"q1": "otter river"}
    assert task.documents["d1"] == "Rivers The otter swims in the river."
    assert task.qrels == {"q1": {"d1": 1}}
    assert evaluate_bm25(task)["mrr@10"] == 1.0
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "dev.tsv")
    assert load_tasks([str(folder)], split="dev") == [task]
    with pytest.raises(RetroMAEError, match=r"qrels/test.tsv does not exist"):
        load_tasks([str(folder)])
    for file in ("corpus.jsonl", "queries.jsonl", "qrels/dev.tsv"):
        (folder / f"{file}.gz").write_bytes(gzip.compress((folder / file).read_bytes()))
        (folder / file).unlink()
    assert load_tasks([str(folder)], split="dev") == [task]


@pytest.mark.parametrize(
    "header",
    [
        "",
        " \n\n",
        "query-id\tcorpus-id\tscore\n",
        "QID\tDocID\tGrade\r\n",
        "query-id corpus-id score\n",
        "\nquery\titeration\tdocument\tgrade\n",
        "0\t1\t2\n",  # pandas, for columns without names
    ],
)
@pytest.mark.parametrize(
    "lines",
    [
        "q1\td1\t1\nq1\td2\t2\n",
        "q1\td1\t1 \r\nq1\td2\t2\t\r\n",
        "q1\td1\t1.0\nq1\td2\t2.0\n",
        "q1\t0\td1\t1\nq1\tQ0\td2\t2\n",
        "q1 0 d1 1\nq1  0  d2  2 \n",
        " q1 \t d1 \t+1\nq1\td2\t2e0",
    ],
)
def test_the_first_line_is_a_judgment_unless_it_knows_neither_id(tmp_path, header, lines):
    assert load_beir(write_beir(tmp_path / "task", header + lines)).qrels == {"q1": {"d1": 1, "d2": 2}}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.jsonl", b'{"_id": "d1"}\n', r"corpus\.jsonl line 1 is not"),
        ("corpus.jsonl", b'\n{"_id": "d1", "text": ["a"]}\n', r"corpus\.jsonl line 2 is not"),
        ("corpus.jsonl", b"", "holds no documents"),
        ("corpus.jsonl", '{"_id": "d1", "text": "déjà"}\n'.encode("latin-1"), r"corpus\.jsonl is not UTF-8"),
        ("queries.jsonl", b'{"_id": "q1", "text": null}\n', r"queries\.jsonl line 1 is not"),
        ("qrels/test.tsv", b"", "judge no query"),
        ("qrels/test.tsv", b"q1\td1\t1\nq1\td2\t1000000000\n", r"test\.tsv line 2 is not .* up to 10000"),
        ("qrels/test.tsv", b"q1\td1\t1\nq1\td2\tnan\n", r"test\.tsv line 2 is not"),
        ("qrels/test.tsv", b"q1\td1\t1\nq1\t0\td2\t1\t7\n", r"test\.tsv line 2 is not"),
        ("qrels/test.tsv", "q1\td1\t1\n".encode("utf-16"), r"test\.tsv is UTF-16; convert it"),
        ("queries.jsonl", '{"_id": "q1", "text": "a"}\n'.encode("utf-16"), r"queries\.jsonl is UTF-16"),
        ("corpus.jsonl", b'{"_id": "d\\u0000", "text": "a"}\n', "the document id .*, which cannot be scored"),
        ("queries.jsonl", b'{"_id": " ", "text": "a"}\n', "task has the query id '', which cannot be scored"),
        ("qrels/test.tsv", b"query-id\tcorpus-id\tscore\nq1\td1\tgood\n", r"test\.tsv line 2 is not"),
        ("queries.jsonl", b'{"_id": 1, "text": "a"}\n{"_id": "1", "text": "a"}\n', r"queries\.jsonl line 2 .* '1'"),
        ("queries.jsonl", b'{"_id": "q1", "text": " \\t"}\n', r"judged queries without text \(q1\)"),
        ("qrels/test.tsv", b"q1\td1\t1\nq1\td2\t1\nq1\td1\t2\n", r"test\.tsv line 3 grades document 'd1'"),
    ],
)
def test_a_broken_file_is_named(tmp_path, file, content, message):
    broken = write_beir(tmp_path / "task")
    (broken / file).write_bytes(content)
    with pytest.raises(RetroMAEError, match=message):
        load_beir(broken)


def test_byte_order_marks_and_blanks_around_ids_are_no_part_of_them(tmp_path):
    task = write_beir(tmp_path / "task", "q1\td1\t1\n")
    plain = load_beir(task)
    (task / "queries.jsonl").write_text('{"_id": "q1 ", "text": "otter river"}\n{"_id": 2, "text": "b"}\n')
    for file in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        (task / file).write_text((task / file).read_text(), encoding="utf-8-sig")
    assert load_beir(task) == plain


def test_grades_below_0_are_0(tmp_path):
    task = load_beir(write_beir(tmp_path / "task", "q1\td1\t-2\nq1\td2\t1\nq1\td3\t-1.0\n"))
    assert task.qrels == {"q1": {"d1": 0, "d2": 1, "d3": 0}}


def test_text_that_is_none_after_all(tmp_path):
    task = write_beir(tmp_path / "task")
    (task / "corpus.jsonl").write_text('{"_id": "d1", "text": "\\ud800"}\n{"_id": "d2", "text": ""}\n')
    assert load_beir(task).documents == {"d1": "?", "d2": ""}
    with pytest.raises(RetroMAEError, match="BM25 finds no words"):
        evaluate_bm25(load_beir(task))


def test_queries_without_judgments_are_left_out_and_counted(tmp_path):
    task = load_beir(write_beir(tmp_path / "task"))
    assert (list(task.queries), task.num_unjudged_queries) == (["q1"], 1)
    assert task.missing_ids.num_judgments == 0


def test_an_unjudged_query_may_be_empty_and_a_judgment_may_be_repeated(tmp_path):
    folder = write_beir(tmp_path / "task", "q1\td1\t1\nq1\td1\t1\n")
    with (folder / "queries.jsonl").open("a") as queries:
        queries.write('{"_id": "q3", "text": ""}\n')
    assert load_beir(folder).num_unjudged_queries == 2


def write_large(folder, missing):
    """One query with 200 judgments, the last `missing` of which name no document."""
    (folder / "qrels").mkdir(parents=True)
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "word"}\n')
    rows = [json.dumps({"_id": f"d{number}", "text": f"word {number}"}) for number in range(200 - missing)]
    (folder / "corpus.jsonl").write_text("\n".join(rows))
    (folder / "qrels" / "test.tsv").write_text("".join(f"q\td{number}\t1\n" for number in range(200)))
    return folder


def test_ids_that_qrels_name_and_nobody_has_are_counted_and_listed_up_to_1_percent(tmp_path, caplog):
    task = load_beir(write_large(tmp_path / "few", missing=2))
    assert task.missing_ids.num_judgments == 2
    assert (task.missing_ids.queries, task.missing_ids.documents) == ([], ["d198", "d199"])
    assert "2 of 200 judgments" in caplog.text
    assert "(d198, d199)" in caplog.text
    assert len(task.qrels["q"]) == 200  # as in trec_eval, a document that cannot be found costs recall
    with pytest.raises(RetroMAEError, match=r"3 of 200 judgments of .* \(d197, d198, d199\), more than 1%"):
        load_beir(write_large(tmp_path / "many", missing=3))


def test_judgments_of_a_query_that_is_not_there(tmp_path, caplog):
    folder = write_large(tmp_path / "task", missing=0)
    with (folder / "qrels" / "test.tsv").open("a") as qrels:
        qrels.write("lost\td1\t1\n")
    task = load_beir(folder)
    assert list(task.qrels) == ["q"]
    assert (task.missing_ids.num_judgments, task.missing_ids.queries) == (1, ["lost"])


def test_two_tasks_of_one_name(tmp_path):
    folders = [str(write_beir(tmp_path / parent / "task")) for parent in ("one", "other")]
    assert [task.name for task in load_tasks(folders[:1])] == ["task"]
    with pytest.raises(RetroMAEError, match="two datasets are called task"):
        load_tasks(folders)


def test_nanobeir_by_name(monkeypatch):
    """The evaluator of sentence-transformers, which would download its collections, is a stand-in."""

    def evaluator(names):
        return SimpleNamespace(
            evaluators=[
                SimpleNamespace(
                    name=f"Nano{name}",
                    queries_ids=["q"],
                    queries=["otter?"],
                    corpus_ids=["d1", "d2"],
                    corpus=["otter", "wolf"],
                    relevant_docs={"q": {"d1"}},
                )
                for name in names or ("A", "B")
            ]
        )

    monkeypatch.setattr("sentence_transformers.sentence_transformer.evaluation.NanoBEIREvaluator", evaluator)
    assert [task.name for task in load_tasks(["nanobeir"])] == ["NanoA", "NanoB"]
    (task,) = load_tasks(["nanobeir:msmarco"])
    assert (task.queries, task.qrels) == ({"q": "otter?"}, {"q": {"d1": 1}})
    assert evaluate_bm25(task)["mrr@10"] == 1


def test_nanobeir_without_a_network_is_one_sentence():
    with pytest.raises(RetroMAEError, match="nanobeir:no-such cannot be loaded"):
        load_tasks(["nanobeir:no-such"])


def test_beir_by_name(monkeypatch, tmp_path):
    def download_and_unzip(url, folder):
        assert url.endswith("/scifact.zip")
        return str(write_beir(tmp_path / "scifact"))

    util = ModuleType("beir.util")
    util.download_and_unzip = download_and_unzip
    monkeypatch.setitem(sys.modules, "beir", ModuleType("beir"))
    monkeypatch.setitem(sys.modules, "beir.util", util)
    (task,) = load_tasks(["beir:scifact"])
    assert (task.name, len(task.documents)) == ("scifact", 3)


@pytest.mark.parametrize("subsets", [["default"], ["de", "en"]])
def test_mteb_by_name(monkeypatch, subsets):
    data = {
        "queries": Dataset.from_dict({"id": ["q"], "text": ["otter"]}),
        "corpus": Dataset.from_dict({"id": ["d1", "d2"], "title": ["Rivers", None], "text": ["Otters swim.", "Wolf"]}),
        "relevant_docs": {"q": {"d1": 2}},
    }

    class Task(SimpleNamespace):
        def load_data(self):
            self.dataset = {subset: {"test": data} for subset in subsets}

        def convert_v1_dataset_format_to_v2(self, num_proc):
            pass

    on_hub = {"path": "mteb/nfcorpus", "revision": "ec0fa4f"}
    mteb = ModuleType("mteb")
    mteb.get_task = lambda name: Task(eval_splits=["test", "dev"], metadata=SimpleNamespace(dataset=on_hub))
    monkeypatch.setitem(sys.modules, "mteb", mteb)
    tasks = load_tasks(["mteb:NFCorpus"])
    assert [task.name for task in tasks] == (["NFCorpus"] if len(subsets) == 1 else ["NFCorpus-de", "NFCorpus-en"])
    assert tasks[0].documents == {"d1": "Rivers Otters swim.", "d2": "Wolf"}
    assert tasks[0].qrels == {"q": {"d1": 2}}
    on_leaderboard = {"task": "NFCorpus", "split": "test", "dataset": "mteb/nfcorpus", "revision": "ec0fa4f"}
    assert [task.benchmark for task in tasks] == [on_leaderboard | {"subset": subset} for subset in subsets]
    assert load_tasks(["mteb:NFCorpus"], max_documents=1)[0].benchmark is None, "a sample is another task"


def test_results_as_mteb_writes_them(monkeypatch, tmp_path):
    """Against a stand-in; README says what was tried."""
    given = {}

    class TaskResult:
        @classmethod
        def from_task_results(cls, task, scores, evaluation_time):
            given[task] = (scores, evaluation_time)
            return cls()

        def to_disk(self, path):
            path.write_text("as mteb writes it")

    mteb = ModuleType("mteb")
    mteb.TaskResult, mteb.get_task = TaskResult, lambda name: name
    monkeypatch.setitem(sys.modules, "mteb", mteb)
    entry = {"measures": {"ndcg@10": 0.5, "map@100": 0.25}, "seconds": {"embed": 2.0, "search": 1.0}}
    tasks = {}
    for subset, revision in (("de", None), ("en", "1")):
        one = {"task": "A", "subset": subset, "split": "test", "dataset": "mteb/a", "revision": revision}
        tasks[f"A-{subset}"] = entry | {"benchmark": one}
    results = {"tasks": tasks | {"pydocs": entry | {"benchmark": None}}}
    (file,) = write_mteb_results(results, tmp_path / "results-mteb")
    assert (file.name, file.read_text()) == ("A.json", "as mteb writes it")
    scores = {"ndcg_at_10": 0.5, "map_at_100": 0.25, "main_score": 0.5}
    assert given == {"A": ({"test": {"de": scores, "en": scores}}, 6.0)}
    assert write_mteb_results({"tasks": {"pydocs": entry | {"benchmark": None}}}, tmp_path / "none") == []
    assert not (tmp_path / "none").exists()

    write_eval_results(tmp_path, results)
    (file,) = (tmp_path / ".eval_results").iterdir()
    german, english = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert (german.dataset_id, german.task_id, german.value) == ("mteb/a", "A_de_test", 50.0)
    assert (english.task_id, english.dataset_revision) == ("A_en_test", "1")
    (file.parent / "others.yaml").write_text("- value: 3")
    write_eval_results(tmp_path, None)
    assert [one.name for one in file.parent.iterdir()] == ["others.yaml"]


def test_a_task_of_mteb_that_is_not_retrieval(monkeypatch):
    mteb = ModuleType("mteb")
    mteb.get_task = lambda name: SimpleNamespace(metadata=SimpleNamespace(type="STS"))
    monkeypatch.setitem(sys.modules, "mteb", mteb)
    with pytest.raises(RetroMAEError, match="mteb:STS12 is a task of type STS"):
        load_tasks(["mteb:STS12"])


@pytest.mark.parametrize("package", ["beir", "mteb"])
def test_a_benchmark_without_its_package(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RetroMAEError, match=rf"needs the package {package}; pip install 'retromae-hf\[benchmarks\]'"):
        load_tasks([f"{package}:anything"])


def numbered_task(documents: int, judged: dict[str, list[int]]) -> RetrievalTask:
    """Documents d0, d1 ..., and queries with the numbers of the documents that they are judged for."""
    return RetrievalTask(
        "numbered",
        queries=dict.fromkeys(judged, "otter"),
        documents={f"d{number}": "otter" for number in range(documents)},
        qrels={query: {f"d{number}": 1 for number in numbers} for query, numbers in judged.items()},
    )


def test_a_sample_keeps_what_is_judged_and_is_the_same_whatever_stands_beside_it():
    task = numbered_task(100, {"q1": [3, 4], "q2": [99]})
    small = sampled(task, 20)
    assert (small.queries, small.qrels, small.max_documents) == (task.queries, task.qrels, 20)
    assert len(small.documents) == 20
    assert {"d3", "d4", "d99"} <= small.documents.keys()
    assert list(small.documents) == sorted(small.documents, key=lambda name: int(name[1:]))  # in their order
    turned = RetrievalTask("turned", task.queries, dict(reversed(task.documents.items())), task.qrels)
    assert sampled(turned, 20).documents == small.documents
    assert small.documents.keys() < sampled(task, 50).documents.keys()
    assert sampled(task, 100) is task
    with pytest.raises(RetroMAEError, match="max_documents=0 must be at least 1"):
        sampled(task, 0)


def test_of_a_sample_too_small_for_what_is_judged_queries_are_left_out_too():
    task = numbered_task(100, {f"q{number}": [number, 50 + number] for number in range(40)})
    small = sampled(task, 11)
    assert len(small.queries) == 5
    assert small.queries.keys() == small.qrels.keys() < sampled(task, 31).qrels.keys()
    assert {document for row in small.qrels.values() for document in row} < small.documents.keys()
    assert len(small.documents) == 11
    (query,) = sampled(task, 1).qrels  # one stays whatever it needs
    assert sampled(task, 1).documents.keys() == task.qrels[query].keys()
