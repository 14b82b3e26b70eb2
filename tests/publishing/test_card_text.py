"""Whatever strings a stranger's record and results hold, the card is built as its template is."""

from __future__ import annotations

import functools
import re

import pytest
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from retromae_hf.publishing.model_card import as_text, build_card
from retromae_hf.publishing.record import new_record

NASTY = [
    "x\n\n# A heading\n",
    "<script>alert(1)</script>",
    "[a link](https://example.org)",
    "![a picture](x.png)",
    "https://example.org",
    "WWW.example.org",
    "me@example.org",
    "a | b | c",
    "a\\| b",
    "`code` <b> `code`",
    "```\n# out of the block\n```",
    "---\nlicense: other\n---",
    "{{ 7 * 7 }}",
    "- a\n- b",
    "a/_b_",
    "\u202e right to left",
    "\ud800",
    "",
]
TEXT = (
    st.sampled_from(NASTY)
    | st.text(st.characters(), max_size=30)
    | st.text("ab<>[]()`*_#|\\\n -!&;:/.@\"'", max_size=30)
)
NAMES = st.lists(TEXT, min_size=22, max_size=22)


def card_of(names: list[str]) -> ModelCard:
    """A card in every place of which that takes a string stands one of the names."""
    a, b, c, d, e, f, g, h, i, j, k, last, m, n, o, p, q, r, s, t, u, v = names
    stage = {
        "stage": "pretraining",
        "start": {"name": a, "on_hub": True},
        "data": {"source": b, "on_hub": True, "config": c, "split": d, "documents": 7, "max_length": 9},
        "objective": {"decoding": "enhanced", f"1{e}": f, "2": [g]},
        "training": {"steps": 1, "batch_size": 2, "optim": h},
        "environment": {"device": i, f"1{j}": k, "threads": 1},
        "seconds": 3.0,
        f"1{last}": last,
        "logs": [],
    }
    local = stage | {"data": {"source": m, "on_hub": False}, "start": {"name": n, "on_hub": False}}
    model = {"model_type": o, "num_hidden_layers": p, "hidden_size": 3, "vocab_size": 5, "max_length": 9}
    model |= {"num_parameters": 4, "pooling": "cls", "similarity": f"1{q}", "prompts": {"query": r, "document": s}}
    record = new_record(f"1{t}", "encoder", model, [stage, local], f"1{u}", [v])
    record |= {"source": {"name": a, "on_hub": True}, "repository": f"1{b}", "command": f"1{c}"}
    entry = {"num_queries": 1, "num_documents": 2, "measures": {"ndcg@10": 0.5, f"1{d}": 0.1}}
    entry |= {"bm25": {"measures": {"ndcg@10": 0.6}}, "hybrid": {"measures": {"ndcg@10": 0.7}}, "max_documents": 2}
    return build_card(record, {"schema": 1, "model": e, "tasks": {f"1{f}": entry}})


def structure(card: ModelCard) -> list[tuple[str, str, int]]:
    """What a Markdown parser makes of a card, without the text in it."""
    markdown_it = pytest.importorskip("markdown_it")
    tokens = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(card.text)
    return [
        (one.type, one.tag, one.nesting)
        for token in tokens
        for one in [token, *(token.children or [])]
        if one.type not in ("text", "code_inline")
    ]


@functools.cache
def structure_of_sound_names() -> list[tuple[str, str, int]]:
    return structure(card_of(["name"] * 22))


@settings(max_examples=10, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@example(NASTY + NASTY[:4])
@example([NASTY[-3], *NASTY[2:], *NASTY[:5]])
@example(["`"] * 22)
@given(NAMES)
def test_names_change_nothing_but_the_text_of_a_card(names):
    card = card_of(names)
    assert structure(card) == structure_of_sound_names()
    assert ModelCard(str(card)).text == card.text, "the metadata end where they should"
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", card.text, flags=re.DOTALL)
    assert re.findall(r"<\w|://|www\.|[\w.]@\w*[a-z.]|\]\(", prose, re.IGNORECASE) == []
    str(card).encode()


def test_ordinary_names_stand_as_they_are():
    names = ["me/my-encoder", "scifact 2.1 (small)", "2.13.0+cpu", "ndcg@10", "多语言", "Bob's", "facebook/bart-large"]
    assert as_text({name: [name] for name in names}) == {name: [name] for name in names}
    assert as_text("a|b") == "`a¦b`"
