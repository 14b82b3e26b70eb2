"""What an embedding remembers: told from the decoder alone, without a token ever seeing itself."""

from __future__ import annotations

import itertools
import json
import re
import sys

import pytest
import torch
from conftest import features_of

from retromae_hf import (
    DataCollatorForRetroMAE,
    RetroMAEConfig,
    RetroMAEError,
    RetroMAEForPreTraining,
    RetroMAEModel,
    explain_embedding,
    export_encoder,
)
from retromae_hf.commands.main import main
from retromae_hf.data.tokenizers import train_tokenizer
from retromae_hf.explanation import SHADE_NAMES, SHADES, segments, shade
from retromae_hf.model.masking import visibility_mask
from retromae_hf.model.modeling_retromae import DecoderInputs

TEXT = "The quick fox jumps over the river number 7."
DECODINGS = pytest.mark.parametrize("decoding", ["enhanced", "basic"])


@pytest.fixture
def build(encoder_config):
    def build(decoding: str = "enhanced", **config) -> RetroMAEForPreTraining:
        return RetroMAEForPreTraining(RetroMAEConfig(encoder_config=encoder_config, decoding=decoding, **config)).eval()

    return build


def watch(model, monkeypatch) -> list[dict]:
    """What the decoder is asked from now on, and the states that it answers with."""
    calls, decode = [], model.decode

    def watched(embedding, inputs):
        states, found = decode(embedding, inputs)
        calls.append({"states": states, **inputs._asdict()})
        return states, found

    monkeypatch.setattr(model, "decode", watched)
    return calls


@DECODINGS
@pytest.mark.parametrize(
    ("visible", "one", "other", "same"),
    [
        (1.0, "the quick fox jumps", "the quick wolf jumps", [False, False, True, False]),
        (0.0, "the quick fox jumps", "a wolf slept near", [True] * 4),
    ],
)
def test_a_token_is_rebuilt_from_what_is_visible_and_never_itself(
    build, decoding, tokenizer, monkeypatch, visible, one, other, same
):
    model = build(decoding)
    calls = watch(model, monkeypatch)
    for text in (one, other):
        explain_embedding(model, tokenizer, text, visible, others=["bells rang in the tower"])
    difference = calls[1]["states"] - calls[3]["states"]  # from the embedding of the other passage
    assert (difference.abs().amax(dim=1) < 1e-6).tolist() == same


@DECODINGS
def test_what_is_visible_at_a_small_share_is_visible_at_every_larger_one(build, decoding, tokenizer, monkeypatch):
    model = build(decoding)
    calls = watch(model, monkeypatch)
    for share in (0.0, 0.2, 0.4, 0.8, 1.0):
        explain_embedding(model, tokenizer, TEXT, share, others=["a wolf slept"])
    if decoding == "enhanced":
        seen = [call["decoder_visibility"][0, 1:, 1:] for call in calls[::2]]
        assert seen[0].sum() == 0
    else:  # masks more of the passage the less is visible
        seen = [call["decoder_input_ids"] != tokenizer.mask_token_id for call in calls[::2]]
    for less, more in itertools.pairwise(seen):
        assert (less <= more).all()
        assert less.sum() < more.sum()


@pytest.mark.parametrize(
    "config", [{"decoder_query": "sum"}, {"decoder_query": "embedded"}, {"pooling": "mean"}], ids=lambda one: str(one)
)
def test_the_probabilities_are_those_of_the_training_loss(build, tokenizer, config):
    model = build(**config)
    others = ["a wolf slept near the meadow", "silent bells rang in old tower"]
    explanation = explain_embedding(model, tokenizer, TEXT, 0.3, others)
    tokens = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    labels = tokens.clone()
    labels[:, [0, -1]] = -100
    seen = visibility_mask(0, tokens.shape[1], 0.7)[None]
    loss = model(tokens, decoder_input_ids=tokens, decoder_labels=labels, decoder_visibility=seen).decoder_loss
    surprise, exchanged = (
        -torch.tensor([getattr(token, side).probability for token in explanation.tokens]).log().mean()
        for side in ("rebuilt", "exchanged")
    )
    torch.testing.assert_close(surprise, loss)
    inputs = DecoderInputs(tokens, labels, decoder_visibility=seen)
    of_others = [
        model.token_loss(*model.decode(model.pool(model.encode(row[None])), inputs))
        for row in (tokenizer(other, return_tensors="pt")["input_ids"][0] for other in others)
    ]
    torch.testing.assert_close(exchanged, torch.stack(of_others).mean())
    assert explanation.gain == pytest.approx(float(exchanged - surprise), abs=1e-5)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("decoding", "steps"), [("enhanced", 110), ("basic", 180)])
