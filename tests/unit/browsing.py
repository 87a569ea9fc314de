"""A headless Chromium that opens the server's page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

SIZE = {"width": 1280, "height": 900}
expect.set_options(timeout=60_000)  # a busy computer


@contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """A browser with more flags of the command line; use one per module."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no Chromium; on Debian: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *flags])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, url: str, dark: bool = False, width: int = SIZE["width"]) -> Iterator[Page]:
    """A page of its own session, in which every error of a script and every refusal of its policy fails the test."""
    context = browser.new_context(
        viewport={**SIZE, "width": width}, color_scheme="dark" if dark else "light", accept_downloads=True
    )
    context.set_default_timeout(60_000)
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if "Content Security" in message.text else None)
    page.goto(url)
    yield page
    context.close()
    assert errors == []


def serious_violations(page: Page) -> list[str]:
    """What axe-core calls serious or critical on the page as it is now."""
    from axe_core_python.sync_playwright import Axe

    found = Axe().run(page)["violations"]
    return [
        f"{entry['id']}: {node['html'][:200]}"
        for entry in found
        if entry["impact"] in ("serious", "critical")
        for node in entry["nodes"]
    ]


def screenshot(page: Page, path: Path) -> None:
    """The whole page as a picture, to be looked at."""
    page.screenshot(path=path, full_page=True)
