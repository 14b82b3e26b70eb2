"""What a run starts from decides on what it is told and on its default learning rate."""

from __future__ import annotations

import pytest
from transformers import TrainingArguments

from retromae_hf.arguments.pretraining import DEFAULT_TRAINING_ARGUMENTS, Cutting, Masking, StartArguments, TextSource
from retromae_hf.commands.pretrain import main
from retromae_hf.model.errors import RetroMAEError
from retromae_hf.training import pretraining


@pytest.fixture
def rate_of(tmp_path, monkeypatch):
    """The learning rate of a run that ends before anything is read."""
    rates = []

    def begin_run(args, *others):
        rates.append(args.learning_rate)
        raise RetroMAEError("seen enough")

    monkeypatch.setattr(pretraining, "begin_run", begin_run)

    def rate(*flags: str) -> float:
        line = f"--dataset pydocs --output_dir {tmp_path}/run --use_cpu --report_to none"
        assert main([*flags, *line.split()]) == 2
        return rates.pop()

    return rate


@pytest.fixture
def tuned(tmp_path) -> str:
    """What tells a stranger's retriever."""
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "modules.json").write_text("[]")
    return str(tmp_path / "tuned")


def test_a_tuned_retriever_is_told_and_trained_at_a_lower_rate_unless_one_is_given(rate_of, tuned, tmp_path, caplog):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learning_rate: 1e-4\n")
    start = ("--model_name_or_path", tuned)
    assert rate_of(*start) == 2e-5
    assert f"usually gives more: retromae-hf finetune --model_name_or_path {tuned}" in caplog.text
    assert rate_of(*start, "--learning_rate", "1e-4") == 1e-4
    assert rate_of(str(recipe), *start) == 1e-4


def test_what_was_not_tuned_keeps_the_papers_way(rate_of, encoder_folder, caplog):
    assert rate_of("--model_name_or_path", encoder_folder) == rate_of() == 1e-4
    assert "tuned" not in caplog.text


def test_a_comparison_trains_every_start_at_one_rate(tuned, tmp_path, monkeypatch):
    """It calls the function with a rate, as anybody may who wants a rate of his own."""
    arguments = DEFAULT_TRAINING_ARGUMENTS | {"learning_rate": 1e-4}
    args = TrainingArguments(str(tmp_path / "run"), use_cpu=True, **arguments)
    monkeypatch.setattr(pretraining, "begin_run", lambda *unused: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pretraining.pretrain(TextSource("pydocs"), Cutting(), Masking(), StartArguments(tuned), args)
    assert args.learning_rate == 1e-4
