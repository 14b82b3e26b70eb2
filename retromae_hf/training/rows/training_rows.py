"""What an embedder is fine-tuned on: queries with positives and, where there are any, hard negatives and scores.

A data set here has the columns `query`, `positive`, `negative_1` ... `negative_n`, all text, and with a teacher
`label`, in the order in which sentence-transformers' losses take them.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, load_from_disk
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase, TrainingArguments

from ...arguments.finetuning import MINERS, FinetuneArguments
from ...arguments.pretraining import TextSource
from ...data.documents import fingerprint_of_mapped, load_rows
from ...data.files import WHOLE, check_whole, numbered_lines
from ...data.held_out import load_held_out, load_held_out_pydocs
from ...data.text import head_of
from ...data.text_pairs import pairs_from_text
from ...model.errors import RetroMAEError, in_one_sentence
from ...retrieval.tasks import MAX_MISSING_SHARE, load_beir
from .negatives import drawn_places, mine
from .text_rows import read_scores, read_tsv, uniform_rows

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JudgedCorpus:
    """Training queries and documents by id."""

    queries: dict[str, str]
    documents: dict[str, str]
    positives: dict[str, list[str]]  # the relevant documents of each query, at least one

    def own_documents(self) -> list[tuple[str, str]]:
        """Queries that are documents too, under the same id, and those, which are no answer (ArguAna, Quora)."""
        own = [query for query, found in self.positives.items() if query in self.documents and query not in found]
        return [(self.queries[query], self.documents[query]) for query in own]

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
        held_out = load_held_out(
            TextSource(
                [source],
                dataset_config_name=config_name,
                dataset_split=split,
                text_column=args.text_column,
                dev_queries=args.dev_queries,
            )
        )
        if args.dev_queries:
            logger.info("%d first sentences are held out, and their documents make no pairs", len(held_out.queries))
        return pairs_from_text(held_out.untouched, args.pairs, seed)
    path = Path(source).expanduser()
    tsv, beir = path.suffix.lower() == ".tsv" and path.is_file(), (path / "corpus.jsonl").is_file()
    if tsv or beir or source == "pydocs":
        check_whole(source, config_name, WHOLE if beir else split)
    if args.columns() and (beir or source == "pydocs"):
        raise RetroMAEError(f"{source} has no columns to choose from; leave query_column and the like out")
    if source == "pydocs":
        return load_held_out_pydocs().pairs.rename_column("body", "positive")
    if beir:
        if not (judgments := path / "qrels" / f"{split}.tsv").is_file():
            raise RetroMAEError(
                f"{judgments} does not exist; name a split that does, or make pairs of the corpus with --pairs "
                "first-sentence"
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
    elif args.teacher_scores is None:
        rows = read_hard_negatives(args.hard_negatives, corpus, args.num_negatives, seed)
    else:
        rows = read_scored_negatives(args.hard_negatives, args.teacher_scores, corpus, args.num_negatives)
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
    """Pairs with hard negatives out of their corpus, or of all positives; no query finds a document that it is."""
    pairs, corpus = data.rows, data.corpus
    texts = corpus.documents.values() if corpus else pairs["positive"][:]
    documents = [text for text in texts if text.strip() and text not in data.held_out]
    own = {(query, query) for query in {*pairs["query"][:]}.intersection(documents)}
    own |= {(query, document) for query, document in (corpus.own_documents() if corpus else []) if document.strip()}
    own -= set(zip(pairs["query"][:], pairs["positive"][:], strict=True))
    return mine(args, pairs, documents, own, model, seed)


def fitted_rows(args: FinetuneArguments, rows: Dataset, model: SentenceTransformer, seed: int) -> Dataset:
    """A sample of the rows, the label as the loss takes it, and texts no longer than the model reads them."""
    if args.max_train_samples is not None:
        rows = rows.shuffle(seed).select(range(min(args.max_train_samples, len(rows))))
    texts = [name for name in rows.column_names if name != "label"]
    if args.objective == "margin_mse":
        rows = with_margins(rows)
    if not isinstance(model.tokenizer, PreTrainedTokenizerBase):  # a static model, which reads all of a text
        return rows
    lengths = {name: args.query_length if name == "query" else args.passage_length for name in texts}
    prompts = {name: (args.query_prompt if name == "query" else args.passage_prompt) or "" for name in texts}
    return shorten(rows, model.tokenizer, lengths, prompts)


def with_margins(rows: Dataset) -> Dataset:
    """Rows whose `label`, the scores of all passages, becomes the margins between the positive's and each other."""
    labels = [[scores[0] - other for other in scores[1:]] for scores in rows["label"][:]]
    return rows.remove_columns("label").add_column("label", labels)


def shorten(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, lengths: dict[str, int], prompts: dict[str, str]
) -> Dataset:
    """Cut every text behind the last token that it may have, so that what is cut off is tokenised once.

    `lengths` are tokens of each column, special tokens and its prompt included.
    """

    def cut(columns: dict[str, list[str]]) -> dict[str, list[str]]:
        shortened = {}
        for name, length in lengths.items():
            prompt = prompts[name]
            texts = [prompt + head_of(text) for text in columns[name]]
            encodings = tokenizer(texts, truncation=True, max_length=length).encodings
            shortened[name] = [
                text[len(prompt) : _end_of_text(encoding)] for text, encoding in zip(texts, encodings, strict=True)
            ]
        return shortened

    key = fingerprint_of_mapped(rows, shorten, tokenizer, lengths=lengths, prompts=prompts)
    return rows.map(cut, batched=True, new_fingerprint=key, desc="Shortening texts")


