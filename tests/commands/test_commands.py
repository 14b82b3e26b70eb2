"""The commands as a user types them."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path

import pytest
import yaml
from conftest import CHINESE_TEXTS, ROOT, write_beir
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SparseEncoder
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from retromae_hf import RetroMAEError, load_documents, tokenize_passages
from retromae_hf.arguments.finetuning import FinetuneArguments
from retromae_hf.arguments.pretraining import MODEL_OPTIONS, TextSource
from retromae_hf.commands.common import command, parse, read_recipe
from retromae_hf.commands.main import COMMANDS, main
from retromae_hf.retrieval.evaluation import format_table

RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))
FAST = "--use_cpu --disable_tqdm true --hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --vocab_size 200"


def run(line: str) -> int:
    return main(line.split())


def exported(folder: Path) -> SentenceTransformer:
    """The encoder of a run, through the command."""
    assert run(f"export --model_name_or_path {folder} --output_dir {folder}/encoder") == 0
    return SentenceTransformer(str(folder / "encoder"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, texts):
    file = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    file.write_text("\n".join(texts), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, corpus):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert (
        run(f"pretrain --dataset {corpus} --output_dir {folder} --max_length 32 --max_steps 6 --eval_steps 3 {FAST}")
        == 0
    )
    return folder


def test_pretrain_leaves_a_checkpoint_and_its_logs(checkpoint):
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    logged = {name for entry in state["log_history"] for name in entry}
    assert {"eval_loss", "eval_ndcg@10", "eval_mrr@10", "eval_recall@100", "eval_embedding_gap"} <= logged
    assert (checkpoint / "model.safetensors").is_file()
    assert (checkpoint / "tokenizer.json").is_file()


def test_export_evaluate_and_search(checkpoint, tmp_path, capsys, monkeypatch, texts):
    encoder = tmp_path / "encoder"
    assert run(f"export --model_name_or_path {checkpoint} --output_dir {encoder}") == 0
    assert SentenceTransformer(str(encoder)).encode("hello").shape == (32,)
    task = write_beir(tmp_path / "task")
    results = []
    for model in (encoder, checkpoint, "bm25"):
        output = tmp_path / "results" / "results.json"
        assert run(f"evaluate --model_name_or_path {model} --dataset {task} --output {output}") == 0
        results.append(json.loads(output.read_text()))
    measured = [result["tasks"]["task"]["measures"] for result in results]
    assert all({"ndcg@10", "mrr@10", "recall@100", "map@100"} == measures.keys() for measures in measured)
    assert measured[0] == measured[1]
    assert measured[2]["mrr@10"] == 1.0
    documents = Dataset.from_dict({"name": [f"zoo.Animal{i}" for i in range(9)] + ["zoo._hidden"], "text": texts[:10]})
    monkeypatch.setattr("retromae_hf.data.documents.load_pydocs", lambda num_proc: documents)
    capsys.readouterr()
    for _ in range(2):  # the second time from the cache
        assert main(["search", str(encoder), "a quick fox", "--top", "3"]) == 0
        listed = capsys.readouterr().out
        assert listed.count("zoo.Animal") == 3
        assert "zoo._hidden" not in listed


def test_searching_a_corpus_of_ones_own(checkpoint, tmp_path, capsys, texts):
    rows = [{"title": f"Passage {number}" if number else None, "text": text} for number, text in enumerate(texts[:5])]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["search", str(checkpoint), texts[0], "--dataset", str(tmp_path / "texts.jsonl"), "--top", "9"]) == 0
    first, *_ = listed = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()[::2]]
    assert first == "document 1"  # it has no title
    assert sorted(listed[1:]) == ["Passage 1", "Passage 2", "Passage 3", "Passage 4"]
    line = ["search", str(checkpoint), "foxes wander", "--dataset", str(tmp_path / "texts.jsonl"), "--hybrid", "true"]
    assert main(line) == 0
    assert "(ranks: model " in capsys.readouterr().out


def test_evaluating_on_several_tasks_with_all_that_there_is(encoder_folder, tmp_path, capsys):
    tasks = [write_beir(tmp_path / name) for name in ("one", "other")]
    line = f"evaluate --model_name_or_path {encoder_folder} --dataset {tasks[0]} {tasks[1]} --bm25 true --search exact"
    line += f" --run_dir {tmp_path}/runs --embeddings_dir {tmp_path}/embeddings --output {tmp_path}/results.json"
    assert run(line) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert capsys.readouterr().out == f"{format_table(results)}\n\nThe results as JSON: {tmp_path}/results.json\n"
    assert list(results["tasks"]) == ["one", "other"]
    assert results["tasks"]["one"]["measures"] == results["tasks"]["other"]["measures"]
    assert results["tasks"]["one"]["bm25"]["measures"]["mrr@10"] == 1.0
    runs = {f"{task}-{ranking}.trec" for task in ("one", "other") for ranking in ("dense", "bm25", "hybrid")}
    assert {file.name for file in (tmp_path / "runs").iterdir()} == runs


def test_a_sample_and_how_to_keep_what_is_printed(tmp_path, capsys):
    assert run(f"evaluate --model_name_or_path bm25 --dataset {write_beir(tmp_path / 'task')} --max_documents 2") == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == "task: 1 queries, 2 documents, a sample (--max_documents 2)"
    assert last == "--output FILE keeps the results as JSON."


def test_a_recipe_and_flags_that_go_before_it(corpus, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"dataset: {corpus}\noutput_dir: {tmp_path / 'run'}\nmax_length: 32\nlearning_rate: 1e-3\nmax_steps: 9\n"
        "eval_strategy: 'no'\ndecoding: basic\n"
    )
    assert run(f"pretrain {recipe} --max_steps 2 --logging_steps 1 {FAST}") == 0
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["max_steps"] == 2
    assert state["log_history"][0]["learning_rate"] <= 1e-3
    assert json.loads((tmp_path / "run" / "config.json").read_text())["decoding"] == "basic"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_the_recipes(recipe, corpus, tmp_path):
    line = f"pretrain {recipe} --dataset {corpus} --output_dir {tmp_path} --max_length 32 --max_steps 2"
    assert run(f"{line} --logging_steps 1 --eval_steps 2 {FAST}") == 0
    config = json.loads((tmp_path / "config.json").read_text())
    for name, value in yaml.safe_load(recipe.read_text()).items():
        if name in MODEL_OPTIONS:
            assert config[name] == value
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    losses, measured = log[2], {name for entry in log for name in entry}
    assert [entry["step"] for entry in log[:3]] == [0, 0, 1]
    assert ("decoder_loss" in losses) == (config["decoding"] != "none")
    assert ("bow_loss" in losses) == (config["bow_loss_weight"] > 0)
    assert ("pair_loss" in losses) == (config["pair_objective"] in ("nsp", "sop"))
    assert ("contrast_loss" in losses) == (config["pair_objective"] == "contrast")
    assert ("eval_embedding_gap" in measured) == (config["decoding"] != "none")
    assert ("eval_pair_accuracy" in measured) == (config["pair_objective"] in ("nsp", "sop"))
    assert {"eval_loss", "eval_ndcg@10"} <= measured


@pytest.mark.parametrize(
    ("family", "tokenizer_type", "lowercase"),
    [("modernbert", "bpe", "false"), ("albert", "unigram", "true"), ("deberta-v2", "wordpiece", "false")],
)
def test_from_scratch_with_any_family_and_tokenizer(corpus, tmp_path, family, tokenizer_type, lowercase):
    line = f"pretrain --dataset {corpus} --output_dir {tmp_path}/run --max_length 48 --max_steps 2 {FAST}"
    line = line.replace("--vocab_size 200", "--vocab_size 300")
    options = f"--config_name {family} --tokenizer_type {tokenizer_type} --lowercase {lowercase} --whole_word_mask true"
    assert run(f"{line} {options} --eval_strategy no") == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["encoder_config"]["model_type"] == family
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert (tokenizer("The Fox")["input_ids"] == tokenizer("the fox")["input_ids"]) == (lowercase == "true")
    assert exported(tmp_path / "run").encode("the fox").shape == (32,)


def test_from_scratch_with_the_configuration_of_another_model(corpus, encoder_folder, tmp_path):
    line = f"pretrain --dataset {corpus} --output_dir {tmp_path} --config_name {encoder_folder} --max_length 32"
    line += " --max_steps 1 --num_hidden_layers 1 --vocab_size 150 --use_cpu --disable_tqdm true --eval_strategy no"
    assert run(line) == 0
    config = json.loads((tmp_path / "config.json").read_text())["encoder_config"]
    assert (config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]) == (32, 1, 150)


def test_chinese_end_to_end(tmp_path):
    """A vocabulary of characters, sentences cut at full-width stops, words masked as a whole."""
    (tmp_path / "corpus.txt").write_text("\n".join(CHINESE_TEXTS * 2), encoding="utf-8")
    line = f"pretrain --dataset {tmp_path}/corpus.txt --output_dir {tmp_path}/run --max_length 24 --max_steps 4 {FAST}"
    line += " --preprocessing_num_workers 2"
    assert run(f"{line} --whole_word_mask true --segment_chinese true --eval_steps 2 --logging_steps 1") == 0
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert any("eval_embedding_gap" in entry for entry in state["log_history"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert tokenizer.tokenize("我们学习。") == ["我", "们", "学", "习", "。"]
    passages = tokenize_passages(load_documents(tmp_path / "corpus.txt"), tokenizer, 24)
    assert {tokenizer.decode(row["input_ids"][-2]) for row in passages} <= {"。", "！", "？"}
    assert exported(tmp_path / "run").encode("北京大学").shape == (32,)


def test_longer_passages_than_the_encoder_was_made_for(corpus, encoder_folder, tmp_path):
    line = f"pretrain --dataset {corpus} --model_name_or_path {encoder_folder} --output_dir {tmp_path}/run"
    line += " --max_length 64 --extend_positions tile --max_steps 1 --use_cpu --disable_tqdm true --eval_strategy no"
    assert run(line) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())["encoder_config"]
    assert config["position_extension"] == {"from": 32, "to": 64, "method": "tile"}
    assert AutoTokenizer.from_pretrained(tmp_path / "run").model_max_length == 64


def test_the_lexical_half_is_exported_too(corpus, tmp_path, capsys):
    recipe = next(recipe for recipe in RECIPES if recipe.stem == "dupmae")
    line = f"pretrain {recipe} --dataset {corpus} --output_dir {tmp_path}/run --max_length 32 --max_steps 1"
    assert run(f"{line} --eval_strategy no {FAST}") == 0
    capsys.readouterr()
    assert run(f"export --model_name_or_path {tmp_path}/run --output_dir {tmp_path}/sparse --sparse true") == 0
    assert "SparseEncoder" in capsys.readouterr().out
    assert SparseEncoder(str(tmp_path / "sparse")).encode("the fox").shape == (200,)


def test_a_run_goes_on_with_its_own_tokenizer_and_decoder(corpus, checkpoint, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    resumed = f"pretrain --dataset {corpus} --output_dir {checkpoint} --max_length 32 --resume_from_checkpoint true"
    assert run(f"{resumed} --max_steps 8 {FAST}") == 0
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == 8
    assert "missing keys" not in caplog.text  # tied weights lie in a checkpoint once
    further = f"pretrain --dataset {corpus} --model_name_or_path {checkpoint} --output_dir {tmp_path / 'more'}"
    assert run(f"{further} --max_length 32 --max_steps 2 --decoder_mask_ratio 0.7 --use_cpu --disable_tqdm true") == 0
    assert json.loads((tmp_path / "more" / "config.json").read_text())["decoder_mask_ratio"] == 0.7


@pytest.fixture
def tiny_pydocs(monkeypatch, texts):
    documents = Dataset.from_dict({"name": [f"zoo.name{i}" for i in range(len(texts))], "text": texts})
    monkeypatch.setattr("retromae_hf.data.held_out.load_pydocs", lambda num_proc: documents)
    monkeypatch.setattr("retromae_hf.data.held_out._of_pydocs", [])


def test_pydocs_and_a_plain_encoder(encoder_folder, tmp_path, tiny_pydocs):
    command = f"pretrain --dataset pydocs --model_name_or_path {encoder_folder} --output_dir {tmp_path / 'run'}"
    assert run(f"{command} --max_length 32 --max_steps 2 --use_cpu --disable_tqdm true") == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["encoder_config"]["hidden_size"] == 32
    assert run(f"evaluate --model_name_or_path {tmp_path / 'run'} --dataset pydocs") == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_complete(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(f"{command} --help")
    assert stopped.value.code == 0
    help_text = capsys.readouterr().out
    assert f"retromae-hf {command}" in help_text
    assert (help_text.count("--") > 2) == ("[flags]" in help_text) == (command != "convert")
    # A flag is named once, though it may be typed with hyphens too, and there is no default where there is none.
    assert [line for line in help_text.splitlines() if line.startswith("  --") and ", --" in line] == []
    assert "(default: None)" not in " ".join(help_text.split())


def test_help_says_what_is_required_and_what_the_default_is(capsys):
    with pytest.raises(SystemExit):
        run("explain --help")
    help_text = capsys.readouterr().out
    assert help_text.count("(required)") == 2
    assert "--visible VISIBLE" in help_text
    assert "(default: 0.0)" in help_text


def test_what_is_logged_stands_on_a_line_of_its_own(capsys):
    @command
    def half_done(argv: list[str] | None) -> None:
        with tqdm(total=2) as bar:
            bar.update()
            logging.getLogger("retromae_hf.training.health").warning("the loss is strange")

    assert half_done() == 0
    assert "the loss is strange" in re.split(r"[\r\n]", capsys.readouterr().err)


def test_the_list_of_commands(capsys):
    assert main([]) == main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {command} " in listed for command in COMMANDS)
    assert run("fly") == 2
    assert "no command 'fly'" in capsys.readouterr().err


def test_lists_of_numbers_in_a_recipe_are_numbers(tmp_path):
    """They arrived as text, which is not comparable with a number."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dataset: [a, b]\ndataset_weights: [0.7, 0.3]\n")
    (arguments,) = parse("pretrain", "", [TextSource], [str(recipe)])
    assert arguments.dataset_weights == [0.7, 0.3]
    recipe.write_text("matryoshka_dims: [64, 32]\nmodel_name_or_path: x\ndataset: y\n")
    (arguments,) = parse("finetune", "", [FinetuneArguments], [str(recipe), "--matryoshka-dims", "16"])
    assert arguments.matryoshka_dims == [16]


