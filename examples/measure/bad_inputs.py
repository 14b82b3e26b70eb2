"""`python examples/measure/bad_inputs.py`: bad inputs of every kind, each with the sentence that it gets.

Every input goes through a command or the package's public names, on tiny models in a temporary folder. Anything but one
sentence of a `RetroMAEError` about the fault fails, and so does code of a model's that ran. Prints the list and writes
runs/bad-inputs.json, of which examples/measure/publish.py makes model_cards/bad-inputs.md.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_places
from datasets.utils.logging import disable_progress_bar
from transformers.utils import logging as transformers_logging

from retromae_hf import (
    RetroMAEConfig,
    RetroMAEError,
    RetroMAEForPreTraining,
    RetroMAEModel,
    export_encoder,
    load_documents,
    load_reference_checkpoint,
)
from retromae_hf.commands.main import main as command

OUTPUT = Path("runs/bad-inputs.json")
PREFIX = "retromae-hf: error: "
TRAIN = "--dataset {here}/good.txt --output_dir {here}/out --max_length 32 --use_cpu --disable_tqdm true"
TUNE = "--model_name_or_path {encoder} --output_dir {here}/out --use_cpu --disable_tqdm true --max_steps 1"
ADAPT = "--model_name_or_path {encoder} --output_dir {here}/adapted"
SMALL = "--hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --vocab_size 200 --max_steps 1"
TASK = "--dataset {here}/task"
PAIRS = "--dataset {here}/pairs.jsonl --output_dir {here}/out"
JUDGED = f"finetune {TUNE} --dataset {{here}}/train-task"

# What is wrong, the command line that meets it, and what the sentence says that tells it from every other.
COMMANDS = [
    # models
    (
        "a pickled encoder",
        f"pretrain {TRAIN} --model_name_or_path {{here}}/pickled",
        "{here}/pickled holds weights that are no safetensors, and a pickle",
    ),
    (
        "a pickled checkpoint",
        f"pretrain {TRAIN} --model_name_or_path {{here}}/pickled-run",
        "{here}/pickled-run holds weights that are no safetensors, and a pickle",
    ),
    (
        "a pickled checkpoint",
        "export --model_name_or_path {here}/pickled-run --output_dir {here}/out",
        "{here}/pickled-run holds weights that are no safetensors, and a pickle",
    ),
    (
        "a pickled encoder",
        f"evaluate --model_name_or_path {{here}}/pickled {TASK}",
        "{here}/pickled holds weights that are no safetensors, and a pickle",
    ),
    (
        "a pickled checkpoint",
        f"evaluate --model_name_or_path {{here}}/pickled-run {TASK}",
        "{here}/pickled-run holds weights that are no safetensors, and a pickle",
    ),
    (
        "a pickled module of sentence-transformers",
        f"evaluate --model_name_or_path {{here}}/pickled-dense {TASK}",
        "{here}/pickled-dense holds weights that are no safetensors, and a pickle",
    ),
    (
        "a pickled encoder",
        f"finetune --model_name_or_path {{here}}/pickled {PAIRS}",
        "{here}/pickled holds weights that are no safetensors, and a pickle",
    ),
    (
        "a pickled encoder",
        "search {here}/pickled anything",
        "{here}/pickled holds weights that are no safetensors, and a pickle",
    ),
    (
        "a model that brings code",
        f"pretrain {TRAIN} --model_name_or_path {{here}}/coded",
        "{here}/coded brings code of its own, which config.json asks for",
    ),
    (
        "a model that brings code",
        f"pretrain {TRAIN} --config_name {{here}}/coded",
        "{here}/coded brings code of its own, which config.json asks for",
    ),
    (
        "a model that brings code",
        f"evaluate --model_name_or_path {{here}}/coded {TASK}",
        "{here}/coded brings code of its own, which its modules ask for",
    ),
    (
        "a model that brings code",
        f"finetune --model_name_or_path {{here}}/coded {PAIRS}",
        "{here}/coded brings code of its own, which its modules ask for",
    ),
    (
        "a model of another kind, which brings code",
        "export --model_name_or_path {here}/coded --output_dir {here}/out",
        "{here}/coded holds a of-its-own model, not a RetroMAE checkpoint",
    ),
    (
        "a checkpoint whose tokenizer brings code",
        "export --model_name_or_path {here}/coded-tokenizer-run --output_dir {here}/out",
        "{here}/coded-tokenizer-run brings code of its own, which its tokenizer asks for",
    ),
    (
        "a model that brings code",
        "search {here}/coded anything",
        "{here}/coded brings code of its own, which its modules ask for",
    ),
    (
        "a tokenizer that brings code",
        f"pretrain {TRAIN} {SMALL} --tokenizer_name {{here}}/coded-tokenizer",
        "{here}/coded-tokenizer brings code of its own, which its tokenizer asks for",
    ),
    (
        "a module of sentence-transformers that is code",
        f"evaluate --model_name_or_path {{here}}/coded-module {TASK}",
        "{here}/coded-module brings code of its own, which its modules ask for",
    ),
    (
        "a module of sentence-transformers that is code",
        f"finetune --model_name_or_path {{here}}/coded-module {PAIRS}",
        "{here}/coded-module brings code of its own, which its modules ask for",
    ),
    (
        "an activation that is any function",
        f"evaluate --model_name_or_path {{here}}/coded-activation {TASK}",
        "{here}/coded-activation brings code of its own, which its modules ask for",
    ),
    (
        "a module outside of the model's folder",
        f"evaluate --model_name_or_path {{here}}/outside-module {TASK}",
        "'../encoder'",
    ),
    (
        "a list of modules that is none",
        f"evaluate --model_name_or_path {{here}}/odd-modules {TASK}",
        "{here}/odd-modules holds no model that can be loaded",
    ),
    (
        "half a safetensors file",
        "export --model_name_or_path {here}/half --output_dir {here}/out",
        "{here}/half holds no checkpoint that can be loaded",
    ),
    (
        "a configuration that is no JSON",
        f"evaluate --model_name_or_path {{here}}/odd-config {TASK}",
        "{here}/odd-config holds no model that can be loaded",
    ),
    ("no model at all", f"evaluate --model_name_or_path {{here}}/nowhere {TASK}", "{here}/nowhere holds no model"),
    (
        "an optimizer's state that is code",
        f"pretrain {TRAIN} --max_steps 4 --resume_from_checkpoint {{here}}/coded-run",
        "optimizer, scheduler or generator state that is broken or more than tensors",
    ),
    (
        "a configuration with a milliard labels",
        f"evaluate --model_name_or_path {{here}}/labels {TASK}",
        "num_labels=1000000000",
    ),
    (
        "a configuration with a million layers",
        f"pretrain {TRAIN} --config_name {{here}}/layers",
        "num_hidden_layers=1000000",
    ),
    (
        "an encoder that lacks weights",
        f"pretrain {TRAIN} --model_name_or_path {{here}}/incomplete",
        "attention.self.query",
    ),
    (
        "an encoder that lacks weights",
        f"evaluate --model_name_or_path {{here}}/incomplete {TASK}",
        "attention.self.query",
    ),
    (
        "an encoder that lacks weights",
        f"finetune --model_name_or_path {{here}}/incomplete {PAIRS}",
        "attention.self.query",
    ),
    ("a static model", f"pretrain {TRAIN} --model_name_or_path {{here}}/static", "{here}/static"),
    (
        "tokens that were added to a tokenizer",
        f"pretrain {TRAIN} --model_name_or_path {{here}}/added",
        "--resize_token_embeddings true",
    ),
    # text
    ("a UTF-16 file", f"pretrain {TRAIN} --dataset {{here}}/utf16.txt", "{here}/utf16.txt is UTF-16"),
    ("a split that is not there", f"pretrain {TRAIN} --dataset {{here}}/splits --dataset_split dev", "train, test"),
    (
        "a split of a single file",
        f"pretrain {TRAIN} --dataset_split validation",
        "dataset_split='validation' is unknown",
    ),
    ("a configuration of a file", f"pretrain {TRAIN} --dataset_config_name en", "dataset_config_name='en' is unknown"),
    ("a split of pydocs", f"pretrain {TRAIN} --dataset pydocs --dataset_split test", "dataset_split='test'"),
    ("half a packed file", f"pretrain {TRAIN} --dataset {{here}}/cut.jsonl.gz", "{here}/cut.jsonl.gz cannot be read"),
    ("a .csv of its header alone", f"pretrain {TRAIN} --dataset {{here}}/head.csv", "holds no documents"),
    ("no text in sound lines", f"pretrain {TRAIN} --dataset {{here}}/no-text.jsonl", "has no column 'text'"),
    ("a Latin-1 file", f"pretrain {TRAIN} --dataset {{here}}/latin.txt", "{here}/latin.txt is not UTF-8"),
    (
        "fewer weights than data sets",
        f"pretrain {TRAIN} --dataset {{here}}/good.txt {{here}}/pairs.jsonl --dataset_weights 1",
        "1 dataset_weights for 2 data sets",
    ),
    (
        "a weight of nothing",
        f"pretrain {TRAIN} --dataset {{here}}/good.txt {{here}}/good.txt --dataset_weights 1 0",
        "must all be finite numbers above 0",
    ),
    (
        "a share too small for a document",
        f"pretrain {TRAIN} --dataset {{here}}/good.txt {{here}}/good.txt --dataset_weights 1 1e-9",
        "the share of {here}/good.txt in",
    ),
    (
        "weights for a stream",
        f"pretrain {TRAIN} --dataset {{here}}/good.txt --max_documents 5 --streaming true --max_steps 1",
        "draw from the whole text, which is not at hand in a stream",
    ),
    (
        "a separator that is none",
        f"pretrain {TRAIN} --document_separator ;",
        "document_separator=';'",
    ),
    (
        "a separator for JSON",
        f"pretrain {TRAIN} --dataset {{here}}/pairs.jsonl --text_column query --document_separator line",
        "document_separator is about .txt files alone",
    ),
    ("a title column that is not there", f"pretrain {TRAIN} --title_column head", "has no column 'head'"),
    ("an empty file", f"pretrain {TRAIN} --dataset {{here}}/empty.txt", "{here}/empty.txt holds no documents"),
    ("white space alone", f"pretrain {TRAIN} {SMALL} --dataset {{here}}/white.txt", "no passage with a token in it"),
    (
        "control characters alone",
        f"pretrain {TRAIN} {SMALL} --dataset {{here}}/control.txt",
        "no passage with a token in it",
    ),
    (
        "a pickle that is more than tensors",
        "convert {here}/pickled {here}/safe",
        "pytorch_model.bin cannot be converted",
    ),
    ("nothing to convert", "convert {encoder} {here}/safe", "holds no pytorch_model"),
    ("a place that is taken", "convert {here}/pickled {encoder}", "exists and is not an empty folder"),
    (
        "a decoder that is pickled",
        f"pretrain {TRAIN} --model_name_or_path {{encoder}} --decoder_from {{here}}/pickled/pytorch_model.bin",
        "pytorch_model.bin is not a safetensors file",
    ),
    (
        "a file without a decoder",
        f"pretrain {TRAIN} --model_name_or_path {{encoder}} --decoder_from {{encoder}}/model.safetensors",
        "holds no decoder of the released RetroMAE code",
    ),
    (
        "a second decoder",
        f"pretrain {TRAIN} --model_name_or_path {{run}} --decoder_from {{encoder}}/model.safetensors",
        "has a decoder of its own",
    ),
    (
        "attention that there is not",
        f"pretrain {TRAIN} --model_name_or_path {{encoder}} --attn_implementation quick",
        "attn_implementation=quick cannot be used",
    ),
    (
        "attention whose package is missing",
        f"evaluate --model_name_or_path {{encoder}} {TASK} --attn_implementation flash_attention_3",
        "attn_implementation=flash_attention_3 cannot be used",
    ),
    ("a precision that there is not", f"evaluate --model_name_or_path {{encoder}} {TASK} --dtype int4", "dtype='int4'"),
    ("a folder without text", f"pretrain {TRAIN} --dataset {{here}}/nothing", "{here}/nothing is neither"),
    ("links in a circle", f"pretrain {TRAIN} --dataset {{here}}/circle.txt", "{here}/circle.txt does not exist"),
    (
        "a broken line, which is to be an error",
        f"pretrain {TRAIN} --dataset {{here}}/broken.jsonl --on_broken_line error",
        "{here}/broken.jsonl line 2 is not JSON",
    ),
    (
        "broken lines alone",
        f"pretrain {TRAIN} --dataset {{here}}/all-broken.jsonl",
        "{here}/all-broken.jsonl line 1 is not JSON",
    ),
    ("an unknown way with broken lines", f"pretrain {TRAIN} --on_broken_line mend", "on_broken_line='mend' is unknown"),
    (
        "numbers for text",
        f"pretrain {TRAIN} --dataset {{here}}/numbers.jsonl",
        "{here}/numbers.jsonl line 1 holds no text",
    ),
    ("half a parquet file", f"pretrain {TRAIN} --dataset {{here}}/half.parquet", "{here}/half.parquet cannot be read"),
    (
        "a .csv of ragged rows",
        f"pretrain {TRAIN} --dataset {{here}}/ragged.csv",
        "{here}/ragged.csv line 2 has 2 values",
    ),
    ("a column that is not there", f"pretrain {TRAIN} --text_column body", "no column 'body'"),
    # arguments and recipes
    (
        "a recipe that asks for code",
        "pretrain {here}/code.yaml",
        "{here}/code.yaml cannot be read: could not determine a constructor",
    ),
    ("a recipe that is no YAML", "pretrain {here}/odd.yaml", "{here}/odd.yaml cannot be read: while parsing"),
    ("a recipe that is a list", "pretrain {here}/list.yaml", "{here}/list.yaml must be a YAML mapping"),
    ("a list for a single value", "pretrain {here}/list-value.yaml", "must be a number"),
    ("a mapping for a single value", "pretrain {here}/mapping-value.yaml", "must be a whole number"),
    ("text for a number", "pretrain {here}/text-value.yaml", "must be a whole number"),
    ("aliases of aliases", "pretrain {here}/laughs.yaml", "aliases; write the values out"),
    ("aliases of aliases", "compare {here}/laughs.yaml", "aliases; write the values out"),
    ("an unknown argument", "pretrain {here}/unknown.yaml", "unknown arguments: no_such_argument"),
    ("a NUL byte in a path", "pretrain {here}/nul.yaml", "model_name_or_path in the recipe holds a NUL"),
    ("a path that is too long", "pretrain {here}/long.yaml", "aaa holds no model that can be loaded"),
    ("a share that is no number", f"pretrain {TRAIN} --encoder_mask_ratio nan", "encoder_mask_ratio=nan"),
    ("a share above 1", f"pretrain {TRAIN} --decoder_mask_ratio 1.5", "decoder_mask_ratio=1.5"),
    ("an unknown flag", f"pretrain {TRAIN} --no_such_flag 1", "unknown arguments: --no_such_flag"),
    (
        "a schedule without its arguments",
        f"pretrain {TRAIN} --model_name_or_path {{encoder}} --lr_scheduler_type cosine_with_min_lr",
        "min_lr",
    ),
    (
        "an optimizer of a package that is absent",
        f"pretrain {TRAIN} --model_name_or_path {{encoder}} --optim adamw_bnb_8bit",
        "bitsandbytes",
    ),
    ("a flag's old name", f"pretrain {TRAIN} --evaluation_strategy no", "is --eval_strategy"),
    ("a flag's old name", f"pretrain {TRAIN} --group_by_length true", "is --train_sampling_strategy"),
    ("a token that would be saved", f"pretrain {TRAIN} --hub_token x", "hub_token"),
    ("a negative learning rate", f"pretrain {TRAIN} --learning_rate -1", "learning_rate=-1.0"),
    # evaluation
    (
        "a split that leads out of the folder",
        f"evaluate --model_name_or_path bm25 {TASK} --split ../../x",
        "split '../../x'",
    ),
    (
        "a collection that leads out of the cache",
        "evaluate --model_name_or_path bm25 --dataset beir:../../x",
        "collection of BEIR '../../x'",
    ),
    (
        "a broken corpus",
        "evaluate --model_name_or_path bm25 --dataset {here}/task-broken",
        "{here}/task-broken/corpus.jsonl line 4",
    ),
    (
        "an id that stands twice",
        "evaluate --model_name_or_path bm25 --dataset {here}/task-twice",
        "has the _id 'd1' a second time",
    ),
    (
        "judgments of other documents",
        "evaluate --model_name_or_path bm25 --dataset {here}/task-foreign",
        "the qrels of {here}/task-foreign judge no query",
    ),
    (
        "a grade that is no number",
        "evaluate --model_name_or_path bm25 --dataset {here}/task-grade",
        "{here}/task-grade/qrels/test.tsv line 2",
    ),
    ("half a grade", "evaluate --model_name_or_path bm25 --dataset {here}/task-half", "test.tsv line 1 is not"),
    (
        "a grade of a milliard",
        "evaluate --model_name_or_path bm25 --dataset {here}/task-huge",
        "test.tsv line 1 is not",
    ),
    ("an empty id", "evaluate --model_name_or_path bm25 --dataset {here}/task-nameless", "the document id ''"),
    ("an id of null", "evaluate --model_name_or_path bm25 --dataset {here}/task-null", "corpus.jsonl line 1 is not"),
    ("a surrogate in an id", "evaluate --model_name_or_path bm25 --dataset {here}/task-surrogate", "cannot be scored"),
    (
        "a run folder that is a file",
        f"evaluate --model_name_or_path bm25 {TASK} --run_dir {{here}}/good.txt",
        "the folder '{here}/good.txt' cannot be written to",
    ),
    ("a way of searching that is none", f"evaluate --model_name_or_path bm25 {TASK} --search fast", "search='fast'"),
    ("batches of nothing", f"evaluate --model_name_or_path bm25 {TASK} --batch_size 0", "batch_size=0"),
    # fine-tuning
    (
        "two columns for the query",
        f"finetune {TUNE} --dataset {{here}}/two-queries.jsonl",
        "several columns for the query",
    ),
    ("names that do not tell", f"finetune {TUNE} --dataset {{here}}/odd-names.jsonl", "do not tell the positive"),
    ("ids for texts", f"finetune {TUNE} --dataset {{here}}/ids-alone.jsonl", "do not tell the query and the positive"),
    ("numbers for texts", f"finetune {TUNE} --dataset {{here}}/number-pairs.jsonl", "which is no text"),
    ("a .tsv of ids", f"finetune {TUNE} --dataset {{here}}/ids.tsv", "is no text but '1'"),
    ("a .tsv of ids with a header", f"finetune {TUNE} --dataset {{here}}/headed-ids.tsv", "do not tell"),
    ("graded pairs", f"finetune {TUNE} --dataset {{here}}/graded.jsonl", "does not tell whether a pair matches"),
    ("pairs that do not match", f"finetune {TUNE} --dataset {{here}}/false-pairs.jsonl", "holds no rows to train on"),
    (
        "a teacher for mined negatives",
        f"finetune {TUNE} --dataset {{here}}/pairs.jsonl --hard_negatives bm25 --objective kl",
        "mined negatives have not",
    ),
    ("endless brackets", f"{JUDGED} --hard_negatives {{here}}/deep.jsonl", "{here}/deep.jsonl line 1 is not JSON"),
    ("negatives that are a list", f"{JUDGED} --hard_negatives {{here}}/listed.jsonl", "is not a JSON object with"),
    ("a single column", f"finetune {TUNE} --dataset {{here}}/good.jsonl", "the columns of {here}/good.jsonl, text"),
    ("triples of two widths", f"finetune {TUNE} --dataset {{here}}/ragged.tsv", "{here}/ragged.tsv line 2"),
    ("a broken file of negatives", f"{JUDGED} --hard_negatives {{here}}/broken.jsonl", "{here}/broken.jsonl line 2"),
    (
        "negatives of other documents",
        f"{JUDGED} --hard_negatives {{here}}/foreign.jsonl",
        "ids in {here}/foreign.jsonl",
    ),
    (
        "scores of another length",
        f"{JUDGED} --hard_negatives {{here}}/negatives.jsonl --teacher_scores {{here}}/scores.jsonl --objective kl",
        "{here}/scores.jsonl line 1",
    ),
    ("text without queries", f"finetune {TUNE} --dataset {{here}}/good.txt", "--pairs first-sentence"),
    ("pairs of a kind that there is not", f"finetune {TUNE} --dataset {{here}}/good.txt --pairs sentence", "pairs="),
    (
        "titles that are not there",
        f"finetune {TUNE} --dataset {{here}}/good.txt --pairs title",
        "needs a column 'title'",
    ),
    (
        "pairs of text for a teacher",
        f"finetune {TUNE} --dataset {{here}}/good.txt --pairs crop --objective kl",
        "objective=kl needs a teacher's scores, which pairs of text have not",
    ),
    (
        "pairs of text with a file of ids",
        f"finetune {TUNE} --dataset {{here}}/good.txt --pairs crop --hard_negatives {{here}}/negatives.jsonl",
        "names ids of queries, which pairs of text have not",
    ),
    (
        "a column of text without pairs of it",
        f"finetune {TUNE} --dataset {{here}}/pairs.jsonl --text_column body",
        "text_column is about text that pairs are made of",
    ),
    ("held-out sentences below 0", f"finetune {TUNE} --dataset {{here}}/good.txt --dev_queries -1", "dev_queries=-1"),
    (
        "no rows to train on",
        f"finetune {TUNE} --dataset {{here}}/pairs.jsonl --max_train_samples 0",
        "max_train_samples=0",
    ),
    (
        "a text too short to hold a task out of",
        f"adapt {ADAPT} --dataset {{here}}/good.txt",
        "different documents are too few to hold a task out of them",
    ),
    ("no minutes", f"adapt {ADAPT} --dataset {{here}}/good.txt --minutes 0", "minutes=0.0"),
    ("pairs of a kind that there is not", f"adapt {ADAPT} --dataset {{here}}/good.txt --pairs sentence", "pairs="),
    (
        "a folder with something else",
        "adapt --model_name_or_path {encoder} --dataset {here}/good.txt --output_dir {here}/task",
        "{here}/task is not empty and holds no adaptation",
    ),
    (
        "a warm-up of the head that leaves no step",
        f"pretrain {TRAIN} {SMALL} --max_steps 2 --head_warmup_steps 2",
        "head_warmup_steps",
    ),
    ("a pooling that there is not", f"pretrain {TRAIN} {SMALL} --pooling max", "pooling='max'"),
    (
        "a sample of no documents",
        "evaluate --model_name_or_path bm25 --dataset {here}/task --max_documents 0",
        "max_documents=0",
    ),
    ("a temperature of 0", f"finetune {TUNE} --dataset {{here}}/pairs.jsonl --temperature 0", "temperature=0.0"),
    ("a training checkpoint", f"finetune --model_name_or_path {{run}} {PAIRS}", "{here}/run is a training checkpoint"),
    # comparisons and exports
    ("an objective that leads out of the folder", "compare {here}/compare-name.yaml", "objective's name '../../x'"),
    ("objectives that are a list", "compare {here}/compare-list.yaml", "objectives=['mlm']"),
    ("a seed that is a path", "compare {here}/compare-seed.yaml", "seeds=['../../x']"),
    ("text for a number", "compare {here}/compare-type.yaml", "max_length='long'"),
    ("no recipe", "compare", "name a recipe"),
    (
        "a folder that is not empty",
        "export --model_name_or_path {run} --output_dir {here}/task",
        "{here}/task exists and is not an empty folder",
    ),
    (
        "a file for a folder",
        "export --model_name_or_path {run} --output_dir {here}/good.txt/out",
        "{here}/good.txt/out",
    ),
    (
        "a model that is no checkpoint",
        "export --model_name_or_path {encoder} --output_dir {here}/out",
        "{here}/encoder",
    ),
    (
        "an unknown pooling",
        "export --model_name_or_path {run} --output_dir {here}/out --pooling '../x'",
        "pooling='../x'",
    ),
    (
        "results of another model",
        "card {encoder} --results {here}/foreign-results.json",
        "results of foreign, whose weights",
    ),
    ("results that are none", "card {encoder} --results {here}/scores.jsonl", "{here}/scores.jsonl holds no results"),
    ("a folder without a record", "card {run} --results none", "{here}/run has no training.json"),
    ("a command that is none", "fly", "no command 'fly'"),
]

CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"decoding": "fancy"}, "decoding='fancy'"),
    ({"decoding": ["enhanced"]}, "decoding=['enhanced']"),
    ({"num_decoder_layers": "1"}, "num_decoder_layers='1'"),
    ({"num_decoder_layers": True}, "num_decoder_layers=True"),
    ({"num_decoder_layers": 10**9}, "num_decoder_layers=1000000000"),
    ({"decoder_mask_ratio": "0.5"}, "decoder_mask_ratio='0.5'"),
    ({"decoder_mask_ratio": float("nan")}, "decoder_mask_ratio=nan"),
    ({"mlm_loss_weight": None}, "mlm_loss_weight=None"),
    ({"bow_loss_weight": -1}, "bow_loss_weight=-1"),
    ({"bow_loss_weight": float("inf")}, "bow_loss_weight=inf"),
    ({"bow_source": "words"}, "bow_source='words'"),
    ({"bow_source": "sentence"}, "a bag of words is asked for that weighs nothing"),
    ({"bow_loss_weight": 1, "bow_source": "sentence", "final_bow_loss_weight": -1}, "final_bow_loss_weight=-1"),
    ({"pair_objective": 3}, "pair_objective=3"),
    ({"contrast_loss_weight": -1}, "contrast_loss_weight=-1"),
    ({"contrast_temperature": 0}, "contrast_temperature=0"),
    ({"encoder_config": 5}, "encoder_config is a int"),
    ({"encoder_config": {}}, "no model_type"),
    ({"encoder_config": {"model_type": "nope"}}, "'nope'"),
    ({"encoder_config": {"model_type": "retromae"}}, "'retromae'"),
    ({"encoder_config": {"model_type": "bert", "hidden_size": "x"}}, "'hidden_size' expected int"),
    ({"encoder_config": {"model_type": "bert", "hidden_size": -5}}, "hidden_size=-5"),
    ({"encoder_config": {"model_type": "bert", "vocab_size": 10**15}}, "vocab_size=1000000000000000"),
    ({"encoder_config": {"model_type": "bert", "num_labels": 10**12}}, "num_labels=1000000000000"),
    ({"vocab_size": 30522, "hidden_size": 768}, "the configuration of an encoder"),
]
"""Fields of a config.json, each wrong by itself, and what the sentence says."""


def python_cases(here: Path, run: Path) -> dict[str, tuple[Callable[[], Any], str]]:
    """What is wrong, the call that meets it, and what the sentence says."""
    config = RetroMAEConfig.from_pretrained(run).encoder_config
    model, tokenizer = bad_places.tiny_model(), bad_places.tokenizer()
    pickled, pickle = here / "pickled-run", "pickled-run holds weights that are no safetensors, and a pickle"
    return {
        "RetroMAEForPreTraining.from_pretrained of a pickle": (
            lambda: RetroMAEForPreTraining.from_pretrained(pickled),
            pickle,
        ),
        "RetroMAEModel.from_pretrained of a pickle": (lambda: RetroMAEModel.from_pretrained(pickled), pickle),
        "AutoModel.from_pretrained of a pickle": (lambda: bad_places.AutoModel.from_pretrained(pickled), pickle),
        "from_encoder of a pickle": (
            lambda: RetroMAEForPreTraining.from_encoder(str(here / "pickled")),
            "pickled holds weights that are no safetensors, and a pickle",
        ),
        "from_encoder of a model with code": (
            lambda: RetroMAEForPreTraining.from_encoder(str(here / "coded")),
            "coded brings code of its own",
        ),
        "load_reference_checkpoint of a pickle": (
            lambda: load_reference_checkpoint(here / "pickled" / "pytorch_model.bin", config),
            "pytorch_model.bin is not a safetensors file",
        ),
        "load_reference_checkpoint of other weights": (
            lambda: load_reference_checkpoint(run, config),
            "is not one of the released RetroMAE code",
        ),
        "export_encoder with an unknown pooling": (
            lambda: export_encoder(model, tokenizer, here / "out", pooling="max"),
            "pooling='max'",
        ),
        "load_documents of bytes": (lambda: load_documents(b"text"), "b'text' is no source of text"),
        "load_documents of numbers": (lambda: load_documents([1, 2]), "neither a string nor a mapping"),
        "load_documents of text and numbers": (
            lambda: load_documents([{"text": "a"}, {"text": 5}]),
            "the corpus row 2 holds no text in 'text'",
        ),
        "load_documents of a path with a NUL byte": (lambda: load_documents("a\0b.txt"), r"a\x00b.txt does not exist"),
        "load_documents of a path that is too long": (lambda: load_documents("/" + "a" * 5000), "File name too long"),
        **{
            f"RetroMAEConfig({_written(fields)})": (lambda fields=fields: RetroMAEConfig(**fields), subject)
            for fields, subject in CONFIGS
        },
    }


def main() -> int:
    """Try all of them; the exit status is 1 where one gets anything but a sentence."""
    quiet()
    results = attempt_all()
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    wrong = [result for result in results if not result["told"]]
    print(f"\n{conditions(results)} The list is in {OUTPUT}.")
    print("".join(f"NOT TOLD: {result['input']}: {result['sentence']}\n" for result in wrong), end="")
    return int(bool(wrong))


def quiet() -> None:
    """Leave the terminal to the list."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    disable_progress_bar()


