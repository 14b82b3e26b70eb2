"""Which files a local source of text consists of, as `datasets` would say, whatever they are called."""

from __future__ import annotations

import logging
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from datasets.data_files import ALL_DEFAULT_PATTERNS, FILES_TO_IGNORE, SPLIT_PATTERN_SHARDED, sanitize_patterns
from datasets.utils.metadata import MetadataConfigs
from fsspec.utils import glob_translate
from huggingface_hub import DatasetCardData, metadata_load

from ...model.errors import RetroMAEError, check_choice, in_one_sentence
from .rows import FILE, FILE_KINDS, LINE, kind_of

logger = logging.getLogger(__name__)

DEFAULT, WHOLE = "default", "train"
"""What `datasets` calls the configuration and the split of what has none: all of it."""


@dataclass(frozen=True)
class SourceFiles:
    """The files of a source.

    Attributes:
        source: what to call it in messages.
        files: absolute paths, sorted by name; none is empty.
        separator: what ends a document of a .txt file, see `rows.SEPARATORS`.
    """

    source: str
    files: list[Path]
    separator: str


def local_path(source: str) -> Path | None:
    """The file or folder that is called so; None for a name on the Hub.

    Raises:
        RetroMAEError: there is no such file, and the name is none of the Hub's.
    """
    with in_one_sentence("the source of the text is no path"):
        path = Path(source)
        if source.startswith("~") and not path.exists():
            path = path.expanduser()
        if source and path.exists():
            return path.absolute()
        if source == "" or kind_of(source) or Path(source).is_absolute() or source.startswith((".", "~")):
            raise RetroMAEError(f"{source} does not exist; give a file, a folder, a Hub dataset or 'pydocs'")
    return None


def check_whole(source: str, config_name: str | None, split: str) -> None:
    """Raise `RetroMAEError` where a configuration or a split is asked of a source that has none."""
    check_choice(f"{source}: dataset_config_name", config_name or DEFAULT, [DEFAULT])
    check_choice(f"{source}: dataset_split", split, [WHOLE])


def find_files(
    source: str, path: Path, config_name: str | None, split: str, separator: str | None = None
) -> SourceFiles:
    """The files of a file, or of a split of a folder, as `load_dataset(folder, config_name, split=split)` finds them.

    Names that begin with "." or "__" are no data. A folder in BEIR's layout is its corpus.

    Args:
        source: what to call it in messages.
        path: the file or folder.
        config_name: a configuration of the folder's README.md.
        split: what has no splits is all "train".
        separator: what ends a document of a .txt file; by default the line, and in a folder the file.

    Raises:
        RetroMAEError: there are none, or several kinds, or no such configuration or split, or a separator is named that
            they have not.
    """
    if path.is_dir():
        names = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*"))}
        found = {name: file for name, file in names.items() if _is_data(name) and file.is_file()}
    else:
        check_whole(source, config_name, split)
        found = {path.name: path} if kind_of(path.name) else {}
    if not found:
        raise RetroMAEError(f"{source} is neither a {', '.join(FILE_KINDS)} file nor a folder with such files")
    splits = _splits(source, path, list(found), config_name) if path.is_dir() else {WHOLE: list(found)}
    check_choice(f"{source}: dataset_split", split, splits)
    kinds = sorted({kind_of(name) or "" for name in splits[split]})
    if len(kinds) > 1:
        raise RetroMAEError(f"{source} holds several kinds of files, {', '.join(kinds)}; give one kind")
    files = [found[name] for name in splits[split] if found[name].stat().st_size]
    if not files:
        raise RetroMAEError(f"{source} holds no documents, only empty files; give a source with text")
    if separator is not None and kinds != ["text"]:
        raise RetroMAEError(f"{source} is no text; document_separator is about .txt files alone, leave it out")
    return SourceFiles(source, files, separator or (FILE if path.is_dir() else LINE))


def _is_data(name: str) -> bool:
    path = PurePosixPath(name)
    return kind_of(name) is not None and not is_hidden(path) and path.name not in FILES_TO_IGNORE


def is_hidden(path: PurePath) -> bool:
    """Whether a file is no data by its name or a folder's, as seen from the source."""
    return any(part.startswith((".", "__")) for part in path.parts)


def _splits(source: str, folder: Path, names: list[str], config_name: str | None) -> dict[str, list[str]]:
    """The names of the files of each split: by the folder's README.md, else by the names themselves."""
    corpora = [name for name in names if name.startswith("corpus.jsonl")]
    beside = any(name.startswith("queries.jsonl") for name in names) or (folder / "qrels").is_dir()
    if corpora and beside and config_name is None:
        return {WHOLE: corpora[:1]}
    configs = _configurations(folder)
    chosen = config_name or configs.get_default_config_name()
    check_choice(f"{source}: dataset_config_name", chosen, configs)
    config = configs[str(chosen)]
    named = "data_files" in config
    within = config.get("data_dir") or ""
    for patterns in [sanitize_patterns(config["data_files"])] if named else [_sharded(names), *ALL_DEFAULT_PATTERNS]:
        splits = {str(split): _matching(names, within, wanted) for split, wanted in patterns.items()}
        splits = {split: found for split, found in splits.items() if found}
        left_out = len(set(names).difference(*splits.values()))
        if splits and left_out and not named:
            told = f"{left_out} of {len(names)} files of {source} are left out, as they belong to no split"
            logger.warning("%s (%s)", told, ", ".join(splits))
        if splits:
            return splits
    raise RetroMAEError(f"{source} has none of the files that its README.md names; mend that, or give the files alone")


def _sharded(names: list[str]) -> dict[str, list[str]]:
    """The patterns by which `datasets` saves shards, for the splits that there are."""
    splits = sorted({match[1] for name in names if (match := re.match(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}", name))})
    return {split: [SPLIT_PATTERN_SHARDED.format(split=split)] for split in splits}


def _matching(names: list[str], within: str, patterns: list[str]) -> list[str]:
    paths = [posixpath.normpath(posixpath.join(within, pattern)) for pattern in patterns]
    return [name for name in names if any(re.match(glob_translate(path), name) for path in paths)]


def _configurations(folder: Path) -> MetadataConfigs:
    card = folder / "README.md"
    with in_one_sentence(f"{card} cannot be read"):
        data = DatasetCardData(**((card.is_file() and metadata_load(card)) or {}))
        return MetadataConfigs.from_dataset_card_data(data) or MetadataConfigs({DEFAULT: {}})
