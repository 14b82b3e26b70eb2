"""`retromae-hf explain`: what a passage's sentence embedding remembers of it, in colours."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass

from ..arguments import argument
from .common import command, parse


@dataclass
class ExplainArguments:
    """Arguments of `retromae-hf explain`."""

    model_name_or_path: str = argument("Training checkpoint, decoder included: a folder or a Hub name.")
    text: str = argument("The passage.")
    visible: float = argument("Share of the other tokens that each is rebuilt from, 0 (the embedding alone) to 1.", 0.0)
    dataset: str | None = argument(
        "Where the other passages come from that the embedding is compared with, as a rule the training text: pydocs, "
        "a file, a folder or a Hub data set; default: some of Python's own descriptions.",
        None,
    )
    json: bool = argument("Print every token's figures as JSON.", False)


@command
def main(argv: list[str] | None = None) -> None:
    """Explain one passage."""
    (args,) = parse("explain", "Show what a passage's sentence embedding remembers of it.", [ExplainArguments], argv)
    from ..checkpoints.loading import load_checkpoint, load_tokenizer
    from ..data.documents import load_documents
    from ..explanation import (
        PYTHONS_OWN,
        as_table,
        conclusion,
        explain_embedding,
        in_colours,
        other_passages,
        predict_words,
        words_as_table,
    )
    from ..model.modeling_retromae import RetroMAEForPreTraining
    from ..retrieval.embedders import process_state

    model = load_checkpoint(RetroMAEForPreTraining, args.model_name_or_path).to(process_state().device)
    tokenizer = load_tokenizer(args.model_name_or_path)
    if model.config.bow_source == "sentence":
        words = predict_words(model, tokenizer, args.text)
        figures = [asdict(word) for word in words]
        print(json.dumps(figures, indent=1, ensure_ascii=False) if args.json else words_as_table(words))
        return
    others = PYTHONS_OWN if args.dataset is None else other_passages(load_documents(args.dataset))
    explanation = explain_embedding(model, tokenizer, args.text, args.visible, others)
    if args.json:
        print(json.dumps(asdict(explanation), indent=1, ensure_ascii=False))
        return
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(in_colours(explanation) if colours else as_table(explanation))
    print(conclusion(explanation))


if __name__ == "__main__":
    sys.exit(main())
