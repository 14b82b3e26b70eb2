"""`python examples/measure/fuzz.py [N]`: N made-up inputs; nothing but a `RetroMAEError` may come of them.

hypothesis makes tokens, lengths, ratios, configurations, texts, recipes, names and broken files. What an input gives is
held to what is true of every result as well: losses are finite, passages hold the text's tokens, names stay in their
folder. Prints how many inputs each target was given and writes runs/fuzz.json. tests/examples/test_fuzz.py runs a few
of each.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_places
import torch
import yaml
from bad_inputs import quiet
from datasets import Dataset
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from retromae_hf import (
    DataCollatorForRetroMAE,
    RetroMAEConfig,
    RetroMAEError,
    RetroMAEForPreTraining,
    export_encoder,
    load_documents,
    tokenize_passages,
)
from retromae_hf.arguments.pretraining import DataArguments, ModelArguments
from retromae_hf.checkpoints.loading import load_config, load_sentence_transformer
from retromae_hf.commands.common import parse, read_recipe
from retromae_hf.data.disk import check_file_name
from retromae_hf.data.text import cut_long
from retromae_hf.model.errors import in_one_sentence
from retromae_hf.model.masking import visibility_mask
from retromae_hf.publishing.model_card import build_card
from retromae_hf.publishing.record import new_record
from retromae_hf.retrieval.embedders import embed
from retromae_hf.retrieval.tasks import load_beir
from retromae_hf.studies.comparison_recipe import Comparison, distribute

OUTPUT = Path("runs/fuzz.json")
INPUTS = 10_000

# Any text, also what is none: lone surrogates, NUL, marks that turn the direction of writing.
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
CONFIG_FIELDS = list(SOUND_FIELDS)
RECIPE_FIELDS = ["dataset", "output_dir", "max_length", "seed", "learning_rate", "decoding", "lr_scheduler_kwargs"]
ENCODER_FIELDS = ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "hidden_act", "pad_token_id"]


@functools.cache
def model_and_tokenizer(decoding: str = "enhanced") -> tuple[RetroMAEForPreTraining, Any]:
    """A tiny model of a decoding, and its tokenizer."""
    config = bad_places.tiny_model().config.to_dict() | {"decoding": decoding}
    return RetroMAEForPreTraining(RetroMAEConfig(**config)).eval(), bad_places.tokenizer()


@functools.cache
def place() -> Path:
    """A folder for files."""
    return Path(tempfile.mkdtemp(prefix="retromae_hf_fuzz_"))


def some_of(names: list[str], values: Any = VALUES) -> Any:
    """Mappings of some of the names to values."""
    return st.dictionaries(st.sampled_from(names), values, max_size=4)


@given(
    fields=SOUND_CONFIGS | some_of(CONFIG_FIELDS),
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
    content=VALUES | SOUND_CONFIGS | some_of(["model_type", "encoder_config", "auto_map", *CONFIG_FIELDS]),
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
    """A folder of sentence-transformers."""
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
    rows=st.lists(st.lists(st.integers(0, 61), min_size=2, max_size=32), min_size=1, max_size=4)
    | st.lists(st.lists(st.integers(-2, 70), max_size=40), max_size=4),
    decoding=st.sampled_from(["enhanced", "basic", "condenser", "none"]),
    multiple=st.none() | st.integers(1, 32) | st.integers(-1, 40),
    whole_words=st.booleans(),
    seed=st.none() | st.integers(-(2**70), 2**70),
)
def batches(options, rows, decoding, multiple, whole_words, seed) -> None:
    """Any tokens, ratios, lengths and paddings, through the collator and a model: every loss is finite."""
    model, tokenizer = model_and_tokenizer(decoding)
    collator = DataCollatorForRetroMAE(
        tokenizer,
        decoding=decoding,
        pad_to_multiple_of=multiple,
        whole_word_mask=whole_words,
        seed=seed,
        **options,
    )
    collator.set_epoch(0)
    batch = collator([{"input_ids": row, "passage_id": number} for number, row in enumerate(rows)])
    with torch.no_grad():
        output = model(**batch)
    assert all(value.isfinite().all() for value in output.values()), output


@given(seed=st.integers(-(2**70), 2**70), length=st.integers(0, 40), ratio=st.floats(0, 1), padding=st.integers(0, 9))
def visibility(seed: int, length: int, ratio: float, padding: int) -> None:
    """A row never sees itself nor padding, and every row but the first sees the sentence embedding."""
    visible = visibility_mask(seed, length, ratio, length + padding)
    assert not visible.diagonal().any()
    assert not visible[:, max(length, 1) :].any()
    assert visible[1:, :1].all()


@given(
    texts=st.lists(TEXT, min_size=1, max_size=4) | st.lists(TEXT, max_size=1),
    length=st.integers(3, 40) | st.integers(-2, 9),
    short=st.floats(0, 1) | NUMBERS,
    pairs=st.booleans(),
)
def passages(texts: list[str], length: int, short: float, pairs: bool) -> None:
    """Any texts become passages of at most the length, with all of their tokens."""
    tokenizer = model_and_tokenizer()[1]
    documents = load_documents(texts)
    rows = tokenize_passages(documents, tokenizer, length, short, pairs=pairs)
    assert max(rows["length"]) <= length
    if not pairs:
        tokens = [token for row in rows["input_ids"] for token in row[1:-1]]
        assert tokens == [token for text in documents["text"] for token in tokenizer(text)["input_ids"][1:-1]]


@given(texts=st.lists(TEXT, min_size=1, max_size=3))
def embeddings(texts: list[str]) -> None:
    """Any text has an embedding."""
    model, tokenizer = model_and_tokenizer()
    assert embed(model, tokenizer, texts, progress=False).isfinite().all()


@given(text=TEXT, longest=st.integers(1, 20))
def pieces(text: str, longest: int) -> None:
    """Long texts are cut into pieces that are short enough and lose nothing but white space."""
    cut = list(cut_long(text, longest))
    assert all(len(piece) <= longest for piece in cut)
    assert "".join("".join(cut).split()) == "".join(text.split())


@given(name=TEXT | st.text("./\\\0a", max_size=6) | VALUES)
def file_names(name: Any) -> None:
    """A name that is accepted stays in its folder."""
    check_file_name("name", name)
    assert (place() / f"{name}-0").resolve().parent == place().resolve()
    assert (place() / name).parent == place()


@given(changes=VALUES | some_of(RECIPE_FIELDS) | some_of(["seed", "max_steps", "learning_rate"], st.integers(1, 9)))
def recipes(changes: Any) -> None:
    """Recipes with anything in them."""
    sound = {"dataset": "x", "output_dir": str(place() / "out")}
    content = sound | changes if isinstance(changes, dict) else changes
    file = place() / "recipe.yaml"
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8", errors="replace")
    classes = [DataArguments, ModelArguments, TrainingArguments]
    (data, model, training) = parse("pretrain", "", classes, [str(file)], {"use_cpu": True, "report_to": "none"})
    assert isinstance(data.max_length, int)
    assert isinstance(training.learning_rate, float)
    assert isinstance(model.vocab_size, int)


@given(
    values=st.lists(
        st.sampled_from(["[{0}, {0}]", "{{k: {0}, j: {0}}}", "{{<<: {0}}}", "{{<<: [{0}, {0}]}}", "{0}", "[*a0]"])
        | TEXT,
        max_size=40,
    )
)
def aliases(values: list[str]) -> None:
    """Recipes of aliases of aliases: what is accepted is of a size that can be worked with."""
    file = place() / "aliases.yaml"
    lines = ["a0: &a0 {x: 1}"]
    for number, value in enumerate(values, start=1):
        lines.append(f"a{number}: &a{number} " + value.replace("{0}", f"*a{number - 1}").replace("{{", "{"))
    file.write_text("\n".join(lines).replace("}}", "}"), encoding="utf-8", errors="replace")
    assert len(str(read_recipe(str(file)))) < 10_000_000


@given(
    names=st.lists(TEXT, min_size=9, max_size=9),
    changes=some_of(["stage", "start", "data", "objective", "training", "environment", "power", "logs"]),
    results=st.none() | some_of(["zoo", "<b>"]) | st.dictionaries(TEXT, st.just({"ndcg@10": 0.5}), max_size=2),
)
def cards(names: list[str], changes: dict[str, Any], results: Any) -> None:
    """Records and results with anything in them: no name becomes HTML or a link in the card."""
    stage: dict[str, Any] = {
        "stage": "pretraining",
        "start": {"name": names[0], "on_hub": True},
        "data": {"source": names[1], "on_hub": False},
        "objective": {"decoding": "enhanced", names[2]: names[3]},
        "training": {"steps": 1, "batch_size": 2},
        "environment": {"device": names[4], names[5]: names[6]},
        "logs": [],
    }
    model = {"model_type": names[7], "num_hidden_layers": 1, "hidden_size": 3, "vocab_size": 5, "max_length": None}
    model |= {"pooling": None, "similarity": None, "prompts": {}}
    record = new_record(names[8], "encoder", model, [stage | changes])
    sizes = {"num_queries": 1, "num_documents": 2}
    tasks = {name: sizes | {"measures": measures} for name, measures in (results or {}).items()}
    with in_one_sentence("the record makes no card"):
        text = build_card(record, {"model": names[0], "tasks": tasks}).text
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    assert not re.search(r"<\w|://|\]\(", prose), prose


@given(
    changes=st.just({})
    | some_of(["seeds"], st.lists(st.integers(0, 9), min_size=1, max_size=3))
    | some_of(["tasks", "seeds", "model", "pretraining", "objectives", "reference", "output_dir"]),
    objective=some_of(["max_length", "decoding", "learning_rate", "start", "baseline"], SCALARS)
    | st.fixed_dictionaries({"decoding": SOUND_FIELDS["decoding"]}, optional={"max_length": st.integers(8, 64)}),
)
def comparisons(changes: dict[str, Any], objective: dict[str, Any]) -> None:
    """Recipes of comparisons with anything in them; cells stay in the comparison's folder."""
    sound: dict[str, Any] = {"dataset": "x", "finetuning_dataset": "x", "tasks": ["t"], "seeds": [0], "model": {}}
    sound |= {"pretraining": {"use_cpu": True}, "finetuning": {"use_cpu": True}, "objectives": {"mlm": objective}}
    (made,) = distribute(sound | {"output_dir": str(place())} | changes, [Comparison], "the recipe")
    for name in made.objectives:
        assert made.cell(name, made.seeds[0]).parent == made.folder / "cells"


