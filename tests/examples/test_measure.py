"""What measures us, and what attacks us: in small, each runs to its end, and it sees what it is for."""

from __future__ import annotations

import json
from pathlib import Path

import benchmark
import benchmark_report
import choosing
import gpu_report
import padding
import pytest
import soak
import step_profile
import stream_memory
import torch
from conftest import ROOT
from datasets import Dataset
from torch.nn.functional import scaled_dot_product_attention

from retromae_hf.model.losses import linear_cross_entropy
from retromae_hf.training.saving import MANIFEST

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def small_words(monkeypatch, texts):
    for module in (benchmark, gpu_report):
        monkeypatch.setattr(module, "VOCAB_SIZE", 300)
    for module in (benchmark_report, gpu_report):
        monkeypatch.setattr(module, "load_pydocs", lambda: Dataset.from_dict({"text": texts}))


def test_the_benchmark(small_words, tmp_path, capsys):
    output = tmp_path / "results" / "benchmark.json"
    line = f"--shape tiny --lengths 16 32 --tokens_per_batch 64 --rounds 1 --device cpu --output {output}"
    benchmark.main([*line.split(), "--parts", "collator", "step", "trainer", "profile"])
    report = json.loads(output.read_text())
    assert report["command"].startswith(f"python examples/measure/benchmark.py {line}")
    shown = capsys.readouterr().out
    assert benchmark_report.show(report) in shown
    assert "| profile, 16 tokens | seconds, decoder |" in shown
    assert [row["batch_size"] for row in report["step"]] == [4, 2]
    for row in report["step"]:
        assert row["flops"]["retromae"] > 0
        assert row["seconds"].keys() == row["utilisation"].keys() == {"retromae", "mlm"}
    for row in report["collator"]:
        # Ids and labels of encoder and decoder, without padding no mask, and two integers a passage.
        assert row["bytes_per_passage"]["retromae"] == 4 * 4 * row["length"] + 2 * 8
    for row in report["trainer"]:
        assert 0 <= row["padding_share"] < 0.5
        assert min(row["tokens_per_second"], row["utilisation"]) > 0
    for row in report["profile"]:
        ours, plain = (row["seconds_by_part"][side] for side in ("retromae", "mlm"))
        assert [*ours] == [*step_profile.PARTS, "optimizer", "rest"]
        assert [*plain] == [part for part in ours if part not in ("visibility mask", "decoder")]


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
    assert benchmark.count_flops(lambda: scaled_dot_product_attention(*states)) == 2 * product
    # Scores once more, and the gradients of weights, values, queries and keys.
    step = lambda: scaled_dot_product_attention(*states).sum().backward()  # noqa: E731
    assert benchmark.count_flops(step) == (2 + 5) * product


def test_both_sides_take_turns():
    order: list[str] = []
    benchmark.take_turns({name: lambda name=name: order.append(name) for name in "ab"}, rounds=2, what="", repeat=2)
    assert "".join(order) == "ab" + "aabb" * 2


def test_the_gpu_report_runs_to_its_end_with_tiny_shapes(small_words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_report, "ATTENTION", ("sdpa", "flash_attention_2"))
    monkeypatch.setattr(benchmark, "measure_matmul", lambda setting: 1e9)
    monkeypatch.setattr(benchmark, "measure_memory", lambda setting, length: {})
    output = tmp_path / "out" / "report.json"
    gpu_report.main(["--tiny", "--device", "cpu", "--rounds", "1", "--output", str(output)])
    parts = json.loads(output.read_text())["parts"]
    assert benchmark_report.table(parts) in capsys.readouterr().out
    missing = [name for name, part in parts.items() if "refused" in part]
    assert all("flash" in name or "Liger" in name for name in missing), missing
    assert parts["waits"] == {"waits": 0}
    assert parts["step 16"]["tokens_per_second"].keys() == {"retromae", "mlm"}
    assert parts["ModernBERT 64, sdpa"]["utilisation"] > 0
    random, grouped = (
        parts[f"Trainer 16, {order}"]["padding_share"] for order in ("in random order", "grouped by length")
    )
    assert grouped <= random


STAND_IN = """
import json, os, sys, time
from pathlib import Path
import numpy
from safetensors.numpy import save_file

goes_on, output = sys.argv[1] == "goes-on", Path(sys.argv[-1])
output.mkdir(exist_ok=True)
done = sorted(int(file.parent.name.split("-")[1]) for file in output.glob("checkpoint-*/MANIFEST"))
last = done[-1] if goes_on and done else 0
weight = float((output / f"checkpoint-{last}" / "weight").read_text()) if last else 0.0 if goes_on else os.getpid() % 97
for step in range(last + 1, 41):
    time.sleep(0.05)
    weight = 0.5 * weight + step
    folder = output / f"checkpoint-{step}"
    folder.mkdir(exist_ok=True)
    (folder / "weight").write_text(repr(weight))
    (folder / "aside").write_text(json.dumps({"resumable": True, "files": {}}))
    (folder / "aside").rename(folder / "MANIFEST")
save_file({"weight": numpy.array([weight])}, output / "model.safetensors")
"""
"""A run of `soak` without the training: its weights hang on every step, and on its process where it does not go on."""


@pytest.mark.parametrize(("behaviour", "status"), [("goes-on", 0), ("begins-anew", 1)])
def test_the_soak_tells_a_run_that_goes_on_from_one_that_does_not(behaviour, status, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("stand_in.py").write_text(STAND_IN.replace("MANIFEST", MANIFEST))
    monkeypatch.setattr(soak, "SCENARIOS", {"a stand-in": f"{tmp_path / 'stand_in.py'} {behaviour}"})
    assert soak.main(["--kills", "1"]) == status
    (result,) = json.loads(Path("runs/soak.json").read_text())
    assert result["cuts"] == 1
    assert result["as_uncut"] is (status == 0)
    assert "| a stand-in | 1 |" in capsys.readouterr().out


def test_the_memory_of_a_stream(tmp_path, monkeypatch, capsys):
    # In this process: others would take seconds to start, and only peaks of processes of their own can be compared.
    monkeypatch.setattr(stream_memory, "in_a_process", stream_memory.measure)
    monkeypatch.setattr(stream_memory, "BUFFER_SIZE", 100)
    output = tmp_path / "memory.json"
    stream_memory.main(["--sizes", "1", "2", "--readers", "8", "--output", str(output)])
    report = json.loads(output.read_text())
    assert report["small"]["passages"] == report["large"]["passages"] > report["base"]["passages"] == 0
    assert stream_memory.table(report) in capsys.readouterr().out


def test_padding_is_counted():
    assert padding.share_of_padding([1, 4, 2, 2], [0, 1, 2, 3], 2) == pytest.approx(3 / 12)
    for row in padding.measure(2000)["rows"]:
        assert row["padding_share"]["grouped"] < row["padding_share"]["random"] < 1


def test_the_choice_is_told_by_what_was_measured():
    tuned, crops, scratch = (
        json.loads((ROOT / f"model_cards/{name}/results.json").read_text())
        for name in ("compare-minilm", "compare-minilm-shift", "compare-cpu")
    )
    tuned["objectives"]["untrained"]["finetuned"]["pydocs"]["mrr@10"]["mean"] = 0.987
    crops["objectives"]["longer"]["finetuning_seconds"] = 7 * crops["objectives"]["untrained"]["finetuning_seconds"]
    table = choosing.choices(tuned, scratch, crops)
    assert "0.987 fine-tuned" in table
    assert "in 7 times the seconds" in table
    rows = choosing.normal(scratch).splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:6]] == ["100", "600", "1,100", "1,500"]
