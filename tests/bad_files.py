"""A folder of files for test_bad_inputs.py: good ones, and those that are broken, hostile or of another kind."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from conftest import sentences, write_beir
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, StaticEmbedding
from transformers import BertTokenizer, PreTrainedTokenizerBase

from retromae_hf import RetroMAEForPreTraining, export_encoder
from retromae_hf.commands.main import main
from retromae_hf.training.saving import MANIFEST

CANARY = "code-ran"
"""The folder that the code and the pickles of the hostile models would make."""
PAIR = {"query": "fox", "positive": "the fox"}


class Canary:
    """A pickle that makes a folder when it is read."""

    def __init__(self, here: Path):
        self.path = str(here / CANARY)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.path,)


def make(here: Path, model: RetroMAEForPreTraining, tokenizer: PreTrainedTokenizerBase) -> None:
    """Fill the folder, which is the current one, with everything that the table names."""
    texts()
    rows()
    tasks()
    recipes(here)
    export_encoder(model, tokenizer, "encoder")
    model.save_pretrained("run")
    tokenizer.save_pretrained("run")
    models(here, tokenizer)
    hostile_models(here)
    trained_runs(here)


def texts() -> None:
    """Sources of text."""
    good = "\n".join(sentences(36))
    files = {
        "good.txt": good.encode(),
        "utf16.txt": good.encode("utf-16"),
        "latin.txt": "déjà vu\n".encode("latin-1"),
        "empty.txt": b"",
        "white.txt": b" \n\t\n \n",
        "short.txt": b"The fox.\nThe otter.\n",
        "broken.jsonl": b'{"text": "a b"}\n{"text": \n' + b'{"text": "c d"}\n' * 3,
        "all-broken.jsonl": b"text\n" * 3,
        "numbers.jsonl": b'{"text": 1}\n{"text": 2}\n',
        "body.jsonl": b'{"body": "a"}\n{"body": \n',
        "cut.jsonl.gz": gzip.compress(b'{"text": "a b"}\n' * 99)[:30],
        "half.parquet": b"PAR1 half a file",
        "ragged.csv": b"text\nHello, world\n",
        "head.csv": b"text\n",
    }
    for name, content in files.items():
        Path(name).write_bytes(content)
    Path("nothing").mkdir()
    Path("splits").mkdir()
    for split in ("train", "test"):
        Path(f"splits/{split}.txt").write_text(good, encoding="utf-8")


def rows() -> None:
    """Rows to fine-tune on, hard negatives and scores."""
    files: dict[str, list[Any]] = {
        "good.jsonl": [{"text": "a b"}] * 5,
        "pairs.jsonl": [PAIR] * 4,
        "two-queries.jsonl": [{"anchor": "a", "query": "b", "positive": "c"}] * 4,
        "odd-names.jsonl": [{"anchor": "a", "hit": "b", "miss": "c"}] * 4,
        "ids.jsonl": [{"query_id": "a", "positive_id": "b"}] * 4,
        "number-pairs.jsonl": [{"query": 1, "positive": 2}] * 4,
        "graded.jsonl": [{"sentence1": "a", "sentence2": "b", "score": 3.2}] * 4,
        "false-pairs.jsonl": [PAIR | {"label": 0}] * 4,
        "negatives.jsonl": [{"query_id": "q1", "positive_id": "d1", "negative_ids": ["d2", "d3"]}],
        "no-positive.jsonl": [{"query_id": "q1", "negative_ids": ["d2", "d3"]}],
        "listed.jsonl": [[{"query_id": "q1", "negative_ids": ["d2"]}]],
        "foreign.jsonl": [{"query_id": "q9", "negative_ids": ["d9"]}],
        "scores.jsonl": [[1.0, 0.5]],
        "foreign-results.json": [{"schema": 1, "model": "/home/me/foreign", "fingerprint": "0", "tasks": {}}],
    }
    for name, content in files.items():
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in content))
    Path("ids.tsv").write_text("1\t2\t3\n")
    Path("ragged.tsv").write_text("query\tpositive\tnegative\nquery\tpositive\n")


def tasks() -> None:
    """Folders in BEIR's layout, each of which has one file that is wrong; `task` and `judged` are right."""
    good = write_beir(Path("task"))
    Path("task/qrels/train.tsv").write_text("q1\td1\t1\n")
    corpus = (good / "corpus.jsonl").read_text()
    wrong = {
        "task-broken": ("corpus.jsonl", corpus + '{"_id": "d4", "text": \n'),
        "task-twice": ("corpus.jsonl", corpus * 2),
        "task-null": ("corpus.jsonl", '{"_id": null, "text": "a"}\n'),
        "task-silent": ("queries.jsonl", '{"_id": "q1", "text": " "}\n'),
        "task-foreign": ("qrels/test.tsv", "q1\td8\t1\n"),
        "task-grade": ("qrels/test.tsv", "q1\td1\t1\nq1\td2\tgood\n"),
        "task-half": ("qrels/test.tsv", "q1\td1\t0.5\n"),
        "task-graded-twice": ("qrels/test.tsv", "q1\td1\t1\nq1\td1\t2\n"),
    }
    for name, (file, content) in wrong.items():
        (copied("task", name) / file).write_text(content, encoding="utf-8")
    (copied("task", "unjudged") / "qrels/train.tsv").unlink()


