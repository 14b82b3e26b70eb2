"""Made-up inputs come to a result that holds or to a `RetroMAEError`; `examples/measure/fuzz.py` tries many more."""

from __future__ import annotations

import fuzz
import pytest
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("target", fuzz.SHARES, ids=lambda target: target.__name__)
def test_nothing_but_results_and_sentences(target, one_thread):
    counts = fuzz.attack(target, 15 if target is fuzz.json_lines else 40)
    assert 0 <= counts["refused"] < counts["tried"]


def test_a_crash_would_be_seen():
    @given(number=st.integers())
    def fails(number):
        assert number < 5

    with pytest.raises(AssertionError):
        fuzz.attack(fails, 100)
