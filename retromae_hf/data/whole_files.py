"""Files that are there as a whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_aside(file: Path) -> Iterator[Path]:
    """Where to write a file that then gets its name; a process that is killed meanwhile leaves no half of it."""
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    yield aside
    aside.replace(file)


def write_json(file: Path, content: Any) -> None:
    """Write JSON as a whole."""
    with written_aside(file) as aside:
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_json(file: Path) -> dict[str, Any] | None:
    """The object that a JSON file of ours holds; None where it cannot be read, is broken or holds something else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # the last at very many brackets inside of each other
        return None
    return found if isinstance(found, dict) else None
