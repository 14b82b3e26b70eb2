"""Sentence embeddings of texts, by a RetroMAE model or by anything that sentence-transformers loads.

Those of a corpus are kept in files: several processes write them, a killed run leaves them, memory maps read them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..checkpoints.loading import is_checkpoint, load_checkpoint, load_sentence_transformer, load_tokenizer
from ..checkpoints.onnx import compute_with_onnx, encoder_folder
from ..data.disk import blocks, written_aside
from ..data.text import head_of
from ..data.tokenizers import max_text_length
from ..model.encoders import RetroMAEPreTrainedModel, resolve, use_attention
from ..model.errors import RetroMAEError, check_at_least, check_choice, in_one_sentence
from ..model.modeling_retromae import RetroMAEModel

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SHARD_SIZE = 2048
"""Texts a file: what a killed run has to embed again at most, for each process."""

FINGERPRINTED = (
    *("*.safetensors", "modules.json", "*sentence*.json", "[0-9]*_*/*"),
    *("router_config.json", "[!_]*_[0-9]*_*/*", "[0-9]*_*/*_[0-9]*_*/*"),  # of a router, such as query_0_Transformer/
)
"""Files that make a model's embeddings what they are."""

DTYPES = ("float32", "bfloat16", "float16")

BATCH_SIZE, CPU_BATCH_SIZE = 64, 16
"""Texts a batch: on a CPU so few that the states of a layer stay in its cache, which makes it a third faster."""

TOKEN_LIKE = re.compile(r"[^\W_]{1,6}|_|[^\w\s]")
"""What a tokenizer makes a token of, about: some letters and digits, or a sign."""


@dataclass(frozen=True)
class Embedder:
    """Texts to embeddings whose dot product is their similarity: of unit length where that is the cosine.

    Attributes:
        documents: texts to float32 `[N, H]` on the CPU, each behind the model's prompt; likewise `queries`.
        name: the model's, as it was given.
        identity: what tells this model's embeddings of documents from those of any other, see `model_identity`.
        query_prompt: in place of the model's own; likewise `passage_prompt`.
    """

    documents: Callable[[list[str]], Tensor]
    queries: Callable[[list[str]], Tensor]
    name: str = ""
    identity: str = ""
    dtype: str = "float32"
    query_prompt: str | None = None
    passage_prompt: str | None = None


def load_embedder(
    name_or_path: str,
    batch_size: int | None = None,
    progress: bool = True,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    dtype: str = "float32",
    query_prompt: str | None = None,
    passage_prompt: str | None = None,
) -> Embedder:
    """The embedder of a RetroMAE checkpoint, or of anything that sentence-transformers loads, on this process's device.

    A plain encoder is pooled at [CLS], as `finetune` does. An ONNX file in an exported encoder's folder stands for that
    encoder, computed from the file on the CPU. A prompt of None is the model's own.
    """
    check_choice("dtype", dtype, DTYPES)
    check_at_least(1, batch_size=batch_size)
    is_onnx, device = name_or_path.endswith(".onnx"), process_state().device
    if is_onnx and (dtype != "float32" or attn_implementation is not None):
        raise RetroMAEError(f"{name_or_path} says itself how it computes; leave dtype and attn_implementation out")
    given = {"query": query_prompt, "document": passage_prompt}
    prompts = {kind: prompt for kind, prompt in given.items() if prompt is not None}
    progress = progress and process_state().is_local_main_process
    if not is_onnx and is_checkpoint(name_or_path, trust_remote_code):
        tokenizer = load_tokenizer(name_or_path, trust_remote_code)
        model = load_checkpoint(RetroMAEModel, name_or_path).to(device, getattr(torch, dtype))
        use_attention(model, attn_implementation)
        settings = model.config.sentence_settings
        model.config.sentence_settings = settings | {"prompts": settings.get("prompts", {}) | prompts}
        embedder = checkpoint_embedder(model, tokenizer, batch_size=batch_size, progress=progress)
    else:
        folder = str(encoder_folder(name_or_path)) if is_onnx else name_or_path
        encoder = load_sentence_transformer(folder, trust_remote_code, "cpu" if is_onnx else str(device))
        if is_onnx:
            compute_with_onnx(encoder[0].auto_model, name_or_path)
        use_attention(encoder.to(getattr(torch, dtype)), attn_implementation)
        if encoder.similarity_fn_name not in ("cosine", "dot"):
            raise RetroMAEError(
                f"{name_or_path} compares by {encoder.similarity_fn_name}; only cosine and dot product can be searched"
            )
        encoder.prompts |= prompts
        embedder = sentence_embedder(encoder, batch_size, progress)
    return replace(
        embedder,
        name=name_or_path,
        identity=f"{model_identity(name_or_path)} {dtype} {passage_prompt!r}",
        dtype=dtype,
        query_prompt=query_prompt,
        passage_prompt=passage_prompt,
    )


def checkpoint_embedder(
    model: RetroMAEPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Embedder:
    """The embedder of a RetroMAE model: `embed`, which prompts and compares as an export of it does."""
    settings = model.config.sentence_settings
    prompts = settings.get("prompts", {})
    to_unit_length = settings.get("normalize") or settings.get("similarity_fn_name") != "dot"

    def embed_prompted(prompt: str, texts: list[str]) -> Tensor:
        embeddings = embed(model, tokenizer, [prompt + text for text in texts], max_length, batch_size, progress)
        return normalize(embeddings, dim=1) if to_unit_length else embeddings

    documents, queries = (partial(embed_prompted, prompts.get(kind, "")) for kind in ("document", "query"))
    return Embedder(documents, queries)


def sentence_embedder(encoder: SentenceTransformer, batch_size: int | None = None, progress: bool = True) -> Embedder:
    """The embedder of a sentence-transformers model that compares by cosine or dot product, as it says."""
    batch_size = batch_size or _batch_size_on(encoder.device)
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "convert_to_tensor": True,
        "show_progress_bar": False,
        "normalize_embeddings": encoder.similarity_fn_name == "cosine",
    }

    def embedding(encode: Callable[..., Any]) -> Callable[[list[str]], Tensor]:
        return lambda texts: in_batches(texts, partial(encode, **options), batch_size, progress)

    return Embedder(documents=embedding(encoder.encode_document), queries=embedding(encoder.encode_query))


