"""`make soak`: kill a small run again and again, start the same command again, and compare its end with an uncut one's.

Each scenario first runs uncut. Then it is started, cut at a random moment (mostly with SIGKILL, sometimes with
SIGTERM), and started again with the same command, until it has been cut the given number of times; then it may end.
The weights must equal the uncut run's bit for bit, no restart may lie behind the last whole checkpoint, and no half
checkpoint may be left. Prints a table and writes runs/soak.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file
from tqdm.auto import tqdm

from retromae_hf import load_documents
from retromae_hf.data.tokenizers import train_wordpiece
from retromae_hf.training.saving import checkpoints, is_complete, last_complete_checkpoint, step_of

OUTPUT = Path("runs/soak.json")
SHARE_OF_SIGTERM = 0.2
LONGEST_END = 120  # seconds after SIGTERM
RUN = (
    "pretrain --use_cpu --disable_tqdm true --hidden_size 64 --num_hidden_layers 2 --num_attention_heads 4 "
    "--max_length 32 --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --max_steps 120 "
    "--save_steps 3 --save_total_limit 2 --eval_steps 10 --logging_steps 5 --dev_queries 20 --dataloader_num_workers 2"
)
MAP_STYLE = f"-m retromae_hf.commands.main {RUN}"
SCENARIOS = {
    "map-style, 2 workers": f"{MAP_STYLE} --vocab_size 400",
    "a stream, 2 workers": f"{MAP_STYLE} --streaming true --tokenizer_name TOKENIZER",
    "two processes": f"-m torch.distributed.run --standalone --nproc_per_node 2 {MAP_STYLE} --vocab_size 400",
}


def main(argv: list[str] | None = None) -> int:
    """Soak every scenario; the exit status is 1 where one does not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, nargs="+", default=[10, 5, 5], help="how often each scenario is cut")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(argv)
    moments, results = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as folder:
        corpus, tokenizer = write_corpus(Path(folder) / "corpus"), Path(folder) / "tokenizer"
        train_wordpiece(load_documents(str(corpus))["text"], 400, 32).save_pretrained(tokenizer)
        for (name, line), kills in zip(SCENARIOS.items(), options.kills, strict=False):
            work = Path(folder) / f"scenario-{len(results)}"
            work.mkdir()
            arguments = f"{line} --dataset {corpus}".replace("TOKENIZER", str(tokenizer)).split()
            results.append({"scenario": name, **soak(arguments, work, kills, moments, name)})
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    return 0 if all(result["as_uncut"] for result in results) else 1


def soak(arguments: list[str], work: Path, kills: int, moments: random.Random, name: str) -> dict[str, Any]:
    """Cut a run `kills` times, let it end, and compare it with an uncut one."""
    started = time.monotonic()
    uncut, cut, log = work / "uncut", work / "cut", work / "log.txt"
    finish(arguments, uncut, log)
    halves = lost = terminated = reached = 0
    for _ in tqdm(range(kills), desc=f"Cutting: {name}", unit="cut"):
        number = signal.SIGTERM if moments.random() < SHARE_OF_SIGTERM else signal.SIGKILL
        terminated += number == signal.SIGTERM
        cut_once(arguments, cut, log, number, moments)
        halves += sum(not is_complete(folder) for folder in checkpoints(cut))
        last = last_complete_checkpoint(cut)
        step = 0 if last is None else step_of(last)
        lost += step < reached
        reached = step
    finish(arguments, cut, log)
    return {
        "cuts": kills,
        "by_sigterm": terminated,
        "half_checkpoints_met": halves,
        "as_uncut": same_weights(uncut, cut) and not lost and all(map(is_complete, checkpoints(cut))),
        "seconds": round(time.monotonic() - started),
    }


def cut_once(arguments: list[str], output: Path, log: Path, number: signal.Signals, moments: random.Random) -> None:
    """Start the run, let it write some checkpoints, and end it with a signal at a random moment."""
    wanted, pause = moments.randrange(3), moments.random()
    before = {folder.name for folder in checkpoints(output)}
    with start(arguments, output, log) as process:
        seen: set[str] = set()
        while len(seen) < wanted and process.poll() is None:
            seen |= {folder.name for folder in checkpoints(output)} - before
            time.sleep(0.001)
        time.sleep(pause * (6 if wanted == 0 else 0.3))
        if process.poll() is not None:
            raise RuntimeError(f"the run ended before it was cut; give it more steps: {log.read_text()[-2000:]}")
        if number == signal.SIGTERM:
            process.send_signal(number)  # as a cluster does, to the one that it has started
            process.wait(timeout=LONGEST_END)
        else:
            kill_all(process)


def kill_all(process: subprocess.Popen) -> None:
    """Kill a process and all that it has started: a launcher's processes are groups of their own and would live on."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.suspend()
    for member in family:
        member.kill()
    psutil.wait_procs(family)
    process.wait()


def start(arguments: list[str], output: Path, log: Path) -> subprocess.Popen:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, *arguments, "--output_dir", str(output)]
    with log.open("a") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)


def finish(arguments: list[str], output: Path, log: Path) -> None:
    with start(arguments, output, log) as process:
        if process.wait() != 0:
            raise RuntimeError(f"the run failed: {log.read_text()[-2000:]}")


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def write_corpus(folder: Path) -> Path:
    """A folder with some files of made-up sentences, a few hundred documents in all."""
    words = ("fox", "heron", "otter", "wolf"), ("waits", "runs", "sleeps"), ("river", "tower", "wood")
    draw = random.Random(0)
    sentences = ["The {} {} at the {} {}.".format(*map(draw.choice, words), number) for number in range(2400)]
    documents = [" ".join(sentences[start : start + 4]) for start in range(0, len(sentences), 4)]
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.txt").write_text("\n".join(documents[number::8]), encoding="utf-8")
    return folder


def table(results: list[dict[str, Any]]) -> str:
    rows = [
        f"| {one['scenario']} | {one['cuts']} | {one['by_sigterm']} | {one['half_checkpoints_met']} | "
        f"{'bit for bit' if one['as_uncut'] else 'NO'} |"
        for one in results
    ]
    head = "| run | cuts | by SIGTERM | half checkpoints met | ends as the uncut run |"
    return "\n".join([head, "|---|---|---|---|---|", *rows])


if __name__ == "__main__":
    sys.exit(main())
