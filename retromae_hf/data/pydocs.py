"""The embedded corpus: the documentation in the user's own Python environment.

Docstrings of the standard library and of every installed package are read with `ast`: nothing is imported or run.
"""

from __future__ import annotations

import ast
import gc
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets import Dataset

from .text import without_surrogates

# Folders whose docstrings describe tests, not an interface.
SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})

# The fewest characters of a docstring worth keeping: less is "See base class." and the like.
MIN_CHARACTERS = 80
PYDOCS = "pydocs"
"""What this text is called as a data set."""


def load_pydocs(num_proc: int | None = None) -> Dataset:
    """Every distinct docstring of this environment, ordered by the path of its source.

    The result is cached by `datasets` and read anew when a file is added, removed or changed.

    Returns:
        A dataset with the columns `name` (the dotted name of what is documented) and `text`.
    """
    files = [(root, str(path), path.stat().st_mtime_ns) for root, path in _source_files()]
    rows = Dataset.from_generator(
        _read_files, gen_kwargs={"files": files}, num_proc=min(num_proc or 1, len(files)), split="train"
    )
    first: dict[str, int] = {}
    for index, text in enumerate(rows["text"]):
        first.setdefault(text, index)
    return rows.select(list(first.values()))


def _source_files() -> Iterator[tuple[str, Path]]:
    """The folder that module names start from and the file, for every source file, in a stable order."""
    paths = sysconfig.get_paths()
    for root in dict.fromkeys(paths[name] for name in ("stdlib", "purelib", "platlib")):
        for path in sorted(Path(root).rglob("*.py")):
            if SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts):
                yield root, path


def _read_files(files: list[tuple[str, str, int]]) -> Iterator[dict[str, str]]:
    for root, path, _ in files:
        for name, text in read_docstrings(Path(path), Path(root)):
            if len(text) >= MIN_CHARACTERS:
                yield {"name": name, "text": text}


def read_docstrings(path: Path, root: Path) -> Iterator[tuple[str, str]]:
    """Dotted name and cleaned docstring of everything that is documented in a source file under `root`.

    A file that does not parse yields nothing: packages ship templates and code for other versions of Python.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escape sequences
            with _without_garbage_collection():
                tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
        return
    module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    yield from _docstrings(tree, module)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Parsing makes many objects and no garbage; looking for it all the same takes twice as long as the parsing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str):
    text = ast.get_docstring(node, clean=False)
    if text:
        yield name, without_surrogates(inspect.cleandoc(text))
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _docstrings(child, f"{name}.{child.name}")
