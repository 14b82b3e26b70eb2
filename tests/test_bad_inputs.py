"""Bad input of every kind gets one sentence that names the thing, status 2, and costs nothing.

One table for all commands: what follows a good command line, and what the sentence must say. It is the only place for
a refusal that a command line can show; bad_files.py makes the files.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_files
import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from retromae_hf import (
    RetroMAEConfig,
    RetroMAEError,
    RetroMAEForPreTraining,
    RetroMAEModel,
    export_encoder,
    load_documents,
    load_reference_checkpoint,
)
from retromae_hf.commands.main import main

pytestmark = pytest.mark.usefixtures("one_thread")

QUIET = "--use_cpu --disable_tqdm true"
SMALL = "--hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --vocab_size 200 --max_steps 1"
PRETRAIN = f"pretrain --dataset good.txt --output_dir out --max_length 32 {SMALL} {QUIET}"
CONTINUE = f"pretrain --dataset good.txt --output_dir out --max_length 32 --model_name_or_path encoder {QUIET}"
FINETUNE = f"finetune --model_name_or_path encoder --output_dir out --max_steps 1 {QUIET} --dataset"

LINES: dict[str, dict[str, str]] = {
    # Text
    f"{PRETRAIN} --dataset": {
        "absent.txt": "absent.txt does not exist",
        "nothing": "nothing is neither",
        "empty.txt": "empty.txt holds no documents",
        "head.csv": "head.csv holds no documents",
        "white.txt": "no passage with a token",
        "latin.txt": "latin.txt is not UTF-8",
        "utf16.txt": "utf16.txt is UTF-16",
        "all-broken.jsonl": "all-broken.jsonl line 1 is not JSON",
        "broken.jsonl --on_broken_line error": "broken.jsonl line 2 is not JSON",
        "numbers.jsonl": "numbers.jsonl line 1 holds no text",
        "body.jsonl": "has no column 'text'; its columns are body",
        "ragged.csv": "ragged.csv line 2 has 2 values",
        "cut.jsonl.gz": "cut.jsonl.gz cannot be read",
        "half.parquet": "half.parquet cannot be read",
        "splits --dataset_split dev": "train, test",
        "pydocs --dataset_split test": "dataset_split='test'",
        "pairs.jsonl --text_column query --document_separator line": "document_separator is about .txt files",
        "good.txt pairs.jsonl --dataset_weights 1": "1 dataset_weights for 2 data sets",
        "good.txt good.txt --dataset_weights 1 0": "finite numbers above 0",
        "good.txt good.txt --dataset_weights 1 1e-9": "the share of good.txt in",
        "good.txt --max_documents 5 --streaming true": "not at hand in a stream",
    },
    # Text that is sound, and arguments that are not
    PRETRAIN: {
        "--text_column body": "no column 'body'",
        "--title_column head": "no column 'head'",
        "--dataset_split validation": "dataset_split='validation' is unknown",
        "--dataset_config_name en": "dataset_config_name='en' is unknown",
        "--document_separator ;": "document_separator=';'",
        "--on_broken_line mend": "on_broken_line='mend' is unknown",
        "--max_length 6 --pair_objective nsp": "max_length=6",
        "--encoder_mask_ratio nan": "encoder_mask_ratio=nan",
        "--encoder_mask_ratio 1.0": "encoder_mask_ratio=1.0",
        "--decoder_mask_ratio 1.5": "decoder_mask_ratio=1.5",
        "--mask_replace_prob 0.95": "add up to 1.05",
        "--segment_chinese true": "segment_chinese is about whole words",
        "--decoding fancy": "decoding='fancy'",
        "--pooling max": "pooling='max'",
        "--pair_objective next": "pair_objective='next' is unknown",
        "--extend_positions stretch": "extend_positions='stretch' is unknown",
        "--config_name gpt2x": "gpt2x",
        "--config_name mpnet": "mpnet takes the id 1 for padding",
        "--config_name modernbert --hidden_size 33 --num_attention_heads 3": "of an even size",
        "--config_name albert --gradient_checkpointing true": "albert has no gradient checkpointing",
        "--hidden_size 30 --num_attention_heads 4": "not a multiple",
        "--num_attention_heads 0": "num_attention_heads=0",
        "--vocab_size 3": "vocab_size=3",
        "--tokenizer_type fancy": "tokenizer_type='fancy' is unknown",
        "--tokenizer_type bpe": "vocab_size=200 must be at least 261",
        "--tokenizer_type unigram --vocab_size 9": "vocab_size=9",
        "--head_warmup_steps 2": "head_warmup_steps=2",
        "--per_device_train_batch_size 0": "per_device_train_batch_size=0",
        "--learning_rate -1": "learning_rate=-1.0",
        "--max_steps 0": "leave nothing to train",
        "--label_smoothing_factor 0.1": "label_smoothing_factor needs logits",
        "--report_to no_such_reporter": "the training arguments cannot be used",
        "--lr_scheduler_type cosine_with_min_lr": "min_lr",
        "--optim adamw_bnb_8bit": "bitsandbytes",
        "--adam_beta1 2": "Invalid beta parameter",
        "--use_liger_kernel true": "liger-kernel",
        "--dataloader_persistent_workers true": "persistent_workers",
        "--metric_for_best_model ndcg": "metric_for_best_model='ndcg' is unknown",
        "--no_such_flag 1": "unknown arguments: --no_such_flag 1; see --help",
        "--evaluation_strategy no": "is --eval_strategy",
        "--group-by-length": "is --train_sampling_strategy",
        "--warmup_ratio=0.1": "is --warmup_steps",
        "--save_safetensors true": "is not needed any more",
        "--hub_token secret": "hub_token",
        "--resume_from_checkpoint true": "no checkpoint to resume from",
        "--resume_from_checkpoint encoder": "no checkpoint to resume from",
        "--output_dir trained": "already holds a run",
        "--output_dir good.txt/out": "cannot be written",
    },
    # The model that pretraining starts from
    CONTINUE: {
        "--tokenizer_name unmasked": "no mask token",
        "--tokenizer_name smaller": "100 tokens and the model",
        "--max_length 64": "32 positions",
        "--config_name bert": "give one of them",
        "--attn_implementation quick": "attn_implementation=quick cannot be used",
        "--decoder_from pickled/pytorch_model.bin": "pytorch_model.bin is not a safetensors file",
        "--decoder_from encoder/model.safetensors": "holds no decoder of the released RetroMAE code",
        "--model_name_or_path run --decoder_from encoder/model.safetensors": "has a decoder of its own",
        "--model_name_or_path run --decoding none": "was trained with decoding='enhanced'",
        "--model_name_or_path run --pair_objective nsp": "was trained with pair_objective=None",
        "--model_name_or_path run --max_steps 4 --resume_from_checkpoint coded-run": "more than tensors",
        "--model_name_or_path added": "--resize_token_embeddings true",
        "--model_name_or_path nowhere": "nowhere holds no",
        "--model_name_or_path half": "half holds no checkpoint that can be loaded",
        "--model_name_or_path hollow": "hollow holds no checkpoint that can be loaded",
        "--model_name_or_path incomplete": "attention.self.query",
        "--model_name_or_path static": "static holds no model that can be loaded",
        "--model_name_or_path pickled": "pickled holds weights that are no safetensors",
        "--model_name_or_path pickled-run": "pickled-run holds weights that are no safetensors",
        "--model_name_or_path coded": "coded brings code of its own",
        "--tokenizer_name coded-tokenizer": "coded-tokenizer brings code of its own",
    },
    # Recipes
    "pretrain": {
        "absent.yaml": "absent.yaml cannot be read",
        "code.yaml": "could not determine a constructor",
        "odd.yaml": "odd.yaml cannot be read: while parsing",
        "list.yaml": "list.yaml must be a YAML mapping",
        "list-value.yaml": "learning_rate",
        "mapping-value.yaml": "seed",
        "text-value.yaml": "seed",
        "half-value.yaml": "16.5",
        "unknown.yaml": "unknown arguments: no_such_argument",
        "nul.yaml": "there is no such folder",
        "long.yaml": "aaa holds no model",
        "laughs.yaml": "aliases",
    },
    "compare": {
        "": "name a recipe",
        "compare-missing.yaml": "finetuning, finetuning_dataset, model, pretraining, seeds, tasks must be given",
        "compare-name.yaml": "'../../x'",
        "compare-list.yaml": "objectives",
        "compare-seed.yaml": "seeds",
        "compare-type.yaml": "max_length",
        "compare-reference.yaml": "reference='bert' is unknown",
        "compare-start.yaml": "start='later' is none of those before it",
        "compare-baseline.yaml": "baseline='ict' is unknown",
        "compare-unknown.yaml": "unknown arguments: decodin",
        "compare-colour.yaml": "unknown arguments: colour",
        "compare-seconds.yaml": "max_steps cannot be told beside max_seconds",
    },
    # Rows to fine-tune on
    FINETUNE: {
        "absent.tsv": "absent.tsv",
        "absent.tsv --eval_strategy steps": "give --eval_dataset too",
        "good.txt": "--pairs first-sentence",
        "unjudged": "--pairs first-sentence",
        "good.jsonl": "good.jsonl",
        "two-queries.jsonl": "several columns for the query, anchor, query",
        "odd-names.jsonl": "anchor, hit, miss",
        "ids.jsonl": "query_id, positive_id",
        "ids.tsv": "is no text but '1'",
        "ragged.tsv": "ragged.tsv line 2",
        "number-pairs.jsonl": "which is no text",
        "graded.jsonl": "3.2 for 'score'",
        "false-pairs.jsonl": "holds no rows to train on",
        "pairs.jsonl --max_train_samples 0": "max_train_samples=0",
        "pairs.jsonl --per_device_train_batch_size 64": "4 rows fill no batch of 64",
        "pairs.jsonl --text_column body": "text_column is about text",
        "pairs.jsonl --temperature 0": "temperature=0.0",
        "pairs.jsonl --objective triplet": "objective='triplet' is unknown",
        "pairs.jsonl --objective kl": "needs a teacher's scores",
        "pairs.jsonl --objective kl --hard_negatives bm25": "mined negatives have not",
        "pairs.jsonl --model_name_or_path run": "run is a training checkpoint",
        "pairs.jsonl --model_name_or_path incomplete": "attention.self.query",
        "pairs.jsonl --model_name_or_path pickled": "pickled holds weights that are no safetensors",
        "pairs.jsonl --model_name_or_path coded": "coded brings code of its own",
        "pairs.jsonl --model_name_or_path coded-module": "coded-module brings code of its own",
        "good.txt --pairs sentence": "pairs='sentence' is unknown",
        "good.txt --pairs title": "needs a column 'title'",
        "short.txt --pairs crop": "fewer than 20 words",
        "good.txt --pairs crop --objective kl": "needs a teacher's scores, which pairs of text have not",
        "good.txt --pairs crop --hard_negatives negatives.jsonl": "names ids of queries, which pairs of text have not",
        "good.txt --pairs crop --dev_queries -1": "dev_queries=-1",
        "task --hard_negatives absent.jsonl": "absent.jsonl cannot be read",
        "task --hard_negatives broken.jsonl": "broken.jsonl line 2",
        "task --hard_negatives listed.jsonl": "is not a JSON object with",
        "task --hard_negatives foreign.jsonl": "ids in foreign.jsonl",
        "task --teacher_scores scores.jsonl --objective kl": "teacher_scores belong to a file of hard_negatives",
        "task --hard_negatives negatives.jsonl --teacher_scores scores.jsonl": "teacher_scores are for the objectives",
        "task --hard_negatives negatives.jsonl --teacher_scores scores.jsonl --objective kl": "scores.jsonl line 1",
        "task --hard_negatives no-positive.jsonl --teacher_scores scores.jsonl --objective kl": "no positive_id",
    },
    "adapt --model_name_or_path encoder --dataset good.txt --output_dir out": {
        "": "are too few to hold a task out of them",
        "--minutes 0": "minutes=0.0",
        "--pairs sentence": "pairs='sentence'",
        "--seed -1": "seed=-1",
        "--report_to no_such_one": "report_to cannot be used",
        "--output_dir task": "task is not empty and holds no adaptation",
    },
    # Judgments
    "evaluate --model_name_or_path bm25 --dataset": {
        "absent": ".jsonl does not exist",
        "nothing": ".jsonl does not exist",
        "task task": "two datasets are called task",
        "task --split ../../x": "split '../../x'",
        "task --split dev": "dev.tsv does not exist",
        "beir:../../x": "'../../x'",
        "nanobeir:none": "nanobeir:none cannot be loaded",
        "task-broken": "task-broken/corpus.jsonl line 4",
        "task-twice": "has the _id 'd1' a second time",
        "task-null": "corpus.jsonl line 1",
        "task-silent": "queries without text (q1)",
        "task-foreign": "judge no query",
        "task-grade": "task-grade/qrels/test.tsv line 2",
        "task-half": "test.tsv line 1",
        "task-graded-twice": "test.tsv line 2 grades document 'd1'",
        "task --max_documents 0": "max_documents=0",
        "task --search fast": "search='fast' is unknown",
        "task --batch_size 0": "batch_size=0",
        "task --run_dir good.txt": "good.txt",
        "task --output nothing": "cannot be written",
    },
    "evaluate --dataset task --model_name_or_path": {
        "nowhere": "nowhere holds no model",
        "half": "half holds no checkpoint that can be loaded",
        "odd-config": "odd-config holds no model that can be loaded",
        "labels": "num_labels=1000000000",
        "incomplete": "attention.self.query",
        "encoder --dtype int4": "dtype='int4'",
        "encoder --attn_implementation flash_attention_3": "attn_implementation=flash_attention_3 cannot be used",
        "pickled": "pickled holds weights that are no safetensors",
        "pickled-run": "pickled-run holds weights that are no safetensors",
        "pickled-dense": "pickled-dense holds weights that are no safetensors",
        "coded": "coded brings code of its own",
        "coded-module": "coded-module brings code of its own",
    },
    # What follows on training
    "export --output_dir out --model_name_or_path": {
        "run --output_dir task": "task exists and is not an empty folder",
        "run --output_dir good.txt/out": "cannot be exported to",
        "run --pooling max": "pooling='max'",
        "wordless": "no tokenizer",
        "hollow": "hollow holds no checkpoint that can be loaded",
        "encoder": "encoder holds a bert model",
        "coded": "coded",
        "pickled-run": "pickled-run holds weights that are no safetensors",
        "coded-tokenizer": "coded-tokenizer brings code of its own",
    },
    "convert": {
        "pickled out": "cannot be converted: Weights only load failed",
        "encoder out": "holds no pytorch_model",
        "pickled encoder": "exists and is not an empty folder",
    },
    "card": {
        "encoder --results foreign-results.json": "results of foreign, whose weights",
        "encoder --results scores.jsonl": "scores.jsonl holds no results",
        "run --results none": "run has no training.json",
    },
    "search": {
        "pickled anything": "pickled holds weights that are no safetensors",
        "coded anything": "coded brings code of its own",
    },
    "fly": {"": "no command 'fly'"},
}

CONFIGS: dict[str, dict[str, Any]] = {
    "decoding='fancy'": {"decoding": "fancy"},
    "num_decoder_layers='1'": {"num_decoder_layers": "1"},
    "decoder_mask_ratio='0.5'": {"decoder_mask_ratio": "0.5"},
    "decoder_mask_ratio=nan": {"decoder_mask_ratio": float("nan")},
    "mlm_loss_weight=None": {"mlm_loss_weight": None},
    "bow_loss_weight=inf": {"bow_loss_weight": float("inf")},
    "bow_source='words'": {"bow_source": "words"},
    "a bag of words": {"bow_source": "sentence"},
    "pair_objective=3": {"pair_objective": 3},
    "contrast_temperature=0": {"contrast_temperature": 0},
    "encoder_config is a int": {"encoder_config": 5},
    "no model_type": {"encoder_config": {}},
    "'nope'": {"encoder_config": {"model_type": "nope"}},
    "'hidden_size' expected int": {"encoder_config": {"model_type": "bert", "hidden_size": "x"}},
    "the configuration of an encoder": {"vocab_size": 30522, "hidden_size": 768},
}
"""What the sentence says, and fields of a config.json, wrong in one way each."""

CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "pickled checkpoint": (lambda: RetroMAEForPreTraining.from_pretrained("pickled-run"), "are no safetensors"),
    "pickled model": (lambda: RetroMAEModel.from_pretrained("pickled-run"), "are no safetensors"),
    "pickled AutoModel": (lambda: AutoModel.from_pretrained("pickled-run"), "are no safetensors"),
    "pickled encoder": (lambda: RetroMAEForPreTraining.from_encoder("pickled"), "are no safetensors"),
    "code": (lambda: RetroMAEForPreTraining.from_encoder("coded"), "coded brings code of its own"),
    "released pickle": (
        lambda: load_reference_checkpoint("pickled/pytorch_model.bin", saved_config()),
        "pytorch_model.bin is not a safetensors file",
    ),
    "other weights": (
        lambda: load_reference_checkpoint("run", saved_config()),
        "is not one of the released RetroMAE code",
    ),
    "pooling": (
        lambda: export_encoder(
            RetroMAEForPreTraining.from_pretrained("run"),
            SentenceTransformer("encoder").tokenizer,
            "out",
            pooling="max",
        ),
        "pooling='max'",
    ),
    "bytes": (lambda: load_documents(b"text"), "b'text' is no source of text"),
    "numbers": (lambda: load_documents([1, 2]), "neither a string nor a mapping"),
    "a number": (lambda: load_documents([{"text": "a"}, {"text": 5}]), "the corpus row 2 holds no text in 'text'"),
    "NUL": (lambda: load_documents("a\0b.txt"), r"a\x00b.txt does not exist"),
}


def saved_config() -> Any:
    return RetroMAEConfig.from_pretrained("run").encoder_config


@pytest.fixture(scope="module")
def made(tmp_path_factory, encoder_config, tokenizer) -> Path:
    here = tmp_path_factory.mktemp("bad")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        model = RetroMAEForPreTraining(RetroMAEConfig(encoder_config=encoder_config.to_dict()))
        bad_files.make(here, model.eval(), tokenizer)
    return here


@pytest.fixture
def here(made, monkeypatch):
    """The folder, which no case changes, and in which no code of a model runs."""
    monkeypatch.chdir(made)
    before = contents(made)
    yield made
    assert not (made / bad_files.CANARY).exists(), "code of a model ran"
    shutil.rmtree(made / "out", ignore_errors=True)
    assert contents(made) == before


def contents(folder: Path) -> dict[Path, tuple[int, int]]:
    return {file: (file.stat().st_size, file.stat().st_mtime_ns) for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("line", "words"),
    [(f"{start} {rest}".strip(), words) for start, lines in LINES.items() for rest, words in lines.items()],
    ids=[f"{start.split()[0]} {rest}".strip() for start, lines in LINES.items() for rest in lines],
)
def test_a_bad_command_line_is_one_sentence_and_status_2(line, words, here, capsys):
    assert main(line.split()) == 2
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence.startswith("retromae-hf: error: ")
    assert words in sentence


@pytest.mark.parametrize(("call", "words"), CALLS.values(), ids=CALLS)
def test_a_bad_call_is_one_sentence(call, words, here):
    with pytest.raises(RetroMAEError) as raised:
        call()
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("words", "fields"), CONFIGS.items(), ids=CONFIGS)
def test_a_bad_configuration_is_one_sentence(words, fields):
    with pytest.raises(RetroMAEError) as raised:
        RetroMAEConfig(**fields)
    assert words in str(raised.value)
