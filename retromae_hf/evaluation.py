"""Measures how well sentence embeddings retrieve."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ir_measures
import torch
from ir_measures import RR, R, nDCG
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from .backbones import max_text_length
from .checkpoints import load_checkpoint, load_config, load_tokenizer
from .configuration_retromae import RetroMAEConfig
from .errors import RetroMAEError, check_at_least, in_one_sentence
from .modeling_retromae import RetroMAEModel, RetroMAEPreTrainedModel
from .pydocs import TEST_QUERIES, HeldOut, load_held_out_pydocs
from .text import without_surrogates

MEASURES = {"ndcg@10": nDCG @ 10, "mrr@10": RR @ 10, "recall@100": R @ 100}
RANKING_DEPTH = 100
BM25 = "bm25"

Embedder = Callable[[list[str]], Tensor]
"""Texts to sentence embeddings, float32 `[N, H]` on the CPU."""


@dataclass(frozen=True)
class RetrievalTask:
    """Queries and documents by id, and the grades of the relevant pairs."""

    name: str
    queries: dict[str, str]
    documents: dict[str, str]
    qrels: dict[str, dict[str, int]]


def load_task(source: str, num_proc: int | None = None) -> RetrievalTask:
    """The retrieval task "pydocs" (1,000 held-out first sentences against 10,000 bodies) or a BEIR-layout folder.

    Raises:
        RetroMAEError: the folder or one of its files does not exist or does not fit.
    """
    if source == "pydocs":
        return reported_task(load_held_out_pydocs(num_proc))
    return load_beir(source)


def reported_task(held_out: HeldOut) -> RetrievalTask:
    """The task to report: the first `TEST_QUERIES` held-out queries against all bodies."""
    return _first_sentence_task("pydocs", list(held_out.queries)[:TEST_QUERIES], held_out, len(held_out.bodies))


def dev_task(held_out: HeldOut, queries: int, documents: int = 2000) -> RetrievalTask:
    """A small task to watch while training: the last `queries` held-out queries against some of the bodies."""
    return _first_sentence_task("dev", list(held_out.queries)[-queries:], held_out, documents)


def _first_sentence_task(name: str, query_names: list[str], held_out: HeldOut, documents: int) -> RetrievalTask:
    others = (other for other in reversed(held_out.bodies) if other not in set(query_names))
    searched = query_names + [other for other, _ in zip(others, range(documents - len(query_names)), strict=False)]
    searched.sort()  # among equal scores the first documents may win, so the right ones must not come first
    return RetrievalTask(
        name=name,
        queries={query: held_out.queries[query] for query in query_names},
        documents={document: held_out.bodies[document] for document in searched},
        qrels={query: {query: 1} for query in query_names},
    )


def load_beir(folder: str | Path, split: str = "test") -> RetrievalTask:
    """A folder in BEIR's layout: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv (query-id, corpus-id, score).

    Queries without judgments are left out, and judgments of queries that are not there.
    """
    folder = Path(folder)
    qrels_file = folder / "qrels" / f"{split}.tsv"
    for file in ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv"):
        if not (folder / file).is_file():
            raise RetroMAEError(f"{folder / file} does not exist; give 'pydocs' or a folder in BEIR's layout")
    queries = {row["_id"]: row["text"] for row in _jsonl(folder / "queries.jsonl")}
    documents = {
        row["_id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in _jsonl(folder / "corpus.jsonl")
    }
    qrels: dict[str, dict[str, int]] = {}
    for number, line in _lines(qrels_file):
        if number == 1 and not line.rpartition("\t")[2].isdecimal():
            continue  # the header
        try:
            query, document, grade = line.split("\t")
            grades = {document: int(grade)}
        except ValueError as error:
            raise RetroMAEError(
                f"{qrels_file} line {number} is not 'query-id<TAB>corpus-id<TAB>score': {line!r}"
            ) from error
        if query in queries:
            qrels.setdefault(query, {}).update(grades)
    if not documents:
        raise RetroMAEError(f"{folder}/corpus.jsonl holds no documents; give a folder with some")
    if not any(document in documents for judged in qrels.values() for document in judged):
        raise RetroMAEError(f"{qrels_file} judges no query of queries.jsonl for a document of corpus.jsonl")
    return RetrievalTask(folder.name, {query: queries[query] for query in qrels}, documents, qrels)


def _jsonl(file: Path) -> Iterator[dict[str, Any]]:
    for number, line in _lines(file):
        try:
            row = json.loads(line)
            row["_id"] = str(row["_id"])
            row["text"] = without_surrogates(row["text"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RetroMAEError(f"{file} line {number} is not a JSON object with '_id' and a string 'text'") from error
        yield row


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number and text of the lines of a UTF-8 file that are not blank."""
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise RetroMAEError(f"{file} is not UTF-8; convert it, for example with iconv") from error


