"""Makes the top layers of an encoder new: between one that is tuned already and one from scratch.

    python examples/fresh_layers.py ENCODER LAYERS FOLDER

ENCODER is a folder or Hub name of a sentence-transformers model, LAYERS how many of its layers get random weights.
"""

from __future__ import annotations

import sys

import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel


def main(name_or_path: str, layers: str, folder: str) -> None:
    model = SentenceTransformer(name_or_path, device="cpu", model_kwargs={"use_safetensors": True})
    torch.manual_seed(0)
    encoder = model[0].auto_model
    new = AutoModel.from_config(encoder.config)
    for layer, other in list(zip(encoder.encoder.layer, new.encoder.layer, strict=True))[-int(layers) :]:
        layer.load_state_dict(other.state_dict())
    model.save_pretrained(folder, create_model_card=False)
    print(f"{folder}: {layers} of {len(encoder.encoder.layer)} layers of {name_or_path} are new")


if __name__ == "__main__":
    main(*sys.argv[1:])
