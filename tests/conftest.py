"""Shared fixtures: everything is tiny, seeded and offline."""

from __future__ import annotations

import copy
import gc
import json
import logging
import os
import tempfile
from pathlib import Path

# Before any Hugging Face import: no network, and caches that belong to this run alone.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="retromae_hf_tests_")

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from retromae_hf import RetroMAEConfig, RetroMAEForPreTraining
from retromae_hf.data.tokenizers import train_wordpiece
from retromae_hf.training.training_rows import JudgedCorpus

ROOT = Path(__file__).parents[1]
"""The project's folder."""

TEXTS = [
    f"The {adjective} {animal} {verb} over the {place} number {number}. It was {adjective} indeed! Then the {animal} "
    f"slept near the {place} until {number + 5} bells rang in the old tower of the town, and nobody came to {verb}."
    for number, (adjective, animal, verb, place) in enumerate(
        (adjective, animal, verb, place)
        for adjective in ("quick", "lazy", "brown", "silent")
        for animal in ("fox", "heron", "badger", "otter", "wolf")
        for verb in ("jumps", "wanders", "glides")
        for place in ("river", "meadow")
    )
]

ANIMALS = ["otter", "wolf", "horse", "raven", "trout", "badger", "heron", "lynx"]

CHINESE_TEXTS = [
    f"我们在{city}大学学习自然语言处理。{thing}的检索很有用！你喜欢{thing}吗？今天天气很好，大家一起去公园看书。"
    for city in ("北京", "清华", "南京", "武汉")
    for thing in ("文章", "图书", "电影", "音乐", "新闻")
]


def pytest_sessionfinish() -> None:
    import shutil

    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True, scope="session")
def _modules_are_no_garbage() -> None:
    """A Trainer collects garbage when it ends, a third of a second while all that was imported is looked through."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _log_level_restored():
    """A command sets the package's for the whole process, and to errors alone in all processes but the first."""
    package = logging.getLogger("retromae_hf")
    level = package.level
    yield
    package.setLevel(level)


@pytest.fixture
def one_thread():
    """For training loops of tiny products: on a busy machine several threads would wait for each other at each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def tokenizer(texts) -> BertTokenizer:
    return train_wordpiece(texts, vocab_size=200, max_length=32)


@pytest.fixture(scope="session")
def encoder_config(tokenizer) -> BertConfig:
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


@pytest.fixture
def model(encoder_config) -> RetroMAEForPreTraining:
    # A copy, since resizing the vocabulary writes to it.
    return RetroMAEForPreTraining(RetroMAEConfig(encoder_config=copy.deepcopy(encoder_config))).eval()


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory, encoder_config, tokenizer) -> str:
    """A plain masked-LM checkpoint, as it would come from the Hub."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(1)
    BertForMaskedLM(encoder_config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    folder = ROOT.parent / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip("the reference figures of the released code are not at hand (no ../shared/reference)")
    return folder


def features_of(tokenizer, texts, max_length=32) -> list[dict]:
    """Tokenised passages as a dataset would give them to the collator."""
    rows = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    return [{"input_ids": row, "passage_id": index} for index, row in enumerate(rows)]


def sentences(number: int) -> list[str]:
    """Documents of two sentences that differ, long enough for pairs of every kind."""
    rest = " ".join(["There {0} of a {1} swim."] * 4)
    return [
        f"The {ANIMALS[one % 8]} sleeps in meadow number {one}. {rest.format(one, ANIMALS[one // 8 % 8])}"
        for one in range(number)
    ]


def write_beir(folder: Path, qrels: str = "query-id\tcorpus-id\tscore\nq1\td1\t1\n") -> Path:
    """A task of three documents and two queries, one of them judged."""
    (folder / "qrels").mkdir(parents=True)
    documents = [
        {"_id": "d1", "title": "Rivers", "text": "The otter swims in the river."},
        {"_id": "d2", "text": "The wolf sleeps in the meadow."},
        {"_id": "d3", "text": "Bells ring in the tower."},
    ]
    queries = [{"_id": "q1", "text": "otter river"}, {"_id": "q2", "text": "nobody judged this"}]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels" / "test.tsv").write_text(qrels)
    return folder


@pytest.fixture
def corpus():
    documents = {f"d{place}": f"The {animal} sleeps in the meadow." for place, animal in enumerate(ANIMALS)}
    documents["plain"] = "Bells ring in the tower."
    queries = {f"q{place}": f"{animal} asleep in a meadow" for place, animal in enumerate(ANIMALS)}
    return JudgedCorpus(queries, documents, {f"q{place}": [f"d{place}"] for place in range(len(ANIMALS))})


@pytest.fixture
def beir(tmp_path, corpus):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", corpus.documents), ("queries", corpus.queries)):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items())
        )
    judged = [f"{query}\t{document}\t1\n" for query, found in corpus.positives.items() for document in found]
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))
    return folder


def write_shards(folder, texts, shards):
    folder.mkdir()
    for shard in range(shards):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts[shard::shards])
        (folder / f"{shard:03}.jsonl").write_text(rows)
    return folder
