"""The one way from flags, recipes and other mappings to dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from transformers.trainer_utils import IntervalStrategy

from retromae_hf import RetroMAEError
from retromae_hf.arguments.filling import fill


@dataclass
class Arguments:
    """One field of each kind."""

    output_dir: str = ""
    max_steps: int = 1
    learning_rate: float = 0.1
    use_cpu: bool = False
    tokens_seen: str | bool = "no"
    max_documents: int | None = None
    dataset_weights: list[float] | None = None
    dims: list[int] = field(default_factory=list)
    report_to: str | list[str] | None = None
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    eval_strategy: IntervalStrategy | str = "no"

    def __post_init__(self) -> None:
        if self.max_steps < 0:
            raise ValueError("max_steps must\nbe at least 0")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("output_dir", 2024, "2024"),
        ("max_steps", "3", 3),
        ("learning_rate", "1e-3", 0.001),  # YAML takes it for text
        ("learning_rate", 1, 1.0),
        ("use_cpu", "Yes", True),
        ("use_cpu", 0, False),
        ("tokens_seen", "non_padding", "non_padding"),
        ("tokens_seen", "true", True),
        ("max_documents", "5", 5),
        ("max_documents", None, None),
        ("dataset_weights", ["0.7", 1], [0.7, 1.0]),
        ("dims", 64, [64]),
        ("report_to", "wandb", "wandb"),
        ("report_to", ["wandb", "tensorboard"], ["wandb", "tensorboard"]),
        ("options", {1: {"x": [1]}}, {"1": {"x": [1]}}),
        ("eval_strategy", "steps", "steps"),
    ],
)
def test_a_value_is_converted_to_its_fields_type(name, value, expected):
    (filled,) = fill({name: value}, [Arguments], "here")
    assert getattr(filled, name) == expected
    assert type(getattr(filled, name)) is type(expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_steps": 16.5}, "here: max_steps=16.5 must be a whole number"),
        ({"max_steps": [1]}, r"max_steps=\[1\] must be a whole number"),
        ({"learning_rate": {"x": 1}}, "must be a number"),
        ({"use_cpu": "perhaps"}, "use_cpu='perhaps' must be true or false"),
        ({"dataset_weights": [0.7, "much"]}, "must be a list, each item a number"),
        ({"options": {"mlm": 5}}, "must be a mapping"),
        ({"max_steps": -1}, "here: max_steps must be at least 0"),
        ({"colour": 1, "taste": 2}, "here: unknown arguments: colour, taste; see --help"),
        ({"evaluation_strategy": "no"}, "evaluation_strategy is --eval_strategy; see --help"),
    ],
)
def test_what_is_not_accepted_is_named(values, message):
    with pytest.raises(RetroMAEError, match=message):
        fill(values, [Arguments], "here")


def test_each_dataclass_gets_its_own_and_what_is_missing_is_named():
    @dataclass
    class Required:
        dataset: str

    filled = fill({"dataset": "x", "max_steps": 2}, [Required, Arguments], "")
    assert (filled[0].dataset, filled[1].max_steps) == ("x", 2)
    with pytest.raises(RetroMAEError, match="dataset must be given"):
        fill({"dataset": None}, [Required], "")
