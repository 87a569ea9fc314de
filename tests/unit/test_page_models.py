"""The page's tab of models, driven in a browser: what is there, what can be made, and how far it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from browsing import opened, serious_violations
from chat_models import echo_model
from playwright.sync_api import Browser, Locator, Page, expect
from serve_models import ready
from served import Resident
from serving import server
from tiny_runs import train

from headway.app.starters import STARTERS, models_folder
from headway.learn.run import RunDirectory
from headway.serve import starters as endpoints
from headway.serve.interfaces import ApiKey, ServerSettings
from headway.serve.models import LoadOptions, ServedModels


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that trains, with no model yet."""
    with server(Resident([]), ServerSettings(runs=tmp_path_factory.mktemp("runs"), log=False)) as started:
        yield started


class Maker:
    """Makes models as a job would, as far as their folders show."""

    def __init__(self) -> None:
        self.lock = ExitStack()

    def start(self, folder: Path, name: str, command: list[str]) -> None:
        self.run = RunDirectory(folder / name)
        self.lock.enter_context(self.run.locked())
        self.write("running")

    def stop(self, folder: Path, name: str) -> None:
        self.write("interrupted")
        self.lock.close()

    def finish(self) -> None:
        self.write("finished", scores={"split": "test", "accuracy": 0.9})
        self.lock.close()

    def write(self, status: str, step: int = 1, **more: Any) -> None:
        counts = {"parameters": 1, "steps": 4, "step": step, "tokens": 1, "seconds": 30.0, "minutes": 2.0}
        self.run.path.mkdir(parents=True, exist_ok=True)
        self.run.status.write_text(json.dumps({"format": 1, "status": status, **counts, **more}))


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Maker]:
    made = Maker()
    monkeypatch.setattr(endpoints, "start_job", made.start)
    monkeypatch.setattr(endpoints, "_stop", lambda name: made.stop(models_folder(), name))
    with made.lock:
        yield made


def entry(page: Page, name: str) -> Locator:
    return page.locator(".starters li").filter(has=page.locator("h4", has_text=name)).first


def test_without_a_model_the_page_offers_some(browser: Browser, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Resident, "preparing", lambda self: 12.0)
    with opened(browser, url) as page:
        expect(page.get_by_text("this computer prepares itself")).to_contain_text("(10 seconds so far)")
        monkeypatch.undo()
        page.evaluate("server.loadModels(false)")
        expect(page.get_by_text("this computer prepares itself")).to_be_hidden()
        expect(page.get_by_text("Ready: models that write answer without a wait now.")).to_be_visible()
        expect(page.get_by_role("tab", name="Models", exact=True)).to_have_attribute("aria-selected", "true")
        expect(page.get_by_text("There is no model yet")).to_be_visible()
        expect(page.locator(".starters li")).to_have_count(len(STARTERS))
        digits = entry(page, "digits")
        expect(digits).to_contain_text("2 minutes on two cores")
        expect(digits).to_contain_text("needs no network")
        digits.get_by_text("Its data").click()
        expect(digits).to_contain_text("Licence: BSD (the package), CC BY 4.0 (UCI)")
        page.get_by_text("Show me the command").last.click()
        expect(page.get_by_text("headway models make digits", exact=False).first).to_be_visible()


@pytest.mark.parametrize("dark", [False, True])
def test_everyone_can_use_it(browser: Browser, url: str, maker: Maker, dark: bool) -> None:
    with opened(browser, url, dark, width=360) as page:
        button = entry(page, "digits").get_by_role("button", name="Make digits")
        button.focus()
        page.keyboard.press("Enter")
        expect(entry(page, "digits").get_by_role("progressbar")).to_be_visible()
        assert serious_violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_model_is_made_stopped_and_continued(browser: Browser, url: str, maker: Maker) -> None:
    with opened(browser, url) as page:
        digits = entry(page, "digits")
        digits.get_by_role("button", name="Make digits").click()
        expect(page.get_by_text("digits is being made.")).to_be_visible()
        expect(digits).to_contain_text("25 %, about 2 minutes left")
        digits.get_by_role("button", name="Stop digits").click()
        expect(digits).to_contain_text("Stopped at 25 %")
        expect(page.get_by_text("digits is being made.")).to_have_count(0)
        expect(page.get_by_text("digits: stopped.")).to_be_visible()
        page.reload()  # another visit finds it so
        digits.get_by_role("button", name="Continue digits").click()
        expect(digits.get_by_role("button", name="Stop digits")).to_be_visible()
        maker.write("running", step=4)
        expect(digits).to_contain_text("Evaluating")
        expect(digits).not_to_contain_text("seconds left")
        maker.finish()
        expect(page.get_by_text("digits: made.")).to_be_visible()
        expect(digits).to_contain_text("Made")
        expect(digits).to_contain_text("It trained for 0.5 minutes.")
        expect(digits).to_contain_text("did not train on: accuracy 90.0 %.")


