"""Pickled weights into safetensors, without running what else a pickle may hold."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from tqdm.auto import tqdm

from ..data.reading.whole_files import folder_written_aside, vacant, written_aside
from ..model.errors import RetroMAEError
from .hub import loading

WEIGHTS = "pytorch_model*.bin"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.pickle")
OTHER_FORMATS = ("*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data", "openvino*")
LEFT_OUT = (*PICKLES, *OTHER_FORMATS, "*.bin.index.json", ".*")
SAFE = "model.safetensors"


def convert(source: str, target: str) -> Path:
    """Write pickled weights as safetensors.

    Args:
        source: a file that `torch.save` wrote; a model's folder, with weights in one file or several and with modules
            of sentence-transformers; or a Hub name.
        target: the .safetensors file, or for a model a new folder, which gets its other files too. Tied weights are
            written twice.

    Returns:
        What was written.

    Raises:
        RetroMAEError: there is nothing to convert, a file holds more than tensors, or the target is not free.
    """
    path, written = Path(source), Path(target)
    if path.is_file():
        if written.suffix != ".safetensors" or written.exists():
            raise RetroMAEError(f"{target} is to be a new .safetensors file, since {source} is a single file")
        written.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(written) as aside:
            _convert([path], aside)
        return written
    if not vacant(written):
        raise RetroMAEError(f"{target} exists and is not an empty folder; name another or remove it")
    if not path.is_dir():
        with loading(f"{source} is no file and no folder here, and no model on the Hub that can be loaded"):
            path = Path(snapshot_download(source, ignore_patterns=[*OTHER_FORMATS, "optimizer*", "training_args.bin"]))
    places = sorted({file.parent for file in path.rglob(WEIGHTS)})
    if not places:
        raise RetroMAEError(f"{source} holds no {WEIGHTS} to convert")
    with folder_written_aside(written) as aside:
        shutil.copytree(path, aside, ignore=shutil.ignore_patterns(*LEFT_OUT), dirs_exist_ok=True)
        for place in tqdm(places, desc="Converting", unit="set"):
            safe = aside / place.relative_to(path) / SAFE
            if not any(safe.parent.glob("model*.safetensors")):
                _convert(sorted(place.glob(WEIGHTS)), safe)
    return written


def _convert(sources: Sequence[Path], target: Path) -> None:
    """Convert in a process of its own, see `unpickling`."""
    command = [sys.executable, "-m", f"{__package__}.unpickling", *map(str, sources), str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        target.unlink(missing_ok=True)
        told = done.stderr.strip().splitlines()[-1:] or [f"the process that read it ended with {done.returncode}"]
        raise RetroMAEError(f"{sources[0]} cannot be converted: {told[0]}")
