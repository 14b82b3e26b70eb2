"""Reads checkpoints of the released RetroMAE implementation (github.com/staoxiao/RetroMAE), decoder included."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedConfig

from ..data.disk import folder_written_aside, vacant, written_aside
from ..model.configuration_retromae import RetroMAEConfig
from ..model.errors import RetroMAEError
from ..model.modeling_retromae import RetroMAEForPreTraining
from .hub import loading

ENCODER_PREFIX, DECODER_PREFIX = "lm.", "c_head."

# What the layout holds besides the weights: the encoder's embeddings under a second name, and constants that old
# versions of transformers stored.
_ENCODERS_EMBEDDINGS = "decoder_embeddings."
_CONSTANTS = (".position_ids", ".token_type_ids")

_CONVERT = "retromae-hf convert IN OUT"

# Modules of the released decoder, a `BertLayer`, and their names in `DecoderLayer`.
DECODER_MODULES = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention_output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "intermediate",
    "output.dense": "output",
    "output.LayerNorm": "output_norm",
}


def load_reference_checkpoint(
    path_or_state_dict: str | Path | Mapping[str, Tensor], encoder_config: PreTrainedConfig, **config: Any
) -> RetroMAEForPreTraining:
    """Read the released code's layout (`lm.*` the masked LM, `c_head.*` the decoder) into a `RetroMAEForPreTraining`.

    Also that of its successor (FlagEmbedding), whose encoders are XLM-RoBERTa too (`lm.roberta.*`). To go on training,
    decoder included, save the model and its tokenizer with `save_pretrained` and name that folder to
    `retromae-hf pretrain --model_name_or_path`.

    Args:
        path_or_state_dict: a .safetensors file, a folder with a model.safetensors, or a state dict.
        encoder_config: the encoder's configuration, which that layout does not hold.
        **config: fields of `RetroMAEConfig`, for example `decoder_query="embedded"` for DupMAE. For XLM-RoBERTa that is
            the default, since the successor's decoder takes its queries so.

    Returns:
        The model, in the dtype of the weights, or float32 where that is half precision.

    Raises:
        RetroMAEError: the file is missing or no safetensors file, or its weights are not those of such a model.
    """
    weights = _read(path_or_state_dict)
    renamed = {
        _rename(name): weight
        for name, weight in weights.items()
        if not name.startswith(_ENCODERS_EMBEDDINGS) and not name.endswith(_CONSTANTS)
    }
    if encoder_config.model_type == "xlm-roberta":
        config.setdefault("decoder_query", "embedded")
    model = RetroMAEForPreTraining(RetroMAEConfig(encoder_config=encoder_config, **config))
    dtypes = {weight.dtype for weight in renamed.values() if weight.is_floating_point()}
    if len(dtypes) == 1:
        model.to(torch.promote_types(dtypes.pop(), torch.float32))
    try:
        missing, unexpected = model.load_state_dict(renamed, strict=False)
    except RuntimeError as error:
        raise RetroMAEError(f"the weights do not fit encoder_config: {error}") from error
    # The output projection is tied to the embeddings, so the layout may leave it out.
    missing = [name for name in missing if name not in model.all_tied_weights_keys]
    if missing or unexpected:
        raise RetroMAEError(
            "the checkpoint is not one of the released RetroMAE code for this encoder_config: "
            f"missing {missing[:5]}, unexpected {unexpected[:5]}"
        )
    model.tie_weights()
    return model.eval()


def load_reference_decoder(model: RetroMAEForPreTraining, path: str) -> None:
    """Put the decoder of a checkpoint of `load_reference_checkpoint`'s layout beside an encoder that was loaded.

    Args:
        model: its decoder's weights are overwritten, and are no `new_parameters` any more.
        path: a .safetensors file, or a folder with a model.safetensors.

    Raises:
        RetroMAEError: as `load_reference_checkpoint`, or the model's decoder is another.
    """
    weights = {name: weight for name, weight in _read(path).items() if name.startswith(DECODER_PREFIX)}
    if not weights:
        raise RetroMAEError(f"{path} holds no decoder of the released RetroMAE code, whose weights begin with c_head.")
    renamed = {_rename(name).removeprefix("decoder."): weight for name, weight in weights.items()}
    wanted = {name: one.shape for name, one in model.decoder.state_dict().items()} if hasattr(model, "decoder") else {}
    if wanted != {name: weight.shape for name, weight in renamed.items()}:
        raise RetroMAEError(
            f"the decoder in {path} is one layer of the released code, and that of the model has other weights; it "
            "takes --decoding enhanced or basic, --num_decoder_layers 1 and an encoder of its size"
        )
    model.decoder.load_state_dict(renamed)
    model.new_parameters = {name for name in model.new_parameters if not name.startswith("decoder.")}


def _read(source: str | Path | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if isinstance(source, Mapping):
        return source
    path = Path(source)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise RetroMAEError(f"{file} does not exist; a pickled checkpoint takes {_CONVERT} first")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise RetroMAEError(f"{file} is not a safetensors file ({error}); a pickle takes {_CONVERT} first") from error


def _rename(name: str) -> str:
    if name.startswith(DECODER_PREFIX):
        module, _, parameter = name.removeprefix(DECODER_PREFIX).rpartition(".")
        return f"decoder.0.{DECODER_MODULES.get(module, module)}.{parameter}"
    return f"encoder.{name.removeprefix(ENCODER_PREFIX)}"


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