def test_the_model_that_was_made_is_the_one_to_try(browser: Browser, tmp_path: Path, maker: Maker) -> None:
    """Next to a run of the same name, and while the list changes."""
    runs, folder = tmp_path / "runs", models_folder()
    (tmp_path / "fox.txt").write_text("One day a fox named Tom lost a red ball at the pond.\n" * 200)
    train(runs / "digits", tmp_path / "fox.txt")
    models = ServedModels([], [runs, folder], LoadOptions("cpu"), lambda model, name: None, may_be_empty=True)
    with server(models, ServerSettings(runs=runs, log=False)) as url, opened(browser, url) as page:
        page.get_by_role("tab", name="Models", exact=True).click()
        rows = page.get_by_role("region", name="Models of this server").locator("tbody tr")
        expect(rows).to_have_count(1)
        expect(rows).to_contain_text("continues text")
        expect(entry(page, "digits")).to_contain_text(
            "Your own run digits has the same name. Making this one does not replace it."
        )
        page.get_by_role("paragraph").get_by_role("button", name="Make one").click()
        expect(page.get_by_role("heading", name="Make one")).to_be_focused()
        shutil.copytree(runs / "digits", folder / "digits")
        maker.start(folder, "digits", [])
        expect(rows.nth(1)).to_contain_text("models/digits")  # by itself
        expect(rows.nth(1)).to_contain_text("still being made")
        expect(page.get_by_role("button", name="Try models/digits")).to_have_count(0)
        (folder / "digits/report.html").write_text("<h1>The report</h1>")
        maker.finish()
        expect(entry(page, "digits")).to_contain_text("Its name here is models/digits.")
        with page.context.expect_page() as report:
            page.get_by_role("button", name="Report of digits").click()
        expect(report.value.get_by_role("heading", name="The report")).to_be_visible()
        entry(page, "digits").get_by_role("button", name="Try models/digits").click()
        choice = page.get_by_role("tabpanel").get_by_label("Model")
        expect(choice).to_have_value("models/digits")
        assert choice.locator("option").all_inner_texts() == [
            "digits (one of your runs)",
            "models/digits (made on the tab Models)",
        ]
        shutil.move(folder / "digits", tmp_path / "elsewhere")
        expect(
            page.get_by_role("tabpanel").get_by_text("models/digits is gone from the server")
        ).to_be_visible()  # soon
        page.get_by_role("tab", name="Models", exact=True).click()
        shutil.rmtree(runs / "digits")
        expect(rows).to_have_count(1)


def test_what_cannot_be_made_is_said(browser: Browser, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from headway.errors import UserError

    def refuse(*given: object) -> None:
        raise UserError("the disk is full at <b>/cache</b>; free some space")

    monkeypatch.setattr(endpoints, "start_job", refuse)
    with opened(browser, url) as page:
        entry(page, "digits").get_by_role("button", name="Make digits").click()
        expect(page.locator("#message")).to_have_text("The disk is full at <b>/cache</b>; free some space.")


def test_a_key_that_may_not_train_sees_the_command(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ready(echo_model(tmp_path / "echo"), "echo")
    settings = ServerSettings(keys=(ApiKey("a-key"),), runs=tmp_path, log=False)
    with server(Resident([model]), settings) as url, opened(browser, url) as page:
        page.get_by_label("API key").fill("a-key")
        page.get_by_role("button", name="Use key").click()
        page.get_by_role("tab", name="Models", exact=True).click()
        expect(page.get_by_role("cell", name="echo", exact=True)).to_be_visible()
        expect(entry(page, "digits")).to_contain_text("headway models make digits")
        expect(page.get_by_role("button", name="Make digits")).to_have_count(0)
        page.get_by_role("button", name="Try echo").click()
        expect(page.get_by_role("tab", selected=True)).to_have_text("Write")
