"""The embedded corpus and its retrieval task."""

from __future__ import annotations

import pytest
from datasets import Dataset

from retromae_hf.data import held_out, pydocs
from retromae_hf.data.held_out import hold_out
from retromae_hf.data.pydocs import load_pydocs, read_docstrings
from retromae_hf.data.text import split_first_sentence
from retromae_hf.retrieval.tasks import dev_task, reported_task

SOURCE = '''
"""What the module is for. More of it."""
class Thing:
    """A thing of some kind."""
    def method(self):
        r"""Does it \\d."""
        def inner():
            """Not reached: nobody can call it."""
    async def later(self):
        """Does it later."""
def bare(): pass
'''


def test_docstrings_are_read_and_nothing_is_run(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text('"""The package."""\nraise SystemExit("this was run")\n')
    (package / "module.py").write_text(SOURCE)
    (package / "broken.py").write_text("def (:\n")
    assert list(read_docstrings(package / "__init__.py", tmp_path)) == [("package", "The package.")]
    assert list(read_docstrings(package / "broken.py", tmp_path)) == []
    assert list(read_docstrings(package / "module.py", tmp_path)) == [
        ("package.module", "What the module is for. More of it."),
        ("package.module.Thing", "A thing of some kind."),
        ("package.module.Thing.method", "Does it \\d."),
        ("package.module.Thing.later", "Does it later."),
    ]


def test_a_corpus_of_an_environment_is_distinct_and_deterministic(tmp_path, monkeypatch):
    paths = dict.fromkeys(("stdlib", "purelib", "platlib"), tmp_path)
    monkeypatch.setattr(pydocs.sysconfig, "get_paths", lambda: paths)
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.py").write_text(f'"""{"The same long text of both. " * 4}"""\n')
    (tmp_path / "d.py").write_text(f'"""{"Another text of its own. " * 4}"""\n')
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "e.py").write_text(f'"""{"A text that describes a test. " * 4}"""\n')
    for processes in (None, 2):
        assert load_pydocs(processes)["name"][:] == ["a", "d"]


def test_first_sentences():
    assert split_first_sentence("  Splits\n  a tensor. Then more.\n\nArgs: x") == (
        "Splits a tensor.",
        "Then more.\n\nArgs: x",
    )
    assert split_first_sentence("Only one") == ("Only one", "")
    assert split_first_sentence("") == ("", "")


@pytest.fixture
def documents():
    body = " ".join(f"word{number}" for number in range(20))
    texts = [f"This is the first sentence number {i}. The body {i} has {body}." for i in range(60)]
    texts[7] += " As they say, this IS the first sentence\nnumber 3. So it goes."  # a query that stands elsewhere too
    texts[8] = texts[9].replace("number 9", "number 8")  # a body that stands twice
    texts.append("Too short. To be asked for.")
    return Dataset.from_dict({"name": [f"name{i}" for i in range(61)], "text": texts})


def test_held_out_queries_stand_nowhere_in_the_pretraining_text(documents):
    divided = hold_out(documents, queries=40, bodies=50)
    text = " ".join(" ".join(divided.pretraining["text"]).lower().split())
    assert len(divided.queries) == 40
    assert "name3" not in divided.queries
    assert not any(query.lower() in text for query in divided.queries.values())
    assert not set(divided.queries.values()) & set(divided.pairs["query"])
    assert len(divided.pretraining) == len(documents)


def test_the_right_body_is_among_the_searched_ones_and_only_once(documents):
    divided = hold_out(documents, queries=40, bodies=50)
    assert len(divided.bodies) == len(set(divided.bodies.values())) == 50
    for name in divided.queries.keys() - {"name8", "name9"}:
        assert divided.bodies[name].startswith(f"The body {name.removeprefix('name')} has")


def test_the_division_does_not_depend_on_the_order(documents):
    one, other = (hold_out(rows, 10, 30) for rows in (documents, documents.select(range(60, -1, -1))))
    assert set(one.queries) - {"name8", "name9"} == set(other.queries) - {"name8", "name9"}


def test_tasks(documents, monkeypatch):
    monkeypatch.setattr("retromae_hf.retrieval.tasks.TEST_QUERIES", 30)
    divided = hold_out(documents, queries=40, bodies=50)
    test, dev = reported_task(divided), dev_task(divided, queries=10, documents=20)
    assert (len(test.queries), len(test.documents)) == (30, 50)
    assert (len(dev.queries), len(dev.documents)) == (10, 20)
    assert not set(test.queries) & set(dev.queries)
    for task in (test, dev):
        assert all(task.documents.keys() >= relevant.keys() for relevant in task.qrels.values())


def test_an_environment_is_read_once_whatever_the_number_of_processes(documents, monkeypatch):
    read = []
    monkeypatch.setattr(held_out, "_of_pydocs", [])
    monkeypatch.setattr(held_out, "load_pydocs", lambda num_proc: read.append(num_proc) or documents)
    assert held_out.load_held_out_pydocs(2) is held_out.load_held_out_pydocs()
    assert read == [2]
