"""Results of an evaluation as a table that people read, in a terminal as on a page."""

from __future__ import annotations

from typing import Any

from .evaluation import BM25, HYBRID
from .measures import MEASURE_NAMES

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
    for (name, (measures, tests)), time in zip(rankings.items(), seconds, strict=False):
        cells = []
        for measure in MEASURE_NAMES:
            value = measures[measure]
            best = len(rankings) > 1 and value == max(others[measure] for others, _ in rankings.values())
            # BM25's test is the model's against it, the other one's against the model.
            sign = -1 if name == "BM25" else 1
            cells.append(_cell(value, best, sign, tests.get(measure)))
        rows.append([name, *cells, f"{time:,.1f}"])
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
