"""What the tests of the page share: a browser per file of tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """A browser, with the flags BROWSER_FLAGS of the file. One for all files would keep an event loop running."""
    from browsing import chromium  # only tests of the page need playwright

    with chromium(*getattr(request.module, "BROWSER_FLAGS", ())) as browser:
        yield browser
