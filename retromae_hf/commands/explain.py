"""`retromae-hf explain`: what a passage's sentence embedding remembers of it, in colours."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import asdict, dataclass, field
from operator import attrgetter

from ..checkpoints.loading import load_checkpoint, load_tokenizer
from ..explanation import SHADE_NAMES, SHADES, EmbeddingExplanation, explain_embedding, segments, shade
from ..model.modeling_retromae import RetroMAEForPreTraining
from ..retrieval.embedders import process_state
from .common import command, parse

# Backgrounds of a terminal's 256 colours, faint to full, each with the foreground that can be read on it.
COLOURS = ((255, 16), (195, 16), (117, 16), (32, 231), (18, 231))
SIDES = {"rebuilt": "from the embedding", "zeroed": "from zeros in its place"}


@dataclass
class ExplainArguments:
    """Arguments of `retromae-hf explain`."""

    model_name_or_path: str = field(metadata={"help": "Training checkpoint, decoder included: a folder or a Hub name."})
    text: str = field(metadata={"help": "The passage."})
    visible: float = field(
        default=0.0,
        metadata={"help": "Share of the other tokens that each is rebuilt from, 0 (the embedding alone) to 1."},
    )
    json: bool = field(default=False, metadata={"help": "Print every token's figures as JSON."})


@command
def main(argv: list[str] | None = None) -> None:
    """Explain one passage."""
    (args,) = parse("explain", "Show what a passage's sentence embedding remembers of it.", [ExplainArguments], argv)
    model = load_checkpoint(RetroMAEForPreTraining, args.model_name_or_path).to(process_state().device)
    explanation = explain_embedding(model, load_tokenizer(args.model_name_or_path), args.text, args.visible)
    if args.json:
        print(json.dumps(asdict(explanation), indent=1, ensure_ascii=False))
        return
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(in_colours(explanation) if colours else as_table(explanation))
    print(conclusion(explanation))


def in_colours(explanation: EmbeddingExplanation) -> str:
    """The passage twice, each token on the colour of its probability, and what the colours mean."""
    parts = []
    for side, name in SIDES.items():
        passage = "".join(
            printable(piece) if token is None else coloured(printable(piece), getattr(token, side).probability)
            for piece, token in segments(explanation)
        )
        parts.append(f"Rebuilt {name}:\n{passage}\n")
    # The lower end of each range lies in it.
    legend = (coloured(f" {name} ", edge) for name, edge in zip(SHADE_NAMES, (0.0, *SHADES), strict=True))
    return "\n".join([*parts, f"Probability of the true token: {''.join(legend)}"])


def as_table(explanation: EmbeddingExplanation) -> str:
    """A line a token: its probability from the embedding and from zeros, and the decoder's guess from the embedding."""
    lines = [f"{'token':<16}{'embedding':>10}{'zeros':>10}  guess"]
    lines += [
        f"{printable(token.text):<16}{token.rebuilt.probability:>10.4f}{token.zeroed.probability:>10.4f}"
        f"  {printable(token.rebuilt.guess)}"
        for token in explanation.tokens
    ]
    return "\n".join(lines)


def conclusion(explanation: EmbeddingExplanation) -> str:
    """What the embedding is worth, and what was left out."""
    guessed = [sum(map(attrgetter(f"{side}.right"), explanation.tokens)) for side in SIDES]
    text = (
        f"The decoder's first guess is right for {guessed[0]} of {len(explanation.tokens)} tokens, from zeros for "
        f"{guessed[1]}.\nThe embedding is worth {explanation.gain:.2f} nats a token: with it a true token is "
        f"{math.exp(explanation.gain):,.1f} times as probable (geometric mean)."
    )
    if explanation.truncated:
        text += "\nThe passage is longer than the model reads; only its beginning was encoded."
    return text


def coloured(text: str, probability: float) -> str:
    """A text on the colour of a probability."""
    background, foreground = COLOURS[shade(probability)]
    return f"\x1b[48;5;{background};38;5;{foreground}m{text}\x1b[0m"


def printable(text: str) -> str:
    """A text that cannot steer the terminal: white space is a space, and other control characters are "?"."""
    return "".join(" " if character.isspace() else character if character.isprintable() else "?" for character in text)


if __name__ == "__main__":
    sys.exit(main())
