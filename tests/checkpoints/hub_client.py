"""What a user's process does with the Hub: `python hub_client.py NAME` runs a function and prints its report as JSON.

In a process of its own, because huggingface_hub reads `HF_ENDPOINT` and its caches' places once, on import.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import time
from typing import Any

TEXT = "The quick otter wanders over the meadow."


def push() -> dict[str, Any]:
    """With the package and a token: push the folder "checkpoint", its encoder, and a training run on "texts.txt"."""
    from transformers import AutoTokenizer

    from retromae_hf import RetroMAEForPreTraining

    time.sleep = lambda seconds: None  # between one try of huggingface_hub and the next
    RetroMAEForPreTraining.from_pretrained("checkpoint").push_to_hub("tester/checkpoint")
    AutoTokenizer.from_pretrained("checkpoint").push_to_hub("tester/checkpoint")
    export = "export --model_name_or_path checkpoint --output_dir"
    pretrain = (
        "pretrain --dataset texts.txt --model_name_or_path checkpoint --max_length 32 --max_steps 2 --save_steps 1 "
        "--eval_strategy no --per_device_train_batch_size 4 --use_cpu --disable_tqdm true --push_to_hub true "
        "--output_dir"
    )
    lines = {
        "export": f"{export} encoder --push_to_hub tester/encoder --hub_private_repo true",
        "export again": f"{export} again --push_to_hub tester/again",
        "cut-in-upload": f"{export} cut-1 --push_to_hub tester/cut-in-upload",
        "cut-in-commit": f"{export} cut-2 --push_to_hub tester/cut-in-commit",
        "not mine": f"{export} not-mine --push_to_hub somebody/model",
        "pretrain": f"{pretrain} run --hub_model_id run",
        "pretrain revision": f"{pretrain} run-revision --hub_model_id run --hub_revision nowhere",
        "pretrain token": f"{pretrain} run-token --hub_model_id run --hub_token secret",
        "pretrain cut": f"{pretrain} run-cut --hub_model_id cut-in-commit --hub_strategy end",
    }
    return {name: command(line) for name, line in lines.items()}


def load_without_the_package() -> dict[str, Any]:
    """With a token, and without the package: everything by name."""
    sys.modules["retromae_hf"] = None  # type: ignore[assignment]
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoModelForPreTraining, AutoTokenizer

    encoder = AutoModel.from_pretrained("tester/encoder")
    batch = AutoTokenizer.from_pretrained("tester/encoder")([TEXT], return_tensors="pt")
    report = {
        "class": type(encoder).__name__,
        "AutoModel": encoder(**batch).last_hidden_state[0, 0].tolist(),
        "SentenceTransformer": SentenceTransformer("tester/encoder", device="cpu").encode(TEXT).tolist(),
    }
    try:
        AutoModel.from_pretrained("tester/checkpoint", trust_remote_code=False)
    except ValueError as error:
        report["not trusted"] = str(error)
    checkpoint = AutoModel.from_pretrained("tester/checkpoint", trust_remote_code=True)
    report["checkpoint"] = checkpoint(**batch).pooler_output[0].tolist()
    models = [
        AutoModelForPreTraining.from_pretrained("tester/checkpoint", revision=revision, trust_remote_code=True)
        for revision in ("main", "doubled")
    ]
    report["loss"], report["doubled loss"] = (loss(model) for model in models)
    models[0].save_pretrained("again")
    return report | {"saved again": sorted(os.listdir("again"))}


def load_with_the_package() -> dict[str, Any]:
    """With the package, and without a token."""
    from transformers import AutoModel, AutoModelForPreTraining
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    report: dict[str, Any] = {"modules": []}
    import retromae_hf  # noqa: F401

    for trust in (False, True):
        encoder, model = (
            auto.from_pretrained("tester/checkpoint", trust_remote_code=trust)
            for auto in (AutoModel, AutoModelForPreTraining)
        )
        report["modules"] += [type(each).__module__ for each in (encoder, model, model.config)]
    report["loss"] = loss(model)
    reference = "modeling_retromae.RetroMAEForPreTraining"
    copied = get_class_from_dynamic_module(reference, "tester/checkpoint", revision="doubled")
    report["doubled loss"] = loss(copied.from_pretrained("tester/checkpoint"))
    report["loss afterwards"] = loss(model)
    for name in ("tester/encoder", "tester/nothing", "no/such/folder"):
        report[name] = command(f"export --model_name_or_path {name} --output_dir nowhere")
    report["by name"] = command("export --model_name_or_path tester/checkpoint --output_dir encoder")
    report["convert"] = command("convert tester/pickled safe")
    report["converted"] = sorted(os.listdir("safe"))
    try:
        AutoModel.from_pretrained("tester/checkpoint", revision="nowhere")
    except OSError as error:
        report["revision"] = str(error)
    return report


def command(line: str) -> dict[str, Any]:
    """Run a command of the package; its exit status and its sentences about errors."""
    from retromae_hf.commands.main import main

    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = main(line.split())
    errors = re.findall("retromae-hf: error: .*", said.getvalue())  # a progress bar may stand before it
    return {"status": status, "errors": errors}


def loss(model: Any) -> float:
    """The pretraining loss of a model on some tokens."""
    import torch

    ids = torch.arange(5, 25).reshape(2, 10)
    labels = ids.clone()
    labels[:, 0] = -100
    seeds = torch.tensor([1, 2])
    passages = {"input_ids": ids, "labels": labels, "decoder_input_ids": ids, "decoder_labels": labels}
    return model.eval()(**passages, visibility_seed=seeds).loss.item()


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
