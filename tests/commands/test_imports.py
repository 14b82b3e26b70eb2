"""A command shows its help, and the package is imported, without a library: told by what is loaded, not by time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from retromae_hf.commands.main import COMMANDS, main

HEAVY = ("torch", "transformers", "datasets", "sentence_transformers", "numpy", "pyarrow", "accelerate")

PROGRAM = """
import contextlib, io, sys
{lines}
print("loaded:", *(name for name in {heavy} if name in sys.modules))
"""

HELP = """
from retromae_hf.commands.main import main
with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
    main({arguments})
assert "usage: retromae-hf" in said.getvalue()
"""


def loaded_by(lines: str) -> list[str]:
    """Which of the heavy packages are there after these lines, in a process of their own."""
    program = PROGRAM.format(lines=lines, heavy=HEAVY)
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    return said.stdout.split("loaded:")[1].split()


def test_no_help_loads_a_library():
    each = [["--help"], *([command, "--help"] for command in COMMANDS)]
    assert loaded_by("".join(HELP.format(arguments=arguments) for arguments in each)) == []


def test_the_package_loads_what_is_asked_for():
    assert loaded_by("import retromae_hf") == []
    assert loaded_by("from retromae_hf import RetroMAEError") == []
    assert "torch" in loaded_by("from retromae_hf import RetroMAEForPreTraining")


FIND = """
from transformers import AutoConfig, AutoModel
found = AutoConfig.from_pretrained({folder!r}), AutoModel.from_pretrained({folder!r})
assert [type(one).__module__.split(".")[0] for one in found] == ["retromae_hf"] * 2, found
"""
ORDERS = {
    "before": "import retromae_hf",
    "after": "import transformers, retromae_hf",
    "behind the Auto classes": "from transformers import AutoConfig; import retromae_hf",
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_auto_classes_know_the_package_whichever_comes_first(order, model, tmp_path):
    model.save_pretrained(tmp_path)
    assert "torch" in loaded_by(ORDERS[order] + FIND.format(folder=str(tmp_path)))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(ImportError, match="cannot import name 'RetroMAX'"):
        from retromae_hf import RetroMAX  # noqa: F401


def test_the_long_help_lists_the_arguments_of_the_library_too(capsys):
    for flag, lists_them in (("--help", False), ("--help-all", True)):
        with pytest.raises(SystemExit):
            main(["pretrain", flag])
        shown = capsys.readouterr().out
        assert "--encoder_mask_ratio" in shown
        assert ("--max_grad_norm" in shown) is lists_them
        assert ("--help-all" in shown) is not lists_them