def test_training_puts_the_passage_into_the_embedding(build, decoding, steps, tokenizer):
    model = build(decoding, decoder_mask_ratio=0.9)
    passages = [
        "the quick fox jumps over the river",
        "a lazy heron wanders near meadow",
        "silent bells rang in old tower",
    ]
    others = ["brown wolf glides", "nobody came to the town", "indeed five otter slept"]
    untrained = [explain_embedding(model, tokenizer, passage, others=others).gain for passage in passages]
    collator = DataCollatorForRetroMAE.from_config(tokenizer, model.config, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    features = features_of(tokenizer, passages * 4)
    for step in range(steps):
        collator.set_epoch(step)
        model(**collator(features)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 10:  # the decoder knows the frequent tokens by now, and would miss them from zeros
            early = [explain_embedding(model, tokenizer, passage, others=others).gain for passage in passages]
    assert max(map(abs, untrained + early)) < 0.05
    # The other passages are those of the training set.
    after = [explain_embedding(model, tokenizer, passage, others=passages) for passage in passages]
    assert sum(explanation.gain for explanation in after) > 1.0
    tokens = [token for explanation in after for token in explanation.tokens]
    assert sum(token.rebuilt.right for token in tokens) > 0.9 * len(tokens)
    assert sum(token.exchanged.right for token in tokens) < 0.7 * len(tokens)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        "  two  spaces\n\tand a line ",
        "the fox \U0001f600 jumps",
        "[MASK] the [SEP] fox",
        "\u05e9\u05dc\u05d5\u05dd the fox",
        "fo\ud800x \x00 jumps",
        "e\u0301te\u0301",
        "<b>the fox</b> & {{x}}",
    ],
)
def test_the_tokens_stand_where_they_do_in_the_passage(texts, kind, text, encoder_config):
    tokenizer = train_tokenizer(kind, texts, vocab_size=300, max_length=32, lowercase=True)
    encoder = type(encoder_config)(**encoder_config.to_dict() | {"vocab_size": len(tokenizer)})
    explanation = explain_embedding(RetroMAEForPreTraining(RetroMAEConfig(encoder_config=encoder)), tokenizer, text)
    pieces = list(segments(explanation))
    assert "".join(piece for piece, _ in pieces) == explanation.text == text.replace("\ud800", "?")
    assert [token for _, token in pieces if token is not None] == explanation.tokens
    for token in explanation.tokens:
        assert explanation.text[token.start :].startswith(token.text)
        assert token.text == token.text.strip() or not token.text.strip()
        assert 0 <= token.rebuilt.probability <= 1


def test_a_guess_is_right_where_it_is_the_true_token(model, tokenizer):
    explanation = explain_embedding(model, tokenizer, TEXT.lower(), 0.5)
    for token in explanation.tokens:
        for side in (token.rebuilt, token.exchanged):
            assert side.right == (side.guess.removeprefix("##") == token.text)


def test_only_the_beginning_of_a_long_passage_is_read(model, tokenizer):
    long, short = (explain_embedding(model, tokenizer, "fox " * words) for words in (100, 30))
    assert (len(long.tokens), long.truncated) == (30, True)
    assert (len(short.tokens), short.truncated) == (30, False)
    assert "".join(piece for piece, _ in segments(long)) == "fox " * 100


def test_it_leaves_the_model_and_the_random_state_as_they_were(model, tokenizer):
    model.train()
    state = torch.get_rng_state()
    assert explain_embedding(model, tokenizer, TEXT, 0.5) == explain_embedding(model, tokenizer, TEXT, 0.5)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())


