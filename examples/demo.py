"""The main job in minutes on two cores: an encoder that people use, adapted to text without labels, and searched with.

The encoder is all-MiniLM-L6-v2 (see demo_encoder.py), or what DEMO_ENCODER names, a folder or a name on the Hub. The
text is the documentation of the installed torch, the first words of every public name's. Everything is written to
runs/demo; the second run goes on where the first one ended.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from demo_encoder import NAME, demo_encoder

from retromae_hf.commands.adapt import main as adapt
from retromae_hf.data.disk import written_aside
from retromae_hf.data.pydocs import read_docstrings
from retromae_hf.model.errors import RetroMAEError
from retromae_hf.publishing.record import public_name
from retromae_hf.retrieval.search import format_results, load_index

FOLDER = Path("runs/demo")
MINUTES = 3.5
WORDS = 60
QUESTIONS = (
    "split a tensor into chunks",
    "stop training from overfitting by zeroing random activations",
    "load batches of data in several processes",
    "set the learning rate by a cosine schedule",
)


def main() -> int:
    started = time.monotonic()
    try:
        encoder = os.environ.get("DEMO_ENCODER") or str(demo_encoder())
    except RetroMAEError as error:
        sys.exit(f"demo: error: {error}")
    print(f"The encoder: {public_name(encoder) if 'DEMO_ENCODER' in os.environ else NAME}, from {encoder}")
    text = write_text(FOLDER / "torch.jsonl")
    told = ["--model_name_or_path", encoder, "--dataset", str(text), "--output_dir", str(FOLDER / "adapted")]
    if status := adapt([*told, "--minutes", str(MINUTES)]):
        return status
    report = json.loads((FOLDER / "adapted/report.json").read_text(encoding="utf-8"))
    found = load_index(report["encoder"], str(text), hybrid=report["hybrid"]).search(list(QUESTIONS), top=3)
    options = f"--dataset {text}{' --hybrid true' if report['hybrid'] else ''} --top 3"
    searches = [
        {
            "command": f'retromae-hf search {report["encoder"]} "{question}" {options}',
            "output": format_results(results),
        }
        for question, results in zip(QUESTIONS, found, strict=True)
    ]
    for one in searches:
        print(f"\n$ {one['command']}\n{one['output']}")
    seconds = round(time.monotonic() - started)
    del report["other"]  # a path of this machine
    report |= {"searches": searches, "seconds": seconds, "torch": torch.__version__}
    report |= {"device": "GPU" if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"}
    (FOLDER / "results.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"\nAll of it took {seconds} s; the figures are in {FOLDER}/results.json.")
    return 0


def write_text(file: Path) -> Path:
    """The documentation of torch's public names as JSON lines, which another run finds."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(file) as aside:
            lines = [json.dumps({"name": name, "text": text}) for name, text in documented(Path(torch.__file__).parent)]
            aside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def documented(package: Path) -> Iterator[tuple[str, str]]:
    """Public names of a package, and the first words of what is said of them."""
    for path in sorted(package.rglob("*.py")):
        for name, text in read_docstrings(path, package.parent):
            if "._" not in f".{name}" and len(text.split()) >= 5:
                yield name, first_words(text)


def first_words(text: str) -> str:
    """The lines of a text in which its first `WORDS` words stand."""
    kept, words = [], 0
    for line in text.splitlines():
        kept.append(line)
        words += len(line.split())
        if words >= WORDS:
            break
    return "\n".join(kept)


def table(results: dict) -> str:
    machine = f"{results['device']}, torch {results['torch']}, {results['seconds']} s in all."
    return f"{results['verdict']}.\n\n{results['table']} {machine}"


def answers(results: dict) -> str:
    """The questions with their answers, as a terminal shows them."""
    return "\n\n".join(f"$ {one['command']}\n{one['output']}" for one in results["searches"])


if __name__ == "__main__":
    sys.exit(main())
