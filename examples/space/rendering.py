"""What the page shows, as HTML. Everything that comes from a user, a corpus or a vocabulary is escaped here."""

from __future__ import annotations

import math
from html import escape

from retromae_hf import EmbeddingExplanation
from retromae_hf.explanation import SHADE_NAMES, ExplainedToken, segments, shade
from retromae_hf.retrieval.search import SearchResult

SIDES = {"rebuilt": "From the embedding", "exchanged": "From other passages’ embeddings"}


def explanation_html(explanation: EmbeddingExplanation) -> str:
    """The finding, the passage from its embedding and from others side by side, and the legend."""
    panels = "".join(
        f'<section class="panel" aria-label="{title}"><h3>{title}</h3>'
        f'<div class="passage">{_passage(explanation, side)}</div>'
        '<p class="hint">Point at a token, or tap it, for its figures.</p></section>'
        for side, title in SIDES.items()
    )
    legend = "".join(f'<li><span class="token s{number}">{name}</span></li>' for number, name in enumerate(SHADE_NAMES))
    return (
        f'<div class="remembers">{_finding(explanation)}<div class="panels">{panels}</div>'
        f'<div class="legend"><span>Probability of the true token</span><ul>{legend}'
        f'<li><span class="token right">underlined</span> the decoder’s first guess</li></ul></div></div>'
    )


def tokens_html(explanation: EmbeddingExplanation) -> str:
    """Every token in figures, for those who do not see the colours."""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Token", "Vector", "Others", "First guess"))
    rows = "".join(
        f'<tr><th scope="row">{escape(token.text)}</th><td>{percent(token.rebuilt.probability)}</td>'
        f"<td>{percent(token.exchanged.probability)}</td><td>{escape(token.rebuilt.guess)}</td></tr>"
        for token in explanation.tokens
    )
    return f'<div class="figures"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def results_html(results: list[SearchResult]) -> str:
    """What a search found, best first."""
    found = "".join(
        f'<li><div><span class="name">{escape(result.name)}</span>'
        f'<span class="score" title="similarity">{result.score:.3f}</span></div><p>{escape(result.line)}</p></li>'
        for result in results
    )
    return f'<ol class="results">{found}</ol>'


def notice_html(text: str) -> str:
    """A sentence in the place of a result."""
    return f'<p class="notice" role="status">{escape(text)}</p>'


def percent(probability: float) -> str:
    """A probability with two figures, and none that claims to be 0."""
    return "under 0.01%" if probability < 1e-4 else f"{100 * probability:.2g}%" if probability < 0.995 else "100%"


def _finding(explanation: EmbeddingExplanation) -> str:
    right = {side: sum(getattr(token, side).right for token in explanation.tokens) for side in SIDES}
    text = (
        f"<strong>{explanation.gain:.2f} nats a token</strong> is what the embedding is worth here: with it a true "
        f"token is {_times(explanation.gain)} as probable as with those of other passages. The decoder’s "
        f"first guess is right for {right['rebuilt']} of {len(explanation.tokens)} tokens, with theirs for "
        f"{right['exchanged']}."
    )
    if explanation.truncated:
        text += f" This model reads {len(explanation.tokens)} tokens of the passage; the rest was left out."
    return f'<p class="finding" role="status">{text}</p>'


def _times(gain: float) -> str:
    factor = math.exp(gain)
    return f"{factor:,.1f} times" if factor < 10 else f"{factor:,.0f} times"


def _passage(explanation: EmbeddingExplanation, side: str) -> str:
    return "".join(
        f'<span class="unread">{escape(piece)}</span>' if token is None else _token(piece, token, side)
        for piece, token in segments(explanation)
    )


def _token(piece: str, token: ExplainedToken, side: str) -> str:
    """A token on its colour. What is inside beside its text appears below the passage while it is pointed at."""
    shown = getattr(token, side)
    guess = "The first guess here" if shown.right else f"First guess here: “{escape(shown.guess)}”"
    # A tab stop at every token would be in the way of the keyboard, which has the table; -1 lets a finger choose one.
    return (
        f'<span class="token s{shade(shown.probability)}{" right" if shown.right else ""}" tabindex="-1">'
        f'{escape(piece) or "·"}<span class="figure">“{escape(piece)}”: {percent(token.rebuilt.probability)} from the '
        f"embedding, {percent(token.exchanged.probability)} from others. {guess}.</span></span>"
    )
