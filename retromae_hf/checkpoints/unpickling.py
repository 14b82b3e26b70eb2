"""Reads the tensors of pickles in a process of its own: bounded in memory, and started with torch alone."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

SPARE_BYTES = 1 << 30
TIMES = 4
"""Memory for reading a file: so many times its size, and the spare bytes."""


def main(argv: list[str]) -> int:
    """Convert; a fault is one line on standard error and status 1."""
    *sources, target = map(Path, argv)
    size = sum(source.stat().st_size for source in sources)
    bound_memory(SPARE_BYTES + TIMES * size)
    try:
        tensors: dict[str, Tensor] = {}
        for source in sources:
            tensors |= tensors_in(torch.load(source, map_location="cpu", weights_only=True))
        if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > TIMES * size:
            raise ValueError("its tensors are larger than the file")
        # Of their own: tied weights share their memory, which safetensors does not know.
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
        save_file(tensors, target, metadata={"format": "pt"})
    except MemoryError:
        print("it takes more memory than a file of tensors does", file=sys.stderr)
        return 1
    except Exception as error:  # whatever a broken or hostile file leads to
        print(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__, file=sys.stderr)
        return 1
    return 0


def tensors_in(loaded: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, or of the one in a training checkpoint that holds other things beside it."""
    inner = loaded.values() if isinstance(loaded, Mapping) else ()
    for state in (loaded, *inner):
        if isinstance(state, Mapping):
            tensors = {name: one for name, one in state.items() if isinstance(name, str) and isinstance(one, Tensor)}
            if tensors:
                return tensors
    raise ValueError("it holds no tensors by name")


def bound_memory(spare: int) -> None:
    """Let this process have so many bytes of memory more than it has, where the system can see to it."""
    if sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + spare
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