@given(
    file=st.sampled_from(["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"]),
    lines=st.lists(
        st.builds(lambda row: json.dumps(row).encode(), VALUES | some_of(["_id", "text", "title"], SCALARS))
        | st.binary(max_size=20)
        | st.builds(lambda parts: "\t".join(parts).encode("utf-8", "replace"), st.lists(TEXT, min_size=3, max_size=3))
        | st.builds(lambda name, text: json.dumps({"_id": name, "text": text}).encode(), TEXT, TEXT)
        | st.builds(
            lambda parts, between: between.join(map(str, parts)).encode("utf-8", "replace"),
            st.lists(st.sampled_from(["q1", "d1", "0", "1", "1.0", "score", "\ufeffq1"]) | NUMBERS, max_size=5),
            st.sampled_from(["\t", " ", " \t", ","]),
        ),
        max_size=2,
    ),
)
def retrieval_tasks(file: str, lines: list[bytes]) -> None:
    """A retrieval task one of whose files holds anything."""
    folder = place() / "task"
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "text": "the fox"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "a fox"}\n')
    (folder / "qrels" / "test.tsv").write_text("q1\td1\t1\n")
    with (folder / file).open("ab") as content:
        content.write(b"\n".join(lines))
    task = load_beir(folder)
    assert task.queries
    assert task.documents


