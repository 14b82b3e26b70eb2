"""The benchmark measures both sides on the same rows and says so."""

from __future__ import annotations

import json
import sys

import benchmark
import pytest
import step_profile
import torch
from benchmark_report import table
from datasets import Dataset
from torch.nn.functional import scaled_dot_product_attention

from retromae_hf.model.losses import linear_cross_entropy


@pytest.fixture
def tiny(monkeypatch, texts):
    monkeypatch.setattr(benchmark, "VOCAB_SIZE", 300)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    monkeypatch.setitem(benchmark.SHAPES, "small", shape)
    documents = Dataset.from_dict({"text": texts})
    monkeypatch.setattr("benchmark_report.load_pydocs", lambda: documents)


def test_every_part_is_measured_on_both_sides(tiny, tmp_path, capsys):
    output = tmp_path / "results" / "benchmark.json"
    line = "--lengths 16 32 --tokens_per_batch 64 --rounds 1 --parts collator step trainer --device cpu"
    assert benchmark.main([*line.split(), "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert line in report["command"]
    assert table(report) in capsys.readouterr().out
    assert [row["batch_size"] for row in report["step"]] == [4, 2]
    for row in report["step"]:
        assert row["flops"]["retromae"] > 0
        assert row["seconds"].keys() == row["utilisation"].keys() == {"retromae", "mlm"}
    for row in report["collator"]:
        # Ids and labels of encoder and decoder, without padding no mask, and two integers a passage.
        assert row["bytes_per_passage"]["retromae"] == 4 * 4 * row["length"] + 2 * 8
    for row in report["trainer"]:
        assert 0 <= row["padding_share"] < 0.5
        assert row["tokens_per_second"] > 0


def test_a_profile_tells_every_part(tiny, tmp_path, capsys):
    output = tmp_path / "profile.json"
    line = f"--lengths 16 --tokens_per_batch 64 --rounds 1 --parts profile --device cpu --output {output}"
    assert benchmark.main(line.split()) == 0
    (row,) = json.loads(output.read_text())["profile"]
    ours, plain = (row["seconds_by_part"][side] for side in ("retromae", "mlm"))
    assert [*ours] == [*step_profile.PARTS, "optimizer", "rest"]
    assert [*plain] == [part for part in ours if part not in ("visibility mask", "decoder")]
    assert "| decoder, seconds a step | 16 |" in capsys.readouterr().out


def test_flops_by_hand():
    weight = torch.zeros(5, 7)
    assert benchmark.count_flops(lambda: torch.ones(3, 5) @ weight) == 2 * 3 * 5 * 7
    features, projection = torch.ones(3, 5, requires_grad=True), torch.zeros(7, 5, requires_grad=True)
    labels = torch.tensor([0, 1, 6])
    # The logits, and the gradients of both factors; where one is fixed, its gradient is not made.
    assert benchmark.count_flops(lambda: linear_cross_entropy(features, projection, None, labels)) == 3 * 2 * 3 * 5 * 7
    assert benchmark.count_flops(lambda: linear_cross_entropy(features, weight.T, None, labels)) == 2 * 2 * 3 * 5 * 7
    states = [torch.randn(2, 3, 64, 16, requires_grad=True) for _ in range(3)]
    product = 2 * 2 * 3 * 64 * 64 * 16  # of queries and keys, or of weights and values
    # Scores once more, and the gradients of weights, values, queries and keys.
    step = lambda: scaled_dot_product_attention(*states).sum().backward()  # noqa: E731
    assert benchmark.count_flops(step) == (2 + 5) * product


def test_both_sides_take_turns():
    order: list[str] = []
    benchmark.take_turns({name: lambda name=name: order.append(name) for name in "ab"}, rounds=2, what="", repeat=2)
    assert "".join(order) == "ab" + "aabb" * 2


def test_bad_options_are_one_sentence(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pretense", None)  # as where it is not installed
    for options, message in (
        ("--parts stepp", "unknown entries, stepp"),
        ("--parts profile --compile true --device cpu", "the profile is of a plain step on a CPU"),
        ("--against pretense", "--against pretense needs that package"),
        ("--lengths 4", "the least of lengths=4 must be at least 8"),
    ):
        assert benchmark.main([*options.split(), "--output", str(tmp_path / "out.json")]) == 2
        assert message in capsys.readouterr().err
