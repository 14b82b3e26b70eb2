"""`python examples/measure/fuzz.py [N]`: N random inputs, of which nothing but a result or a `RetroMAEError` may come.

hypothesis makes configurations, modules, tokens, texts and broken files. What an input gives must be true of every
result: losses are finite, passages hold the text's tokens. Prints how many inputs each target was given and writes
runs/fuzz.json; tests/examples/test_fuzz.py runs a few of each.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support import quiet

from retromae_hf import (
    DataCollatorForRetroMAE,
    RetroMAEConfig,
    RetroMAEError,
    RetroMAEForPreTraining,
    export_encoder,
    load_documents,
    tokenize_passages,
)
from retromae_hf.checkpoints.loading import load_config, load_sentence_transformer
from retromae_hf.checkpoints.starting_model import new_encoder_config
from retromae_hf.data.tokenizers import train_wordpiece
from retromae_hf.retrieval.tasks import load_beir

OUTPUT = Path("runs/fuzz.json")
INPUTS = 10_000
WORDS = [f"The {animal} waits near the river {number}." for number in range(100) for animal in ("fox", "otter", "wolf")]

# Any text, also lone surrogates, NUL and marks that turn the direction of writing.
TEXT = st.text(st.characters(), max_size=60) | st.text("ab .!?\n\t\0\ud800\u200f\u202e😀مر文。", max_size=60)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from(["bert", "enhanced", "sop"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=5
)
NUMBERS = st.floats(0, 1) | st.floats(0.1, 0.9) | st.floats() | st.integers() | st.just(10**400)
SOUND_FIELDS = {
    "decoding": st.sampled_from(["enhanced", "basic", "condenser", "none"]),
    "num_decoder_layers": st.integers(1, 3),
    "decoder_mask_ratio": st.floats(0.1, 0.9),
    "mlm_loss_weight": st.floats(0, 2),
    "bow_loss_weight": st.sampled_from([0, 0.1]),
    "decoder_query": st.sampled_from(["sum", "embedded"]),
    "pair_objective": st.sampled_from([None, "nsp", "sop"]),
}
SOUND_CONFIGS = st.fixed_dictionaries({}, optional=SOUND_FIELDS)
ENCODER_FIELDS = ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "hidden_act", "pad_token_id"]
JSON_LINES = st.builds(lambda row: json.dumps(row).encode(), VALUES) | st.binary(max_size=20)


@functools.cache
def model_and_tokenizer(decoding: str = "enhanced") -> tuple[RetroMAEForPreTraining, Any]:
    tokenizer = train_wordpiece(WORDS, vocab_size=120, max_length=32)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_length": 32}
    config = RetroMAEConfig(encoder_config=new_encoder_config("bert", tokenizer, **sizes), decoding=decoding)
    return RetroMAEForPreTraining(config).eval(), tokenizer


@functools.cache
def place() -> Path:
    return Path(tempfile.mkdtemp(prefix="retromae_hf_fuzz_"))


def some_of(names: list[str], values: Any = VALUES) -> Any:
    return st.dictionaries(st.sampled_from(names), values, max_size=4)


@given(
    fields=SOUND_CONFIGS | some_of(list(SOUND_FIELDS)),
    encoder=st.sampled_from([None, {"model_type": "bert"}, {"model_type": "modernbert", "hidden_size": 32}])
    | VALUES
    | some_of(["model_type", *ENCODER_FIELDS], SCALARS),
)
def configurations(fields: dict[str, Any], encoder: Any) -> None:
    """Fields of `RetroMAEConfig` of any type; what is accepted is in range."""
    config = RetroMAEConfig(encoder_config=encoder, **fields)
    assert 0 < config.decoder_mask_ratio < 1
    assert 1 <= config.num_decoder_layers <= 64
    assert math.isfinite(config.mlm_loss_weight)


@given(
    content=VALUES | SOUND_CONFIGS | some_of(["model_type", "encoder_config", "auto_map", *SOUND_FIELDS]),
    kind=st.booleans(),
)
def configuration_files(content: Any, kind: bool) -> None:
    """config.json with anything in it, of a RetroMAE checkpoint or of none."""
    if kind and isinstance(content, dict):
        content = {**content, "model_type": "retromae"}
    (place() / "config.json").write_text(json.dumps(content), encoding="utf-8")
    load_config(str(place()))


SOUND_MODULES = [
    {"name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
MODULES = st.sampled_from(SOUND_MODULES) | st.fixed_dictionaries(
    {
        "name": TEXT,
        "path": st.sampled_from(["", "1_Pooling", "../x", "/x"]) | TEXT,
        "type": st.sampled_from(["sentence_transformers.X", *(module["type"] for module in SOUND_MODULES)]) | TEXT,
    }
)


@functools.cache
def encoder() -> Path:
    return export_encoder(*model_and_tokenizer(), place() / "encoder")


@example(content=SOUND_MODULES)
@given(content=VALUES | st.lists(MODULES, max_size=2) | st.lists(some_of(["path", "type", "idx"], TEXT), max_size=3))
def module_files(content: Any) -> None:
    """modules.json with anything in it: what is accepted is sentence-transformers' own and inside of the folder."""
    (encoder() / "modules.json").write_text(json.dumps(content), encoding="utf-8")
    load_sentence_transformer(str(encoder()), device="cpu")
    assert all(module["type"].startswith("sentence_transformers.") for module in content)
    assert all(Path(encoder(), module["path"]).resolve().is_relative_to(encoder().resolve()) for module in content)