@given(
    lines=st.lists(
        st.builds(lambda row: json.dumps(row).encode(), VALUES | some_of(["text", "other"], SCALARS))
        | st.binary(max_size=20),
        max_size=5,
    ),
    error=st.booleans(),
)
def json_lines(lines: list[bytes], error: bool) -> None:
    """A corpus of lines that may be broken in any way."""
    file = place() / "lines.jsonl"
    file.write_bytes(b'{"text": "sound"}\n' + b"\n".join(lines))
    documents = load_documents(file, on_broken_line="error" if error else "skip")
    assert isinstance(documents, Dataset)
    assert all(isinstance(text, str) for text in documents["text"])


SHARES: dict[Callable[..., None], int] = {
    configurations: 16,
    configuration_files: 8,
    module_files: 8,
    batches: 20,
    visibility: 8,
    passages: 4,
    embeddings: 8,
    pieces: 8,
    file_names: 8,
    recipes: 2,
    aliases: 2,
    cards: 2,
    comparisons: 2,
    retrieval_tasks: 8,
    json_lines: 1,
}
"""The targets, and the share of the inputs that each gets: those that write files or build datasets are slow."""


def attack(target: Callable[..., None], inputs: int) -> dict[str, int]:
    """Give a target that many inputs; returns how many were `tried` and how many of them `refused`.

    Raises:
        Exception: what came of an input that is no `RetroMAEError`; hypothesis shows the smallest such input.
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
    """Attack every target and tell how many inputs it took."""
    quiet()
    inputs = int(sys.argv[1]) if len(sys.argv) > 1 else INPUTS
    logging.disable(logging.CRITICAL)
    counts, started = {}, time.perf_counter()
    for target, share in SHARES.items():
        counts[target.__name__] = attack(target, math.ceil(inputs * share / sum(SHARES.values())))
        print(
            "{tried:7,d} tried, {refused:6,d} refused ".format(**counts[target.__name__]), target.__name__, flush=True
        )
    total = {name: sum(count[name] for count in counts.values()) for name in ("tried", "refused")}
    result = {**total, "seconds": round(time.perf_counter() - started), "targets": counts}
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(conditions(result))


def conditions(result: dict[str, Any]) -> str:
    """What was tried, in a sentence."""
    return (
        f"{result['tried']:,} inputs tried, of which {result['refused']:,} were refused with a RetroMAEError; "
        f"nothing else came of any. {result['seconds']} s."
    )


if __name__ == "__main__":
    main()
