"""The package's layers: a layer knows those below it, no two modules know each other, and the method stands alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "retromae_hf"
MODULES = sorted(PACKAGE.rglob("*.py"))
METHOD = sorted((PACKAGE / "model").glob("*.py"))
LAYERS = (
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
"""From the lowest to the highest; a module by itself is a layer of one."""


def layer_of(module: Path) -> int:
    """The number of a module's layer; of a layer within a layer the inner one."""
    path = module.relative_to(PACKAGE)
    inside = [number for number, layer in enumerate(LAYERS) if path == Path(layer) or Path(layer) in path.parents]
    return min(inside, key=lambda number: -len(Path(LAYERS[number]).parts))


def imports_of(module: Path, source: str | None = None) -> list[tuple[ast.ImportFrom | ast.Import, list[Path]]]:
    """Every import of the package's own modules: at the top, within functions, and for types alone."""
    found = []
    for node in ast.walk(ast.parse(source or module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [Path(*module.parents[node.level - 1].parts, *(node.module or "").split("."))]
        elif isinstance(node, ast.ImportFrom):
            names = [ROOT.joinpath(*(node.module or "").split("."))]
        elif isinstance(node, ast.Import):
            names = [ROOT.joinpath(*alias.name.split(".")) for alias in node.names]
        else:
            continue
        targets = []
        for name in names:
            inside = [name / alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            files = [one.with_suffix(".py") for one in (name, *inside)]
            known = [file for file in files if file in MODULES]
            targets += known or [file for file in [name / "__init__.py"] if file in MODULES]
        if targets:
            found.append((node, targets))
    return found


def test_a_layer_imports_from_itself_and_from_below():
    upward = [
        f"{module.relative_to(PACKAGE)} line {node.lineno} imports {target.relative_to(PACKAGE)}"
        for module in MODULES
        for node, targets in imports_of(module)
        for target in targets
        if layer_of(target) > layer_of(module)
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle():
    known = {module: {one for _, targets in imports_of(module) for one in targets} for module in MODULES}
    TopologicalSorter(known).prepare()


@pytest.mark.parametrize("module", METHOD, ids=lambda module: module.name)
def test_the_method_imports_its_own_modules_alone_and_as_transformers_copies_them(module):
    """`save_pretrained` copies what a modelling file names by `from .name import`, and breaks on anything else."""
    for node, targets in imports_of(module):
        assert isinstance(node, ast.ImportFrom)
        assert (node.level, "." in str(node.module)) == (1, False), f"line {node.lineno}"
        assert [target.parent for target in targets] == [PACKAGE / "model"]


def test_the_method_is_one_folder_deep():
    assert [entry for entry in (PACKAGE / "model").iterdir() if entry.is_dir() and entry.name != "__pycache__"] == []


def test_no_module_is_too_large_to_be_read_nor_is_the_package():
    lines = {module: len(module.read_text(encoding="utf-8").splitlines()) for module in MODULES}
    # What there is. The aim is 400, 2,300, 80 and 12,500: these limits may only fall.
    assert [str(module) for module, count in lines.items() if count > 426] == []
    assert sum(lines[module] for module in METHOD) <= 2300
    assert len(lines) <= 83
    assert sum(lines.values()) <= 14_530


def long_signatures(source: str) -> Iterator[str]:
    """Functions of more than 8 parameters, `self` and `cls` aside; not `forward`, nor the fields of a configuration."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in ("forward", "__init__"):
            given = node.args
            names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg) if one]
            if len([name for name in names if name not in ("self", "cls")]) > 8:
                yield f"{node.name}, line {node.lineno}"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(PACKAGE)))
def test_no_function_has_more_than_8_parameters(module):
    assert list(long_signatures(module.read_text(encoding="utf-8"))) == []


SEEN = """
import retromae_hf.training.health
from typing import TYPE_CHECKING
from ..data import text
def later(a, b, c, d, e, f, g, *, h, i):
    from retromae_hf.studies.comparison import compare
def shorter(self, a, b, c, d, e, f, g, h, **options):
    pass
if TYPE_CHECKING:
    from .saving import SavingCallback
"""


def test_every_way_of_importing_and_a_long_signature_are_seen():
    seen = {target for _, targets in imports_of(PACKAGE / "training" / "trainer.py", SEEN) for target in targets}
    files = ("training/health.py", "data/text.py", "studies/comparison.py", "training/saving.py")
    assert {PACKAGE / file for file in files} <= seen
    assert list(long_signatures(SEEN)) == ["later, line 5"]
