"""Takes the README's picture of the page with a headless Chromium, from a page that `make space` serves.

    python examples/space_picture.py http://127.0.0.1:7860 examples/space/page.png

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
DESKTOP, PHONE = (1280, 800), (390, 844)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless Chromium."""
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
    """Take the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("file")
    args = parser.parse_args()
    with open_browser() as browser, open_page(browser, args.url) as page:
        page.screenshot(path=args.file)


if __name__ == "__main__":
    main()
