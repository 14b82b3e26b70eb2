"""The house: a room knows those below it, no two files know each other, and the method's room stands alone."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "retromae_hf"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = (
    "model",
    "arguments",
    "data",
    "checkpoints",
    "explanation.py",
    "retrieval",
    "publishing",
    "training",
    "studies",
    "commands",
    "__init__.py",
)
"""From the lowest floor to the roof; a file by itself is a room of one."""


def room_of(file: Path) -> int:
    """The number of a file's room; of a room within a room the inner one."""
    path = file.relative_to(PACKAGE)
    inside = [number for number, room in enumerate(ROOMS) if path == Path(room) or Path(room) in path.parents]
    return min(inside, key=lambda number: -len(Path(ROOMS[number]).parts))


def imports_of(file: Path, source: str | None = None) -> list[tuple[ast.ImportFrom | ast.Import, list[Path]]]:
    """Every import of the package's own files: at the top, within functions, and for types alone."""
    found = []
    for node in ast.walk(ast.parse(source or file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [Path(*file.parents[node.level - 1].parts, *(node.module or "").split("."))]
        elif isinstance(node, ast.ImportFrom):
            names = [ROOT.joinpath(*(node.module or "").split("."))]
        elif isinstance(node, ast.Import):
            names = [ROOT.joinpath(*alias.name.split(".")) for alias in node.names]
        else:
            continue
        targets = []
        for name in names:
            modules = (
                [name, *(name / alias.name for alias in node.names)] if isinstance(node, ast.ImportFrom) else [name]
            )
            files = [module.with_suffix(".py") for module in modules]
            targets += [one for one in files if one in FILES] or [name / "__init__.py"] * (name in PACKAGES)
        if targets:
            found.append((node, targets))
    return found


PACKAGES = {file.parent for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_room_imports_from_itself_and_from_below(file):
    upward = [
        f"line {node.lineno} imports {target.relative_to(PACKAGE)}"
        for node, targets in imports_of(file)
        for target in targets
        if room_of(target) > room_of(file)
    ]
    assert upward == []


def test_no_files_import_each_other_in_a_circle():
    TopologicalSorter({file: {one for _, targets in imports_of(file) for one in targets} for file in FILES}).prepare()


@pytest.mark.parametrize("file", sorted((PACKAGE / "model").glob("*.py")), ids=lambda file: file.name)
def test_the_method_imports_its_own_files_alone_and_as_transformers_copies_them(file):
    """`save_pretrained` copies what a modelling file names by `from .name import`, and breaks on anything else."""
    for node, targets in imports_of(file):
        assert isinstance(node, ast.ImportFrom)
        assert (node.level, "." in str(node.module)) == (1, False), f"line {node.lineno}"
        assert [target.parent for target in targets] == [PACKAGE / "model"]


def test_the_method_is_one_folder_deep():
    assert [entry for entry in (PACKAGE / "model").iterdir() if entry.is_dir() and entry.name != "__pycache__"] == []


def test_no_file_and_no_room_is_too_large_to_be_read():
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert [file for file, count in lines.items() if count > 400] == []
    rooms = [sum(count for file, count in lines.items() if room_of(file) == room) for room in range(len(ROOMS))]
    assert max(rooms) <= 2900


SEEN = """
import retromae_hf.training.health
from typing import TYPE_CHECKING
from ..data import text
def later():
    from retromae_hf.studies.comparison import compare
if TYPE_CHECKING:
    from .saving import SavingCallback
"""


def test_every_way_of_importing_is_seen():
    seen = {target for _, targets in imports_of(PACKAGE / "training" / "trainer.py", SEEN) for target in targets}
    files = ("training/health.py", "data/text.py", "studies/comparison.py", "training/saving.py")
    assert {PACKAGE / file for file in files} <= seen
