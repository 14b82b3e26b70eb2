"""Reads checkpoints in the released RetroMAE code's layout (github.com/staoxiao/RetroMAE), and converts pickles."""

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
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedConfig

from ..data.disk import folder_written_aside, vacant, written_aside
from ..model.configuration_retromae import RetroMAEConfig
from ..model.encoders import hub_reason
from ..model.errors import RetroMAEError, first_line
from ..model.modeling_retromae import RetroMAEForPreTraining

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
    """Put the decoder of a checkpoint of `load_reference_checkpoint`'s layout beside an encoder that was loaded."""
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


WEIGHTS = "pytorch_model*.bin"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.pickle")
OTHER_FORMATS = ("*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data", "openvino*")
LEFT_OUT = (*PICKLES, *OTHER_FORMATS, "*.bin.index.json", ".*")
SAFE = "model.safetensors"


def convert(source: str, target: str) -> Path:
    """Write pickled weights as safetensors; returns what was written. Tied weights are written twice.

    Args:
        source: a file that `torch.save` wrote; a model's folder, with weights in one file or several and with modules
            of sentence-transformers; or a Hub name.
        target: the .safetensors file, or for a model a new folder, which gets its other files too.
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
        try:
            path = Path(snapshot_download(source, ignore_patterns=[*OTHER_FORMATS, "optimizer*", "training_args.bin"]))
        except Exception as error:
            raise RetroMAEError(
                f"{source} is no file and no folder here, and no model on the Hub that can be loaded: "
                f"{hub_reason(error) or first_line(error)}"
            ) from error
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
