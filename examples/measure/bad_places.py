"""The files that bad_inputs.py names: a good text, encoder and run, and many that are broken or hostile."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, StaticEmbedding
from transformers import AutoModel, PreTrainedTokenizerBase, set_seed

from retromae_hf import RetroMAEConfig, RetroMAEForPreTraining, export_encoder
from retromae_hf.checkpoints.starting_model import new_encoder_config
from retromae_hf.commands.main import main as command
from retromae_hf.data.tokenizers import train_wordpiece
from retromae_hf.training.resuming.saving import MANIFEST

__all__ = ["CANARY", "AutoModel", "make", "tiny_model", "tokenizer"]

CANARY = "code-ran"
TEXTS = [
    f"The {animal} {verb} near the river {number}."
    for number in range(9)
    for animal in ("fox", "otter")
    for verb in ("waits", "runs")
]


def tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of a few words."""
    return train_wordpiece(TEXTS, vocab_size=120, max_length=32)


def tiny_model() -> RetroMAEForPreTraining:
    """A model of one layer."""
    set_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_length": 32}
    return RetroMAEForPreTraining(RetroMAEConfig(encoder_config=new_encoder_config("bert", tokenizer(), **sizes)))


class _Touch:
    """A pickle that makes a file when it is read."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.file),)


def make(here: Path) -> dict[str, Any]:
    """Fill a folder; returns the names for the command lines."""
    _texts(here)
    _tasks(here)
    _recipes(here)
    encoder, run = here / "encoder", here / "run"
    export_encoder(tiny_model(), tokenizer(), encoder)
    tiny_model().save_pretrained(run)
    tokenizer().save_pretrained(run)
    _models(here, encoder, run)
    return {"here": here, "encoder": encoder, "run": run}


def _texts(here: Path) -> None:
    text = "\n".join(TEXTS)
    files = {
        "good.txt": text.encode(),
        "utf16.txt": text.encode("utf-16"),
        "latin.txt": "déjà vu\n".encode("latin-1"),
        "empty.txt": b"",
        "white.txt": b" \n\t\n \n",
        "control.txt": b"\x01\x02\n\x7f\n",
        "good.jsonl": b'{"text": "a b"}\n' * 5,
        "broken.jsonl": b'{"text": "a b"}\n{"text": \n' + b'{"text": "c d"}\n' * 3,
        "all-broken.jsonl": b"text\n" * 3,
        "numbers.jsonl": b'{"text": 1}\n{"text": 2}\n',
        "half.parquet": b"PAR1 half a file",
        "ragged.csv": b"text\nHello, world\n",
        "head.csv": b"text\n",
        "no-text.jsonl": b'{"body": "a"}\n{"body": \n',
        "cut.jsonl.gz": gzip.compress(b'{"text": "a b"}\n' * 99)[:30],
        "ragged.tsv": b"query\tpositive\tnegative\nquery\tpositive\n",
        "pairs.jsonl": b'{"query": "fox", "positive": "the fox"}\n' * 4,
        "two-queries.jsonl": b'{"anchor": "a", "query": "b", "positive": "c"}\n' * 4,
        "odd-names.jsonl": b'{"anchor": "a", "hit": "b", "miss": "c"}\n' * 4,
        "ids-alone.jsonl": b'{"query_id": "a", "positive_id": "b"}\n' * 4,
        "number-pairs.jsonl": b'{"query": 1, "positive": 2}\n' * 4,
        "graded.jsonl": b'{"sentence1": "a", "sentence2": "b", "score": 3.2}\n' * 4,
        "false-pairs.jsonl": b'{"query": "a", "positive": "b", "label": 0}\n' * 4,
        "ids.tsv": b"1\t2\t3\n",
        "headed-ids.tsv": b"qid\tpid\n1\t2\n",
        "deep.jsonl": b"[" * 100_000,
        "listed.jsonl": b'[{"query_id": "q1", "negative_ids": ["d2"]}]\n',
        "foreign.jsonl": b'{"query_id": "q9", "negative_ids": ["d9"]}\n',
        "negatives.jsonl": b'{"query_id": "q1", "positive_id": "d1", "negative_ids": ["d2", "d3"]}\n',
        "scores.jsonl": b"[1.0, 0.5]\n",
        "foreign-results.json": b'{"schema": 1, "model": "/home/me/foreign", "fingerprint": "0", "tasks": {}}',
    }
    for name, content in files.items():
        (here / name).write_bytes(content)
    (here / "nothing").mkdir()
    (here / "splits").mkdir()
    for split in ("train", "test"):
        (here / "splits" / f"{split}.txt").write_text(text, encoding="utf-8")
    (here / "circle.txt").symlink_to(here / "circle-2.txt")
    (here / "circle-2.txt").symlink_to(here / "circle.txt")


def _tasks(here: Path) -> None:
    corpus = [{"_id": f"d{number}", "text": text} for number, text in enumerate(TEXTS[:3], start=1)]
    good = {
        "corpus.jsonl": "".join(json.dumps(row) + "\n" for row in corpus),
        "queries.jsonl": json.dumps({"_id": "q1", "text": "the fox"}) + "\n",
        "qrels/test.tsv": "q1\td1\t1\n",
        "qrels/train.tsv": "q1\td1\t1\n",
    }
    changes: dict[str, dict[str, str]] = {
        "task": {},
        "train-task": {},
        "task-broken": {"corpus.jsonl": good["corpus.jsonl"] + '{"_id": "d4", "text": \n'},
        "task-twice": {"corpus.jsonl": good["corpus.jsonl"] * 2},
        "task-foreign": {"qrels/test.tsv": "q1\td8\t1\n"},
        "task-grade": {"qrels/test.tsv": "q1\td1\t1\nq1\td2\tgood\n"},
        "task-half": {"qrels/test.tsv": "q1\td1\t0.5\n"},
        "task-huge": {"qrels/test.tsv": "q1\td1\t1000000000\n"},
        "task-nameless": {"corpus.jsonl": good["corpus.jsonl"] + '{"_id": "", "text": "a"}\n'},
        "task-null": {"corpus.jsonl": '{"_id": null, "text": "a"}\n'},
        "task-surrogate": {"corpus.jsonl": good["corpus.jsonl"] + '{"_id": "\\ud800", "text": "a"}\n'},
    }
    for name, changed in changes.items():
        (here / name / "qrels").mkdir(parents=True)
        for file, content in (good | changed).items():
            (here / name / file).write_text(content, encoding="utf-8")


def _recipes(here: Path) -> None:
    base = f"dataset: {here}/good.txt\noutput_dir: {here}/out\nmax_length: 32\n"
    compared = (
        f"dataset: {here}/good.txt\nfinetuning_dataset: {here}/pairs.jsonl\ntasks: [{here}/task]\n"
        f"output_dir: {here}/out\n"
        "model: {hidden_size: 32}\npretraining: {max_steps: 1}\nfinetuning: {max_steps: 1}\n"
    )
    recipes = {
        "code": f"dataset: !!python/object/apply:os.mkdir ['{here}/{CANARY}']\noutput_dir: {here}/out\n",
        "odd": "dataset: [unclosed\n",
        "list": "- dataset\n",
        "list-value": base + "learning_rate: [1, 2]\n",
        "mapping-value": base + "seed: {a: 1}\n",
        "text-value": base + "seed: many\n",
        "unknown": base + "no_such_argument: 1\n",
        "nul": base + 'model_name_or_path: "a\\0b"\n',
        "long": base + f"model_name_or_path: /{'a' * 500}\n",
        "laughs": "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
        "compare-name": compared + 'seeds: [0]\nreference: "../../x"\nobjectives: {"../../x": {}}\n',
        "compare-list": compared + "seeds: [0]\nobjectives: [mlm]\n",
        "compare-seed": compared + 'seeds: ["../../x"]\nobjectives: {mlm: {decoding: none}}\n',
        "compare-type": compared + "seeds: [0]\nobjectives: {mlm: {decoding: none, max_length: long}}\n",
    }
    for name, content in recipes.items():
        (here / f"{name}.yaml").write_text(content, encoding="utf-8")


def _models(here: Path, encoder: Path, run: Path) -> None:
    canary = here / CANARY
    for source, name in ((encoder, "pickled"), (run, "pickled-run")):
        folder = _copy(source, here / name)
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Touch(canary)))
    (_copy(run, here / "half") / "model.safetensors").write_bytes(b"\x08 half a file")
    (_copy(encoder, here / "odd-config") / "config.json").write_text("{", encoding="utf-8")
    incomplete = _copy(encoder, here / "incomplete") / "model.safetensors"
    kept = {name: weight for name, weight in load_file(incomplete).items() if ".attention.self.query." not in name}
    save_file(kept, incomplete, {"format": "pt"})
    _change(_copy(encoder, here / "labels") / "config.json", num_labels=10**9)
    _change(_copy(encoder, here / "layers") / "config.json", num_hidden_layers=10**6)
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer().backend_tokenizer, embedding_dim=8)])
    static.save_pretrained(str(here / "static"))
    added = tokenizer()
    added.add_tokens(["[QUERY]"])
    added.save_pretrained(_copy(encoder, here / "added"))

    code = f"import os\nos.mkdir({str(canary)!r})\n"
    coded = _copy(encoder, here / "coded")
    _change(
        coded / "config.json",
        model_type="of-its-own",
        auto_map={"AutoConfig": "code.Config", "AutoModel": "code.Model"},
    )
    (coded / "code.py").write_text(code, encoding="utf-8")
    coded = _copy(encoder, here / "coded-tokenizer")
    for weights in coded.glob("*.safetensors"):
        weights.unlink()
    _change(coded / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["code.Own", None]})
    _change(coded / "config.json", model_type="of-its-own")
    (coded / "code.py").write_text(code, encoding="utf-8")
    coded = _copy(run, here / "coded-tokenizer-run")
    _change(coded / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["code.Own", None]})
    (coded / "code.py").write_text(code, encoding="utf-8")

    coded = _copy(encoder, here / "coded-module")
    modules = json.loads((encoder / "modules.json").read_text(encoding="utf-8"))
    _write(coded / "modules.json", [*modules, {"idx": 2, "name": "2", "path": "", "type": "code.Module"}])
    (coded / "code.py").write_text(code, encoding="utf-8")
    _write(
        _copy(encoder, here / "outside-module") / "modules.json", [*modules[:1], {**modules[1], "path": "../encoder"}]
    )
    _write(_copy(encoder, here / "odd-modules") / "modules.json", [{"type": 5}])

    dense = SentenceTransformer(str(encoder), device="cpu")
    dense.append(Dense(32, 8))
    dense.save_pretrained(str(here / "pickled-dense"))
    shutil.copytree(here / "pickled-dense", here / "coded-activation")
    (config,) = (here / "coded-activation").glob("*Dense/config.json")
    _change(config, activation_function="torch.hub.load")
    (weights,) = (here / "pickled-dense").glob("*Dense/model.safetensors")
    weights.with_name("pytorch_model.bin").write_bytes(pickle.dumps(_Touch(canary)))
    weights.unlink()

    resumed = here / "coded-run"
    line = f"pretrain --dataset {here}/good.txt --model_name_or_path {run} --output_dir {here}/before --max_length 32"
    if command(f"{line} --max_steps 2 --use_cpu --disable_tqdm true --eval_strategy no".split()):
        raise SystemExit("the good run does not train")
    shutil.copytree(next((here / "before").glob("checkpoint-*")), resumed)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"state": _Touch(canary)}, resumed / name)
    (resumed / MANIFEST).unlink()  # as somebody else hands a checkpoint on; with it, other files would be noticed first


def _copy(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder))


def _change(file: Path, **fields: Any) -> None:
    _write(file, json.loads(file.read_text(encoding="utf-8")) | fields)


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")
