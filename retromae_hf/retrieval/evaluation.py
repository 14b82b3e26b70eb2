"""Evaluates a model on retrieval tasks: embed, search, score, with BM25 beside it.

The results are one object for a model: `schema` (1), `model` (as it was named, or "bm25"), `fingerprint` (see
`model_fingerprint`, by which a card knows its results), `dtype` (in which it embeds; both null for "bm25") and `tasks`,
by the folder's or the benchmark's name. A task's entry holds:

    num_queries             judged ones, which the measures are means over
    num_documents           and max_documents, of how many `sampled` made the task, or null
    num_unjudged_queries    left out
    missing_ids             what the qrels name and the collection lacks, see `MissingIds`
    num_queries_in_corpus   by their ids; unless judged, they are left out of their own hits
    benchmark               of a task of MTEB that was not sampled, see `RetrievalTask`; else null
    query_prompt            in front of every query, where it is not the model's own; likewise passage_prompt
    search                  "exact" or "faiss"; null for the model "bm25"
    measures                by name, in [0, 1]
    bm25                    where it was asked for: its measures, and by measure the paired_test of the model against it
    hybrid                  then also both rankings by `reciprocal_rank_fusion`, and the paired_test against the model
    seconds                 that embed, search, bm25 and hybrid (the joining alone) took; documents that an earlier run
                            embedded cost nothing
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list

from .embedders import Embedder, embed_to_shards, model_fingerprint, process_state
from .measures import (
    MEASURE_NAMES,
    SIGNIFICANT,
    Run,
    markdown_table,
    mean_values,
    paired_test,
    score_queries,
    score_run,
)
from .rankings import (
    BLOCK_DOCUMENTS,
    EXACT,
    FAISS,
    bm25_run,
    check_trec_ids,
    choose_search,
    dense_run,
    import_bm25s,
    import_faiss,
    reciprocal_rank_fusion,
    write_trec_run,
)
from .tasks import RetrievalTask

SCHEMA = 1
BM25, HYBRID = "bm25", "hybrid"

Result = TypeVar("Result")


def evaluate_embedder(task: RetrievalTask, embedder: Embedder) -> dict[str, float]:
    """nDCG@10, MRR@10, Recall@100 and MAP@100 of `run_in_memory`."""
    return score_run(task.qrels, run_in_memory(task, embedder))


def run_in_memory(task: RetrievalTask, embedder: Embedder) -> dict[str, dict[str, float]]:
    """The run of exact search over a task's documents, all embedded at once.

    Processes do not share the work, so that each of a distributed training can call it.
    """
    documents = embedder.documents(list(task.documents.values()))
    return dense_run(task, embedder, documents.split(BLOCK_DOCUMENTS), EXACT, "cpu")


def evaluate_bm25(task: RetrievalTask) -> dict[str, float]:
    """The same measures for BM25 (bm25s, English stop words)."""
    return score_run(task.qrels, bm25_run(task))


def evaluate_model(
    embedder: Embedder | None,
    tasks: Sequence[RetrievalTask],
    search: str | None = None,
    bm25: bool = False,
    embeddings_dir: str | Path | None = None,
    run_dir: str | Path | None = None,
) -> dict[str, Any] | None:
    """The results of a model on tasks, or None in all processes but the main one; they share the embedding.

    Args:
        embedder: as `load_embedder` gives it; None evaluates BM25 alone.
        tasks: each with a name of its own.
        search: "exact" or "faiss"; None chooses by the size of the task.
        bm25: whether to measure BM25 and both rankings joined beside the model, and to test the differences.
        embeddings_dir: where embeddings are kept, so that a killed run goes on and the next one embeds nothing; None
            takes a temporary folder. Processes on several machines need one that they all see.
        run_dir: an existing folder for runs in TREC's format, <task>-dense.trec and likewise bm25 and hybrid.
    """
    state = process_state()
    bm25 = bm25 or embedder is None
    searches = {
        task.name: search or choose_search(len(task.queries), len(task.documents), state.device)
        for task in (tasks if embedder is not None else [])
    }
    if FAISS in searches.values():
        import_faiss()
    if bm25:
        import_bm25s()
    if run_dir is not None:
        for task in tasks:
            check_trec_ids(task)
    fingerprint = model_fingerprint(embedder.name) if embedder is not None and state.is_main_process else None
    entries = {}
    with _folder_for_all(embeddings_dir) as folder:
        embedded = {}
        if embedder is not None:
            for task in tasks:
                texts = list(task.documents.values())
                embedded[task.name] = _timed(embed_to_shards, embedder, texts, folder / task.name)
        # All that processes do together is done: none waits for what the main one does alone, up to a timeout.
        if not state.is_main_process:
            return None
        for task in tasks:
            runs: dict[str, Run] = {}
            seconds: dict[str, float] = {}
            if embedder is not None:
                how, (shards, seconds["embed"]) = searches[task.name], embedded[task.name]
                runs["dense"], seconds["search"] = _timed(dense_run, task, embedder, shards, how, state.device)
            if bm25:
                runs[BM25], seconds[BM25] = _timed(bm25_run, task)
            if len(runs) == 2:
                runs[HYBRID], seconds[HYBRID] = _timed(reciprocal_rank_fusion, *runs.values())
            if run_dir is not None:
                name = "" if embedder is None else "_".join(Path(embedder.name).name.split())
                for kind, run in runs.items():
                    tag = {"dense": name, BM25: BM25, HYBRID: f"{name}+{BM25}"}[kind]
                    write_trec_run(run, Path(run_dir) / f"{task.name}-{kind}.trec", tag)
            entries[task.name] = {
                "query_prompt": None if embedder is None else embedder.query_prompt,
                "passage_prompt": None if embedder is None else embedder.passage_prompt,
                **describe(task, runs, searches.get(task.name), seconds),
            }
    return {
        "schema": SCHEMA,
        "model": BM25 if embedder is None else embedder.name,
        "fingerprint": fingerprint,
        "dtype": None if embedder is None else embedder.dtype,
        "tasks": entries,
    }


def describe(
    task: RetrievalTask, runs: Mapping[str, Run], search: str | None, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """A task's entry in the results, from the run "dense", the run "bm25", or both and "hybrid"."""
    (_, first), *others = ((kind, score_queries(task.qrels, run)) for kind, run in runs.items())
    entry: dict[str, Any] = {
        "num_queries": len(task.queries),
        "num_documents": len(task.documents),
        "max_documents": task.max_documents,
        "num_unjudged_queries": task.num_unjudged_queries,
        "missing_ids": dataclasses.asdict(task.missing_ids),
        "num_queries_in_corpus": len(task.queries_in_corpus),
        "benchmark": task.benchmark,
        "search": search,
        "measures": mean_values(first),
    }
    for kind, other in others:
        pair = (other, first) if kind == HYBRID else (first, other)
        entry[kind] = {
            "measures": mean_values(other),
            "paired_test": {name: paired_test(*(values[name] for values in pair)) for name in first},
        }
    return {**entry, "seconds": {name: round(value, 3) for name, value in seconds.items()}}


