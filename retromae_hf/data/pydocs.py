"""The embedded corpus: the documentation in the user's own Python environment, and its retrieval task.

Docstrings of the standard library and of every installed package are read with `ast`: nothing is imported or run.
"""

from __future__ import annotations

import ast
import functools
import gc
import hashlib
import inspect
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from .text import split_first_sentence, without_surrogates

# Folders whose docstrings describe tests, not an interface.
SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})

# The fewest characters of a docstring worth keeping: less is "See base class." and the like.
MIN_CHARACTERS = 80
# A query has at least this many words, and a body at least this many.
MIN_QUERY_WORDS, MIN_BODY_WORDS = 5, 15

# The retrieval task: test queries, queries to watch while training, and the bodies that are searched.
PYDOCS = "pydocs"
"""What this text is called as a data set."""

TEST_QUERIES, DEV_QUERIES, SEARCHED_BODIES = 1000, 200, 10_000


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


@dataclass(frozen=True)
class HeldOut:
    """A corpus divided for pretraining and for a retrieval task of its own: first sentence -> body.

    Attributes:
        pretraining: documents to pretrain on (`name`, `text`). Of a held-out document only the body is there, and no
            held-out query stands anywhere in the text.
        queries: the held-out first sentences, by name.
        bodies: the bodies to search, by name, among them that of every query.
        paired: the documents that `pairs` are made of.
    """

    pretraining: Dataset
    queries: dict[str, str]
    bodies: dict[str, str]
    paired: Dataset

    @property
    def untouched(self) -> Dataset:
        """The documents of `pretraining` that no query was taken from, nor from another of that name."""
        names = self.pretraining["name"][:]
        return self.pretraining.select([index for index, name in enumerate(names) if name not in self.queries])

    @functools.cached_property
    def pairs(self) -> Dataset:
        """First sentences and bodies that are not held out (`query`, `body`), to fine-tune on."""
        split = [split_first_sentence(text) for text in _texts(self.paired)]
        return Dataset.from_dict({"query": [query for query, _ in split], "body": [body for _, body in split]})


def hold_out(documents: Dataset, queries: int, bodies: int) -> HeldOut:
    """Divide documents for pretraining and retrieval. The choice follows from names and texts alone.

    Args:
        documents: the columns `name` and `text`.
        queries: held-out queries at most.
        bodies: bodies to search at most.
    """
    names = documents["name"][:]
    # A body that two documents share would make the one right answer ambiguous. Their digests do, and the texts are
    # read again where they are wanted, since all of them may not fit into memory.
    by_body: dict[bytes, int] = {}
    by_name: dict[str, int] = {}
    for index, text in enumerate(_texts(documents)):
        query, body = split_first_sentence(text)
        long_enough = len(query.split()) >= MIN_QUERY_WORDS and len(body.split()) >= MIN_BODY_WORDS
        if long_enough and by_body.setdefault(_digest(_fold(body), 16), index) == index:
            by_name.setdefault(names[index], index)  # overloads share a name too
    eligible = sorted(by_name.values(), key=lambda index: _digest(names[index]))
    candidates = eligible[: 3 * queries]
    split = {index: split_first_sentence(documents[index]["text"]) for index in candidates}
    unique = _only_once(_texts(documents), {index: split[index][0] for index in candidates})
    held_out = [index for index in candidates if index in unique][:queries]
    chosen = set(held_out)
    rest = [index for index in eligible if index not in chosen]
    others = rest[: max(bodies - len(held_out), 0)]
    split |= {index: split_first_sentence(documents[index]["text"]) for index in others if index not in split}
    return HeldOut(
        pretraining=documents.map(
            _replace_text,
            with_indices=True,
            input_columns="text",
            fn_kwargs={"replacements": {index: split[index][1] for index in held_out}},
            desc="Holding out queries",
        ),
        queries={names[index]: split[index][0] for index in held_out},
        bodies={names[index]: split[index][1] for index in held_out + others},
        paired=documents.select(rest),
    )


@functools.cache
def load_held_out_pydocs(num_proc: int | None = None) -> HeldOut:
    """`load_pydocs`, divided; a process reads and divides it once, for pretraining and evaluation alike."""
    return hold_out(load_pydocs(num_proc), TEST_QUERIES + DEV_QUERIES, SEARCHED_BODIES)


def _replace_text(text: str, index: int, replacements: dict[int, str]) -> dict[str, str]:
    return {"text": replacements.get(index, text)}


def _texts(documents: Dataset) -> Iterator[str]:
    """The texts one after another, of which few are in memory."""
    for batch in documents.select_columns("text").iter(1000):
        yield from batch["text"]


def _digest(name: str, size: int = 8) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=size).digest()


def _fold(text: str) -> str:
    return " ".join(text.lower().split())


def _only_once(texts: Iterable[str], phrases: dict[int, str]) -> set[int]:
    """Which phrases stand exactly once in all the texts together, white space and case apart.

    A phrase is looked for where its first words stand, so that the texts are read once for all phrases.
    """
    starts: dict[tuple[str, ...], list[int]] = defaultdict(list)
    folded = {index: _fold(phrase) for index, phrase in phrases.items()}
    for index, phrase in folded.items():
        # The first and the last word may continue in the text ("(see" for "see"), so only inner words are a key.
        starts[tuple(phrase.split()[1 : MIN_QUERY_WORDS - 1])].append(index)
    counts: dict[int, int] = defaultdict(int)
    for text in texts:
        words = text.lower().split()
        found = starts.keys() & set(zip(*(words[offset:] for offset in range(MIN_QUERY_WORDS - 2)), strict=False))
        if found:
            joined = " ".join(words)
            for start in found:
                for index in starts[start]:
                    counts[index] += joined.count(folded[index])
    return {index for index in phrases if counts[index] == 1}
