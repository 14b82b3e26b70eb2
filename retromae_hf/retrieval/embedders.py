"""Embeddings of a corpus in files: several processes write them, a killed run leaves them, memory maps read them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from transformers.utils import cached_file

from ..checkpoints.loading import is_checkpoint, load_checkpoint, load_sentence_transformer, load_tokenizer
from ..checkpoints.onnx import compute_with_onnx, encoder_folder
from ..data.disk import blocks, written_aside
from ..data.text import head_of
from ..data.tokenizers import max_text_length
from ..model.encoders import MODULES, RetroMAEPreTrainedModel, find_file, use_attention
from ..model.errors import RetroMAEError, check_at_least, check_choice, in_one_sentence
from ..model.modeling_retromae import RetroMAEModel

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

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


MODEL_FILES = ("*.safetensors", "modules.json", "*sentence*.json", "[0-9]*_*/*")
"""Files that make a model's embeddings what they are, and that whoever loads it from the Hub has in the cache."""

DTYPES = ("float32", "bfloat16", "float16")

BATCH_SIZE, CPU_BATCH_SIZE = 64, 16
"""Texts a batch: on a CPU so few that the states of a layer stay in its cache, which makes it a third faster."""

PIECES = re.compile(r"[^\W_]{1,6}|_|[^\w\s]")
"""What a tokenizer makes a token of, about: some letters and digits, or a sign."""


@dataclass(frozen=True)
class Embedder:
    """Texts to embeddings whose dot product is their similarity: of unit length where that is the cosine.

    Attributes:
        documents: texts to float32 `[N, H]` on the CPU.
        queries: likewise, with the model's prompt for queries where it has one.
    """

    documents: Callable[[list[str]], Tensor]
    queries: Callable[[list[str]], Tensor]


def in_batches(
    texts: list[str], encode: Callable[[list[str]], Tensor], batch_size: int, progress: bool = True
) -> Tensor:
    """Embeddings of texts, longest first so that a batch holds texts of one length, of which little is padding.

    The length is counted in `PIECES`: characters tell less of the tokens of text with code in it, where a batch so
    sorted is a quarter padding.

    Args:
        texts: of which what no model reads is left out, see `head_of`.
        encode: up to `batch_size` texts to `[n, H]`.
        batch_size: texts a batch.
        progress: whether to show it.

    Returns:
        float32 `[len(texts), H]` on the CPU, in the order of the texts.
    """
    texts = [head_of(text) for text in texts]
    lengths = [sum(1 for _ in PIECES.finditer(text)) for text in texts]
    order = sorted(range(len(texts)), key=lambda index: -lengths[index])
    starts = tqdm(range(0, len(texts), batch_size), desc="Embedding", disable=not progress, leave=False)
    parts = [encode([texts[index] for index in order[start : start + batch_size]]).float().cpu() for start in starts]
    return torch.cat(parts)[torch.tensor(order).argsort()]


