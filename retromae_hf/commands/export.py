"""`retromae-hf export`: a training checkpoint into a folder that loads everywhere."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..checkpoints import load_checkpoint, load_tokenizer
from ..errors import RetroMAEError, in_one_sentence
from ..export import export_encoder, export_sparse_encoder
from ..modeling_retromae import RetroMAEForPreTraining
from .common import command, parse


@dataclass
class ExportArguments:
    """Arguments of `retromae-hf export`."""

    model_name_or_path: str = field(metadata={"help": "Training checkpoint: a folder or a Hub name."})
    output_dir: str = field(metadata={"help": "Folder to write; it must be empty or new."})
    pooling: str = field(default="cls", metadata={"help": "Sentence embedding: cls or mean."})
    sparse: bool = field(
        default=False,
        metadata={"help": "Export the lexical half of a DupMAE encoder, for SparseEncoder, instead of the dense one."},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that comes with a tokenizer; have read it before."}
    )


@command
def main(argv: list[str] | None = None) -> None:
    """Export the encoder of a training checkpoint."""
    (args,) = parse(
        "export", "Turn a training checkpoint into a folder that loads everywhere.", [ExportArguments], argv
    )
    folder = Path(args.output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RetroMAEError(f"{folder} exists and is not an empty folder; name another or remove it")
    model = load_checkpoint(RetroMAEForPreTraining, args.model_name_or_path)
    tokenizer = load_tokenizer(args.model_name_or_path, args.trust_remote_code)
    with in_one_sentence(f"the encoder cannot be exported to {folder}"):
        if args.sparse:
            export_sparse_encoder(model, tokenizer, folder)
        else:
            export_encoder(model, tokenizer, folder, args.pooling)
    loader = "SparseEncoder" if args.sparse else "SentenceTransformer"
    print(f"Exported the encoder to {folder}; {loader}({str(folder)!r}) loads it.")


if __name__ == "__main__":
    sys.exit(main())