def attempt_all() -> list[dict[str, Any]]:
    """Every input with what came of it: `wrong`, `input`, `sentence`, and `told`, whether that is one about it.

    The last entry is about code: whether any of the models' code ran.
    """
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder).resolve()
        names = bad_places.make(here)
        cases = [
            (wrong, f"retromae-hf {line}", functools.partial(_run, line, names), subject)
            for wrong, line, subject in COMMANDS
        ]
        cases += [(wrong, wrong, call, subject) for wrong, (call, subject) in python_cases(here, names["run"]).items()]
        results = []
        for wrong, tried, call, subject in cases:
            shutil.rmtree(here / "out", ignore_errors=True)  # so that no run stands in the way of the next one
            told = _told(call, subject.replace("{here}", str(here)))
            told["sentence"] = told["sentence"].replace(str(here), "{here}")
            results.append({"wrong": wrong, "input": tried, **told})
        ran = os.path.exists(here / bad_places.CANARY)
    sentence = "code of a model ran" if ran else "none of the code in these models ran"
    return [*results, {"wrong": "code in all of these models", "input": "", "sentence": sentence, "told": not ran}]


def _run(line: str, names: dict[str, Any]) -> None:
    """A command line; its error is raised again as it was printed."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        status = command([part.format(**names).strip("'") for part in line.split()])
    said = errors.getvalue().strip().splitlines()
    if status == 2 and said and said[-1].startswith("retromae-hf: error: "):
        raise RetroMAEError(said[-1].removeprefix(PREFIX))


def _told(call: Callable[[], Any], subject: str) -> dict[str, Any]:
    """What came of a call, and whether it was told: by one sentence, with the subject in it."""
    try:
        call()
    except RetroMAEError as error:
        sentence = str(error)
        return {"sentence": sentence, "told": subject in sentence and "\n" not in sentence}
    except (Exception, SystemExit) as error:
        return {"sentence": f"{type(error).__name__}: {error}", "told": False}
    return {"sentence": "accepted", "told": False}


def _written(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in fields.items())


def table(results: list[dict[str, Any]]) -> str:
    """The list as Markdown."""
    lines = ["| what is wrong | input | the sentence |", "|---|---|---|"]
    lines += [
        f"| {result['wrong']} | {_code(result['input'])} | {result['sentence'].replace('|', '&#124;')} |"
        for result in results
    ]
    return "\n".join(lines)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def conditions(results: list[dict[str, Any]]) -> str:
    """How many there are, and how many got their sentence."""
    return f"{len(results)} entries, {sum(result['told'] for result in results)} as they should be."


def page(results: list[dict[str, Any]]) -> str:
    """The list as a page."""
    return (
        "# Bad inputs, and the sentence that each gets\n\nWritten by `examples/measure/publish.py` from what "
        f"`python examples/measure/bad_inputs.py` found. {conditions(results)}\n\n{table(results)}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
