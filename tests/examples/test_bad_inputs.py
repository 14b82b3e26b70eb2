"""Every bad input gets one sentence, and nothing that a model brings is run."""

from __future__ import annotations

import json
import logging

import bad_inputs
import publish
import pytest

from retromae_hf import RetroMAEError


@pytest.fixture
def as_it_was():
    yield
    logging.disable(logging.NOTSET)


def test_every_bad_input_gets_a_sentence(as_it_was, one_thread):
    logging.disable(logging.CRITICAL)
    results = bad_inputs.attempt_all()
    assert [result for result in results if not result["told"]] == []
    published = json.loads(publish.BAD_INPUTS.read_text(encoding="utf-8"))
    assert [result["input"] for result in results] == [result["input"] for result in published]


def test_what_is_no_sentence_is_seen():
    def refuse():
        raise RetroMAEError("the folder is not empty")

    for call in (lambda: None, lambda: 1 / 0, lambda: [][0]):
        assert not bad_inputs._told(call, "")["told"]
    assert bad_inputs._told(refuse, "the folder")["told"]
    assert not bad_inputs._told(refuse, "a pickle")["told"], "refused, but for another reason"
    assert "NOT" not in bad_inputs.conditions([{"told": True}])


def test_the_page_is_that_of_the_results():
    page = publish.BAD_INPUTS.with_suffix(".md").read_text(encoding="utf-8")
    assert publish.bad_inputs_page() == page
