"""Nearest documents by dot product: exactly, a block of embeddings at a time, or through an index of faiss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..model.errors import RetroMAEError

RANKING_DEPTH = 100
EXACT, FAISS = "exact", "faiss"
LARGE_CORPUS = 1_000_000
"""Documents from which on an index is thought of."""

BLOCK_QUERIES = 1024
BLOCK_DOCUMENTS = 8192


def rank(queries: Tensor, documents: Tensor, depth: int = RANKING_DEPTH) -> tuple[Tensor, Tensor]:
    """The `depth` documents nearest to each query by dot product, best first: scores and indices, both `[Q, depth]`.

    Args:
        queries: `[Q, H]`.
        documents: `[N, H]`; where N is less than `depth`, N columns are returned.
    """
    return search_exact(queries, documents.split(BLOCK_DOCUMENTS), depth)


@torch.inference_mode()
def search_exact(
    queries: Tensor,
    blocks: Iterable[Tensor],
    depth: int = RANKING_DEPTH,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Like `rank`, over documents that come a block `[n, H]` at a time: only one block is held with its scores.

    Args:
        device: where to compute; the results are on the CPU.
    """
    queries = queries.to(device, torch.float32)
    best_scores = queries.new_empty(len(queries), 0)
    best = torch.empty(len(queries), 0, dtype=torch.long, device=device)
    offset = 0
    for block in blocks:
        block = block.to(device, torch.float32)
        found = [(chunk @ block.T).topk(min(depth, len(block))) for chunk in queries.split(BLOCK_QUERIES)]
        scores = torch.cat([best_scores, torch.cat([part.values for part in found])], dim=1)
        indices = torch.cat([best, torch.cat([part.indices for part in found]) + offset], dim=1)
        best_scores, kept = scores.topk(min(depth, scores.shape[1]))
        best = indices.gather(1, kept)
        offset += len(block)
    return best_scores.cpu(), best.cpu()


def search_faiss(
    queries: Tensor, blocks: Iterable[Tensor], num_documents: int, depth: int = RANKING_DEPTH
) -> tuple[Tensor, Tensor]:
    """Like `search_exact`, approximately: each query is compared with the documents of the nearest clusters alone.

    An inverted file of sqrt(N) clusters (k-means on a sample of 64 documents for each), its vectors in float16. A
    sixteenth of the clusters is searched, and 16 at least. More clusters would take longer to make than they save.

    Args:
        blocks: of documents; gone through twice, so no generator.
        num_documents: N, those of all blocks together.

    Returns:
        Scores and indices; an index of -1 fills a row up whose clusters hold fewer documents than `depth`.
    """
    faiss = import_faiss()
    # faiss wants 39 documents a cluster at least.
    clusters = max(1, min(int(num_documents**0.5), num_documents // 39))
    index = faiss.index_factory(queries.shape[1], f"IVF{clusters},SQfp16", faiss.METRIC_INNER_PRODUCT)
    index.nprobe = max(16, clusters // 16)
    step = max(1, num_documents // (64 * clusters))
    index.train(torch.cat([block[::step] for block in blocks]).float().numpy())
    for block in tqdm(blocks, desc="Indexing", unit="block", leave=False):
        index.add(block.float().numpy())
    scores, indices = index.search(queries.float().numpy(), min(depth, num_documents))
    return torch.from_numpy(scores), torch.from_numpy(indices)


def choose_search(num_queries: int, num_documents: int, device: torch.device | str) -> str:
    """Exact search, or faiss where a CPU has many queries to search a large corpus for.

    To make the index, each document is compared with sqrt(N) centres, and k-means takes about as long again. Exact
    search compares each with the queries, so these have to be several times as many before an index pays. A GPU
    compares everything faster than a CPU makes the index.
    """
    pays = num_documents >= LARGE_CORPUS and num_queries >= 4 * num_documents**0.5
    return FAISS if pays and torch.device(device).type == "cpu" else EXACT


def import_faiss() -> Any:
    """faiss, or one sentence on how to get it."""
    try:
        import faiss
    except ImportError as error:
        raise RetroMAEError(
            f"the search of a large corpus needs faiss; pip install 'retromae-hf[faiss]', or ask for {EXACT} search"
        ) from error
    return faiss
