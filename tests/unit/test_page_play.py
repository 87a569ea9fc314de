"""The tab "Play" in a browser: chess by mouse, touch, keyboard and text, and an episode as a film."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="playwright is not installed")
notation = pytest.importorskip("chess.pgn", reason="chess is not installed: pip install 'headway[chess]'")
pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'headway[rl]'")

from browsing import opened, serious_violations  # noqa: E402
from playwright.sync_api import Browser, Page, expect  # noqa: E402
from served import Resident  # noqa: E402
from serving import server  # noqa: E402

import headway as hw  # noqa: E402
from headway.config import override  # noqa: E402
from headway.domains import recipe as find_recipe  # noqa: E402
from headway.formats.open import OpenedModel  # noqa: E402
from headway.formats.usage import Usage  # noqa: E402
from headway.nn.models import build  # noqa: E402
from headway.nn.models.presets import squares  # noqa: E402
from headway.serve.batcher import Batcher  # noqa: E402
from headway.serve.interfaces import ReadyModel, ServerSettings  # noqa: E402

CHESS, AGENT, LOST = 'chess <b>"x"</b>', "agent", "stranger"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Resident:
    """An untrained chess model, an agent of a few steps, and one of an environment that is not installed."""
    folder = tmp_path_factory.mktemp("play")
    settings = {"task.env": "CartPole-v1", "task.num_envs": 2, "task.steps": 16, "task.episodes": 1, "model.width": 16}
    recipe = override(find_recipe("ppo"), {**settings, "train.batch_size": 16, "train.steps": 2})
    run = hw.train(recipe, run=folder / AGENT, progress=False, samples=0).directory
    (run / "report.html").unlink(missing_ok=True)
    stranger = folder / LOST
    stranger.mkdir()
    for file in run.iterdir():
        if file.is_file():
            (stranger / file.name).write_bytes(file.read_bytes())
    codec = json.loads((run / "agent.json").read_text())
    (stranger / "agent.json").write_text(json.dumps({**codec, "environment": "Nowhere-v9"}))
    module = build(squares(16, 1, 2), seed=1)
    player = hw.Model(OpenedModel(module.eval(), Usage(), None), Path("chess"))
    agents = {AGENT: hw.load(run, "cpu"), LOST: hw.load(stranger, "cpu")}
    return Resident([ReadyModel(name, model, None, Batcher(name)) for name, model in {CHESS: player, **agents}.items()])


@pytest.fixture(scope="module")
def url(models: Resident) -> Iterator[str]:
    with server(models, ServerSettings(log=False)) as address:
        yield f"{address}/#play"


def square(page: Page, label: str) -> Any:
    return page.get_by_role("gridcell", name=label)


def status(page: Page, text: str) -> None:
    expect(page.locator(".status")).to_contain_text(text, timeout=20_000)


def set_up(page: Page, fen: str) -> None:
    if not page.get_by_label("Position in FEN").is_visible():
        page.get_by_text("Start from another position").click()
    page.get_by_label("Position in FEN").fill(fen)
    page.get_by_role("button", name="Start from it").click()


def typed(page: Page, move: str) -> None:
    page.get_by_label("Or type a move").fill(move)
    page.get_by_role("button", name="Play move").click()


def message(page: Page, text: str) -> None:
    expect(page.locator("#message")).to_contain_text(text, timeout=60_000)


def test_a_game_by_mouse_text_and_buttons(browser: Browser, url: str) -> None:
    with opened(browser, url) as page:
        status(page, "Your move")
        square(page, "e2, white pawn").click()
        expect(square(page, "e4, empty, you can move here")).to_be_visible()
        expect(square(page, "d4, empty")).to_have_accessible_name("d4, empty")
        square(page, "e4").click()
        status(page, "The model played")
        expect(square(page, "e4")).to_have_accessible_name("e4, white pawn")
        expect(page.get_by_text("The model thinks that")).to_be_visible()
        assert page.locator(".chess .bars li").count() == 5
        view = page.get_by_text("The model thinks that").inner_text()
        shares = [int(share) for share in re.findall(r"(\d+) %", view.partition("For you: ")[2])]
        assert len(shares) == 3
        assert sum(shares) == 100
        square(page, "d2").drag_to(square(page, "d4"))
        expect(page.locator(".moves li").nth(1)).to_contain_text("d4")
        status(page, "Your move")
        typed(page, "Nf3")
        expect(page.locator(".moves li").nth(2)).to_contain_text("Nf3")
        status(page, "Your move")
        game = page.locator(".moves").inner_text()
        with page.expect_download() as download:
            page.get_by_role("button", name="Save as PGN").click()
        saved = notation.read_game(StringIO(Path(download.value.path()).read_text(encoding="utf-8")))
        assert saved is not None
        assert (saved.headers["White"], saved.headers["Black"], saved.headers["Result"]) == (
            "You",
            "chess <b>x</b>",
            "*",
        )
        assert saved.board().variation_san(list(saved.mainline_moves())).startswith("1. e4 ")
        assert len(list(saved.mainline_moves())) == 6
        page.reload()
        status(page, "Your move")
        assert page.locator(".moves").inner_text() == game
        expect(page.get_by_text("The model thinks that")).to_be_visible()
        page.get_by_role("button", name="Hint").click()
        status(page, "Your move. The model would play")
        assert page.locator(".board .hint").count() == 2
        page.get_by_role("button", name="Take back").click()
        expect(page.locator(".moves li")).to_have_count(2)
        page.get_by_role("button", name="Flip board").click()
        assert (page.locator(".board button").first.get_attribute("aria-label") or "").startswith("h1")
        page.get_by_text("Show me the command").first.click()
        expect(page.locator(".chess pre").first).not_to_be_empty()
        command = page.locator(".chess pre").first.inner_text()
        assert command.startswith("headway chess move 'chess <b>\"x\"</b>' e2e4 ")
        assert "--nodes 100 --temperature 0 --server http://127.0.0.1" in command
        page.get_by_label("You play").select_option("black")
        status(page, "The model played")
        expect(page.locator(".moves li")).to_have_count(1)
        page.get_by_role("button", name="New game").click()
        status(page, "Your move")


def test_keyboard_alone(browser: Browser, url: str) -> None:
    with opened(browser, url) as page:
        status(page, "Your move")
        square(page, "e1").focus()
        for key in ("ArrowUp", "Enter", "ArrowUp", "ArrowUp", "Enter"):
            page.keyboard.press(key)
        status(page, "The model played")
        expect(page.locator(".moves li").first).to_contain_text("e4")
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "e4, white pawn"
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowLeft")
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "d3, empty"


def test_touch(browser: Browser, url: str) -> None:
    context = browser.new_context(has_touch=True, viewport={"width": 360, "height": 700})
    page = context.new_page()
    page.goto(url)
    status(page, "Your move")
    square(page, "g1, white knight").tap()
    square(page, "f3").tap()
    expect(page.locator(".moves li").first).to_contain_text("Nf3")
    context.close()


def test_promotion_and_the_end_of_a_game(browser: Browser, url: str) -> None:
    with opened(browser, url) as page:
        set_up(page, "7k/P7/8/8/8/8/8/K7 w - - 0 1")
        square(page, "a7, white pawn").click()
        square(page, "a8").click()
        expect(page.get_by_role("button", name="queen")).to_be_focused()
        assert serious_violations(page) == []
        page.get_by_role("button", name="rook").click()
        expect(page.locator(".moves li").first).to_contain_text("a8=R+")
        set_up(page, "6k1/5ppp/8/8/8/8/5PPP/R5K1 w - - 0 1")
        expect(square(page, "a1")).to_have_accessible_name("a1, white rook")
        typed(page, "ra8")
        status(page, "You win (1-0): checkmate.")
        expect(page.get_by_role("button", name="Hint")).to_be_disabled()
        typed(page, "e4")
        message(page, "The game is over; start a new one, or take back a move.")
        page.get_by_role("button", name="Take back").click()
        status(page, "Your move")
        with page.expect_download() as download:
            page.get_by_role("button", name="Save as PGN").click()
        assert '[FEN "6k1/5ppp/8/8/8/8/5PPP/R5K1 w - - 0 1"]' in Path(download.value.path()).read_text()
        set_up(page, "7k/5Q2/8/6K1/8/8/8/8 w - - 0 1")
        expect(square(page, "f7")).to_have_accessible_name("f7, white queen")
        typed(page, "Kg6")
        status(page, "A draw (1/2-1/2): stalemate")


def test_bad_moves_and_positions(browser: Browser, url: str) -> None:
    cases = [
        ("", "e5", '"e5" is not a legal move here; there are 20 legal moves: '),
        ("", "x" * 10_000, f'"{"x" * 20}" is not a legal move here'),
        ("", "", "Type a move first, such as "),
        ("nonsense", "", "FEN 'nonsense'"),
        ("8/8/8/8/8/8/8/8 w - - 0 1", "", "is not a chess position"),
        ("x" * 10_000, "", "has 10,000 characters, but a FEN has at most 1024"),
    ]
    with opened(browser, url) as page:
        status(page, "Your move")
        for fen, move, text in cases:
            if fen:
                set_up(page, fen)
            else:
                typed(page, move)
            message(page, text)
            field = page.get_by_label("Position in FEN" if fen else "Or type a move")
            assert field.input_value() == (fen or move)  # what was typed is not lost
            status(page, "Your move")
        square(page, "e2").click()
        square(page, "e4").click()  # the game goes on
        status(page, "The model played")


def test_a_model_that_disappears_comes_back(browser: Browser, url: str, models: Resident) -> None:
    known = models._models
    with opened(browser, url) as page:
        status(page, "Your move")
        models._models = {name: model for name, model in known.items() if name != CHESS}
        try:
            typed(page, "e4")
            message(page, "There is no model")
            status(page, "The game waits for the server.")
        finally:
            models._models = known
        page.get_by_role("button", name="Try again").click()
        status(page, "The model played")
        expect(page.locator(".moves li").first).to_contain_text("e4")


def test_reload_while_the_model_thinks_and_two_tabs(browser: Browser, url: str) -> None:
    with opened(browser, url) as page:
        status(page, "Your move")
        held: list[Any] = []

        def hold(route: Any) -> None:  # the model never answers
            body = json.loads(route.request.post_data)
            held.append(body) if body.get("play", True) else route.continue_()

        page.route("**/v1/chess/move", hold)
        typed(page, "e4")
        status(page, "The model is thinking.")
        expect(page.get_by_role("button", name="Hint")).to_be_disabled()
        typed(page, "d4")
        message(page, "It is the model's turn; wait for its move.")
        page.unroute_all(behavior="ignoreErrors")
        page.reload()
        status(page, "The model played")
        other = page.context.new_page()
        other.goto(url)
        status(other, "Your move")
        assert other.locator(".moves li").count() == 0
        typed(other, "a4")
        expect(other.locator(".moves li").first).to_contain_text("a4")
        expect(page.locator(".moves li").first).to_contain_text("e4")
        assert held[0]["moves"] == ["e2e4"]


def test_an_episode_is_a_film(browser: Browser, url: str) -> None:
    with opened(browser, url) as page:
        page.get_by_label("Model", exact=True).select_option(AGENT)
        expect(page.get_by_label("Environment")).to_have_value("CartPole-v1")
        page.get_by_label("Seed").fill("2000007")
        page.get_by_role("button", name="Play an episode").click()
        expect(page.get_by_text("The model is playing.")).to_be_visible()
        page.locator("video").wait_for(timeout=60_000)
        page.wait_for_function("document.querySelector('video').readyState >= 2")
        assert page.evaluate("document.querySelector('video').videoWidth") == 600
        text = page.get_by_text("The episode took").inner_text()
        steps = int(text.split()[3])
        assert f"is {steps}." in text  # a reward of 1 per step
        page.get_by_text("The same numbers as a table").click()
        assert page.locator("figure tbody tr").count() == steps
        with page.expect_download() as download:
            page.get_by_role("button", name="Save the film").click()
        assert Path(download.value.path()).read_bytes()[4:8] == b"ftyp"
        page.get_by_text("Show me the command").last.click()
        command = "headway rollout runs/agent --env CartPole-v1 --episodes 1 --seed 2000007 --render episode.mp4"
        expect(page.locator("pre").filter(has_text=command)).to_be_visible()
        assert serious_violations(page) == []
        page.get_by_label("Seed").fill("-1")
        page.get_by_role("button", name="Play an episode").click()
        assert page.locator("input:invalid").count() == 1


def test_an_environment_that_is_not_installed(browser: Browser, url: str) -> None:
    with opened(browser, url) as page:
        page.get_by_label("Model", exact=True).select_option(LOST)
        expect(page.get_by_label("Environment")).to_have_value("Nowhere-v9")
        page.get_by_role("button", name="Play an episode").click()
        message(page, "There is no environment 'Nowhere-v9'")
        expect(page.get_by_role("button", name="Play an episode")).to_be_enabled()


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wrong_with_it_at_360_pixels(browser: Browser, url: str, dark: bool) -> None:
    with opened(browser, url, dark, 360) as page:
        status(page, "Your move")
        square(page, "e2").click()
        square(page, "e4").click()
        status(page, "The model played")
        assert serious_violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.get_by_label("Model", exact=True).select_option(AGENT)
        assert serious_violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_no_tab_without_a_model_that_plays(browser: Browser, models: Resident, url: str) -> None:
    known = models._models
    models._models = {}
    try:
        with opened(browser, url.partition("#")[0]) as page:
            expect(page.get_by_role("tab", name="Models")).to_be_visible()
            assert page.get_by_role("tab", name="Play").count() == 0
    finally:
        models._models = known
