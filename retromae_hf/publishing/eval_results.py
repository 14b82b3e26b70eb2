"""Results on registered benchmarks as the Hub's leaderboards read them: `.eval_results/*.yaml` in a model's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

FOLDER = ".eval_results"
NOTES = "nDCG@10 in percent, by retromae-hf evaluate, without instructions"
"""By which a file is known as ours."""


def write_eval_results(folder: Path, results: dict[str, Any] | None) -> None:
    """Write a file for each task of MTEB among a model's results, and take away those of earlier results.

    Nobody else's benchmark is on the Hub under a name that leaderboards know: pydocs and folders have no file.

    Args:
        folder: the model's.
        results: as `evaluation` describes them; None where there are none.
    """
    place = folder / FOLDER
    for file in place.glob("*.yaml"):
        if NOTES in file.read_text(encoding="utf-8", errors="replace"):
            file.unlink()
    entries: dict[str, list[EvalResultEntry]] = {}
    for task in (results or {"tasks": {}})["tasks"].values():
        if (one := task.get("benchmark")) is not None:
            entry = EvalResultEntry(
                dataset_id=one["dataset"],
                task_id=f"{one['task']}_{one['subset']}_{one['split']}",  # as MTEB registers them
                value=round(100 * task["measures"]["ndcg@10"], 3),
                dataset_revision=one["revision"],
                notes=NOTES,
            )
            entries.setdefault(one["task"], []).append(entry)
    for name, of_task in entries.items():
        place.mkdir(exist_ok=True)
        text = yaml.safe_dump(eval_result_entries_to_yaml(of_task), sort_keys=False)
        (place / f"{name}.yaml").write_text(text, encoding="utf-8")
