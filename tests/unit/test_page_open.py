"""The page of `headway open` in a browser: a one-time key, reloads, and what is shown without a key."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browsing import opened, serious_violations
from playwright.sync_api import Browser, Page, expect
from serving import server

from headway.serve.engine_loop import open_engine_loop
from headway.serve.interfaces import ServerSettings
from headway.serve.models import LoadOptions, ServedModels
from headway.serve.session_keys import SessionKeys

SECRET = "the secret of this server"


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> SessionKeys:
    folder = tmp_path_factory.mktemp("open")
    return SessionKeys(folder / "sessions.json", SECRET, [folder / "runs"])


@pytest.fixture(scope="module")
def url(sessions: SessionKeys) -> Iterator[str]:
    """A server without a model."""
    models = ServedModels(
        [], sessions.folders, LoadOptions("cpu", backend="torch"), open_engine_loop, may_be_empty=True
    )
    with server(models, ServerSettings(sessions=sessions, log=False)) as url:
        yield url


def address(url: str, sessions: SessionKeys, tab: str = "") -> str:
    return f"{url}/#key={sessions.issue(SECRET)}{tab}"


def is_open(page: Page) -> None:
    expect(page.get_by_role("tab", name="Models")).to_be_visible()
    expect(page.locator("#access")).to_be_hidden()
    expect(page.locator("#notice")).to_be_hidden()


def is_refused(page: Page) -> None:
    expect(page.get_by_text("This server needs a key: run headway open again")).to_be_visible()
    expect(page.get_by_label("API key")).to_be_hidden()
    expect(page.get_by_role("tab")).to_have_count(0)


def test_a_page_opens_with_its_key_and_a_reload_keeps_it(browser: Browser, url: str, sessions: SessionKeys) -> None:
    with opened(browser, address(url, sessions)) as page:
        is_open(page)
        assert "key" not in page.url
        expect(page.get_by_text("There is no model yet")).to_be_visible()  # on the tab that makes some
        page.reload()
        is_open(page)
        page.go_back()
        assert page.url == "about:blank"  # the key is not in the history of this tab
        page.go_forward()
        is_open(page)
        other = page.context.new_page()  # a tab that was opened by hand
        other.goto(url)
        is_refused(other)
        for dark in (False, True):
            other.emulate_media(color_scheme="dark" if dark else "light")
            assert serious_violations(other) == []
        other.set_viewport_size({"width": 360, "height": 700})
        assert other.evaluate("document.documentElement.scrollWidth") <= 360
        link = address(url, sessions, "&tab=models")
        for _ in range(2):  # the second time from a bookmark or the history
            other.goto(link)
            is_open(other)
            other.reload()
            is_open(other)
            assert other.url == f"{url}/#models"
            other.goto("about:blank")


def test_a_key_that_was_used_is_refused(browser: Browser, url: str, sessions: SessionKeys) -> None:
    used = address(url, sessions)
    with opened(browser, used) as first, opened(browser, used) as second:
        is_refused(second)
        expect(second.get_by_role("alert")).to_have_text("This address was used before or is older than five minutes.")
        expect(second.locator("#notice")).to_be_hidden()  # one message
        assert serious_violations(second) == []
        first.reload()
        is_refused(first)  # whose of the two is the thief is not known
        first.goto(address(url, sessions))
        is_open(first)


def test_a_server_that_does_not_answer_yet(browser: Browser, url: str, sessions: SessionKeys) -> None:
    """The key is removed from the address at once, and is sent again by "Try again"."""
    with opened(browser, "about:blank") as page:
        page.route("**/v1/session", lambda route: route.abort())
        page.goto(address(url, sessions))
        expect(page.get_by_role("alert")).to_contain_text("The server does not respond")
        assert "key" not in page.url
        page.unroute("**/v1/session")
        page.get_by_role("button", name="Try again").click()
        is_open(page)


def test_a_session_that_ended_keeps_what_was_shown(browser: Browser, url: str, sessions: SessionKeys) -> None:
    with opened(browser, address(url, sessions)) as page:
        is_open(page)
        page.evaluate("page.fail(new ServerError('the server does not respond', 0), () => {})")
        sessions._sessions.clear()
        page.evaluate("server.loadModels().catch((error) => page.fail(error))")
        expect(page.get_by_text("This server needs a key: run headway open again")).to_be_visible()
        expect(page.locator("#notice")).to_be_hidden()  # the form is the only message
        expect(page.get_by_role("tab", name="Models")).to_be_visible()
        page.evaluate(f"location.href = {address(url, sessions)!r}")  # the page stays, and only its fragment changes
        is_open(page)
