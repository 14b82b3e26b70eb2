"""Takes pictures of the page that `make space` serves, as a desktop and as a phone show it, with a headless Chromium.

    python examples/space_picture.py http://127.0.0.1:7860 examples/space/page.png examples/space/phone.png

Needs playwright (`pip install playwright`) and a Chromium: one on the path, or its own (`playwright install chromium`).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Nothing but the page is fetched; a container has no sandbox to give.
OPTIONS = ("--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run")
DESKTOP, PHONE = (1280, 900), (390, 844)
QUESTION = "read a file line by line"


@contextmanager
def open_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, BROWSERS)), None)
        browser = playwright.chromium.launch(executable_path=found, args=list(OPTIONS))
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Browser, url: str, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> Iterator[Page]:
    """The page with its first passage explained, in a window of its own."""
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=size == PHONE
    )
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector(".passage .token")
    yield page
    context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("desktop")
    parser.add_argument("phone")
    args = parser.parse_args()
    with open_browser() as browser:
        for size, file in ((DESKTOP, args.desktop), (PHONE, args.phone)):
            with open_page(browser, args.url, size) as page:
                ask(page, QUESTION)
                page.screenshot(path=file, full_page=size == PHONE)


def ask(page: Page, question: str) -> None:
    """Search, and wait until what is found first is looked into."""
    before = page.locator(".passage").first.inner_text()
    page.get_by_label("Question").fill(question)
    page.get_by_label("Question").press("Enter")
    page.locator(".results li").first.wait_for()
    page.wait_for_function("before => document.querySelector('.passage').innerText !== before", arg=before)


if __name__ == "__main__":
    main()