@torch.inference_mode()
def embed(
    model: RetroMAEPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    max_length: int | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Tensor:
    """Sentence embeddings ([CLS] states) of texts, longest first so that a batch holds texts of one length.

    Returns:
        float32 `[len(texts), H]` on the CPU.
    """
    was_training = model.training
    model.eval()
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    embeddings = torch.empty(len(texts), model.config.hidden_size)
    for start in tqdm(range(0, len(texts), batch_size), desc="Embedding", disable=not progress, leave=False):
        indices = order[start : start + batch_size]
        batch = tokenizer(
            [texts[index] for index in indices],
            truncation=True,
            max_length=max_length or max_text_length(tokenizer, model.config.encoder_config),
            padding=True,
            return_tensors="pt",
        ).to(model.device)
        states = model.encode(batch["input_ids"], batch["attention_mask"])
        embeddings[indices] = states[:, 0].float().cpu()
    model.train(was_training)
    return embeddings


def load_embedder(name_or_path: str, batch_size: int = 64) -> Embedder:
    """The embedder of a RetroMAE checkpoint, or of anything that sentence-transformers loads.

    Raises:
        RetroMAEError: there is no model, or sentence-transformers is needed and missing.
    """
    check_at_least(1, batch_size=batch_size)
    if isinstance(load_config(name_or_path), RetroMAEConfig):
        model = load_checkpoint(RetroMAEModel, name_or_path)
        tokenizer = load_tokenizer(name_or_path)
        return lambda texts: embed(model, tokenizer, texts, batch_size=batch_size)
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise RetroMAEError(
            f"{name_or_path} needs sentence-transformers; pip install retromae-hf[retrieval]"
        ) from error
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report on a head that is not used and a pooler that is not there
    try:
        with in_one_sentence(f"{name_or_path} holds no model that can be loaded"):
            encoder = SentenceTransformer(name_or_path, model_kwargs={"use_safetensors": True})
    finally:
        transformers_logging.set_verbosity(verbosity)
    return lambda texts: (
        encoder.encode(texts, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=True).float().cpu()
    )


def rank(queries: Tensor, documents: Tensor, depth: int = RANKING_DEPTH) -> tuple[Tensor, Tensor]:
    """The `depth` documents nearest to each query by cosine, best first: scores and indices, both `[Q, depth]`."""
    queries = torch.nn.functional.normalize(queries, dim=1)
    documents = torch.nn.functional.normalize(documents, dim=1)
    scores, indices = zip(
        *((chunk @ documents.T).topk(min(depth, len(documents))) for chunk in queries.split(256)), strict=True
    )
    return torch.cat(scores), torch.cat(indices)


def evaluate_embedder(task: RetrievalTask, embedder: Embedder) -> dict[str, float]:
    """nDCG@10, MRR@10 and Recall@100 of exact search over a task's documents."""
    scores, indices = rank(embedder(list(task.queries.values())), embedder(list(task.documents.values())))
    ids = list(task.documents)
    run = {
        query: {ids[index]: score for index, score in zip(row_indices, row_scores, strict=True)}
        for query, row_indices, row_scores in zip(task.queries, indices.tolist(), scores.tolist(), strict=True)
    }
    return score_run(task.qrels, run)


def evaluate_bm25(task: RetrievalTask) -> dict[str, float]:
    """The same measures for BM25 (bm25s, English stop words)."""
    try:
        import bm25s
    except ImportError as error:
        raise RetroMAEError("BM25 needs the package bm25s; pip install 'retromae-hf[retrieval]'") from error
    index = bm25s.BM25()
    with in_one_sentence("BM25 finds no words to index in the documents"):
        index.index(bm25s.tokenize(list(task.documents.values()), stopwords="en"))
    depth = min(RANKING_DEPTH, len(task.documents))
    tokens = bm25s.tokenize(list(task.queries.values()), stopwords="en")
    found, scores = index.retrieve(tokens, corpus=list(task.documents), k=depth)
    run = {
        query: {str(document): float(score) for document, score in zip(row, row_scores, strict=True)}
        for query, row, row_scores in zip(task.queries, found, scores, strict=True)
    }
    return score_run(task.qrels, run)


def score_run(qrels: Mapping[str, Mapping[str, int]], run: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """nDCG@10, MRR@10 and Recall@100 of a run, means over the judged queries (ir-measures).

    Args:
        qrels: grade of each judged document of each query.
        run: score of each retrieved document of each query.
    """
    measured = ir_measures.calc_aggregate(list(MEASURES.values()), qrels, run)
    return {name: measured[measure] for name, measure in MEASURES.items()}
