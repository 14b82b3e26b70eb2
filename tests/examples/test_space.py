"""The page: what it writes, and how it behaves in a browser where Gradio, playwright and a Chromium are at hand."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser

import pytest
import rendering
import torch
import yaml
from conftest import ROOT
from datasets import Dataset
from packaging.requirements import Requirement

from retromae_hf import EmbeddingExplanation, RetroMAEConfig, RetroMAEForPreTraining, explain_embedding
from retromae_hf.explanation import ExplainedToken, Rebuilding
from retromae_hf.retrieval.embedders import Embedder
from retromae_hf.retrieval.search import SearchIndex, SearchResult

SPACE = ROOT / "examples" / "space"
HOSTILE = 'the fox <img src=x onerror="window.hacked = 1"><script>window.hacked = 1</script> & ${1+1} {{1+1}}'


class Words(HTMLParser):
    """What a reader sees of HTML, the figures that only appear when pointed at aside, and its elements."""

    def __init__(self, html: str):
        super().__init__()
        self.text, self.tags, self.hidden = "", set(), 0
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "span" and (self.hidden or dict(attributes).get("class") == "figure"):
            self.hidden += 1

    def handle_endtag(self, tag):
        if tag == "span" and self.hidden:
            self.hidden -= 1

    def handle_data(self, data):
        self.text += "" if self.hidden else data


@pytest.fixture(scope="module")
def sharp(encoder_config):
    """A model of random weights large enough that its figures differ from token to token."""
    torch.manual_seed(3)
    encoder = copy.deepcopy(encoder_config)
    encoder.initializer_range = 0.3
    return RetroMAEForPreTraining(RetroMAEConfig(encoder_config=encoder)).eval()


def test_the_passage_stands_there_twice_as_it_was_typed(sharp, tokenizer):
    for text in (HOSTILE, "The quick \U0001f600 fox\n  jumps"):
        seen = Words(rendering.explanation_html(explain_embedding(sharp, tokenizer, text)))
        assert seen.text.count(text) == 2
        assert not seen.tags & {"img", "script"}


def test_tokens_and_guesses_are_escaped():
    guess = Rebuilding(probability=0.5, guess="<i>", right=False)
    explanation = EmbeddingExplanation("<b>", [ExplainedToken("<b>", 0, guess, guess)], 0.0, 0.0, truncated=False)
    assert Words(rendering.tokens_html(explanation)).tags == {"div", "table", "thead", "tbody", "tr", "th", "td"}
    passage = rendering.explanation_html(explanation)
    assert Words(passage).tags.isdisjoint({"b", "i"})
    assert passage.count("“&lt;b&gt;”") == passage.count("“&lt;i&gt;”") == 2


def test_search_results_escape_what_they_show():
    seen = Words(rendering.results_html([SearchResult("a<script>", "<b>bold</b>", 0.5)]))
    assert seen.tags.isdisjoint({"script", "b"})
    assert "<b>bold</b>" in seen.text


@pytest.mark.parametrize(
    ("probability", "shown"),
    [(0.0, "under 0.01%"), (0.00123, "0.12%"), (0.0123, "1.2%"), (0.123, "12%"), (0.994, "99%"), (0.9999, "100%")],
)
def test_percents_have_two_figures(probability, shown):
    assert rendering.percent(probability) == shown


def test_it_says_what_was_left_out(sharp, tokenizer):
    assert "the rest was left out" in rendering.explanation_html(explain_embedding(sharp, tokenizer, "fox " * 99))
    assert "the rest was left out" not in rendering.explanation_html(explain_embedding(sharp, tokenizer, "fox"))


def test_a_space_installs_what_the_package_needs():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["retrieval"]]
    assert (SPACE / "requirements.txt").read_text(encoding="utf-8").split() == needed
    head = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    (gradio,) = (Requirement(line) for line in project["optional-dependencies"]["space"] if "gradio" in line)
    assert head["sdk"] == "gradio"
    assert head["sdk_version"] in gradio.specifier
    assert (SPACE / head["app_file"]).is_file()


@pytest.fixture(scope="module")
def app():
    pytest.importorskip("gradio", reason="Gradio is not installed; make space-test installs it")
    import app

    return app


def test_without_the_demo_it_says_so(app, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHECKPOINT", raising=False)
    assert app.main() == 2
    assert capsys.readouterr().err.startswith(
        "space: error: there is none of runs/small-model/pretrained, runs/from-scratch/retromae; run `make model` or"
    )


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("playwright", reason="playwright is not installed; make space-test installs it")
    import space_picture
    from playwright.sync_api import Error

    opened = space_picture.open_browser()
    try:
        browser = opened.__enter__()
    except Error as error:
        pytest.skip(f"there is no Chromium: {str(error).splitlines()[0]}")
    yield browser
    opened.__exit__(None, None, None)


@pytest.fixture(scope="module")
def url(app, sharp, tokenizer, texts):
    documents = Dataset.from_dict({"name": ["zoo.fox", "zoo.<i>otter</i>"], "text": texts[:2]})

    def embed(questions: list[str]) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0] if "fox" in question else [0.0, 1.0] for question in questions])

    page = app.build(sharp, tokenizer, SearchIndex(Embedder(embed, embed), documents, torch.eye(2)))
    yield app.serve(page, prevent_thread_lock=True, quiet=True)
    page.close()


@pytest.fixture(params=["desktop", "phone"])
def size(request):
    import space_picture

    return {"desktop": space_picture.DESKTOP, "phone": space_picture.PHONE}[request.param]


@pytest.fixture
def page(browser, url, size):
    import space_picture

    with space_picture.open_page(browser, url, size) as page:
        page.set_default_timeout(10_000)
        yield page


def passages(page) -> list[str]:
    return [re.sub(r"\s+", " ", text) for text in page.locator(".passage").all_inner_texts()]


def figures(page) -> list[str]:
    return page.locator(".passage .figure").all_text_contents()


def test_typing_explains_what_is_typed_and_runs_none_of_it(page):
    page.get_by_role("textbox", name="Passage").fill(HOSTILE)
    page.wait_for_function("document.querySelector('.passage').innerText.includes('onerror')")
    assert passages(page) == [HOSTILE, HOSTILE]
    assert page.evaluate("window.hacked") is None
    page.get_by_role("textbox", name="Passage").fill(" ")
    page.get_by_text("Type a passage above.").wait_for()


def test_sliding_changes_the_figures_and_sliding_back_restores_them(page):
    before = figures(page)
    slider = page.get_by_role("slider")
    slider.focus()
    for _ in range(10):
        slider.press("ArrowRight")
    page.wait_for_function("first => document.querySelector('.passage .figure').textContent !== first", arg=before[0])
    assert len(figures(page)) == len(before)
    assert figures(page) != before
    slider.press("Home")
    page.wait_for_function("first => document.querySelector('.passage .figure').textContent === first", arg=before[0])
    assert figures(page) == before


def test_the_figures_of_a_token_appear_when_it_is_pointed_at(page, size):
    token = page.locator(".passage .token").first
    assert not token.locator(".figure").is_visible()
    if size[0] < 500:
        token.tap()
    else:
        token.hover()
    assert token.locator(".figure").is_visible()
    shown, panel = token.locator(".figure").bounding_box(), page.locator(".panel").first.bounding_box()
    assert panel["x"] <= shown["x"]
    assert shown["y"] + shown["height"] <= panel["y"] + panel["height"] + 1
    assert token.locator(".figure").evaluate("figure => figure.scrollHeight <= figure.clientHeight + 1")


def test_the_search_finds(page, texts):
    page.get_by_label("Question").fill("where is the otter")
    page.get_by_role("button", name="Search", exact=True).click()
    page.locator(".results li").first.wait_for()
    assert page.locator(".results .name").all_inner_texts() == ["zoo.<i>otter</i>", "zoo.fox"]
    # What is found first is looked into beside it.
    page.wait_for_function("text => document.querySelector('.passage').innerText.includes(text)", arg=texts[1][:20])
    page.get_by_label("Question").fill("a fox")
    page.get_by_label("Question").press("Enter")
    page.wait_for_function("document.querySelector('.results .name').innerText === 'zoo.fox'")


def test_it_fits_the_window(page, size):
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    first, second = (panel.bounding_box() for panel in page.locator(".panel").all())
    beside = first["y"] == second["y"] and first["x"] < second["x"]
    below = first["x"] == second["x"] and first["y"] < second["y"]
    assert (beside, below) == ((True, False) if size[0] > 720 else (False, True))


CONTRAST = """() => {
  const channels = color => color.match(/[0-9.]+/g).map(Number);
  const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = element => {
    for (; element; element = element.parentElement) {
      const color = channels(getComputedStyle(element).backgroundColor);
      if (color.length < 4 || color[3] > 0.5) return color;
    }
    return [255, 255, 255];
  };
  const texts = 'h1, h3, p, label span, .token, button, li, input, textarea';
  return [...document.querySelectorAll(texts)]
    .filter(element => element.checkVisibility() && (element.innerText?.trim() || element.value))
    .map(element => {
      const of = [luminance(channels(getComputedStyle(element).color)), luminance(ground(element))];
      return [element.outerHTML.slice(0, 90), (Math.max(...of) + 0.05) / (Math.min(...of) + 0.05)];
    })
    .filter(([_, contrast]) => contrast < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_its_text_can_be_read_on_every_ground(browser, url, scheme):
    import space_picture

    with space_picture.open_page(browser, url, scheme=scheme) as page:
        assert page.evaluate("document.querySelectorAll('.legend .token').length") == 6
        assert page.evaluate(CONTRAST) == []


def test_nothing_is_fetched_from_elsewhere(browser, url):
    fetched = []
    context = browser.new_context()
    context.on("request", lambda request: fetched.append(request.url))
    page = context.new_page()
    page.goto(url, wait_until="networkidle")
    context.close()
    assert [address for address in fetched if not address.startswith((url, "data:", "blob:"))] == []


def test_texts_are_bounded(page):
    assert int(page.get_by_role("textbox", name="Passage").get_attribute("maxlength")) == 4000
