"""Reads checkpoints of the released RetroMAE implementation (github.com/staoxiao/RetroMAE), decoder included."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig

from ..model.configuration_retromae import RetroMAEConfig
from ..model.errors import RetroMAEError
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
