"""`retromae-hf export`: a training checkpoint into a folder that loads everywhere."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from ..arguments import argument
from ..model.errors import RetroMAEError, in_one_sentence
from .common import command, parse, process_rank


@dataclass
class ExportArguments:
    """Arguments of `retromae-hf export`."""

    model_name_or_path: str = argument("Training checkpoint: a folder or a Hub name.")
    output_dir: str = argument("Folder to write; it must be empty or new.")
    pooling: str | None = argument("Sentence embedding: cls or mean; default: the checkpoint's.", None)
    sparse: bool = argument(
        "Export the lexical half of a DupMAE encoder, for SparseEncoder, instead of the dense one.", False
    )
    onnx: bool = argument("Write onnx/model.onnx too, which sentence-transformers' ONNX backend loads.", False)
    quantize: str | None = argument("int8: write onnx/model_int8.onnx, with 8-bit weights, beside it.", None)
    push_to_hub: str | None = argument("Repository on the Hub to push the folder to, in one commit: USER/NAME.", None)
    hub_private_repo: bool = argument("Make the repository private if it is new.", False)
    trust_remote_code: bool = argument("Run code that comes with a tokenizer; read it first.", False)

    def __post_init__(self) -> None:
        from ..checkpoints.onnx import check_quantization, import_onnxruntime

        check_quantization(self.quantize)
        if self.quantize is not None and not self.onnx:
            raise RetroMAEError("quantize is about the ONNX file; give --onnx true too, or leave it out")
        if self.onnx and self.sparse:
            raise RetroMAEError("only the dense encoder is exported to ONNX; leave out onnx or sparse")
        if self.onnx:
            import_onnxruntime()


@command
def main(argv: list[str] | None = None) -> None:
    """Export the encoder of a training checkpoint."""
    (args,) = parse(
        "export", "Turn a training checkpoint into a folder that loads everywhere.", [ExportArguments], argv
    )
    if process_rank():
        return  # the first process writes the folder
    from ..checkpoints.hub import create_repo, push_folder
    from ..checkpoints.loading import load_checkpoint, load_tokenizer
    from ..checkpoints.onnx import export_onnx
    from ..data.disk import folder_written_aside, vacant
    from ..model.modeling_retromae import RetroMAEForPreTraining
    from ..publishing.card_writer import name_repository
    from ..publishing.export import export_encoder, export_sparse_encoder

    folder = Path(args.output_dir)
    if not vacant(folder):
        raise RetroMAEError(f"{folder} exists and is not an empty folder; name another or remove it")
    model = load_checkpoint(RetroMAEForPreTraining, args.model_name_or_path)
    tokenizer = load_tokenizer(args.model_name_or_path, args.trust_remote_code)
    repo_id = None if args.push_to_hub is None else create_repo(args.push_to_hub, args.hub_private_repo)
    with in_one_sentence(f"the encoder cannot be exported to {folder}"), folder_written_aside(folder) as aside:
        if args.sparse:
            export_sparse_encoder(model, tokenizer, aside, args.model_name_or_path)
        else:
            export_encoder(model, tokenizer, aside, args.pooling, args.model_name_or_path)
        if args.onnx:
            export_onnx(aside, args.quantize)
        if repo_id is not None:
            name_repository(aside, repo_id)
    loader = "SparseEncoder" if args.sparse else "SentenceTransformer"
    print(f"Exported the encoder to {folder}; {loader}({str(folder)!r}) loads it.")
    if repo_id is not None:
        commit = push_folder(folder, repo_id, f"Encoder of {Path(args.model_name_or_path).name}")
        print(f"Pushed it: {commit}; {loader}({repo_id!r}) loads it.")


if __name__ == "__main__":
    sys.exit(main())