def test_a_recipe_may_have_aliases_but_not_as_many_as_fill_the_memory(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: &base {max_steps: 3}\nother: {<<: *base, seed: 1}\nagain: *base\n")
    assert read_recipe(str(recipe))["other"] == {"max_steps": 3, "seed": 1}
    recipe.write_text("\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]))
    with pytest.raises(RetroMAEError, match="holds 78 aliases; write the values out"):
        read_recipe(str(recipe))


def test_other_columns_of_a_corpus_do_not_matter(texts, tmp_path):
    rows = [{"text": text, "name": None, "id": index} for index, text in enumerate(texts[:20])]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = f"pretrain --dataset {tmp_path}/corpus.jsonl --output_dir {tmp_path}/run --max_length 32 --max_steps 1"
    assert run(f"{line} {FAST}") == 0


def test_overwriting_starts_anew_but_only_when_nothing_is_wrong(corpus, tmp_path, capsys):
    line = f"pretrain --dataset {corpus} --output_dir {tmp_path} --max_length 32 {FAST}"
    assert run(f"{line} --max_steps 4 --save_steps 2") == 0
    assert run(f"{line} --overwrite_output_dir --encoder_mask_ratio 2") == 2
    assert run(f"{line} --overwrite_output_dir --dataset {tmp_path}/typo.txt") == 2
    assert run(f"{line} --overwrite_output_dir --model_name_or_path {tmp_path}/checkpoint-4") == 2
    assert "that is to be overwritten" in capsys.readouterr().err
    assert sorted(folder.name for folder in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert run(f"{line} --max_steps 1 --overwrite_output_dir") == 0
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


def test_a_flag_may_be_cut_short_and_typed_with_hyphens(corpus, tmp_path, capsys):
    assert run(f"pretrain --dataset {corpus} --model no-such-model --output-dir {tmp_path}/run {FAST}") == 2
    assert "no-such-model" in capsys.readouterr().err
    assert run(f"pretrain --dataset {corpus} --eval steps") == 2
    assert "--eval could match" in capsys.readouterr().err


def test_what_an_argument_needs_is_told_before_the_text_is_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("retromae_hf.training.pretraining.read_text", lambda *_: pytest.fail("the text was read"))
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    for option in ("--report_to wandb", "--optim adamw_bnb_8bit"):
        assert run(f"pretrain --dataset texts.jsonl --output_dir {tmp_path}/run {option} --use_cpu true") == 2
        assert "pip install" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "extra"), [("sentence_transformers", "retrieval"), ("matplotlib", "plot")])
def test_compare_names_a_missing_extra_before_it_begins(module, extra, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert run(f"compare {ROOT}/examples/recipes/compare/compare-cpu.yaml --output_dir {tmp_path}/out") == 2
    assert f"compare needs the package {module}; pip install 'retromae-hf[{extra}]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