def recipes(here: Path) -> None:
    """Recipes of pretrain and of compare."""
    base = "dataset: good.txt\noutput_dir: out\nmax_length: 32\n"
    compared = (
        "dataset: good.txt\nfinetuning_dataset: pairs.jsonl\ntasks: [task]\noutput_dir: out\nseeds: [0]\n"
        "model: {hidden_size: 32}\npretraining: {max_steps: 1}\nfinetuning: {max_steps: 1}\n"
        "objectives: {mlm: {decoding: none}}\n"
    )
    files = {
        "code": f"dataset: !!python/object/apply:os.mkdir ['{here}/{CANARY}']\noutput_dir: out\n",
        "odd": "dataset: [unclosed\n",
        "list": "- dataset\n",
        "list-value": base + "learning_rate: [1, 2]\n",
        "mapping-value": base + "seed: {a: 1}\n",
        "text-value": base + "seed: many\n",
        "half-value": base.replace("32", "16.5"),
        "unknown": base + "no_such_argument: 1\n",
        "nul": base + 'model_name_or_path: "a\\0b"\n',
        "long": base + f"model_name_or_path: /{'a' * 500}\n",
        "laughs": "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
        "compare-missing": "dataset: good.txt\nobjectives: {}\n",
        "compare-name": compared + 'reference: "../../x"\nobjectives: {"../../x": {}}\n',
        "compare-list": compared + "objectives: [mlm]\n",
        "compare-seed": compared + 'seeds: ["../../x"]\n',
        "compare-type": compared + "objectives: {mlm: {decoding: none, max_length: long}}\n",
        "compare-reference": compared + "reference: bert\n",
        "compare-start": compared + "objectives: {mlm: {start: later}}\n",
        "compare-baseline": compared + "objectives: {mlm: {baseline: ict}}\n",
        "compare-unknown": compared + "objectives: {mlm: {decodin: none}}\n",
        "compare-colour": compared + "colour: red\n",
        "compare-seconds": compared + "max_seconds: 3\n",
    }
    for name, content in files.items():
        Path(f"{name}.yaml").write_text(content, encoding="utf-8")


def models(here: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Models that are incomplete, broken or of another kind."""
    (copied("run", "half") / "model.safetensors").write_bytes(b"\x08 half a file")
    (copied("run", "hollow") / "model.safetensors").unlink()
    for file in copied("run", "wordless").glob("tokenizer*"):
        file.unlink()
    (copied("encoder", "odd-config") / "config.json").write_text("{", encoding="utf-8")
    incomplete = copied("encoder", "incomplete") / "model.safetensors"
    kept = {name: weight for name, weight in load_file(incomplete).items() if ".attention.self.query." not in name}
    save_file(kept, incomplete, {"format": "pt"})
    change(copied("encoder", "labels") / "config.json", num_labels=10**9)
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=8)])
    static.save_pretrained("static")

    words = tokenizer.get_vocab()
    added, unmasked = BertTokenizer(vocab=words), BertTokenizer(vocab=words)
    added.add_tokens(["[QUERY]"])
    added.save_pretrained(copied("encoder", "added"))
    unmasked.mask_token = None
    unmasked.save_pretrained("unmasked")
    BertTokenizer(vocab={word: number for word, number in words.items() if number < 100}).save_pretrained("smaller")


def hostile_models(here: Path) -> None:
    """Models whose weights are pickles and models that bring code; read or run, each makes the canary."""
    code = f"import os\nos.mkdir({str(here / CANARY)!r})\n"
    for source, name in (("encoder", "pickled"), ("run", "pickled-run")):
        folder = copied(source, name)
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(here)))
    config = {"model_type": "of-its-own", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    change(copied("encoder", "coded") / "config.json", **config)
    words = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["code.Own", None]}}
    change(copied("run", "coded-tokenizer") / "tokenizer_config.json", **words)
    modules = json.loads(Path("encoder/modules.json").read_text(encoding="utf-8"))
    own = [*modules, {"idx": 2, "name": "2", "path": "", "type": "code.Module"}]
    (copied("encoder", "coded-module") / "modules.json").write_text(json.dumps(own))
    for name in ("coded", "coded-tokenizer", "coded-module"):
        Path(name, "code.py").write_text(code, encoding="utf-8")

    dense = SentenceTransformer("encoder", device="cpu")
    dense.append(Dense(32, 8))
    dense.save_pretrained("pickled-dense")
    (weights,) = Path("pickled-dense").glob("*Dense/model.safetensors")
    weights.with_name("pytorch_model.bin").write_bytes(pickle.dumps(Canary(here)))
    weights.unlink()


def trained_runs(here: Path) -> None:
    """A run of one step, and its checkpoint as somebody else hands it on, with states that are code."""
    line = "pretrain --dataset good.txt --model_name_or_path run --output_dir trained --max_length 32 --max_steps 1"
    assert main(f"{line} --use_cpu --disable_tqdm true --eval_strategy no".split()) == 0
    copied("trained/checkpoint-1", "coded-run")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"state": Canary(here)}, Path("coded-run", name))
    Path("coded-run", MANIFEST).unlink()  # in which it would be noticed that these files are others


def copied(source: str, folder: str) -> Path:
    return Path(shutil.copytree(source, folder))


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | fields), encoding="utf-8")
