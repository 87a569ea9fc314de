"""The tab Runs in a browser: its table, curves, comparisons and buttons, and what goes wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from board_runs import lines, make_run, trained
from browsing import opened, serious_violations
from playwright.sync_api import Browser, Page, expect
from served import Resident
from serving import server

from headway.serve.interfaces import ApiKey, ServerSettings

HTML = "<b onclick=alert(1)>x"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page") / "runs"


@pytest.fixture(scope="module")
def url(runs: Path) -> Iterator[str]:
    runs.mkdir()
    with server(Resident([]), ServerSettings(runs=runs, log=False)) as url:
        yield url + "/#runs"


@pytest.fixture
def some(runs: Path, url: str) -> str:
    """The page's address, with four runs in its folder."""
    for path in runs.iterdir():
        shutil.rmtree(path)
    make_run(runs, "first")
    make_run(runs, "second-run", 40, 20)
    make_run(runs, "newer", format=2)
    make_run(runs, HTML, recipe=f"{HTML}{'y' * 10_000}")
    (runs / "first" / "report.html").write_text("<!DOCTYPE html><title>The report</title><p>of first</p>")
    return url


def names(page: Page) -> list[str]:
    return page.locator("table.runs tbody tr td:nth-child(2)").all_inner_texts()


def look(page: Page) -> None:
    """Have the page ask for what is new, as when its window comes to the front; while nothing trains it asks rarely."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def test_the_table_is_filtered_and_sorted(browser: Browser, some: str) -> None:
    with opened(browser, some) as page:
        expect(page.locator("table.runs tbody tr")).to_have_count(4)
        page.get_by_role("button", name="name").click()
        assert names(page) == [HTML, "first", "newer", "second-run"]
        page.get_by_role("button", name="name ↑").press("Enter")
        assert names(page) == ["second-run", "newer", "first", HTML]
        assert page.locator("th[aria-sort=descending]").inner_text() == "name ↓"
        page.get_by_label("Search").fill("FIRST tiny")
        assert names(page) == ["first"]
        page.reload()
        expect(page.get_by_label("Search")).to_have_value("FIRST tiny")
        page.get_by_label("Search").fill("")
        page.get_by_label("Status").select_option("stopped")
        assert names(page) == ["second-run"]
        page.get_by_label("Status").select_option("")
        page.get_by_label("Recipe").select_option("tiny")
        assert sorted(names(page)) == ["first", "second-run"]
        expect(page.get_by_text("2 of 4 runs. Result: ↑ higher is better")).to_be_visible()
        assert page.locator("table.runs tbody td:nth-child(5)").all_inner_texts() == ["30 BLEU ↑", "12 BLEU ↑"]


def test_several_runs_are_compared(browser: Browser, some: str) -> None:
    with opened(browser, some) as page:
        for name in ("first", "second-run"):
            page.get_by_role("checkbox", name=f"Show {name}").check()
        chart = page.locator(".chart svg")
        expect(chart.locator("polyline")).to_have_count(2)
        expect(page.get_by_role("table").filter(has_text="train.steps").last).to_be_visible()
        differing = page.get_by_role("region", name="Settings that differ", exact=True)
        assert differing.locator("tbody tr").all_inner_texts() == ["train.steps\t20\t40", "train.seed\t5\t10"]
        assert "12 (" not in page.get_by_role("region", name="Scores of the runs").inner_text()
        assert "2.5 (2.40 to 2.60) test" in page.get_by_role("region", name="Scores of the runs").inner_text()
        slider = page.get_by_label("Read the values at a step")
        slider.focus()
        slider.press("Home")
        expect(page.locator(".values")).to_contain_text("first: 3.9 at step 1")
        slider.press("ArrowRight")
        expect(page.locator(".values")).to_contain_text("second-run: 3.8 at step 2")
        page.get_by_label("Curve of").select_option("validation:bleu")
        expect(chart).to_have_attribute("aria-label", re.compile("^bleu, validation, steps 10 to 20, of 2 runs"))
        page.get_by_label("Curve of").select_option("training:loss")
        page.get_by_label("Scale").select_option("log")
        page.get_by_label("Smoothing").select_option("0.9")
        page.get_by_label("From step").fill("5")
        page.get_by_label("To step").fill("8")
        page.get_by_label("To step").press("Tab")
        expect(chart).to_have_attribute("aria-label", re.compile("steps 5 to 8"))
        page.get_by_text("The same as numbers").click()
        expect(page.get_by_role("region", name="Values by step").locator("tbody tr")).to_have_count(4)
        page.get_by_role("button", name="All steps").click()
        box = chart.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 100, box["y"] + 100)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 100)
        page.mouse.up()
        expect(page.get_by_label("From step")).not_to_have_value("")
        page.get_by_role("checkbox", name="Show first").uncheck()
        expect(chart.locator("polyline")).to_have_count(1)


def test_the_runs_of_a_comparison(browser: Browser, some: str, runs: Path) -> None:
    for name in ("lstm", "gru"):
        make_run(runs, f"cells/{name}")
    with opened(browser, some) as page:
        page.get_by_role("button", name="name").click()
        assert names(page) == [HTML, "cells 2 runs Compare", "gru", "lstm", "first", "newer", "second-run"]
        page.get_by_role("button", name="Compare the runs of cells").click()
        expect(page.locator(".chart polyline")).to_have_count(2)
        expect(page.get_by_role("region", name="Results of cells/gru")).to_contain_text("of cells/gru")
        page.get_by_label("Folder").select_option("cells")
        expect(page.get_by_text("2 of 6 runs.")).to_be_visible()
        page.get_by_role("checkbox", name="Show cells/lstm").uncheck()
        page.get_by_role("region", name="Run cells/gru").get_by_role("button", name="Delete").click()
        page.get_by_role("button", name="Delete it").click()
        expect(page.get_by_text("cells/gru: deleted; it can be restored for a day.")).to_be_visible()
        expect(page.get_by_text("1 of 5 runs.")).to_be_visible()


def test_a_run_is_followed_while_it_trains_and_stopped(browser: Browser, some: str, runs: Path) -> None:
    path = make_run(runs, "live", 40, 10, status="running", goal="accuracy", best={"step": 10, "accuracy": 0.01839})
    with trained(path) as process, opened(browser, some) as page:
        page.get_by_role("button", name="live", exact=True).click()
        card = page.get_by_role("region", name="Run live")
        expect(card).to_contain_text("25 %, less than a minute leftStep 10 of 40, 100 tokens per second")
        expect(page.locator("table.runs tbody tr").filter(has_text="live")).to_contain_text("1.8 % accuracy ↑")
        page.get_by_label("Curve of").select_option("training:lr")  # its scale stays
        curve = page.locator(".chart polyline").element_handle()
        last_x = "node => node.getAttribute('points').split(' ').at(-1).split(',')[0]"
        edge = curve.evaluate(last_x)
        with (path / "metrics.jsonl").open("a") as file:
            file.write("".join(lines(11, 21)))
        expect(card).to_contain_text("Step 20 of 40", timeout=2500)
        expect(page.locator(".values")).to_contain_text("at step 20")
        assert curve.evaluate("node => node.isConnected"), "the curve grows, and is not drawn anew"
        assert curve.evaluate(last_x) == edge
        assert not card.get_by_role("button", name="Delete").is_visible()
        card.get_by_role("button", name="Stop").click()
        process.wait(10)
        expect(card).to_contain_text("stopped at 50 %")
        expect(card.get_by_role("button", name="Continue")).to_be_visible()


def test_a_deleted_run_comes_back(browser: Browser, some: str, runs: Path) -> None:
    with opened(browser, some) as page:
        page.get_by_role("button", name="first", exact=True).click()
        expect(page.get_by_text("This run was too short to add minutes")).to_be_visible()
        page.get_by_role("button", name="Delete", exact=True).click()
        expect(page.get_by_role("button", name="Keep it")).to_be_focused()
        page.keyboard.press("Enter")
        assert (runs / "first").exists()
        page.get_by_role("button", name="Delete", exact=True).click()
        page.get_by_role("button", name="Delete it").click()
        undo = page.get_by_role("button", name="Undo")
        expect(undo).to_be_focused()
        assert not (runs / "first").exists()
        undo.press("Enter")
        expect(page.locator("table.runs tbody tr")).to_have_count(4)
        page.get_by_role("button", name="first", exact=True).click()
        page.get_by_role("button", name="Delete", exact=True).click()
        page.get_by_role("button", name="Delete it").click()
        expect(page.locator("table.runs tbody tr")).to_have_count(3)
        page.get_by_text("Deleted runs").click()
        expect(page.get_by_role("button", name="Restore")).to_be_visible()
        page.reload()
        page.get_by_text("Deleted runs").click()
        page.get_by_role("button", name="Restore").press("Enter")
        expect(page.locator("table.runs tbody tr")).to_have_count(4)
        assert (runs / "first" / "run.json").exists()


def test_a_deleted_link_cannot_come_back(browser: Browser, some: str, runs: Path, tmp_path: Path) -> None:
    (runs / "linked").symlink_to(make_run(tmp_path, "elsewhere"))
    with opened(browser, some) as page:
        page.get_by_role("button", name="linked", exact=True).click()
        page.get_by_role("button", name="Delete", exact=True).click()
        expect(page.get_by_text("Delete linked?")).to_be_visible()
        page.get_by_role("button", name="Delete it").click()
        expect(page.get_by_text("linked: removed from the list.")).to_be_visible()
        assert page.get_by_role("button", name="Undo").count() == 0


def test_what_is_done_with_a_run(browser: Browser, some: str, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = ("sh", "-c", "echo 'headway: no <b>space</b>; free space'; exit 2")
    monkeypatch.setattr("headway.app.run_board._HEADWAY", failing)
    (runs / "first" / "model.safetensors").touch()
    (runs / "first" / "trunk").mkdir()
    with opened(browser, some) as page:
        page.get_by_role("button", name="first", exact=True).click()
        with page.context.expect_page() as report:
            page.get_by_role("button", name="Report").click()
        expect(report.value.get_by_text("of first")).to_be_visible()
        card = page.get_by_role("region", name="Run first")
        results = page.get_by_role("region", name="Results of first")
        expect(results.get_by_role("region", name="Samples of its output")).to_contain_text("a <b>bold</b> start")
        card.get_by_label("Export as").select_option("gguf")
        card.get_by_role("button", name="Export").click()
        expect(page.get_by_text("The model is being converted")).to_be_visible()
        expect(card).to_contain_text("The export failed: no <b>space</b>; free space")
        assert json.loads((runs / ".jobs" / "first (export).json").read_text())["command"][-1] == "gguf"
        card.get_by_label("More minutes").fill("-1")
        card.get_by_role("button", name="Train on").click()
        expect(page.locator("#message")).to_contain_text("minutes")
        page.locator("#panel-runs .command summary").click()
        expect(page.locator("#panel-runs .command pre").first).to_contain_text("--resume --minutes 5")


def test_what_goes_wrong_is_one_line(browser: Browser, some: str, runs: Path) -> None:
    with opened(browser, some) as page:
        page.get_by_role("button", name="newer", exact=True).click()
        expect(page.get_by_role("region", name="Run newer")).to_contain_text("a newer headway wrote it")
        page.get_by_role("button", name="first", exact=True).click()
        expect(page.locator(".chart polyline")).to_have_count(1)
        shutil.rmtree(runs / "first")
        look(page)
        expect(page.locator("table.runs tbody tr")).to_have_count(3, timeout=4000)
        expect(page.get_by_role("region", name="Run first")).to_have_count(0)
        page.route("**/v1/runs*", lambda route: route.abort())
        look(page)
        expect(page.locator("#message")).to_contain_text("does not respond", timeout=4000)
        page.unroute("**/v1/runs*")
        expect(page.locator("#notice")).to_be_hidden(timeout=4000)


def test_a_key_without_train_only_looks_and_no_runs_no_tab(browser: Browser, tmp_path: Path) -> None:
    make_run(tmp_path, "first")
    keys = (ApiKey("reader"),)
    with server(Resident([]), ServerSettings(runs=tmp_path, keys=keys, log=False)) as url, opened(browser, url) as page:
        page.get_by_label("API key").fill("reader")
        page.get_by_role("button", name="Use key").click()
        page.get_by_role("tab", name="Runs").click()
        page.get_by_role("button", name="first", exact=True).click()
        expect(page.get_by_text("Your key may look at runs, but not change them.")).to_be_visible()
        assert page.get_by_role("button", name="Delete").count() == 0
        page.locator("#panel-runs .command summary").click()
        expect(page.locator("#panel-runs .command pre").first).to_contain_text("headway board runs\n")
    with server(Resident([]), ServerSettings(log=False)) as url, opened(browser, url + "/#runs") as page:
        expect(page.get_by_role("tab", name="Models")).to_be_visible()
        assert not page.get_by_role("tab", name="Runs").is_visible()


@pytest.mark.parametrize("dark", [False, True])
def test_everyone_can_read_it(browser: Browser, some: str, dark: bool) -> None:
    with opened(browser, some, dark, 360) as page:
        for name in ("first", "second-run"):
            page.get_by_role("checkbox", name=f"Show {name}").check()
        expect(page.locator(".chart polyline")).to_have_count(2)
        assert serious_violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == 360
