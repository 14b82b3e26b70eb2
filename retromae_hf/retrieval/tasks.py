"""Retrieval tasks: queries, documents and the judgments of pairs of them, checked while they are read."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets.config import HF_CACHE_HOME

from ..data.disk import check_file_name
from ..data.files import CODECS, Broken, read_rows
from ..data.held_out import TEST_QUERIES, HeldOut, in_random_order, load_held_out_pydocs
from ..data.text import titled, without_surrogates
from ..model.errors import RetroMAEError, check_at_least, import_extra, in_one_sentence
from .measures import MAX_GRADE, check_ids, whole_grade

logger = logging.getLogger(__name__)

MAX_MISSING_SHARE = 0.01

BEIR_ADDRESS = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/{name}.zip"


@dataclass(frozen=True)
class MissingIds:
    """What qrels name and the collection lacks: how many judgments, and the ids, each once."""

    num_judgments: int = 0
    queries: list[str] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RetrievalTask:
    """Judged queries and documents by id, and the grades of the judged pairs.

    Attributes:
        max_documents: of which `sampled` made it.
        benchmark: of a task of MTEB its `task`, `subset`, `split`, `dataset` (on the Hub) and `revision`, by which
            leaderboards know the results.
    """

    name: str
    queries: dict[str, str]
    documents: dict[str, str]
    qrels: dict[str, dict[str, int]]
    num_unjudged_queries: int = 0
    missing_ids: MissingIds = field(default_factory=MissingIds)
    max_documents: int | None = None
    benchmark: dict[str, str | None] | None = None

    @property
    def queries_in_corpus(self) -> set[str]:
        """Queries that are documents too, under the same id, and are not judged for that one (ArguAna, Quora).

        Their own document is nearest to them and is no answer: a run leaves it out, as BEIR's evaluation does.
        """
        return {query for query in self.queries if query in self.documents and query not in self.qrels[query]}


def load_tasks(
    sources: Sequence[str], num_proc: int | None = None, split: str = "test", max_documents: int | None = None
) -> list[RetrievalTask]:
    """The tasks of several sources, all read and checked before any is evaluated.

    A source is "pydocs" (1,000 held-out first sentences against 10,000 bodies), a folder in BEIR's layout with
    judgments of the `split`, "nanobeir" (all of it) or "nanobeir:msmarco", "beir:scifact", or "mteb:NFCorpus".
    """
    tasks: list[RetrievalTask] = []
    for source in sources:
        family, colon, name = source.partition(":")
        if family in LOADERS and (colon or family == "nanobeir") and not Path(source).is_dir():
            with in_one_sentence(f"{source} cannot be loaded"):
                tasks += LOADERS[family](name)
        elif source == "pydocs":
            tasks.append(reported_task(load_held_out_pydocs(num_proc)))
        else:
            tasks.append(load_beir(source, split))
    names = [task.name for task in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RetroMAEError(f"two datasets are called {twice[0]}, and results go by name; rename one, or leave it out")
    return tasks if max_documents is None else [sampled(task, max_documents) for task in tasks]


def reported_task(held_out: HeldOut) -> RetrievalTask:
    """The task to report: the first `TEST_QUERIES` held-out queries against all bodies."""
    return _first_sentence_task("pydocs", list(held_out.queries)[:TEST_QUERIES], held_out, len(held_out.bodies))


def dev_task(held_out: HeldOut, queries: int, documents: int = 2000) -> RetrievalTask:
    """A small task to watch while training: the last `queries` held-out queries against some of the bodies."""
    return _first_sentence_task("dev", list(held_out.queries)[-queries:], held_out, documents)


def _first_sentence_task(name: str, query_names: list[str], held_out: HeldOut, documents: int) -> RetrievalTask:
    asked = set(query_names)
    others = [other for other in reversed(held_out.bodies) if other not in asked]
    # Among equal scores the first documents may win, so the right ones must not come first.
    searched = sorted(query_names + others[: max(documents - len(query_names), 0)])
    return RetrievalTask(
        name=name,
        queries={query: held_out.queries[query] for query in query_names},
        documents={document: held_out.bodies[document] for document in searched},
        qrels={query: {query: 1} for query in query_names},
    )


def sampled(task: RetrievalTask, max_documents: int) -> RetrievalTask:
    """A task of at most so many documents, the same on every machine: the choice follows from the ids alone.

    All documents that the queries are judged for stay, and as many of the others as fit, by a digest of their ids.
    Where the judged ones alone are too many, so many queries stay as theirs fit, by a digest of the queries' ids; one
    stays whatever it needs.
    """
    check_at_least(1, max_documents=max_documents)
    if len(task.documents) <= max_documents:
        return task
    qrels: dict[str, dict[str, int]] = {}
    chosen: set[str] = set()
    for query in in_random_order(task.qrels):
        judged = task.qrels[query].keys() & task.documents.keys()
        if qrels and len(chosen | judged) > max_documents:
            break  # those behind it that need less would make another kind of task
        qrels[query] = task.qrels[query]
        chosen |= judged
    others = in_random_order(task.documents.keys() - chosen)
    chosen.update(others[: max(max_documents - len(chosen), 0)])
    return replace(
        task,
        benchmark=None,
        queries={query: text for query, text in task.queries.items() if query in qrels},
        documents={document: text for document, text in task.documents.items() if document in chosen},
        qrels={query: qrels[query] for query in task.qrels if query in qrels},
        max_documents=max_documents,
    )


def load_beir(folder: str | Path, split: str = "test") -> RetrievalTask:
    """A folder in BEIR's layout: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv (query-id, corpus-id, score).

    Each file may be packed. The qrels may also have TREC's four columns (query, iteration, document, grade). What
    `make_task` says of judgments holds.
    """
    folder = Path(folder)
    check_file_name("split", split)
    names = ("queries.jsonl", "corpus.jsonl", f"qrels/{split}.tsv")
    queries_file, corpus_file, qrels_file = (_file_of(folder, name) for name in names)
    queries, documents = _read_texts(queries_file), _read_texts(corpus_file, titles=True)
    qrels = _read_qrels(qrels_file, queries, documents)
    return make_task(folder.resolve().name, queries, documents, qrels, source=str(folder))


def find_file(folder: Path, name: str) -> Path | None:
    """A file of a folder in BEIR's layout, packed or not; None where there is none."""
    files = (folder / f"{name}{ending}" for ending in ("", *CODECS))
    return next((file for file in files if file.is_file()), None)


