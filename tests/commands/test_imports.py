"""A command shows its help, and the package is imported, without a library: told by what is loaded, not by time."""

from __future__ import annotations

import subprocess
import sys

import pytest

import retromae_hf
from retromae_hf.commands.main import COMMANDS, main

HEAVY = ("torch", "transformers", "datasets", "sentence_transformers", "numpy", "pyarrow", "accelerate")

LOADED = f"[name for name in {HEAVY} if name in sys.modules]"

HELP = """
with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
    main({arguments})
assert "usage: retromae-hf" in said.getvalue()
"""

FIND = """
found = AutoConfig.from_pretrained({folder!r}), AutoModel.from_pretrained({folder!r})
assert [type(one).__module__.split(".")[0] for one in found] == ["retromae_hf"] * 2, found
"""
LIGHT = f"import retromae_hf; retromae_hf.RetroMAEError\nassert {LOADED} == []\n"
ORDERS = {
    "before them": f"{LIGHT}from transformers import AutoConfig, AutoModel",
    "behind them": "from transformers import AutoConfig, AutoModel; import retromae_hf",
    # As in `finetune`: it begins with transformers' models, which import the Auto classes before they are whole.
    "before sentence-transformers": (
        "import retromae_hf.commands.common, sentence_transformers; from transformers import AutoConfig, AutoModel"
    ),
}


def run(program: str) -> None:
    """Run a program in a process of its own."""
    command = [sys.executable, "-c", f"import contextlib, io, sys\n{program}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


def test_no_help_loads_a_library():
    each = [["--help"], *([command, "--help"] for command in COMMANDS)]
    shown = "".join(HELP.format(arguments=arguments) for arguments in each)
    run(f"from retromae_hf.commands.main import main\n{shown}\nassert {LOADED} == []")


@pytest.mark.parametrize("order", ORDERS)
def test_the_package_loads_what_is_asked_for_and_the_auto_classes_know_it(order, model, tmp_path):
    model.save_pretrained(tmp_path)
    run(f"{ORDERS[order]}\n{FIND.format(folder=str(tmp_path))}")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="RetroMAX"):
        _ = retromae_hf.RetroMAX


def test_the_long_help_lists_the_arguments_of_the_library_too(capsys):
    for flag, lists_them in (("--help", False), ("--help-all", True)):
        with pytest.raises(SystemExit):
            main(["pretrain", flag])
        shown = capsys.readouterr().out
        assert "--encoder_mask_ratio" in shown
        assert ("--max_grad_norm" in shown) is lists_them
        assert ("--help-all" in shown) is not lists_them
