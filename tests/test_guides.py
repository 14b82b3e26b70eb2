"""The guide to the method: the code is where it says, and the recipes have the settings that it says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import yaml
from conftest import ROOT

METHOD = ROOT / "examples/guides/method.md"
PAGE = METHOD.read_text(encoding="utf-8")
FILES = dict(re.findall(r"^\[(\w+)\]: (\S+\.py)$", PAGE, re.MULTILINE))
NAMED = [(name, FILES[label]) for name, label in re.findall(r"\[`([\w.]+)`\]\[(\w+)\]", PAGE)]
"""Links of the kind [`name`][label]: the file that the label stands for defines `name`."""


def names(body: list[ast.stmt], owner: str = "") -> Iterator[str]:
    """What a body defines: functions, classes, constants, and members of classes as `Class.member`."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield owner + node.name
            yield from names(node.body, f"{owner}{node.name}.") if isinstance(node, ast.ClassDef) else ()
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (owner + leaf.id for one in targets for leaf in ast.walk(one) if isinstance(leaf, ast.Name))


def test_the_code_is_where_the_guide_says():
    defined = {file: set(names(ast.parse((METHOD.parent / file).read_text("utf-8")).body)) for file in FILES.values()}
    assert [f"{name} in {file}" for name, file in NAMED if name not in defined[file]] == []
    assert {file for _, file in NAMED} == defined.keys()


def test_the_recipes_have_the_settings_that_the_guide_says():
    shared, table = PAGE.split("\n## Recipes\n")[1].split("\n\n")[:2]
    for file in METHOD.parents[1].glob("recipes/*.yaml"):
        (row,) = (line for line in table.splitlines() if f"(../recipes/{file.name})" in line)
        told = yaml.safe_load("\n".join(re.findall(r"`(\w+: [^`]+)`", shared + row)))
        assert told | {"output_dir": f"runs/{file.stem}"} == yaml.safe_load(file.read_text("utf-8"))