def test_shades_go_up_with_the_probability():
    assert [shade(edge) for edge in (0.0, *SHADES, 1.0)] == [*range(len(SHADE_NAMES)), len(SHADE_NAMES) - 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(
            ({"visible": visible}, "must be a share between 0 and 1")
            for visible in (-0.1, 1.1, float("nan"), "0.5", True)
        ),
        *(({"text": text}, "no token to rebuild") for text in (" \n", "[MASK]", "\U0001f600")),
        ({"others": [f" {TEXT}"]}, "no other passage to compare"),
    ],
)
def test_a_bad_argument_is_one_sentence(model, tokenizer, change, message):
    with pytest.raises(RetroMAEError, match=message):
        explain_embedding(**{"model": model, "tokenizer": tokenizer, "text": TEXT} | change)


def test_a_model_without_such_a_decoder_is_one_sentence(build, model, tokenizer):
    for decoding in ("none", "condenser"):
        with pytest.raises(RetroMAEError, match=f"decoding='{decoding}' has no decoder that rebuilds"):
            explain_embedding(build(decoding), tokenizer, TEXT)
    for encoder in (model.encoder, RetroMAEModel(model.config)):
        with pytest.raises(RetroMAEError, match="has no decoder to rebuild a passage with; take the training checkpo"):
            explain_embedding(encoder, tokenizer, TEXT)


@pytest.fixture
def checkpoint(model, tokenizer, tmp_path) -> str:
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    return str(tmp_path / "run")


def explained(capsys, checkpoint, *options, text=TEXT) -> str:
    assert main(["explain", "--model_name_or_path", checkpoint, "--text", text, *options]) == 0
    return capsys.readouterr().out


@pytest.fixture
def terminal(monkeypatch, capsys):  # capsys puts its own standard output in place first
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_the_command_tells_every_token_in_figures(checkpoint, capsys):
    told = explained(capsys, checkpoint)
    assert "\x1b" not in told
    tokens = ["The", "quick", "fox", "jumps", "over", "the", "river", "number", "7", "."]
    assert [line.split()[0] for line in told.splitlines()[1:-2]] == tokens
    assert "nats a token" in told
    assert "longer than the model reads" not in told
    assert "longer than the model reads" in explained(capsys, checkpoint, text="fox " * 100)


@pytest.mark.usefixtures("terminal")
def test_a_terminal_shows_colours_where_they_are_wanted(checkpoint, capsys, monkeypatch):
    told = explained(capsys, checkpoint, "--visible", "0.5")
    passage, exchanged = (re.sub("\x1b.*?m", "", line) for line in told.splitlines() if "fox" in line)
    assert passage == exchanged == TEXT
    assert all(name in told for name in SHADE_NAMES)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in explained(capsys, checkpoint)


@pytest.mark.usefixtures("terminal")
def test_a_passage_does_not_steer_the_terminal(checkpoint, capsys):
    told = explained(capsys, checkpoint, text="the fox \x1b[2J\x07 jumps")
    assert "\x1b[2J" not in told
    assert "\x07" not in told


def test_the_command_writes_json(checkpoint, capsys, model, tokenizer):
    told = json.loads(explained(capsys, checkpoint, "--json", "--visible", "0.5"))
    explanation = explain_embedding(model, tokenizer, TEXT, 0.5)
    assert told["gain"] == pytest.approx(explanation.gain)
    assert [token["text"] for token in told["tokens"]] == [token.text for token in explanation.tokens]


def test_the_other_passages_are_those_of_a_corpus_where_one_is_named(checkpoint, capsys, model, tokenizer, tmp_path):
    corpus = [f"the fox number {number}" for number in range(12)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in corpus))
    told = json.loads(explained(capsys, checkpoint, "--json", "--dataset", str(tmp_path / "corpus.jsonl")))
    assert told["gain"] == pytest.approx(explain_embedding(model, tokenizer, TEXT, others=corpus[::3]).gain, abs=1e-6)


def test_a_passage_is_no_other_passage(model, tokenizer):
    alone, among = (explain_embedding(model, tokenizer, TEXT, others=others) for others in (["bells"], ["bells", TEXT]))
    assert alone == among


def test_an_exported_encoder_is_one_sentence_and_status_2(model, tokenizer, tmp_path, capsys):
    folder = export_encoder(model, tokenizer, tmp_path / "encoder")
    assert main(["explain", "--model_name_or_path", str(folder), "--text", TEXT]) == 2
    assert "an exported encoder has no decoder" in capsys.readouterr().err
