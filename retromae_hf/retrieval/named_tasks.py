"""Retrieval tasks by name: the folders of `load_task`, and NanoBEIR, BEIR and MTEB through their own packages.

The packages fetch and read their collections; searching and scoring are the same here for all tasks. So the figures are
those of trec_eval on the texts alone, without the instructions that MTEB puts before some models' queries.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets.config import HF_CACHE_HOME

from ..model.errors import RetroMAEError, check_file_name, import_extra, in_one_sentence
from .tasks import Benchmark, RetrievalTask, load_beir, load_task, make_task, sampled

BEIR_ADDRESS = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/{name}.zip"


def load_tasks(
    sources: Sequence[str], num_proc: int | None = None, split: str = "test", max_documents: int | None = None
) -> list[RetrievalTask]:
    """The tasks of several sources, all read and checked before any is evaluated.

    Args:
        sources: "pydocs"; a folder in BEIR's layout; "nanobeir" (all of it) or "nanobeir:msmarco"; "beir:scifact";
            "mteb:NFCorpus".
        num_proc: processes to read pydocs with.
        split: of folders in BEIR's layout.
        max_documents: of a task, see `sampled`; None takes all.

    Raises:
        RetroMAEError: a source cannot be loaded, its package is not installed, or two tasks have the same name.
    """
    tasks: list[RetrievalTask] = []
    for source in sources:
        family, colon, name = source.partition(":")
        if family in LOADERS and (colon or family == "nanobeir") and not Path(source).is_dir():
            with in_one_sentence(f"{source} cannot be loaded"):
                tasks += LOADERS[family](name)
        else:
            tasks.append(load_task(source, num_proc, split))
    names = [task.name for task in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RetroMAEError(f"two datasets are called {twice[0]}, and results go by name; rename one, or leave it out")
    return tasks if max_documents is None else [sampled(task, max_documents) for task in tasks]


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
    split = task.eval_splits[0]
    made = {
        subset: make_task(
            name if len(task.dataset) == 1 else f"{name}-{subset}",
            queries={row["id"]: row["text"] for row in data[split]["queries"]},
            documents={row["id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in data[split]["corpus"]},
            qrels={query: dict(grades) for query, grades in data[split]["relevant_docs"].items()},
            source=f"mteb:{name}",
        )
        for subset, data in task.dataset.items()
    }
    on_hub = task.metadata.dataset
    return [
        replace(one, benchmark=Benchmark(name, subset, split, on_hub["path"], on_hub.get("revision")))
        for subset, one in made.items()
    ]


LOADERS: dict[str, Callable[[str], list[RetrievalTask]]] = {"nanobeir": _nanobeir, "beir": _beir, "mteb": _mteb}


def write_mteb_results(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write what was measured on tasks of MTEB as its own result files, a file a task; without any nothing is written.

    Args:
        results: as `evaluation` describes them.
        folder: where to, made where it does not exist.

    Returns:
        The files.
    """
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