def format_table(results: dict[str, Any]) -> str:
    """A Markdown table for every task, a row a ranking: the model's, BM25's and both joined, where measured."""
    tables = [_table(results["model"], task, entry) for task, entry in results["tasks"].items()]
    if any(BM25 in entry for entry in results["tasks"].values()):
        tables.append(
            "**: the best of its column. + and -: above and below the model by more than chance "
            f"(paired randomisation test, p < {SIGNIFICANT})."
        )
    return "\n\n".join(tables)


def _table(model: str, task: str, entry: dict[str, Any]) -> str:
    took = entry["seconds"]
    rankings = [("BM25", entry, (BM25,)) if model == BM25 else (model, entry, ("embed", "search"))]
    for kind, name, parts in ((BM25, "BM25", (BM25,)), (HYBRID, "both joined", tuple(took))):
        if kind in entry:
            rankings.append((name, entry[kind], parts))
    rows = []
    for name, ranking, parts in rankings:
        cells = []
        for measure in MEASURE_NAMES:
            value = ranking["measures"][measure]
            best = len(rankings) > 1 and value == max(other["measures"][measure] for _, other, _ in rankings)
            frame, mark = "**" if best else "  ", " "
            test = ranking.get("paired_test", {}).get(measure)
            if test is not None and test["p_value"] < SIGNIFICANT:
                # BM25's test is the model's against it, the other one's against the model.
                mark = "+" if (test["difference"] > 0) == (name != "BM25") else "-"
            cells.append(f"{frame}{value:.3f}{frame}{mark}")
        rows.append([name, *cells, f"{sum(took.get(part, 0) for part in parts):,.1f}"])
    size = f"{task}: {entry['num_queries']:,} queries, {entry['num_documents']:,} documents"
    if entry.get("max_documents") is not None:
        size += f", a sample (--max_documents {entry['max_documents']})"
    return f"{size}\n\n{markdown_table(['', *MEASURE_NAMES.values(), 'seconds'], rows, aligned=True)}"


def _timed(function: Callable[..., Result], *args: Any) -> tuple[Result, float]:
    """What a function returns, and the seconds that it took."""
    started = time.perf_counter()
    return function(*args), time.perf_counter() - started


@contextmanager
def _folder_for_all(folder: str | Path | None) -> Iterator[Path]:
    """The folder; for None a temporary one that the main process makes and removes, and whose name the others get."""
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="retromae_hf_") as made:
        names = [made]
        broadcast_object_list(names)
        yield Path(names[0])
