"""Results of an evaluation as a table that people read, in a terminal as on a page."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list

from .embedders import Embedder, embed_to_shards, load_embedder, model_fingerprint, model_identity, process_state
from .measures import MEASURE_NAMES, Run, mean_values, paired_test, score_queries, score_run
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

SIGNIFICANT = 0.05
"""The p-value below which a difference is marked."""


def format_table(results: dict[str, Any]) -> str:
    """A Markdown table for every task, a row a ranking: the model's, BM25's and both joined, where they were measured.

    Args:
        results: as `evaluation` describes them, of earlier versions too.
    """
    tables = [_table(results["model"], task, entry) for task, entry in results["tasks"].items()]
    if any(BM25 in entry for entry in results["tasks"].values()):
        tables.append(
            "**: the best of its column. + and -: above and below the model by more than chance "
            f"(paired randomisation test, p < {SIGNIFICANT})."
        )
    return "\n\n".join(tables)


def _table(model: str, task: str, entry: dict[str, Any]) -> str:
    rankings: dict[str, tuple[Any, Any]] = {"BM25" if model == BM25 else model: (entry["measures"], {})}
    rankings |= {
        name: (entry[kind]["measures"], entry[kind]["paired_test"])
        for kind, name in ((BM25, "BM25"), (HYBRID, "both joined"))
        if kind in entry
    }
    took = entry["seconds"]
    alone = [took.get("embed", 0) + took.get("search", 0), took.get(BM25, 0)]
    seconds = [sum(alone)] if len(rankings) == 1 else [*alone, sum(took.values())]
    rows = [["", *MEASURE_NAMES.values(), "seconds"]]
    for (name, (measures, tests)), spent in zip(rankings.items(), seconds, strict=False):
        cells = []
        for measure in MEASURE_NAMES:
            value = measures[measure]
            best = len(rankings) > 1 and value == max(others[measure] for others, _ in rankings.values())
            # BM25's test is the model's against it, the other one's against the model.
            sign = -1 if name == "BM25" else 1
            cells.append(_cell(value, best, sign, tests.get(measure)))
        rows.append([name, *cells, f"{spent:,.1f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in rows]
    lines.insert(1, f"|{'-' * (widths[0] + 2)}|" + "".join(f"{'-' * (width + 1)}:|" for width in widths[1:]))
    size = f"{task}: {entry['num_queries']:,} queries, {entry['num_documents']:,} documents"
    if entry.get("max_documents") is not None:
        size += f", a sample (--max_documents {entry['max_documents']})"
    return "\n".join([size, "", *lines])


def _cell(value: float, best: bool, sign: int, test: dict[str, float] | None) -> str:
    """A measure with its marks, as wide as any other one."""
    frame, mark = "**" if best else "  ", " "
    if test is not None and test["p_value"] < SIGNIFICANT:
        mark = "+" if sign * test["difference"] > 0 else "-"
    return f"{frame}{value:.3f}{frame}{mark}"


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
    name_or_path: str,
    tasks: Sequence[RetrievalTask],
    batch_size: int | None = None,
    search: str | None = None,
    bm25: bool = False,
    embeddings_dir: str | Path | None = None,
    run_dir: str | Path | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    dtype: str = "float32",
    query_prompt: str | None = None,
    passage_prompt: str | None = None,
) -> dict[str, Any] | None:
    """Evaluate a model on tasks; under `accelerate launch` every process has to call it, and they share the embedding.

    Args:
        name_or_path: a checkpoint, an exported encoder, any sentence-transformers model, or "bm25".
        tasks: each with a name of its own.
        batch_size: texts a batch; None: `texts_a_batch`.
        search: "exact" or "faiss"; None chooses by the size of the task, see `choose_search`.
        bm25: whether to measure BM25 and both rankings joined beside the model, and to test the differences.
        embeddings_dir: where embeddings are kept, so that a killed run goes on and the next one embeds nothing; None
            takes a temporary folder. Processes on several machines need one that they all see.
        run_dir: an existing folder for runs in TREC's format, `<task>-dense.trec`, `<task>-bm25.trec` and
            `<task>-hybrid.trec`.
        trust_remote_code: whether code that comes with the model may run.
        attn_implementation: see `load_embedder`.
        dtype: likewise.
        query_prompt: likewise.
        passage_prompt: likewise.

    Returns:
        The results as the module's docstring describes them in the main process; None in the others.

    Raises:
        RetroMAEError: there is no such model, a package is missing, or an id does not fit TREC's format.
    """
    state = process_state()
    dense = name_or_path != BM25
    bm25 = bm25 or not dense
    searches = {
        task.name: search or choose_search(len(task.queries), len(task.documents), state.device)
        for task in tasks
        if dense
    }
    if FAISS in searches.values():
        import_faiss()
    if bm25:
        import_bm25s()
    if run_dir is not None:
        for task in tasks:
            check_trec_ids(task)
    with _folder_for_all(embeddings_dir) as folder:
        if dense:
            progress = state.is_local_main_process
            embedder = load_embedder(
                name_or_path,
                batch_size,
                progress,
                trust_remote_code,
                attn_implementation,
                dtype,
                query_prompt,
                passage_prompt,
            )
            identity = model_identity(name_or_path)
            if dtype != "float32":
                identity += f" {dtype}"
            if passage_prompt is not None:
                identity += f" {passage_prompt!r}"
            embedded = {
                task.name: _timed(
                    embed_to_shards, list(task.documents.values()), embedder.documents, identity, folder / task.name
                )
                for task in tasks
            }
        # All that processes do together is done: none waits for what the main one does alone, up to a timeout.
        if not state.is_main_process:
            return None
        results = {}
        for task in tasks:
            runs: dict[str, Run] = {}
            seconds: dict[str, float] = {}
            if dense:
                shards, seconds["embed"] = embedded[task.name]
                how = searches[task.name]
                runs["dense"], seconds["search"] = _timed(dense_run, task, embedder, shards, how, state.device)
            if bm25:
                runs[BM25], seconds[BM25] = _timed(bm25_run, task)
            if len(runs) == 2:
                runs[HYBRID], seconds[HYBRID] = _timed(reciprocal_rank_fusion, *runs.values())
            if run_dir is not None:
                name = "_".join(Path(name_or_path).name.split())
                for kind, run in runs.items():
                    tag = {BM25: BM25, HYBRID: f"{name}+{BM25}"}.get(kind, name)
                    write_trec_run(run, Path(run_dir) / f"{task.name}-{kind}.trec", tag)
            entry = describe(task, runs, searches.get(task.name), seconds)
            results[task.name] = {"query_prompt": query_prompt, "passage_prompt": passage_prompt, **entry}
    fingerprint = model_fingerprint(name_or_path) if dense else None
    of_model = {"model": name_or_path, "fingerprint": fingerprint, "dtype": dtype if dense else None}
    return {"schema": SCHEMA, **of_model, "tasks": results}


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
        "benchmark": None if task.benchmark is None else dataclasses.asdict(task.benchmark),
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


def _timed(function: Callable[..., Result], *args: Any) -> tuple[Result, float]:
    """What a function returns, and the seconds that it took."""
    started = time.perf_counter()
    return function(*args), time.perf_counter() - started


@contextmanager
def _folder_for_all(folder: str | Path | None) -> Iterator[Path]:
    """The folder; for None a temporary one of the main process, which the others are told and which it takes away."""
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="retromae_hf_") as made:
        names = [made]
        broadcast_object_list(names)
        yield Path(names[0])