@given(
    options=some_of(["encoder_mask_ratio", "decoder_mask_ratio", "mask_replace_prob", "random_replace_prob"], NUMBERS),
    rows=st.lists(st.lists(st.integers(0, 119), max_size=30).map(lambda body: [2, *body, 3]), min_size=1, max_size=4)
    | st.lists(st.lists(st.integers(-2, 70), max_size=40), min_size=1, max_size=4),
    decoding=SOUND_FIELDS["decoding"],
    multiple=st.none() | st.integers(1, 32) | st.integers(-1, 40),
    whole_words=st.booleans(),
    seed=st.none() | st.integers(-(2**70), 2**70),
)
def batches(options, rows, decoding, multiple, whole_words, seed) -> None:
    """Any tokens, ratios, lengths and paddings, through the collator and a model: every loss is finite."""
    model, tokenizer = model_and_tokenizer(decoding)
    options |= {"decoding": decoding, "pad_to_multiple_of": multiple, "whole_word_mask": whole_words, "seed": seed}
    collator = DataCollatorForRetroMAE(tokenizer, **options)
    collator.set_epoch(0)
    batch = collator([{"input_ids": row, "passage_id": number} for number, row in enumerate(rows)])
    with torch.no_grad():
        output = model(**batch)
    assert all(value.isfinite().all() for value in output.values()), output


@given(
    texts=st.lists(TEXT, min_size=1, max_size=4) | st.lists(TEXT, max_size=1),
    length=st.integers(3, 40) | st.integers(-2, 9),
    pairs=st.booleans(),
)
def passages(texts: list[str], length: int, pairs: bool) -> None:
    """Any texts become passages of at most the length, with all of their tokens."""
    tokenizer = model_and_tokenizer()[1]
    documents = load_documents(texts)
    rows = tokenize_passages(documents, tokenizer, length, pairs=pairs)
    assert max(rows["length"]) <= length
    if not pairs:
        tokens = [token for row in rows["input_ids"] for token in row[1:-1]]
        assert tokens == [token for text in documents["text"] for token in tokenizer(text)["input_ids"][1:-1]]


FILES = {
    "corpus.jsonl": '{"_id": "d1", "text": "the fox"}\n',
    "queries.jsonl": '{"_id": "q1", "text": "a fox"}\n',
    "qrels/test.tsv": "q1\td1\t1\n",
}


@given(
    file=st.sampled_from([*FILES]),
    lines=st.lists(
        JSON_LINES
        | st.builds(lambda name, text: json.dumps({"_id": name, "text": text}).encode(), TEXT, TEXT)
        | st.builds(
            lambda parts, between: between.join(map(str, parts)).encode("utf-8", "replace"),
            st.lists(st.sampled_from(["q1", "d1", "0", "1", "1.0", "score", "\ufeffq1"]) | NUMBERS | TEXT, max_size=5),
            st.sampled_from(["\t", " ", " \t", ","]),
        ),
        max_size=2,
    ),
)
def retrieval_tasks(file: str, lines: list[bytes]) -> None:
    """A retrieval task one of whose files holds anything."""
    folder = place() / "task"
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        (folder / name).write_text(content)
    with (folder / file).open("ab") as opened:
        opened.write(b"\n".join(lines))
    task = load_beir(folder)
    assert task.queries
    assert task.documents


@given(lines=st.lists(JSON_LINES | st.builds(lambda text: json.dumps({"text": text}).encode(), SCALARS), max_size=5))
def json_lines(lines: list[bytes]) -> None:
    """A corpus of lines that may be broken in any way."""
    file = place() / "lines.jsonl"
    file.write_bytes(b'{"text": "sound"}\n' + b"\n".join(lines))
    assert all(isinstance(text, str) for text in load_documents(file)["text"])


SHARES: dict[Callable[..., None], int] = {
    configurations: 16,
    configuration_files: 8,
    module_files: 8,
    batches: 20,
    passages: 4,
    retrieval_tasks: 8,
    json_lines: 1,
}
"""The targets, and the share of the inputs that each gets: those that write files or build datasets are slow."""


def attack(target: Callable[..., None], inputs: int) -> dict[str, int]:
    """Give a target that many inputs; returns how many were `tried` and how many of them `refused`.

    What comes of an input and is no `RetroMAEError` is raised; hypothesis shows the smallest such input.
    """
    counts = {"tried": 0, "refused": 0}
    inner = target.hypothesis.inner_test  # type: ignore[attr-defined]

    @functools.wraps(inner)
    def tolerant(*args: Any, **kwargs: Any) -> None:
        counts["tried"] += 1
        try:
            inner(*args, **kwargs)
        except RetroMAEError:
            counts["refused"] += 1

    target.hypothesis.inner_test = tolerant  # type: ignore[attr-defined]
    try:
        unhurried = settings(
            max_examples=inputs, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True
        )
        unhurried(target)()
    finally:
        target.hypothesis.inner_test = inner  # type: ignore[attr-defined]
    return counts


def main() -> None:
    quiet()
    logging.disable(logging.CRITICAL)
    inputs = int(sys.argv[1]) if len(sys.argv) > 1 else INPUTS
    counts, started = {}, time.perf_counter()
    for target, share in SHARES.items():
        counts[target.__name__] = attack(target, math.ceil(inputs * share / sum(SHARES.values())))
        print(target.__name__, counts[target.__name__], flush=True)
    total = {name: sum(count[name] for count in counts.values()) for name in ("tried", "refused")}
    result = {**total, "seconds": round(time.perf_counter() - started), "targets": counts}
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(conditions(result))


def conditions(result: dict[str, Any]) -> str:
    return (
        f"{result['tried']:,} inputs tried, of which {result['refused']:,} were refused with a RetroMAEError; "
        f"nothing else came of any. {result['seconds']} s."
    )


if __name__ == "__main__":
    main()
