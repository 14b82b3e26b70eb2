"""What is importable from the package is described, every argument of it too."""

from __future__ import annotations

import inspect
import re
from types import FunctionType

import pytest

import retromae_hf

NAMES = retromae_hf.__all__


def public_calls(name: str) -> dict[str, tuple]:
    """The parameters and the docstring of a name, and of the methods that its own class defines."""
    named = getattr(retromae_hf, name)
    if not inspect.isclass(named):
        return {name: (inspect.signature(named), inspect.getdoc(named))}
    methods = {
        key: getattr(named, key)
        for key, value in vars(named).items()
        if not key.startswith("_") and isinstance(value, (classmethod, staticmethod, FunctionType))
    }
    return {f"{name}.{key}": (inspect.signature(method), inspect.getdoc(method)) for key, method in methods.items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_and_its_methods_have_docstrings(name):
    assert getattr(retromae_hf, name).__doc__
    assert [call for call, (_, described) in public_calls(name).items() if not described] == []


@pytest.mark.parametrize("name", [name for name in NAMES if not inspect.isclass(getattr(retromae_hf, name))])
def test_every_argument_of_a_function_is_described(name):
    signature, described = public_calls(name)[name]
    missing = [one for one in signature.parameters if not re.search(rf"^ +\**{one}: ", described, re.MULTILINE)]
    assert missing == []
    assert "Returns:" in described or signature.return_annotation in (None, "None")
    assert "Raises:" in described
