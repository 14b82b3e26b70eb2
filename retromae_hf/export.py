"""Hands a trained encoder over to `transformers` and sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .backbones import backbone_for
from .errors import RetroMAEError
from .modeling_retromae import RetroMAEPreTrainedModel

POOLINGS = ("cls", "mean")


def export_encoder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path, pooling: str = "cls"
) -> Path:
    """Write one folder that `AutoModel`, `AutoModelForMaskedLM` and `SentenceTransformer` load without this package.

    The pooling is written down, since sentence-transformers takes the mean over the tokens in a folder that says
    nothing, and RetroMAE's embedding is the state of [CLS].

    Args:
        model: a `RetroMAEForPreTraining`, a `RetroMAEModel` or a plain `*ForMaskedLM` (a baseline).
        tokenizer: its tokenizer.
        folder: where to write; made if need be.
        pooling: "cls" or "mean".

    Returns:
        The folder.

    Raises:
        RetroMAEError: `pooling` is unknown or the encoder's family is not.
    """
    if pooling not in POOLINGS:
        raise RetroMAEError(f"pooling={pooling!r} is unknown; choose one of {', '.join(POOLINGS)}")
    encoder = model.encoder if isinstance(model, RetroMAEPreTrainedModel) else model
    max_length = min(tokenizer.model_max_length, backbone_for(encoder.config).max_positions(encoder.config))
    folder = Path(folder)
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The layout that every sentence-transformers since 2.0 reads.
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": encoder.config.hidden_size,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    _write(
        folder / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ],
    )
    _write(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})
    return folder


def _write(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
