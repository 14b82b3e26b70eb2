"""Embeddings of a corpus in files: several processes write them, a killed run leaves them, memory maps read them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from ..data.reading.whole_files import written_aside
from ..model.errors import RetroMAEError, in_one_sentence
from .embedders import process_state

SHARD_SIZE = 2048
"""Texts a file: what a killed run has to embed again at most, for each process."""


class EmbeddingShards:
    """Files of embeddings as a collection of tensors `[n, H]`, float32, each mapped into memory while it is used."""

    def __init__(self, files: list[Path]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Tensor]:
        for file in self.files:
            with in_one_sentence(f"{file} cannot be read; delete it, and it is computed again"):
                embeddings = load_file(file)["embeddings"]
            yield embeddings


def embed_to_shards(
    texts: list[str],
    embed: Callable[[list[str]], Tensor],
    identity: str,
    folder: str | Path,
    shard_size: int = SHARD_SIZE,
) -> EmbeddingShards:
    """Embed texts into a folder, `shard_size` to a file; files that are there already are not computed again.

    A file's name holds a digest of the model's identity and the file's texts, so that a changed model or corpus never
    meets stale embeddings. The processes that `accelerate launch` has started share the missing files out; every one of
    them has to call this, with the same arguments, and returns when all are done.

    Args:
        texts: N texts.
        embed: texts to float32 `[n, H]`.
        identity: what tells the model's state from others, see `model_identity`.
        folder: made where it does not exist; processes on several machines need one that they all see.

    Raises:
        RetroMAEError: the model gives NaN or infinity, or the processes do not see the same folder.
    """
    state, folder = process_state(), Path(folder)
    shards = [texts[start : start + shard_size] for start in range(0, len(texts), shard_size)]
    files = [folder / f"{number:06d}-{_digest(identity, shard)}.safetensors" for number, shard in enumerate(shards)]
    missing = [number for number, file in enumerate(files) if not file.is_file()]
    state.wait_for_everyone()  # all have looked before one writes, so that all share out the same list
    mine = missing[state.process_index :: state.num_processes]
    folder.mkdir(parents=True, exist_ok=True)
    for number in tqdm(mine, desc="Corpus", unit="shard", disable=not state.is_local_main_process, leave=False):
        embeddings = embed(shards[number])
        if not embeddings.isfinite().all():
            raise RetroMAEError(
                "the model gives embeddings with NaN or infinity; check its training, or take an earlier checkpoint"
            )
        with written_aside(files[number]) as aside:
            save_file({"embeddings": embeddings.float().contiguous()}, aside)
    state.wait_for_everyone()
    if absent := [file for file in files if not file.is_file()]:
        raise RetroMAEError(f"{absent[0]} is not there; give a folder for the embeddings that all processes see")
    return EmbeddingShards(files)


def _digest(identity: str, texts: list[str]) -> str:
    digest = hashlib.blake2b(identity.encode("utf-8", "replace"), digest_size=12)
    for text in texts:
        content = text.encode("utf-8", "replace")
        digest.update(len(content).to_bytes(8, "little"))  # else "a", "bc" would be "ab", "c"
        digest.update(content)
    return digest.hexdigest()
