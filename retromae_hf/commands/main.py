"""The console script `retromae-hf`."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "adapt": "adapt an encoder to a text, and measure whether that has paid",
    "pretrain": "pretrain an encoder on a corpus",
    "finetune": "fine-tune an encoder for retrieval",
    "convert": "write pickled weights as safetensors",
    "export": "turn a training checkpoint into a folder that loads everywhere",
    "evaluate": "measure retrieval on a task",
    "compare": "compare pretraining objectives, as a recipe says",
    "card": "write a model's card again, with evaluation results",
    "explain": "show what a passage's sentence embedding remembers of it",
    "search": "search the documentation in this Python environment, or a corpus of your own",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    command, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print("usage: retromae-hf COMMAND [RECIPE.yaml] [--flag value ...]\n\ncommands:")
        print("\n".join(f"  {name:10s}{description}" for name, description in COMMANDS.items()))
        print("\nretromae-hf COMMAND --help lists a command's flags.")
        return 0
    if command not in COMMANDS:
        print(f"retromae-hf: error: no command {command!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    # Only the command that runs is imported: torch and transformers take seconds.
    return import_module(f"retromae_hf.commands.{command}").main(arguments)


if __name__ == "__main__":
    sys.exit(main())