@torch.inference_mode()
def embed(
    model: RetroMAEPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    max_length: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Tensor:
    """Sentence embeddings of texts, float32 `[len(texts), H]` on the CPU, see `in_batches` and `texts_a_batch`."""
    max_length = max_length or max_text_length(tokenizer, model.config)

    def encode(texts: list[str]) -> Tensor:
        batch = tokenizer(
            texts, truncation=True, max_length=max_length, padding=True, padding_side="right", return_tensors="pt"
        ).to(model.device)
        return model.pool(model.encode(batch["input_ids"], batch["attention_mask"]), batch["attention_mask"])

    was_training = model.training
    model.eval()
    embeddings = in_batches(texts, encode, batch_size or texts_a_batch(model.device), progress)
    model.train(was_training)
    return embeddings


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

    return Embedder(*(partial(embed_prompted, prompts.get(name, "")) for name in ("document", "query")))


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
    encoder, computed from the file on the CPU.

    Args:
        name_or_path: the model.
        batch_size: texts a batch; None: `texts_a_batch`.
        progress: whether to show it.
        trust_remote_code: whether code that comes with the model may run.
        attn_implementation: see `use_attention`.
        dtype: one of `DTYPES`, in which weights are held and embeddings computed.
        query_prompt: text in front of every query; None: the model's own.
        passage_prompt: likewise of every document.

    Raises:
        RetroMAEError: there is no model, it is pickled, it needs code of its own without `trust_remote_code`,
            sentence-transformers is needed and missing, or the last two arguments do not suit the model.
    """
    check_choice("dtype", dtype, DTYPES)
    given = {"query": query_prompt, "document": passage_prompt}
    prompts = {name: prompt for name, prompt in given.items() if prompt is not None}
    check_at_least(1, batch_size=batch_size)
    onnx_file = name_or_path if name_or_path.endswith(".onnx") else None
    if onnx_file is not None:
        if dtype != "float32" or attn_implementation is not None:
            raise RetroMAEError(f"{onnx_file} says itself how it computes; leave dtype and attn_implementation out")
        name_or_path = str(encoder_folder(onnx_file))
    if is_checkpoint(name_or_path, trust_remote_code):
        tokenizer = load_tokenizer(name_or_path, trust_remote_code)
        model = load_checkpoint(RetroMAEModel, name_or_path).to(process_state().device, getattr(torch, dtype))
        use_attention(model, attn_implementation)
        settings = model.config.sentence_settings
        model.config.sentence_settings = settings | {"prompts": settings.get("prompts", {}) | prompts}
        return checkpoint_embedder(model, tokenizer, batch_size=batch_size, progress=progress)
    device = "cpu" if onnx_file is not None else str(process_state().device)
    encoder = load_sentence_transformer(name_or_path, trust_remote_code, device)
    if onnx_file is not None:
        compute_with_onnx(encoder[0].auto_model, onnx_file)
    use_attention(encoder.to(getattr(torch, dtype)), attn_implementation)
    if encoder.similarity_fn_name not in ("cosine", "dot"):
        raise RetroMAEError(
            f"{name_or_path} compares by {encoder.similarity_fn_name}; only cosine and dot product can be searched"
        )
    encoder.prompts |= prompts
    return sentence_embedder(encoder, batch_size, progress)


def sentence_embedder(encoder: SentenceTransformer, batch_size: int | None = None, progress: bool = True) -> Embedder:
    """The embedder of a sentence-transformers model that compares by cosine or dot product, as it says."""
    options: dict[str, Any] = {
        "batch_size": batch_size or texts_a_batch(encoder.device),
        "convert_to_tensor": True,
        "show_progress_bar": False,
        "normalize_embeddings": encoder.similarity_fn_name == "cosine",
    }

    def embedding(encode: Callable[..., Any]) -> Callable[[list[str]], Tensor]:
        return lambda texts: in_batches(texts, lambda batch: encode(batch, **options), options["batch_size"], progress)

    return Embedder(documents=embedding(encoder.encode_document), queries=embedding(encoder.encode_query))


def texts_a_batch(device: torch.device) -> int:
    """How many texts are embedded at a time where nobody says."""
    return CPU_BATCH_SIZE if device.type == "cpu" else BATCH_SIZE


def process_state() -> PartialState:
    """This process's place among those that `accelerate launch` or torchrun has started, and its device."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def model_identity(name_or_path: str) -> str:
    """What tells one state of a model from the next: a folder's files, or a name on the Hub with its revision."""
    path = Path(name_or_path).absolute()
    folder = encoder_folder(path) if path.suffix == ".onnx" else path
    if not folder.is_dir():
        file = find_file(name_or_path, MODULES) or find_file(name_or_path, "config.json")
        return f"{name_or_path} {None if file is None else file.parent.name}"  # in the cache a revision has a folder
    # sentence-transformers keeps modules in folders of their own, such as 1_Pooling, and weights in some of them.
    places = [folder, *(place for place in folder.glob("[!_]*_*/**") if place.is_dir())]
    files = [file for place in places for kind in ("safetensors", "json", "txt") for file in place.glob(f"*.{kind}")]
    if folder is not path:
        files.append(path)
    stats = [(str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return f"{path.resolve()} {sorted(stats)}"


def model_fingerprint(name_or_path: str) -> str:
    """What tells a model from every other, wherever it lies: a digest of its weights and of the modules around them.

    Args:
        name_or_path: of a model that was loaded: a folder, an ONNX file in it, which stands for it, or a Hub name.
    """
    path = Path(encoder_folder(name_or_path) if name_or_path.endswith(".onnx") else name_or_path)
    folder = path if path.is_dir() else Path(str(cached_file(name_or_path, "config.json"))).parent
    digest = hashlib.sha256()
    for file in sorted(file for pattern in MODEL_FILES for file in folder.glob(pattern) if file.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()} {file.stat().st_size}\n".encode())
        for block in blocks(file):
            digest.update(block)
    return digest.hexdigest()
