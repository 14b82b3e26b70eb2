"""Hands a trained encoder over to `transformers` and sentence-transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.disk import write_json
from ..data.tokenizers import max_text_length
from ..model.configuration_retromae import POOLINGS
from ..model.encoders import RetroMAEPreTrainedModel
from ..model.errors import check_choice
from .card_writer import write_export_card


def export_encoder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    pooling: str | None = None,
    source: str | None = None,
) -> Path:
    """Write one folder that `AutoModel`, `AutoModelForMaskedLM` and `SentenceTransformer` load without this package.

    The pooling is written down, since sentence-transformers takes the mean over the tokens in a folder that says
    nothing, and RetroMAE's embedding is the state of [CLS] as a rule. A model that came from a sentence-transformers
    folder prompts, cuts, normalises and compares as that does.

    Args:
        model: a `RetroMAEForPreTraining`, a `RetroMAEModel` or a plain `*ForMaskedLM` (a baseline); one with adapters
            of PEFT is merged, and stays as it is itself.
        tokenizer: its tokenizer.
        folder: where to write; made if need be.
        pooling: "cls" or "mean"; by default the model's own, which is "cls" of a plain `*ForMaskedLM`.
        source: the checkpoint that the model is, a folder or a Hub name, whose card's tale this one takes over; None
            where it was not saved.

    Returns:
        The folder.

    Raises:
        RetroMAEError: `pooling` is unknown or the encoder's family is not.
    """
    model = merged(model)
    pooling = pooling or getattr(model.config, "pooling", "cls")
    check_choice("pooling", pooling, POOLINGS)
    folder = Path(folder)
    settings = getattr(model.config, "sentence_settings", {})  # of the sentence-transformers model it came from
    pooled = {
        "word_embedding_dimension": model.config.hidden_size,
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    parts = {"Pooling": pooled} | ({"Normalize": {}} if settings.get("normalize") else {})
    _write_modules(folder, "sentence_transformers.models", "Transformer", parts)
    use = {"similarity_fn_name": "cosine", "prompts": {}} | {
        name: settings[name] for name in ("prompts", "default_prompt_name", "similarity_fn_name") if name in settings
    }
    write_json(folder / "config_sentence_transformers.json", use)
    encoder, max_length = _save(model, tokenizer, folder)
    prompts = {name: use["prompts"].get(name, "") for name in ("query", "document")}
    # Of what has unit length the dot product is the cosine.
    similarity = "cosine" if settings.get("normalize") else use["similarity_fn_name"]
    described = {"pooling": pooling, "similarity": similarity, "prompts": prompts}
    write_export_card(folder, "encoder", source, encoder, max_length, **described)
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
    model = merged(model)
    folder = Path(folder)
    parts = {"SpladePooling": {"pooling_strategy": "max", "activation_function": "relu"}}
    _write_modules(folder, "sentence_transformers.sparse_encoder.models", "MLMTransformer", parts)
    use = {"model_type": "SparseEncoder", "similarity_fn_name": "dot"}
    write_json(folder / "config_sentence_transformers.json", use)
    encoder, max_length = _save(model, tokenizer, folder)
    write_export_card(folder, "sparse-encoder", source, encoder, max_length, similarity="dot")
    return folder


def merged(model: Any) -> PreTrainedModel:
    """A copy with PEFT's adapters merged into the weights; a model without any is returned as it is."""
    if hasattr(model, "merge_and_unload"):
        return copy.deepcopy(model).merge_and_unload()
    if hasattr(getattr(model, "encoder", None), "merge_and_unload"):
        model = copy.deepcopy(model)
        model.encoder = model.encoder.merge_and_unload()
    return model


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> tuple[PreTrainedModel, int]:
    """Save how a text is read, up to which length above all, and the encoder as a plain masked LM; both are returned.

    The weights come last: without them nothing loads that another file is missing of.
    """
    encoder = model.encoder if isinstance(model, RetroMAEPreTrainedModel) else model
    max_length = max_text_length(tokenizer, model.config)
    lowers = getattr(model.config, "sentence_settings", {}).get("do_lower_case", False)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": lowers})
    tokenizer.padding_side = "right"  # the embedding is read at position 0, and positions are counted from there
    tokenizer.save_pretrained(folder)
    encoder.save_pretrained(folder)
    return encoder, max_length


def _write_modules(folder: Path, package: str, transformer: str, parts: dict[str, dict[str, Any]]) -> None:
    """Write the list of modules, and the configurations of those behind the transformer, by class.

    Every sentence-transformers with these modules reads this layout.
    """
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{package}.{transformer}"}]
    for number, (kind, config) in enumerate(parts.items(), start=1):
        place = folder / f"{number}_{kind}"
        place.mkdir(parents=True, exist_ok=True)
        write_json(place / "config.json", config)
        modules.append({"idx": number, "name": str(number), "path": place.name, "type": f"{package}.{kind}"})
    write_json(folder / "modules.json", modules)