def _file_of(folder: Path, name: str) -> Path:
    if (file := find_file(folder, name)) is None:
        raise RetroMAEError(f"{folder / name} does not exist; give 'pydocs' or a folder in BEIR's layout")
    return file


def _read_texts(file: Path, titles: bool = False) -> dict[str, str]:
    """Texts by id, each behind its title where titles are wanted."""
    texts: dict[str, str] = {}
    for number, row in read_rows(file, ("_id", "title", "text")):
        found = {} if isinstance(row, Broken) else row
        text = found.get("text")
        if not isinstance(found.get("_id"), str | int) or not isinstance(text, str):
            raise RetroMAEError(f"{file} line {number} is not a JSON object with '_id' and a string 'text'")
        name = str(found["_id"]).strip()
        if name in texts:
            raise RetroMAEError(f"{file} line {number} has the _id {name!r} a second time; give every id once")
        texts[name] = without_surrogates(titled(str(found.get("title") or ""), text) if titles else text)
    return texts


def _read_qrels(file: Path, queries: Mapping[str, str], documents: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Judgments by query, of lines of three columns or TREC's four; a first line that knows neither id is a header."""
    qrels: dict[str, dict[str, int]] = {}
    lines = ((number, str(row["text"]).strip()) for number, row in read_rows(file) if not isinstance(row, Broken))
    for place, (number, line) in enumerate((number, line) for number, line in lines if line):
        columns = [column.strip() for column in line.split("\t" if "\t" in line else None)]
        try:
            if len(columns) == 4:
                del columns[1]  # TREC's iteration, which nobody uses
            query, document, score = columns
            if place == 0 and query not in queries and document not in documents:
                continue
            grade = whole_grade(float(score))
        except ValueError as error:
            raise RetroMAEError(
                f"{file} line {number} is not 'query-id<TAB>corpus-id<TAB>score' with a whole score up to "
                f"{MAX_GRADE}: {line!r}"
            ) from error
        if qrels.setdefault(query, {}).setdefault(document, grade) != grade:
            raise RetroMAEError(
                f"{file} line {number} grades document {document!r} for query {query!r} a second time, and otherwise; "
                "keep one of the two"
            )
    return qrels


def save_beir(task: RetrievalTask, folder: str | Path, split: str = "test") -> None:
    """Write a task in BEIR's layout, as `load_beir` reads it."""
    folder = Path(folder)
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for file, texts in (("corpus.jsonl", task.documents), ("queries.jsonl", task.queries)):
        lines = (json.dumps({"_id": name, "text": text}, ensure_ascii=False) for name, text in texts.items())
        (folder / file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    rows = (f"{query}\t{document}\t{grade}\n" for query in task.qrels for document, grade in task.qrels[query].items())
    (folder / f"qrels/{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows), encoding="utf-8")


def make_task(
    name: str,
    queries: Mapping[str, str],
    documents: dict[str, str],
    qrels: Mapping[str, dict[str, int]],
    source: str,
) -> RetrievalTask:
    """A task of parts that were read somewhere, checked against each other.

    Queries without judgments are left out and counted. Judgments of a query that is not there are left out too; a
    judged document that is not there stays in the qrels, as in trec_eval, and costs recall. Both are counted, listed
    in `missing_ids` and logged; more than 1 % of them are an error. Messages call the whole `source`.
    """
    check_file_name("the task's name", name)
    check_ids(f"{source} has the query id", queries)
    check_ids(f"{source} has the document id", documents)
    if not documents:
        raise RetroMAEError(f"{source} holds no documents; give a collection with some")
    pairs = [(query, document) for query, grades in qrels.items() for document in grades]
    missing = MissingIds(
        num_judgments=sum(query not in queries or document not in documents for query, document in pairs),
        queries=sorted({query for query, _ in pairs if query not in queries}),
        documents=sorted({document for _, document in pairs if document not in documents}),
    )
    if missing.num_judgments == len(pairs):
        raise RetroMAEError(f"the qrels of {source} judge no query of its queries for a document of its corpus")
    if missing.num_judgments:
        ids = [*missing.queries, *missing.documents]
        listed = ", ".join(ids[:10]) + (" ..." if len(ids) > 10 else "")
        told = f"{missing.num_judgments} of {len(pairs)} judgments of {source} name ids that are not there ({listed})"
        if missing.num_judgments > MAX_MISSING_SHARE * len(pairs):
            raise RetroMAEError(
                f"{told}, more than {MAX_MISSING_SHARE:.0%}; give the queries and the corpus that the qrels belong to"
            )
        logger.warning("%s", told)
    judged = {
        query: {document: whole_grade(grade) for document, grade in grades.items()}
        for query, grades in qrels.items()
        if grades and query in queries
    }
    if empty := [query for query in judged if not queries[query].strip()]:
        raise RetroMAEError(
            f"{source} has judged queries without text ({', '.join(empty[:5])}); give them one or take out their "
            "judgments"
        )
    return RetrievalTask(
        name=name,
        queries={query: queries[query] for query in judged},
        documents=documents,
        qrels=judged,
        num_unjudged_queries=len(queries) - len(judged),
        missing_ids=missing,
    )


def _nanobeir(name: str) -> list[RetrievalTask]:
    """13 collections of 50 queries each, through sentence-transformers' NanoBEIREvaluator."""
    module = import_extra("sentence_transformers.sentence_transformer.evaluation", "NanoBEIR", "retrieval")
    return [
        make_task(
            one.name,
            queries=dict(zip(one.queries_ids, one.queries, strict=True)),
            documents=dict(zip(one.corpus_ids, one.corpus, strict=True)),
            qrels={query: dict.fromkeys(sorted(relevant), 1) for query, relevant in one.relevant_docs.items()},
            source=one.name,
        )
        for one in module.NanoBEIREvaluator([name] if name else None).evaluators
    ]


def _beir(name: str) -> list[RetrievalTask]:
    """A collection in its published form, kept beside the Hugging Face caches; its test qrels."""
    check_file_name("the name of a collection of BEIR", name)
    util = import_extra("beir.util", "BEIR", "benchmarks")
    folder = util.download_and_unzip(BEIR_ADDRESS.format(name=name), str(Path(HF_CACHE_HOME) / "retromae_hf" / "beir"))
    return [load_beir(folder)]


def _mteb(name: str) -> list[RetrievalTask]:
    """A retrieval task of MTEB: each of its subsets, in the first of its splits for evaluation."""
    task = import_extra("mteb", "MTEB", "benchmarks").get_task(name)
    if not hasattr(task, "convert_v1_dataset_format_to_v2"):
        raise RetroMAEError(f"mteb:{name} is a task of type {task.metadata.type}; give a retrieval task")
    task.load_data()
    task.convert_v1_dataset_format_to_v2(None)  # of tasks that load their data in the old way
    split, on_hub = task.eval_splits[0], task.metadata.dataset
    tasks = []
    for subset, data in task.dataset.items():
        one = make_task(
            name if len(task.dataset) == 1 else f"{name}-{subset}",
            queries={row["id"]: row["text"] for row in data[split]["queries"]},
            documents={row["id"]: titled(row.get("title") or "", row["text"]) for row in data[split]["corpus"]},
            qrels={query: dict(grades) for query, grades in data[split]["relevant_docs"].items()},
            source=f"mteb:{name}",
        )
        where = {"dataset": on_hub["path"], "revision": on_hub.get("revision")}
        tasks.append(replace(one, benchmark={"task": name, "subset": subset, "split": split, **where}))
    return tasks


LOADERS: dict[str, Callable[[str], list[RetrievalTask]]] = {"nanobeir": _nanobeir, "beir": _beir, "mteb": _mteb}


def write_mteb_results(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write what was measured on tasks of MTEB as its own result files, a file a task, and none without any."""
    scores: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    seconds: dict[str, float] = defaultdict(float)
    for entry in results["tasks"].values():
        if (one := entry["benchmark"]) is None:
            continue
        measured = {name.replace("@", "_at_"): value for name, value in entry["measures"].items()}
        main = {"main_score": measured["ndcg_at_10"]}
        scores[one["task"]].setdefault(one["split"], {})[one["subset"]] = measured | main
        seconds[one["task"]] += sum(entry["seconds"].values())
    files = []
    for name, of_task in scores.items():
        mteb = import_extra("mteb", "MTEB", "benchmarks")
        folder.mkdir(parents=True, exist_ok=True)
        files.append(folder / f"{name}.json")
        task_result = mteb.TaskResult.from_task_results(mteb.get_task(name), of_task, seconds[name])
        task_result.to_disk(files[-1])
    return files
