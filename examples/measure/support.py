"""`make support`: every objective with every family of encoders, tried out on tiny models.

For each recipe under examples/recipes/ and each known family: three training steps in float32 on one batch, whose loss
must fall; the checkpoint saved and loaded, with the same loss; the encoder exported and loaded by `AutoModel` and
`SentenceTransformer`, with the same embeddings. Prints what fails and writes runs/support.json.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from retromae_hf import (
    DataCollatorForRetroMAE,
    RetroMAEConfig,
    RetroMAEForPreTraining,
    export_encoder,
    tokenize_passages,
)
from retromae_hf.arguments.pretraining import Masking, StartArguments
from retromae_hf.checkpoints.starting_model import new_encoder_config
from retromae_hf.data.tokenizers import train_byte_level_bpe
from retromae_hf.model.configuration_retromae import SEGMENT_OBJECTIVES
from retromae_hf.model.families import BACKBONES

RECIPES = {recipe.stem: recipe for recipe in sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))}
OUTPUT = Path("runs/support.json")
TOLERANCE = 1e-6
MAX_LENGTH = 64
SENTENCES = [
    f"The {animal} {verb} near the {place}. In the {time} it {verb} again, and nobody saw the {animal} of the {place}."
    for animal in ("fox", "heron", "otter")
    for verb in ("waits", "runs", "sleeps")
    for place, time in (("river", "morning"), ("old tower", "evening"))
]


def main() -> int:
    """Try all of them; the exit status is 1 where one fails."""
    quiet()
    tokenizer, results = new_tokenizer(), []
    known = [model_type for model_type in BACKBONES if model_type in CONFIG_MAPPING]  # in this version of transformers
    pairs = [(objective, model_type) for objective in RECIPES for model_type in known]
    for objective, model_type in tqdm(pairs, desc="Trying", unit="pair"):
        results.append({"objective": objective, "model_type": model_type, **attempt(objective, model_type, tokenizer)})
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"{summary(results)} The figures are in {OUTPUT}.")
    return int(not all(result["works"] for result in results))


def quiet() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    disable_progress_bar()


def new_tokenizer() -> PreTrainedTokenizerBase:
    """One tokenizer for every family: RoBERTa's special tokens suit MPNet too, which wants padding at 1.

    Its vocabulary is so small that many words have several tokens.
    """
    return train_byte_level_bpe(SENTENCES, vocab_size=300, max_length=MAX_LENGTH)


def attempt(objective: str, model_type: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What came of one objective with one family.

    Returns:
        `losses`, one a step; `checkpoint_error` and `export_error`, the largest differences after loading; `works`; and
        `options`, where the recipe's did not suit the family.
    """
    torch.manual_seed(0)
    model, batch, options = prepare(objective, model_type, tokenizer)
    losses = three_steps(model, batch)
    # Distributed training expects a gradient of every parameter.
    taught = all(parameter.grad is not None for parameter in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        checkpoint_error = through_a_checkpoint(model.eval(), batch, f"{folder}/checkpoint")
        export_error = through_an_export(model, tokenizer, f"{folder}/encoder")
    falls = all(later < earlier < float("inf") for earlier, later in pairwise(losses))
    return {
        "losses": losses,
        "checkpoint_error": checkpoint_error,
        "export_error": export_error,
        "works": falls and taught and max(checkpoint_error, export_error) <= TOLERANCE,
        "options": options,
    }


def prepare(
    objective: str, model_type: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[RetroMAEForPreTraining, dict[str, torch.Tensor], dict[str, Any]]:
    recipe = yaml.safe_load(RECIPES[objective].read_text(encoding="utf-8"))
    encoder_config = new_encoder_config(
        model_type,
        tokenizer,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_length=MAX_LENGTH,
    )
    options = {}
    if hasattr(encoder_config, "embedding_size"):
        encoder_config.embedding_size = 16
        if recipe.get("decoder_query") == "embedded":  # h does not fit through an embedding module that is smaller
            options["decoder_query"] = "sum"
    recipe |= options
    known = {name: recipe[name] for name in StartArguments.__dataclass_fields__ if name in recipe}
    config = RetroMAEConfig(encoder_config=encoder_config, **StartArguments(**known).model_options())
    known = {name: recipe[name] for name in Masking.__dataclass_fields__ if name in recipe}
    pairs = config.pair_objective in SEGMENT_OBJECTIVES
    passages = tokenize_passages(Dataset.from_dict({"text": SENTENCES}), tokenizer, MAX_LENGTH, pairs=pairs)
    collator = DataCollatorForRetroMAE.from_config(
        tokenizer,
        config,
        seed=0,
        compact=True,
        pair_partners=passages,
        **Masking(**known).collator_options(),
    )
    collator.set_epoch(0)
    return RetroMAEForPreTraining(config), collator(list(passages)), options


def three_steps(model: RetroMAEForPreTraining, batch: dict[str, torch.Tensor]) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    with torch.no_grad():
        return [*losses, model(**batch).loss.item()]


@torch.no_grad()
def through_a_checkpoint(model: RetroMAEForPreTraining, batch: dict[str, torch.Tensor], folder: str) -> float:
    """The largest difference of a loss or an embedding after saving and loading."""
    model.save_pretrained(folder)
    ours, theirs = (each(**batch) for each in (model, RetroMAEForPreTraining.from_pretrained(folder).eval()))
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


@torch.no_grad()
def through_an_export(model: RetroMAEForPreTraining, tokenizer: PreTrainedTokenizerBase, folder: str) -> float:
    """The largest difference of an embedding after export, for both loaders."""
    export_encoder(model, tokenizer, folder)
    inputs = tokenizer(SENTENCES, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
    ours = model.encode(**inputs)[:, 0]
    plain = AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state[:, 0]
    sentences = SentenceTransformer(folder, device="cpu").encode(SENTENCES, convert_to_tensor=True)
    return max((theirs - ours).abs().max().item() for theirs in (plain, sentences))


def titles() -> dict[str, str]:
    """What each recipe says of itself in its first line."""
    return {name: recipe.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for name, recipe in RECIPES.items()}


def summary(results: list[dict[str, Any]]) -> str:
    """How many pairs work, and each that does not."""
    failed = [f"{one['objective']} with {one['model_type']} FAILS" for one in results if not one["works"]]
    worst = max(max(one["checkpoint_error"], one["export_error"]) for one in results)
    told = f"{len(results) - len(failed)} of {len(results)} pairs of an objective and a family work."
    return "\n".join([*failed, f"{told} Largest difference after a checkpoint or an export: {worst:.1e}."])


if __name__ == "__main__":
    sys.exit(main())
