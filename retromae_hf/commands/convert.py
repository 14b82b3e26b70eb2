"""`retromae-hf convert`: pickled weights into safetensors."""

from __future__ import annotations

import sys

from .common import command, parse


@command
def main(argv: list[str] | None = None) -> None:
    """Convert a model or a file, and say where it is."""
    (words,) = parse(
        "convert",
        "Write pickled weights as safetensors; tensors alone are read, and no code is run.",
        [],
        argv,
        positionals={
            "source": "A model's folder, a Hub name, or a file that torch.save wrote.",
            "target": "A new folder, or for a single file a new .safetensors file.",
        },
    )
    from ..checkpoints.foreign import convert

    print(convert(words.source, words.target))


if __name__ == "__main__":
    sys.exit(main())
