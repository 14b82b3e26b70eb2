"""An exported encoder as ONNX, in float32 and with 8-bit weights, beside the weights in its folder.

The files lie where sentence-transformers' own ONNX backend looks for them, `onnx/model.onnx`, and have the inputs and
the output that it expects: `input_ids` and `attention_mask`, int64 `[B, L]`, and `last_hidden_state`, `[B, L, H]`.
Pooling is left to sentence-transformers, as with the weights.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from ..model.errors import RetroMAEError, check_choice, import_extra, in_one_sentence

ONNX_FILE = "onnx/model.onnx"
INPUTS = ("input_ids", "attention_mask")
OUTPUT = "last_hidden_state"

TOLERANCE = 1e-4
"""How far a token's state may be from PyTorch's; states are of order one."""

ONE_FILE_BYTES = 1_500_000_000
"""Parameters up to which all is in one file; protobuf ends at 2 GB."""


def import_onnxruntime() -> Any:
    """The module onnxruntime, once everything that the export needs is there."""
    *_, onnxruntime = (import_extra(name, "ONNX", "onnx") for name in ("onnx", "onnxscript", "onnxruntime"))
    return onnxruntime


def export_onnx(folder: str | Path, quantize: str | None = None) -> list[Path]:
    """Write an exported encoder's ONNX files, and make sure that they compute what PyTorch does.

    Args:
        folder: what `export_encoder` has written.
        quantize: "int8" for a second file, `onnx/model_int8.onnx`, with 8-bit weights; activations are quantised on the
            way ("dynamic").

    Returns:
        The models' files.

    Raises:
        RetroMAEError: the encoder cannot be exported, or float32 states are over `TOLERANCE` from PyTorch's.
    """
    check_quantization(quantize)
    import_onnxruntime()
    file = Path(folder) / ONNX_FILE
    file.parent.mkdir(exist_ok=True)
    with in_one_sentence(f"the encoder in {folder} cannot be exported to ONNX"):
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
        with _quiet():
            torch.onnx.export(
                model,
                kwargs=_batch(model, size=2, length=8),
                f=str(file),
                input_names=list(INPUTS),
                output_names=[OUTPUT],
                dynamic_shapes={name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in INPUTS},
                external_data=4 * model.num_parameters() > ONE_FILE_BYTES,
                verbose=False,
            )
        _check(model, file)
        if quantize is None:
            return [file]
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantized = file.with_stem(f"{file.stem}_int8")
        with _quiet():
            # One scale a column loses less than one a matrix. With 7 of the 8 bits no sum overflows on processors
            # without instructions for 8-bit dot products.
            quantize_dynamic(file, quantized, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
        return [file, quantized]


def check_quantization(quantize: str | None) -> None:
    if quantize is not None:
        check_choice("quantize", quantize, ("int8",))


def compute_with_onnx(model: PreTrainedModel, file: str | Path) -> None:
    """Let an encoder, in place, compute its states by onnxruntime on the CPU, from an ONNX file of its own weights.

    With `model = SentenceTransformer(folder, device="cpu")[0].auto_model` the rest of sentence-transformers stays as it
    is. Its own ONNX backend does the same through optimum-onnx, which wants transformers below 4.58.
    """
    session = _session(file)

    def forward(input_ids: Tensor, attention_mask: Tensor, **unused: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=_run(session, input_ids, attention_mask))

    model.forward = forward


def encoder_folder(file: str | Path) -> Path:
    """The exported encoder's folder that an ONNX file lies in, where `export_onnx` writes it."""
    file = Path(file).absolute()
    if not file.is_file() or not (file.parents[1] / "modules.json").is_file():
        raise RetroMAEError(f"{file} is no ONNX file in an exported encoder's folder, such as FOLDER/{ONNX_FILE}")
    return file.parents[1]


def _session(file: str | Path) -> Any:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with in_one_sentence(f"{file} holds no ONNX model that can be loaded"):
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _run(session: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The token states float32 `[B, L, H]` of int64 `[B, L]`."""
    arrays = (tensor.numpy().astype(np.int64) for tensor in (input_ids, attention_mask))
    (states,) = session.run([OUTPUT], dict(zip(INPUTS, arrays, strict=True)))
    return torch.from_numpy(states)


def _batch(model: PreTrainedModel, size: int, length: int) -> dict[str, Tensor]:
    """Random tokens, of which the last row has one only; the rest of it is padding."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(model.config.vocab_size, (size, length), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[-1, 1:] = 0
    input_ids = input_ids.masked_fill(attention_mask == 0, model.config.pad_token_id or 0)
    return {"input_ids": input_ids, "attention_mask": attention_mask}


@torch.no_grad()
def _check(model: PreTrainedModel, file: Path) -> None:
    """Compare what an ONNX file computes with the model, on other shapes too."""
    session = _session(file)
    for size, length in ((2, 8), (3, 17)):
        batch = _batch(model, size, length)
        real = batch["attention_mask"].bool()
        difference = (_run(session, **batch) - model(**batch).last_hidden_state)[real].abs().max().item()
        if not difference <= TOLERANCE:
            raise RetroMAEError(
                f"{file} computes states {difference:.1g} away from PyTorch's, over {TOLERANCE:g}; do not use it"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's and the quantiser's remarks on how they work."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
