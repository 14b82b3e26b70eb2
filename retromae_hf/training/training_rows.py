"""What an embedder is fine-tuned on: queries with positives and, where given or mined, hard negatives and scores.

A data set here has the columns `query`, `positive`, `negative_1` ... `negative_n`, all text, and with a teacher
`label`, in the order in which sentence-transformers' losses take them.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, concatenate_datasets, load_from_disk
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase, TrainingArguments

from ..arguments.finetuning import MINERS, FinetuneArguments
from ..arguments.pretraining import TextSource
from ..data.documents import fingerprint_of_mapped, load_rows
from ..data.files import WHOLE, check_whole, numbered_lines
from ..data.held_out import load_held_out, load_held_out_pydocs
from ..data.text import head_of
from ..data.text_pairs import pairs_from_text
from ..model.errors import RetroMAEError, in_one_sentence
from ..retrieval.rankings import BM25Index
from ..retrieval.tasks import MAX_MISSING_SHARE, find_file, load_beir
from .text_rows import drawn_places, negative_names, read_scores, read_tsv, uniform_rows

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

SCORES_AT_A_TIME = 2**28
"""Similarities held at once while mining, 1 GiB of them."""


@dataclass(frozen=True)
class JudgedCorpus:
    """Training queries and documents by id."""

    queries: dict[str, str]
    documents: dict[str, str]
    positives: dict[str, list[str]]  # the relevant documents of each query, at least one

    def pairs(self) -> Dataset:
        """Every query with each of its positives."""
        rows = [(query, positive) for query, found in self.positives.items() for positive in found]
        return Dataset.from_dict(
            {
                "query": [self.queries[query] for query, _ in rows],
                "positive": [self.documents[positive] for _, positive in rows],
            }
        )


@dataclass(frozen=True)
class TrainingData:
    """Rows to train on, before negatives are mined for them."""

    rows: Dataset
    corpus: JudgedCorpus | None = None  # where they come from, if that is a folder in BEIR's layout
    held_out: frozenset[str] = frozenset()  # positives of held-out queries, which are no negatives of others


def load_training_data(
    args: FinetuneArguments, seed: int = 0, num_negatives: int | None = None
) -> JudgedCorpus | Dataset:
    """Pairs of a text, a folder in BEIR's layout with qrels/SPLIT.tsv, or rows of text.

    Rows of text are "pydocs" (first sentence -> body), a .tsv file (MS MARCO's triples: query, positive, negative), any
    other file that `datasets` reads, or a Hub data set; the last three become what `uniform_rows` says.
    """
    source, config_name, split = args.dataset, args.dataset_config_name, args.dataset_split
    if args.pairs is not None:
        text = TextSource([source], dataset_config_name=config_name, dataset_split=split)
        held_out = load_held_out(replace(text, text_column=args.text_column, dev_queries=args.dev_queries))
        if args.dev_queries:
            logger.info("%d first sentences are held out, and their documents make no pairs", len(held_out.queries))
        return pairs_from_text(held_out.untouched, args.pairs, seed)
    path = Path(source).expanduser()
    tsv, beir = path.suffix.lower() == ".tsv" and path.is_file(), find_file(path, "corpus.jsonl") is not None
    if tsv or beir or source == "pydocs":
        check_whole(source, config_name, WHOLE if beir else split)
    if args.columns() and (beir or source == "pydocs"):
        raise RetroMAEError(f"{source} has no columns to choose from; leave query_column and the like out")
    if source == "pydocs":
        return load_held_out_pydocs().pairs.rename_column("body", "positive")
    if beir:
        if find_file(path, f"qrels/{split}.tsv") is None:
            raise RetroMAEError(
                f"{path / 'qrels' / split}.tsv does not exist; name a split that does, or make pairs of the corpus "
                "with --pairs first-sentence"
            )
        task = load_beir(path, split)
        judged = {
            query: [document for document, grade in grades.items() if grade > 0 and document in task.documents]
            for query, grades in task.qrels.items()
        }
        return JudgedCorpus(task.queries, task.documents, {query: found for query, found in judged.items() if found})
    rows = read_tsv(path) if tsv else load_rows(source, config_name, split)
    wanted = args.num_negatives if num_negatives is None else num_negatives
    return uniform_rows(source, rows, wanted, args.objective, seed, args.columns())


def read_training_data(args: FinetuneArguments, seed: int) -> TrainingData:
    """The rows that the arguments ask for; where negatives are to be mined, pairs."""
    mined = args.hard_negatives in MINERS
    data = load_training_data(args, seed, 0 if mined else None)
    corpus = data if isinstance(data, JudgedCorpus) else None
    if args.hard_negatives is None or mined:
        rows = data.pairs() if isinstance(data, JudgedCorpus) else data
    elif corpus is None:
        raise RetroMAEError("a file of hard_negatives names ids; it goes with a folder in BEIR's layout")
    else:
        rows = read_hard_negatives(args.hard_negatives, corpus, args.num_negatives, seed, args.teacher_scores)
    if args.objective != "contrastive" and "label" not in rows.column_names:
        raise RetroMAEError(
            f"objective={args.objective} needs a teacher's scores; give teacher_scores, or rows with a column label"
        )
    return TrainingData(whole_rows(rows, args.dataset), corpus)


def whole_rows(rows: Dataset, source: str) -> Dataset:
    """The rows that have all their texts; how many have not is said, and none is an error."""
    texts = [name for name in rows.column_names if name != "label"]
    whole = rows.filter(lambda *row: all(text and text.strip() for text in row), input_columns=texts)
    if len(whole) < len(rows):
        logger.warning("%d rows have an empty query or a text missing and were dropped", len(rows) - len(whole))
    if len(whole) == 0:
        raise RetroMAEError(f"{source} holds no rows to train on; give query and positive as text")
    return whole


def prepare_rows(
    args: FinetuneArguments,
    training_args: TrainingArguments,
    model: SentenceTransformer,
    data: TrainingData,
    resumes: bool,
) -> Dataset:
    """Rows as the loss takes them; mined ones are kept in the output folder, for other processes and to resume with."""
    if args.hard_negatives not in MINERS:
        return fitted_rows(args, data.rows, model, training_args.seed)
    kept = Path(training_args.output_dir) / "_mined-negatives"  # "_" keeps Trainer from pushing the texts to the Hub
    if training_args.process_index == 0 and not (resumes and kept.is_dir()):
        aside = kept.with_name("_mined-negatives-new")
        shutil.rmtree(aside, ignore_errors=True)  # of a run that was cut off
        rows = mined_rows(args, data, model, training_args.seed)
        fitted_rows(args, rows, model, training_args.seed).save_to_disk(aside)
        shutil.rmtree(kept, ignore_errors=True)  # of an earlier run
        aside.rename(kept)
    return load_from_disk(kept)


def mined_rows(args: FinetuneArguments, data: TrainingData, model: SentenceTransformer, seed: int) -> Dataset:
    """The pairs that have enough hard negatives in their corpus, or among all positives.

    No query has a negative that it is itself, as a text or by its id (ArguAna, Quora).
    """
    pairs, corpus = data.rows, data.corpus
    texts = corpus.documents.values() if corpus else pairs["positive"][:]
    documents = [text for text in texts if text.strip() and text not in data.held_out]
    own = {(query, query) for query in {*pairs["query"][:]}.intersection(documents)}
    if corpus:
        ids = [one for one, found in corpus.positives.items() if one not in found]
        ids = [one for one in ids if corpus.documents.get(one, "").strip()]
        own |= {(corpus.queries[one], corpus.documents[one]) for one in ids}
    own -= set(zip(pairs["query"][:], pairs["positive"][:], strict=True))
    # Miners keep a query's positives from its negatives, so for as long as they work these are some.
    columns = {"query": [query for query, _ in sorted(own)], "positive": [document for _, document in sorted(own)]}
    known = concatenate_datasets([pairs, Dataset.from_dict(columns, features=pairs.features)])
    if args.hard_negatives == "bm25":
        found = mine_with_bm25(args, known, documents, seed)
    else:
        found = mine_with_model(args, known, documents, model, seed)
    mined = found.filter(lambda *pair: pair not in own, input_columns=["query", "positive"])
    count = args.num_negatives
    if len(mined) == 0:
        raise RetroMAEError(f"no query has {count} hard negatives; lower num_negatives or raise negative_depth")
    if dropped := len(pairs) - len(mined):
        logger.warning("%d of %d rows have fewer than %d negatives and were dropped", dropped, len(pairs), count)
    return mined


def mine_with_model(
    args: FinetuneArguments, pairs: Dataset, documents: list[str], model: SentenceTransformer, seed: int
) -> Dataset:
    """Negatives drawn from the `negative_depth` documents nearest to the query by the model itself (ANCE).

    The mining is sentence-transformers' own. It compares by cosine, whatever the model.
    """
    from sentence_transformers.util import mine_hard_negatives

    state = random.getstate()
    random.seed(seed)  # its draws come from Python's own generator
    try:
        with in_one_sentence("no hard negatives can be mined"):
            return mine_hard_negatives(
                pairs,
                model,
                corpus=documents,
                range_max=args.negative_depth,
                num_negatives=args.num_negatives,
                sampling_strategy="random",
                output_format="n-tuple",
                batch_size=args.mini_batch_size,
                faiss_batch_size=max(SCORES_AT_A_TIME // len(documents), 1),  # without faiss too
                verbose=False,
            )
    finally:
        random.setstate(state)


def mine_with_bm25(args: FinetuneArguments, pairs: Dataset, documents: list[str], seed: int) -> Dataset:
    """The same from the documents that BM25 (bm25s, English stop words) finds."""
    documents = list(dict.fromkeys(documents))
    positives: dict[str, set[str]] = {}
    judged = list(zip(pairs["query"][:], pairs["positive"][:], strict=True))
    for query, positive in judged:
        positives.setdefault(query, set()).add(positive)
    _, found = BM25Index(documents).search(list(positives), args.negative_depth)
    draw = random.Random(seed)
    negatives: dict[str, list[str]] = {}
    for query, places in zip(positives, found.tolist(), strict=True):
        wrong = [documents[place] for place in places if place >= 0]
        wrong = [document for document in wrong if document not in positives[query]]
        if len(wrong) >= args.num_negatives:
            negatives[query] = draw.sample(wrong, args.num_negatives)
    rows = [(query, positive, *negatives[query]) for query, positive in judged if query in negatives]
    names = ["query", "positive", *negative_names(args.num_negatives)]
    return Dataset.from_dict({name: [row[place] for row in rows] for place, name in enumerate(names)})


def fitted_rows(args: FinetuneArguments, rows: Dataset, model: SentenceTransformer, seed: int) -> Dataset:
    """A sample of the rows, the label as the loss takes it, and texts no longer than the model reads them."""
    if args.max_train_samples is not None:
        rows = rows.shuffle(seed).select(range(min(args.max_train_samples, len(rows))))
    texts = [name for name in rows.column_names if name != "label"]
    if args.objective == "margin_mse":  # between the positive's score and each other
        margins = [[scores[0] - other for other in scores[1:]] for scores in rows["label"][:]]
        rows = rows.remove_columns("label").add_column("label", margins)
    if not isinstance(model.tokenizer, PreTrainedTokenizerBase):  # a static model, which reads all of a text
        return rows
    lengths = {name: args.query_length if name == "query" else args.passage_length for name in texts}
    prompts = {name: (args.query_prompt if name == "query" else args.passage_prompt) or "" for name in texts}
    return shorten(rows, model.tokenizer, lengths, prompts)


def shorten(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, lengths: dict[str, int], prompts: dict[str, str]
) -> Dataset:
    """Cut every text behind the last token that it may have, so that what is cut off is tokenised once.

    `lengths` are tokens of each column, special tokens and its prompt included.
    """

    def end_of_text(encoding: Encoding) -> int:
        # Special tokens are nowhere in the text.
        spans = (encoding.token_to_chars(place) for place in reversed(range(len(encoding))))
        return next((span[1] for span in spans if span is not None and span[1]), 0)

    def cut(columns: dict[str, list[str]]) -> dict[str, list[str]]:
        shortened = {}
        for name, length in lengths.items():
            prompt = prompts[name]
            texts = [prompt + head_of(text) for text in columns[name]]
            encodings = tokenizer(texts, truncation=True, max_length=length).encodings
            shortened[name] = [
                text[len(prompt) : end_of_text(encoding)] for text, encoding in zip(texts, encodings, strict=True)
            ]
        return shortened

    key = fingerprint_of_mapped(rows, shorten, tokenizer, lengths=lengths, prompts=prompts)
    return rows.map(cut, batched=True, new_fingerprint=key, desc="Shortening texts")


def read_hard_negatives(
    file: str | Path, corpus: JudgedCorpus, count: int, seed: int, scores_file: str | Path | None = None
) -> Dataset:
    """Rows of query, positive and `count` negatives from JSON lines of ids, with a teacher's scores as `label`.

    A line is `{"query_id": ..., "negative_ids": [...]}`, and where it names a `"positive_id"` too it is about that
    positive alone, which the same line of `scores_file` demands: the scores of the positive and of all its negatives.
    Of longer lists `count` are drawn, and of shorter ones some come twice; with scores the first are taken, and shorter
    ones left out. Negatives that are positives of their query are dropped, and queries that keep none.
    """
    file, draw = Path(file), random.Random(seed)
    lines = list(_json_lines(file))
    known = _known_lines(file, corpus, lines)
    scores = None if scores_file is None else _scores_of(Path(scores_file), file, lines)
    rows, labels, short, dropped = [], [], 0, 0
    for place in known:
        _, line = lines[place]
        query, documents = line["query_id"], line["negative_ids"]
        kept = [number for number, document in enumerate(documents) if document not in corpus.positives[query]]
        dropped += len(documents) - len(kept)
        if len(kept) < (1 if scores is None else count):
            short += 1
            continue
        drawn = drawn_places(len(kept), count, draw) if scores is None else range(count)
        chosen = [kept[number] for number in drawn]
        positives = [line["positive_id"]] if "positive_id" in line else corpus.positives[query]
        rows += [[query, positive, *(documents[number] for number in chosen)] for positive in positives]
        if scores is not None:
            labels.append([scores[place][0], *(scores[place][1 + number] for number in chosen)])
    if dropped:
        logger.warning("%s: %d negatives are positives of their query and were dropped", file, dropped)
    if short:
        logger.warning("%s: %d lines have too few negatives and were dropped", file, short)
    if not rows:
        raise RetroMAEError(f"{file} holds no negatives for the training queries; lower num_negatives, or mine some")
    columns = {"query": [corpus.queries[row[0]] for row in rows]}
    for number, name in enumerate(["positive", *negative_names(count)], start=1):
        columns[name] = [corpus.documents[row[number]] for row in rows]
    return Dataset.from_dict(columns | ({} if scores is None else {"label": labels}))


def _scores_of(file: Path, negatives_file: Path, lines: list[tuple[int, Any]]) -> list[list[float]]:
    """A teacher's scores of every line's positive and negatives."""
    scored = list(_json_lines(file))
    if len(lines) != len(scored):
        raise RetroMAEError(
            f"{file} has {len(scored)} lines of scores for the {len(lines)} lines of {negatives_file}; score every line"
        )
    scores = []
    for (number, line), (scores_number, found) in zip(lines, scored, strict=True):
        if "positive_id" not in line:
            raise RetroMAEError(
                f"{negatives_file} line {number} names no positive_id, which a teacher's scores belong to"
            )
        expected = 1 + len(line["negative_ids"])
        scores.append(read_scores(found))
        if len(scores[-1]) != expected:
            raise RetroMAEError(
                f"{file} line {scores_number} must be a list of {expected} scores: the positive's and those of the "
                f"{expected - 1} negatives in {negatives_file}"
            )
    return scores


def _known_lines(file: Path, corpus: JudgedCorpus, lines: list[tuple[int, Any]]) -> list[int]:
    """The places of lines with ids that exist, all ids made text; many others are an error."""
    kept, seen, missing = [], 0, []
    for place, (number, line) in enumerate(lines):
        listed = isinstance(line, dict) and isinstance(line.get("negative_ids"), list)
        ids = [line.get("query_id"), line.get("positive_id", ""), *line["negative_ids"]] if listed else [None]
        if not all(isinstance(one, str | int) for one in ids):
            raise RetroMAEError(
                f"{file} line {number} is not a JSON object with the ids 'query_id' and a list of ids 'negative_ids'"
            )
        # MS MARCO's files have numbers.
        query = line["query_id"] = str(line["query_id"])
        documents = line["negative_ids"] = [str(one) for one in line["negative_ids"]]
        unknown = [] if query in corpus.positives else [query]
        if "positive_id" in line:
            positive = line["positive_id"] = str(line["positive_id"])
            documents = [*documents, positive]
            if not unknown and positive not in corpus.positives[query]:
                raise RetroMAEError(
                    f"{file} line {number}: document {positive!r} is no positive of query {query!r}; take the file "
                    "that belongs to this data"
                )
        unknown += [one for one in documents if one not in corpus.documents]
        seen += len(documents) + 1
        missing += unknown
        if not unknown:
            kept.append(place)
    if missing:
        found = f"{len(missing)} of {seen} ids in {file} ({', '.join(missing[:3])} ...)"
        if len(missing) > MAX_MISSING_SHARE * seen:
            raise RetroMAEError(f"{found} are no training queries or documents; take the file of this data")
        logger.warning("%s are no training queries or documents; their lines were left out", found)
    return kept


def _json_lines(file: Path) -> Iterator[tuple[int, Any]]:
    """Number and content of the lines that are not blank."""
    with in_one_sentence(f"{file} cannot be read"):
        for number, line in numbered_lines(file):
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise RetroMAEError(f"{file} line {number} is not JSON") from error