@torch.inference_mode()
def embed(
    model: RetroMAEPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    max_length: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Tensor:
    """Sentence embeddings of texts, float32 `[len(texts), H]` on the CPU."""
    max_length = max_length or max_text_length(tokenizer, model.config)
    was_training = model.training

    def encode(texts: list[str]) -> Tensor:
        batch = tokenizer(
            texts, truncation=True, max_length=max_length, padding=True, padding_side="right", return_tensors="pt"
        ).to(model.device)
        return model.pool(model.encode(batch["input_ids"], batch["attention_mask"]), batch["attention_mask"])

    model.eval()
    try:
        return in_batches(texts, encode, batch_size or _batch_size_on(model.device), progress)
    finally:
        model.train(was_training)


def in_batches(
    texts: list[str], encode: Callable[[list[str]], Tensor], batch_size: int, progress: bool = True
) -> Tensor:
    """Embeddings of texts, float32 `[len(texts), H]` on the CPU, of which a batch holds those of about one length.

    The length is counted in `TOKEN_LIKE`: characters tell less of the tokens of text with code in it, where a batch so
    sorted is a quarter padding.
    """
    texts = [head_of(text) for text in texts]
    lengths = [sum(1 for _ in TOKEN_LIKE.finditer(text)) for text in texts]
    order = sorted(range(len(texts)), key=lambda index: -lengths[index])
    starts = tqdm(range(0, len(texts), batch_size), desc="Embedding", disable=not progress, leave=False)
    parts = [encode([texts[index] for index in order[start : start + batch_size]]).float().cpu() for start in starts]
    return torch.cat(parts)[torch.tensor(order).argsort()]


def _batch_size_on(device: torch.device) -> int:
    return CPU_BATCH_SIZE if device.type == "cpu" else BATCH_SIZE


def process_state() -> PartialState:
    """This process's place among those that `accelerate launch` or torchrun has started, and its device."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


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
    embedder: Embedder, texts: list[str], folder: str | Path, shard_size: int = SHARD_SIZE
) -> EmbeddingShards:
    """Embed documents into a folder, `shard_size` to a file; files that are there already are not computed again.

    A file's name holds a digest of the embedder's identity and the file's texts, so that a changed model or corpus
    never meets stale embeddings. The processes that `accelerate launch` has started share the missing files out; every
    one of them has to call this, with the same arguments, and returns when all are done.
    """
    state, folder = process_state(), Path(folder)
    shards = [texts[start : start + shard_size] for start in range(0, len(texts), shard_size)]
    files = [
        folder / f"{number:06d}-{_digest(embedder.identity, shard)}.safetensors" for number, shard in enumerate(shards)
    ]
    missing = [number for number, file in enumerate(files) if not file.is_file()]
    state.wait_for_everyone()  # all have looked before one writes, so that all share out the same list
    mine = missing[state.process_index :: state.num_processes]
    folder.mkdir(parents=True, exist_ok=True)
    hidden = len(mine) < 2 or not state.is_local_main_process  # a single file has the bar of its texts
    for number in tqdm(mine, desc="Corpus", unit="file", disable=hidden, leave=False):
        embeddings = embedder.documents(shards[number])
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
    digest = hashlib.blake2b(digest_size=12)
    for text in (identity, *texts):
        content = text.encode("utf-8", "replace")
        digest.update(len(content).to_bytes(8, "little"))  # else "a", "bc" would be "ab", "c"
        digest.update(content)
    return digest.hexdigest()


def model_identity(name_or_path: str) -> str:
    """What tells one state of a model from the next, on every machine, without its weights being read."""
    folder = _folder_of(name_or_path)
    if not Path(name_or_path).exists():
        return f"{name_or_path} {folder.name}"  # in the Hub's cache a revision has a folder
    # sentence-transformers keeps modules in folders of their own, such as 1_Pooling, and weights in some of them.
    places = [folder, *(place for place in folder.glob("[!_]*_*/**") if place.is_dir())]
    files = {file for place in places for kind in ("safetensors", "json", "txt") for file in place.glob(f"*.{kind}")}
    if name_or_path.endswith(".onnx"):
        files.add(Path(name_or_path))
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return f"{Path(name_or_path).resolve()} {sorted(stats)}"


def model_fingerprint(name_or_path: str) -> str:
    """What tells a model from every other, wherever it lies: a digest of its weights and of the modules around them."""
    folder = _folder_of(name_or_path)
    digest = hashlib.sha256()
    for file in sorted({file for pattern in FINGERPRINTED for file in folder.glob(pattern) if file.is_file()}):
        digest.update(f"{file.relative_to(folder).as_posix()} {file.stat().st_size}\n".encode())
        for block in blocks(file):
            digest.update(block)
    return digest.hexdigest()


def _folder_of(name_or_path: str) -> Path:
    return encoder_folder(name_or_path) if name_or_path.endswith(".onnx") else resolve(name_or_path, weights=False)
