"""The page: what a sentence embedding remembers of a passage, and a search of a corpus, for a browser.

Three variables of the environment say with what; without them those of `make model` or `make from-scratch`.
    CHECKPOINT  training checkpoint, decoder included: a folder or a Hub name
    ENCODER     model to search with; the checkpoint itself where only that is given
    CORPUS      what to search: pydocs, a file, a folder or a Hub dataset
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import gradio as gr
from rendering import explanation_html, notice_html, results_html, tokens_html
from transformers import PreTrainedTokenizerBase

from retromae_hf import RetroMAEError, RetroMAEForPreTraining, explain_embedding
from retromae_hf.checkpoints.loading import load_checkpoint, load_tokenizer
from retromae_hf.explanation import other_passages
from retromae_hf.retrieval.search import PYDOCS, SearchIndex, load_index

MADE_HERE = {
    "runs/small-model/pretrained": "runs/small-model/encoder",
    "runs/from-scratch/retromae": "runs/from-scratch/retromae-finetuned",
}
"""Checkpoints of `make model` and `make from-scratch`, the better one first, with the encoders to search with."""
MAX_CHARACTERS = 4000
RESULTS = 5

TITLE = "What an embedding remembers"
INTRODUCTION = """# What an embedding remembers
A RetroMAE encoder turns a passage into one vector, by which the search finds it. A decoder of a single layer rebuilds
the passage from the vector; beside it stands the same from the vectors of other passages: the difference is what this
one carries."""
PASSAGES = (
    "Returns a new tensor with the elements of the input tensor sorted along a given dimension in ascending order.",
    "Return a list of the names of the files in the given directory. Raises an error if the path does not exist.",
    "Computes the gradient of the loss with respect to the parameters of the model.",
)
QUESTIONS = ("split a tensor into chunks", "read a file line by line", "random numbers from a normal distribution")
THEME = gr.themes.Base(
    primary_hue="blue",
    neutral_hue="slate",
    font=("system-ui", "sans-serif"),  # nothing is fetched from elsewhere
    font_mono=("ui-monospace", "monospace"),
).set(  # darker than the theme's own, to be read on its grounds
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_label_text_color="*neutral_700",
    block_title_text_color="*neutral_700",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    color_accent="*primary_700",
    slider_color="*primary_600",
)


def main() -> int:
    """Load everything and serve the page; bad settings are one sentence and status 2."""
    try:
        page = build(*load())
    except RetroMAEError as error:
        print(f"space: error: {error}", file=sys.stderr)
        return 2
    serve(page)
    return 0


def serve(page: gr.Blocks, **options: Any) -> str:
    """Serve the page until it is stopped; `options` are those of `launch`. Returns its address."""
    style = Path(__file__).with_name("style.css")
    return page.launch(theme=THEME, css_paths=style, footer_links=[], ssr_mode=False, **options)[1]


def load() -> tuple[RetroMAEForPreTraining, PreTrainedTokenizerBase, SearchIndex]:
    """What the environment names, or what was made here.

    Raises:
        RetroMAEError: something cannot be loaded, or nothing was made.
    """
    made = (one for one, encoder in MADE_HERE.items() if Path(encoder).is_dir())
    checkpoint = os.environ.get("CHECKPOINT") or next(made, None)
    if checkpoint is None:
        raise RetroMAEError(
            f"there is none of {', '.join(MADE_HERE)}; run `make model` or `make from-scratch` first, or name a "
            "checkpoint in CHECKPOINT"
        )
    encoder = os.environ.get("ENCODER") or MADE_HERE.get(checkpoint, checkpoint)
    corpus = os.environ.get("CORPUS") or PYDOCS
    print(f"Checkpoint {checkpoint}; searching {corpus} with {encoder}, embedded anew where it has changed", flush=True)
    model = load_checkpoint(RetroMAEForPreTraining, checkpoint).eval()
    return model, load_tokenizer(checkpoint), load_index(encoder, corpus)


def build(model: RetroMAEForPreTraining, tokenizer: PreTrainedTokenizerBase, index: SearchIndex) -> gr.Blocks:
    """The page.

    Raises:
        RetroMAEError: the model has no decoder that rebuilds a passage.
    """

    others = other_passages(index.documents)

    def explain(passage: str, visible: float) -> tuple[str, str]:
        if not passage.strip():
            return notice_html("Type a passage above."), ""
        try:
            explanation = explain_embedding(model, tokenizer, passage[:MAX_CHARACTERS], visible / 100, others)
        except RetroMAEError as error:
            return notice_html(f"{str(error)[:1].upper()}{str(error)[1:]}."), ""
        return explanation_html(explanation), tokens_html(explanation)

    def search(question: str) -> tuple[str, Any]:
        if not question.strip():
            return notice_html("Type a question above."), gr.skip()
        (results,) = index.search([question[:MAX_CHARACTERS]], RESULTS)
        return results_html(results), results[0].text[:MAX_CHARACTERS]

    explain_embedding(model, tokenizer, PASSAGES[0], others=others)  # says now what would be wrong with the model
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                gr.Markdown("## Search")
                question = gr.Textbox(
                    label="Question",
                    placeholder=f"Search {len(index.documents):,} documents",
                    max_length=MAX_CHARACTERS,
                )
                button = gr.Button("Search", variant="primary")
                found = gr.HTML(notice_html("What is found first is looked into beside it."))
                asked_before = gr.Column()
            with gr.Column(scale=3, min_width=320):
                gr.Markdown("## What its vector remembers")
                passage = gr.Textbox(PASSAGES[0], label="Passage", lines=3, max_lines=8, max_length=MAX_CHARACTERS)
                first, figures = explain(PASSAGES[0], 0)
                explained = gr.HTML(first)
                visible = gr.Slider(
                    0,
                    100,
                    0,
                    step=5,
                    label="Other tokens that the decoder sees, %",
                    info="At 0 it has the embedding and the positions alone. A token never sees itself.",
                )
                with gr.Accordion("Every token in figures", open=False):
                    table = gr.HTML(figures)
                gr.Examples([[example] for example in PASSAGES], passage, label="Other passages")
        asked, answered = [question.submit, button.click], [found, passage]
        gr.on(asked, search, question, answered, show_progress="minimal")
        with asked_before:
            gr.Examples([[example] for example in QUESTIONS], question, answered, search, run_on_click=True)
        gr.on(
            [passage.change, visible.change],
            explain,
            [passage, visible],
            [explained, table],
            show_progress="hidden",
            trigger_mode="always_last",
        )
    return page


if __name__ == "__main__":
    sys.exit(main())