def _end_of_text(encoding: Encoding) -> int:
    """Where in the text the last token ends; special tokens are nowhere in it."""
    spans = (encoding.token_to_chars(place) for place in reversed(range(len(encoding))))
    return next((span[1] for span in spans if span is not None and span[1]), 0)


def read_hard_negatives(file: str | Path, corpus: JudgedCorpus, count: int, seed: int) -> Dataset:
    """Rows of query, positive and `count` negatives from JSON lines of ids.

    A line is `{"query_id": ..., "negative_ids": [...]}`, and where it names a `"positive_id"` too it is about that
    positive alone. Of longer lists `count` are drawn; of shorter ones some come twice. Negatives that are positives of
    their query are dropped, and queries that keep none. Over 1 % of ids that the corpus does not have are an error.
    """
    draw = random.Random(seed)
    rows: list[list[str]] = []
    dropped = 0
    for line in _known_lines(Path(file), corpus, list(_json_lines(Path(file)))):
        relevant = corpus.positives[line["query_id"]]
        negatives = [document for document in line["negative_ids"] if document not in relevant]
        dropped += len(line["negative_ids"]) - len(negatives)
        if negatives:
            chosen = [negatives[place] for place in drawn_places(len(negatives), count, draw)]
            positives = [line["positive_id"]] if "positive_id" in line else relevant
            rows += [[line["query_id"], positive, *chosen] for positive in positives]
    _tell_dropped(file, dropped)
    if not rows:
        raise RetroMAEError(f"{file} holds no negatives for the training queries; mine some with --hard_negatives bm25")
    return _texts_of(rows, corpus)


def read_scored_negatives(file: str | Path, scores_file: str | Path, corpus: JudgedCorpus, count: int) -> Dataset:
    """Rows with a teacher's scores as `label`: those of the positive and of the first `count` negatives of a line.

    Every line of `file` names its `"positive_id"`; the same line of `scores_file` is the list of scores of the positive
    and then of all its negatives. Lines that have fewer negatives are dropped.
    """
    lines, scores = list(_json_lines(Path(file))), list(_json_lines(Path(scores_file)))
    if len(lines) != len(scores):
        raise RetroMAEError(
            f"{scores_file} has {len(scores)} lines of scores for the {len(lines)} lines of {file}; score every line"
        )
    known = {id(line) for line in _known_lines(Path(file), corpus, lines)}
    rows, labels, short, dropped = [], [], 0, 0
    for (number, line), (scores_number, row_scores) in zip(lines, scores, strict=True):
        if "positive_id" not in line:
            raise RetroMAEError(f"{file} line {number} names no positive_id, which a teacher's scores belong to")
        expected = 1 + len(line["negative_ids"])
        if not isinstance(row_scores, list) or len(read_scores(row_scores)) != expected:
            raise RetroMAEError(
                f"{scores_file} line {scores_number} must be a list of {expected} scores: the positive's and those of "
                f"the {expected - 1} negatives in {file}"
            )
        if id(line) not in known:
            continue
        scored = zip(line["negative_ids"], row_scores[1:], strict=True)
        kept = [one for one in scored if one[0] not in corpus.positives[line["query_id"]]]
        dropped += expected - 1 - len(kept)
        if len(kept) < count:
            short += 1
            continue
        rows.append([line["query_id"], line["positive_id"], *(document for document, _ in kept[:count])])
        labels.append([float(score) for score in (row_scores[0], *(score for _, score in kept[:count]))])
    _tell_dropped(file, dropped)
    if short:
        logger.warning("%s: %d lines have fewer than %d negatives and were dropped", file, short, count)
    if not rows:
        raise RetroMAEError(f"{file} holds no line with {count} negatives; lower num_negatives")
    return _texts_of(rows, corpus).add_column("label", labels)


def _tell_dropped(file: str | Path, count: int) -> None:
    if count:
        logger.warning("%s: %d negatives are positives of their query and were dropped", file, count)


def _texts_of(rows: list[list[str]], corpus: JudgedCorpus) -> Dataset:
    queries, *documents = zip(*rows, strict=True)
    names = ["positive", *(f"negative_{number}" for number in range(1, len(documents)))]
    columns = {"query": [corpus.queries[query] for query in queries]}
    columns |= {name: [corpus.documents[one] for one in column] for name, column in zip(names, documents, strict=True)}
    return Dataset.from_dict(columns)


def _known_lines(file: Path, corpus: JudgedCorpus, lines: list[tuple[int, Any]]) -> list[dict[str, Any]]:
    """Lines with ids that exist, all ids made text; few others are reported and left out, many are an error."""
    kept, seen, missing = [], 0, []
    for number, line in lines:
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
            kept.append(line)
    if missing:
        told = f"{len(missing)} of {seen} ids in {file} ({', '.join(missing[:3])} ...)"
        if len(missing) > MAX_MISSING_SHARE * seen:
            raise RetroMAEError(f"{told} are no training queries or documents; take the file that belongs to this data")
        logger.warning("%s are no training queries or documents; their lines were left out", told)
    return kept


def _json_lines(file: Path) -> Iterator[tuple[int, Any]]:
    """Number and content of the lines that are not blank."""
    with in_one_sentence(f"{file} cannot be read"):
        for number, line in numbered_lines(file):
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise RetroMAEError(f"{file} line {number} is not JSON") from error
