"""Hands a trained encoder over to `transformers` and sentence-transformers."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.whole_files import write_json
from ..model.backbones import max_text_length
from ..model.errors import check_choice
from ..model.pretrained_model import RetroMAEPreTrainedModel
from .card_writer import write_export_card

POOLINGS = ("cls", "mean")


def export_encoder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    pooling: str = "cls",
    source: str | None = None,
) -> Path:
    """Write one folder that `AutoModel`, `AutoModelForMaskedLM` and `SentenceTransformer` load without this package.

    The pooling is written down, since sentence-transformers takes the mean over the tokens in a folder that says
    nothing, and RetroMAE's embedding is the state of [CLS].

    Args:
        model: a `RetroMAEForPreTraining`, a `RetroMAEModel` or a plain `*ForMaskedLM` (a baseline).
        tokenizer: its tokenizer.
        folder: where to write; made if need be.
        pooling: "cls" or "mean".
        source: the checkpoint that the model is, a folder or a Hub name, whose card's tale this one takes over; None
            where it was not saved.

    Returns:
        The folder.

    Raises:
        RetroMAEError: `pooling` is unknown or the encoder's family is not.
    """
    check_choice("pooling", pooling, POOLINGS)
    folder = Path(folder)
    encoder = _encoder_of(model)
    pooled = {
        "word_embedding_dimension": encoder.config.hidden_size,
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    _write_modules(folder, "sentence_transformers.models", "Transformer", "Pooling", pooled)
    write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})
    max_length = _save(encoder, tokenizer, folder)
    write_export_card(folder, "encoder", source, encoder, max_length, pooling)
    return folder


def export_sparse_encoder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path, source: str | None = None
) -> Path:
    """Write the lexical half of a DupMAE encoder as a folder that sentence-transformers' `SparseEncoder` loads.

    A text becomes one weight for each entry of the vocabulary: the masked-LM head's logits, max-pooled over the text's
    tokens, as log(1 + max(0, logit)), which is SPLADE's scale. Only DupMAE's bag-of-words loss (arXiv 2211.08769,
    section 3.2) teaches the head to do so. It is not taught to leave weights at 0; take the largest with
    `SparseEncoder(folder, max_active_dims=128)`.

    Args:
        model: a `RetroMAEForPreTraining`, a `RetroMAEModel` or a plain `*ForMaskedLM`.
        tokenizer: its tokenizer.
        folder: where to write; made if need be.
        source: as for `export_encoder`.

    Returns:
        The folder.

    Raises:
        RetroMAEError: the encoder's family is not known.
    """
    folder = Path(folder)
    encoder = _encoder_of(model)
    pooled: dict[str, object] = {"pooling_strategy": "max", "activation_function": "relu"}
    _write_modules(folder, "sentence_transformers.sparse_encoder.models", "MLMTransformer", "SpladePooling", pooled)
    use = {"model_type": "SparseEncoder", "similarity_fn_name": "dot"}
    write_json(folder / "config_sentence_transformers.json", use)
    max_length = _save(encoder, tokenizer, folder)
    write_export_card(folder, "sparse-encoder", source, encoder, max_length, None)
    return folder


def _encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    return model.encoder if isinstance(model, RetroMAEPreTrainedModel) else model


def _save(encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> int:
    """Save up to which length a text is read, which is returned, and the encoder as a plain masked LM.

    The weights come last: without them nothing loads that another file is missing of.
    """
    max_length = max_text_length(tokenizer, encoder.config)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    tokenizer.padding_side = "right"  # the embedding is read at position 0, and positions are counted from there
    tokenizer.save_pretrained(folder)
    encoder.save_pretrained(folder)
    return max_length


def _write_modules(folder: Path, package: str, transformer: str, pooling: str, config: dict[str, object]) -> None:
    """Write the list of modules in the layout that every sentence-transformers with these modules reads."""
    (folder / f"1_{pooling}").mkdir(parents=True, exist_ok=True)
    write_json(folder / f"1_{pooling}" / "config.json", config)
    write_json(
        folder / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": f"{package}.{transformer}"},
            {"idx": 1, "name": "1", "path": f"1_{pooling}", "type": f"{package}.{pooling}"},
        ],
    )
