"""The page's tabs Write and Texts in a browser: every form, what is kept, and what goes wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browsing import opened, serious_violations
from chat_models import SPECIAL, TEMPLATE, echo_model
from playwright.sync_api import Browser, Page, Route, expect
from serve_models import Script, ready
from served import Resident
from serving import server

import headway as hw
from headway.codecs import train_codec
from headway.codecs.mask_tokens import SPECIAL as MASKS
from headway.config import override
from headway.domains.translation.recipes import encoder_decoder
from headway.formats.native import save_model
from headway.formats.usage import Usage
from headway.nn.models import PooledHeadConfig, VocabularyHeadConfig, build
from headway.nn.models.presets import preset
from headway.serve.interfaces import ApiKey, ReadyModel, ServerSettings

SAID = "Hi <b>!\n"  # no character twice, as the model needs it
MARKUP, LONG = "<img src=x onerror=alert(1)>\x07", "long" * 2500
SLOW = Script(0.02, spell=lambda id: chr(97 + id % 26))


def encoder(folder: Path, heads: dict[str, Any], **usage: Any) -> Path:
    """A small random encoder of bytes with these heads."""
    codec = train_codec("byte", iter(["a text"]), special=MASKS)
    size = {"width": 16, "depth": 1, "heads": 2, "context": 160, "symbols": codec.vocab_size}
    config: Any = override(preset("bert-base"), size)
    config = replace(config, heads={**config.heads, **heads})
    folder.mkdir()
    save_model(build(config, seed=1), config, folder)
    codec.save(folder)
    Usage(**usage).save(folder)
    return folder


def translator(folder: Path) -> Path:
    codec = train_codec("byte", iter(["a text"]))
    config = encoder_decoder(width=16, depth=1, heads=2, hidden=32, vocab_size=codec.vocab_size, dropout=0.0)
    folder.mkdir()
    save_model(build(config, seed=1), config, folder)
    codec.save(folder)
    Usage(ends=(10,), decoder_start=0).save(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[ReadyModel]:
    place = tmp_path_factory.mktemp("page")
    labels = ("7", "3", MARKUP, LONG)
    heads = {"vocabulary": VocabularyHeadConfig(), "classes": PooledHeadConfig(4)}
    heads |= {"tags": PooledHeadConfig(4, pool="tokens"), "span": PooledHeadConfig(2, pool="tokens")}
    template, special = TEMPLATE + "{# [THINK][/THINK] #}", (*SPECIAL, "[THINK]", "[/THINK]")
    thinks = echo_model(place / "thinks", 200, template, ("[THINK]", "why", "[/THINK]", "No."), special)
    return [
        ready(echo_model(place / "echo", 200, says=(SAID,)), "echo"),
        ready(thinks, "thinks"),
        ready(place / "echo", "slow", SLOW),
        ready(encoder(place / "many", heads, labels=labels), "many"),
        ready(encoder(place / "ranks", {"number": PooledHeadConfig(1)}), "ranks"),
        ready(translator(place / "translates"), MARKUP),
    ]


@pytest.fixture(scope="module")
def registry(models: list[ReadyModel]) -> Resident:
    return Resident(models)


@pytest.fixture(scope="module")
def url(registry: Resident) -> Iterator[str]:
    with server(registry, ServerSettings(keys=(ApiKey("a-key"),), body_bytes=20_000, log=False)) as address:
        yield address


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with opened(browser, url) as found:
        found.context.grant_permissions(["clipboard-read", "clipboard-write"])
        let_in(found)
        yield found


def let_in(page: Page) -> None:
    page.evaluate("drafts.set('write:temperature', '0'); drafts.set('model:write', 'echo')")
    page.get_by_label("API key").fill("a-key")
    page.get_by_role("button", name="Use key").click()
    expect(page.locator("#panel-write h2")).to_be_visible()


def send(page: Page, text: str, ends: str = "The model ended") -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")
    expect(page.locator(".message").last).to_contain_text(ends)


def saved(page: Page, button: str) -> str:
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    return Path(download.value.path()).read_text(encoding="utf-8")


def titles(page: Page) -> list[str]:
    return page.locator(".conversations li > button:first-child").all_text_contents()


END = "data: [DONE]\n\n"
CONTINUED = 'data: {"choices": [{"text": "%s", "finish_reason": "stop"}], "usage": {"completion_tokens": 2}}\n\n'


def test_a_conversation_is_kept_edited_asked_again_copied_saved_and_cleared(page: Page) -> None:
    send(page, "First words of it")
    answer = page.locator(".message.assistant")
    expect(answer.locator(".tokens")).to_have_text(SAID.strip(), use_inner_text=True)
    speed = answer.get_by_text(re.compile(r"8 tokens \(.*\) in [\d.]+ s, the first after [\d.]+ s, [\d.,]+ tokens/s\."))
    expect(speed).to_have_count(1)
    expect(answer).to_contain_text("echo (cautious, 0)")
    page.reload()
    expect(page.locator(".message")).to_have_count(2)
    assert titles(page) == ["First words of it"]
    page.get_by_role("button", name="Another answer").click()
    expect(answer.locator(".versions")).to_contain_text("2 of 2")
    page.get_by_role("button", name="Earlier version").click()
    expect(answer.locator(".versions")).to_contain_text("1 of 2")
    send(page, "And more")
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_label("Edited message").fill("Other words")
    page.get_by_role("button", name="Send again").click()
    expect(page.locator(".message")).to_have_count(2)
    expect(page.locator(".message.user .versions")).to_contain_text("2 of 2")
    expect(answer).to_contain_text("The model ended its text.")
    assert saved(page, "Save the text (.md)") == f"# Other words\n\n**You:** Other words\n\n**echo:** {SAID}\n"
    expect(page.locator("#note")).to_have_text("Saved as Other-words.md in your downloads.")
    stored = json.loads(saved(page, "Save everything, for programs (.json)"))
    assert stored["messages"][0] == {"role": "user", "content": "Other words"}
    page.locator(".message.assistant").get_by_role("button", name="Copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == SAID
    page.get_by_text("Show me the command").first.click()
    expect(page.locator("#panel-write .command pre").first).not_to_be_empty()
    shell, python = page.locator("#panel-write .command pre").all_text_contents()
    assert "headway chat echo --temperature 0 --max-new-tokens 300 --server" in shell
    assert python.endswith(
        'model.chat([\n    {"role": "user", "content": "Other words"},\n], temperature=0, max_new_tokens=300))'
    )
    page.get_by_role("button", name="New").click()
    send(page, "A second one")
    assert len(titles(page)) == 2
    clear = page.get_by_role("button", name="Clear “A second one”")
    clear.click()
    page.get_by_role("button", name="Clear?").click()
    expect(page.locator(".message")).to_have_count(0)
    page.locator(".conversations li > button:first-child").click()
    expect(page.locator(".message")).to_have_count(2)
    send(page, "x")
    page.get_by_role("button", name="New").click()
    send(page, "y")
    page.get_by_role("button", name="Clear all").click()
    page.get_by_role("button", name="Really clear all?").click()
    assert page.evaluate("settings.names().filter((name) => name.startsWith('chat/'))") == []


def test_alternatives_by_pointer_and_by_keys_with_one_tab_stop(page: Page) -> None:
    send(page, "Hi")
    tokens, box = page.locator(".tokens .token"), page.locator("#alternatives")
    assert tokens.count() == len(SAID)
    tokens.nth(4).hover()
    expect(box.locator("li")).to_have_count(5)
    expect(box).to_contain_text("b (written)")
    page.get_by_label("Your message").hover()
    expect(box).to_be_hidden()
    assert page.locator(".tokens [tabindex='0']").count() == 1
    tokens.first.focus()
    expect(box).to_contain_text("H (written)")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(box).to_contain_text("␣ (written)")
    assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "alternatives"
    assert page.locator(".tokens [tabindex='0']").count() == 1
    page.keyboard.press("Escape")
    expect(box).to_be_hidden()
    page.keyboard.press("End")
    expect(box).to_contain_text("⏎ (written)")
    expect(box).to_contain_text("before “How daring” and the other settings change them.")
    assert page.evaluate("[' ', ' a', 'a b', '\\n'].map(wordLabel)") == ["␣", "a", "a b", "⏎"]
    token, list = tokens.last.bounding_box(), box.bounding_box()
    assert token
    assert list
    assert list["y"] + list["height"] <= token["y"]
    plain = tokens.nth(3).evaluate("(token) => getComputedStyle(token).borderBottomStyle")
    page.get_by_label("Colour tokens by surprise").check()
    assert plain == "none"
    kinds = tokens.evaluate_all("(all) => all.map((token) => getComputedStyle(token).borderBottomStyle)")
    assert "dotted" in kinds
    spaces = tokens.filter(has_text=re.compile(r"^\s$"))
    assert set(spaces.evaluate_all("(all) => all.map((token) => token.className)")) == {"token"}
    page.get_by_label("Model", exact=True).select_option("slow")
    answer = page.locator(".message.assistant")
    page.get_by_role("button", name="Another answer").click()
    expect(answer).to_contain_text(re.compile(r"slow.*The model ended"))
    tokens.nth(2).focus()
    page.keyboard.press("Enter")
    expect(box.get_by_role("button").first).to_be_focused()
    page.keyboard.press("Escape")
    expect(tokens.nth(2)).to_be_focused()
    tokens.nth(1).hover()
    before, word = tokens.first.inner_text(), box.get_by_role("button").first.inner_text()
    box.get_by_role("button").first.click()
    expect(answer.locator(".versions")).to_contain_text("3 of 3")
    expect(answer).to_contain_text("The model ended its text.")
    assert answer.locator(".tokens").inner_text().startswith(before + word)
    expect(page.get_by_text("Point at a word, or tab to the text")).to_be_visible()
    page.reload()
    expect(answer).to_be_visible()
    expect(page.get_by_text("Point at a word, or tab to the text")).to_be_hidden()


def test_a_refused_setting_leaves_nothing_behind(page: Page) -> None:
    send(page, "Hi")
    page.get_by_text("More settings").first.click()
    tail, notice = page.get_by_label("Leave out the tail"), page.locator("#notice")
    for remedy in ("Usual values", "New", "Texts", "0.5"):
        page.locator("#tab-write").click()
        page.locator(".conversations li > button:first-child").click()
        tail.fill("-1")
        page.get_by_role("button", name="Another answer").click()
        expect(page.locator("#message")).to_contain_text("Leave out the tail (top-p): ")
        if remedy == "0.5":
            tail.fill(remedy)
        else:
            page.get_by_role("tab" if remedy == "Texts" else "button", name=remedy).click()
        expect(notice).to_be_hidden()
    expect(page.locator(".versions")).to_have_count(0)  # no answer was begun
    tail.fill("-1")
    page.get_by_role("button", name="Another answer").click()
    page.get_by_role("button", name="Usual values").click()
    page.get_by_role("button", name="New").click()
    page.get_by_label("Your message").fill("")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#message")).to_have_text("Type a message first.")
    page.get_by_label("Your message").fill("again")
    expect(notice).to_be_hidden()
    page.route("**/chat/completions", lambda route: route.abort())
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_contain_text("The server does not respond")
    page.unroute("**/chat/completions")
    # A message whose question the storage lost is no question.
    page.evaluate("settings.set('chat/lost/b-1', {role: 'assistant', parent: 'a-1', content: 'orphan', state: 'done'})")
    page.evaluate("drafts.set('conversation', 'lost')")
    page.evaluate("drafts.set('write:temperature', '0')")
    page.reload()
    expect(page.get_by_label("Your message")).to_be_visible()
    send(page, "Hi")
    assert page.evaluate("page.tabs[0].conversation.path().map(({ content }) => content)") == ["Hi", SAID]


def test_another_text_to_continue_is_another_conversation(page: Page) -> None:
    page.get_by_label("Mode", exact=True).select_option("completion")
    page.route("**/completions", lambda route: route.fulfill(status=200, body=CONTINUED % "an answer" + END))
    for text in ("", "Hi", "Ho"):
        page.get_by_label("Text to continue").fill(text)
        page.keyboard.press("Control+Enter")
        expect(page.locator(".message")).to_contain_text("The model ended its text.")
        expect(page.locator(".versions")).to_have_count(0)
        expect(page.get_by_label("Text to continue")).to_have_value(text)
    assert titles(page) == ["Ho", "Hi", "an answer"]
    page.locator(".conversations li > button:first-child").nth(1).click()
    expect(page.get_by_label("Text to continue")).to_have_value("Hi")
    page.route("**/completions", lambda route: route.fulfill(status=200, body=CONTINUED % "" + END))
    page.get_by_role("button", name="Continue", exact=True).click()
    expect(page.locator(".message > p.soft").last).to_have_text(re.compile("^Continue added nothing"))
    expect(page.get_by_role("button", name="Continue", exact=True)).to_have_count(0)
    assert saved(page, "Save the text (.txt)") == "Hian answer\n"


def test_a_model_that_ends_at_once_can_be_made_to_write_on(page: Page) -> None:
    page.get_by_label("Mode", exact=True).select_option("completion")
    asked: list[Any] = []

    def answer(route: Route) -> None:
        asked.append(json.loads(route.request.post_data or ""))
        route.fulfill(status=200, body=CONTINUED % (" and flew on" if "min_tokens" in asked[-1] else "") + END)

    page.route("**/completions", answer)
    page.get_by_label("Text to continue").fill("A parrot flew in.")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".message")).to_contain_text("The model took your text for complete.")
    page.get_by_role("button", name="Write on anyway").click()
    expect(page.locator(".message .text")).to_have_text("A parrot flew in. and flew on")
    expect(page.locator(".message")).to_contain_text("The model ended its text.")
    assert [body.get("min_tokens") for body in asked] == [None, 20]


def test_an_answer_tells_that_it_waits_for_the_engine(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Route] = []
    page.route("**/chat/completions", lambda route: held.append(route))
    monkeypatch.setattr(Resident, "preparing", lambda self: 130.0)
    page.evaluate("server.loadModels(false)")
    page.get_by_label("Your message").fill("Hi")
    page.keyboard.press("Enter")
    answer = page.locator(".message.assistant")
    expect(answer).to_contain_text("Waiting until this computer is prepared")
    expect(page.locator("#preparing")).to_contain_text("this one is busy, so it takes longer. Everything else works")
    expect(page.locator("#preparing")).to_contain_text("(2 minutes so far)")
    page.get_by_role("tab", name="Texts").click()
    monkeypatch.undo()
    expect(page.locator("#preparing")).to_be_hidden()
    page.get_by_role("tab", name="Write").click()
    expect(answer).to_contain_text("Waiting for the model’s first words")
    held[0].continue_()
    expect(answer).to_contain_text("The model ended its text.")


def test_sampling_in_plain_words_and_a_text_that_is_continued(page: Page) -> None:
    page.get_by_label("Mode", exact=True).select_option("completion")
    page.get_by_text("More settings").first.click()
    page.get_by_label("Seed").fill("4")
    page.get_by_label("Maximum length").fill("5")
    page.get_by_label("How daring").fill("1")
    texts = []
    for n in range(2):
        page.get_by_label("Text to continue").fill("Once")
        page.keyboard.press("Control+Enter")
        if n:
            expect(page.locator(".versions")).to_contain_text("2 of 2")
        expect(page.locator(".message")).to_contain_text("Cut off at the maximum length of 5 tokens.")
        texts.append(page.locator(".text").inner_text())
    assert texts[0] == texts[1]
    assert texts[0].startswith("Once")
    page.get_by_role("button", name="Continue", exact=True).click()
    expect(page.locator(".tokens .token")).to_have_count(10)
    page.get_by_text("Show me the command").first.click()
    expect(page.locator("#panel-write .command pre").first).not_to_be_empty()
    shell, python = page.locator("#panel-write .command pre").all_text_contents()
    assert (
        f"headway generate echo --prompt Once --temperature 1 --max-new-tokens 5 --seed 4 --server {page.url[:21]}"
        in shell
    )
    assert 'print(model.generate("Once", temperature=1, max_new_tokens=5, seed=4))' in python
    expect(page.locator(".message")).to_contain_text("echo (as the model, 1)")
    page.get_by_label("How daring").fill("1.5")
    expect(page.get_by_text("How daring (temperature): 1.5")).to_be_visible()
    page.get_by_role("button", name="Usual values").click()
    expect(page.get_by_label("How daring")).to_have_value("0.8")
    expect(page.get_by_text("How daring (temperature): 0.8")).to_be_visible()


def test_the_server_tells_whether_there_is_a_system_message(page: Page) -> None:
    page.locator("summary", has_text="System message").click()
    expect(page.locator("#panel-write")).to_contain_text("This model takes no system message: ")
    expect(page.get_by_label("System message", exact=True)).to_be_hidden()
    page.get_by_label("Model", exact=True).select_option("thinks")
    send(page, "Hi")
    thinking = page.locator(".assistant details.thinking")
    assert not thinking.evaluate("(details) => details.open")
    thinking.locator("summary").click()
    expect(thinking).to_contain_text("why")
    assert page.locator(".message.assistant .tokens").inner_text() == "No."


def test_an_answer_that_breaks_off_is_kept_and_goes_on(page: Page, registry: Resident) -> None:
    page.get_by_label("Model", exact=True).select_option("slow")
    page.get_by_label("Your message").fill(
        "some words that take a while to be said again, one by one, as slowly as they can be"
    )
    page.keyboard.press("Enter")
    expect(page.locator(".tokens .token").nth(5)).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".message.assistant")).to_contain_text("Stopped by you.")
    page.get_by_role("button", name="Another answer").click()
    expect(page.locator(".tokens .token").nth(5)).to_be_visible()
    page.reload()
    answer = page.locator(".message.assistant")
    expect(answer).to_contain_text("Incomplete: the page was left while it was written.")
    assert len(answer.locator(".tokens").inner_text()) >= 6
    expect(answer.locator(".versions")).to_contain_text("2 of 2")
    page.get_by_label("Model", exact=True).select_option("echo")
    page.get_by_role("button", name="Continue", exact=True).click()
    expect(answer).to_contain_text("tokens (")
    page.get_by_role("button", name="New").click()
    broken = "data: " + json.dumps({"choices": [{"delta": {"content": "so far"}}]}) + "\n\n"
    page.route("**/chat/completions", lambda route: route.fulfill(status=200, body=broken))
    page.get_by_label("Your message").fill("again")
    page.keyboard.press("Enter")
    expect(answer.last).to_contain_text("so far")
    expect(answer.last).to_contain_text("Incomplete: the server's answer broke off.")
    expect(page.locator("#message")).to_contain_text("what has arrived is kept")
    page.unroute("**/chat/completions")
    page.route("**/chat/completions", lambda route: route.abort())
    answer.last.get_by_role("button", name="Try again").click()
    expect(page.locator("#message")).to_contain_text("The server does not respond")
    page.unroute("**/chat/completions")
    page.get_by_label("Model", exact=True).select_option("echo")
    page.get_by_role("button", name="Try again").first.click()
    expect(answer.last).to_contain_text("The model ended its text.")


def test_two_browser_tabs_and_a_full_storage(page: Page, url: str) -> None:
    send(page, "from the first")
    other = page.context.new_page()
    other.goto(url)
    let_in(other)
    other.locator(".conversations li > button:first-child").click()
    send(other, "from the second")
    expect(page.locator(".message.user").nth(1)).to_contain_text("from the second")
    send(page, "from the first again")
    expect(other.locator(".message")).to_have_count(6)
    page.get_by_label("Model", exact=True).select_option("slow")
    page.get_by_role("button", name="New").click()
    page.get_by_label("Your message").fill("some words that take a while, " * 2)
    page.keyboard.press("Enter")
    expect(page.locator(".tokens .token").nth(3)).to_be_visible()
    other.locator(".conversations button", has_text="some words").click()
    expect(other.locator(".message.assistant")).to_contain_text("Being written in another browser tab.")
    send(other, "in between")
    expect(page.locator(".message")).to_have_count(4)
    expect(page.locator(".message.assistant").first).to_contain_text("The model ended its text.")
    expect(other.locator(".message.assistant").first).to_contain_text("The model ended its text.")
    assert len({tab.locator(".message.assistant .tokens").first.inner_text() for tab in (page, other)}) == 1
    page.locator(".conversations button", has_text="from the first").click()
    other.get_by_role("button", name="Clear “from the first”").click()
    other.get_by_role("button", name="Clear?").click()
    page.get_by_label("Your message").fill("typed")
    expect(page.locator(".message")).to_have_count(0)
    expect(page.get_by_label("Your message")).to_have_value("typed")
    page.evaluate(
        "() => { Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }; }"
    )
    send(page, "too much")
    expect(page.locator("#message")).to_contain_text("storage is full or turned off, so this conversation is lost")
    expect(page.locator(".message")).to_have_count(2)


def test_a_revoked_key_a_long_message_and_other_models(
    page: Page, registry: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(page, "Hi")
    page.evaluate("server.key = 'revoked'")
    page.get_by_label("Your message").fill("more")
    page.keyboard.press("Enter")
    expect(page.get_by_label("API key")).to_be_visible()
    expect(page.locator(".message.user").last).to_contain_text("more")
    page.get_by_label("API key").fill("a-key")
    page.get_by_role("button", name="Use key").click()
    page.locator(".message").get_by_role("button", name="Try again").click()
    expect(page.locator(".message.assistant").last).to_contain_text("The model ended its text.")
    page.get_by_label("Your message").fill("x" * 30_000)
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_contain_text("20,000")
    page.reload()
    expect(page.locator(".message.user").last).to_contain_text("x" * 30_000)
    page.get_by_role("button", name="Edit").last.click()
    page.get_by_label("Edited message").fill("short")
    with monkeypatch.context() as patch:
        patch.setattr(registry, "_models", {"thinks": registry._models["thinks"]})
        page.get_by_role("button", name="Send again").click()
        expect(page.locator("#message")).to_contain_text("There is no model 'echo'")
        choice = page.locator("#panel-write").get_by_label("Model", exact=True)
        expect(choice).to_have_value("echo")
        expect(page.locator("#panel-write .model")).to_contain_text(
            "echo is gone from the server. Choose another model"
        )
        assert choice.locator("option").all_text_contents() == ["echo", "thinks"]
        choice.select_option("thinks")
        expect(page.locator("#notice")).to_be_hidden()
        page.locator(".message").get_by_role("button", name="Try again").click()
        expect(page.locator(".message.assistant").last).to_contain_text("thinks")
        expect(page.locator(".message.assistant").last).to_contain_text("The model ended its text.")


LINES = "Text, one per line"


def task(page: Page, model: str, verb: str, fields: dict[str, str] | None = None) -> str:
    """Choose a model and a task, fill the form in, send it and return the text of its result."""
    panel = page.locator("#panel-texts")
    panel.get_by_label("Model", exact=True).select_option(model)
    panel.get_by_label("Task", exact=True).select_option(verb)
    for label, value in (fields or {}).items():
        panel.get_by_label(label, exact=True).locator("visible=true").fill(value)
    panel.locator("button.main:visible").click()
    expect(panel.get_by_text("Result", exact=True)).to_be_visible()
    return panel.locator("[aria-live]:visible").inner_text()


def test_a_form_for_each_task(page: Page, models: list[ReadyModel]) -> None:
    page.locator("#tab-texts").click()
    many: Any = next(ready.model for ready in models if ready.name == "many")
    shown = task(page, "many", "classify", {LINES: "one\ntwo"})
    assert shown.index("two") > shown.index("one")
    assert "alert(1)" in shown
    assert "longlong" in shown
    order = page.locator(".bars").first.locator(".name").all_text_contents()
    assert [name[:9] for name in order] == [label[:9] for label in many.classify("one")]
    lines = saved(page, "Save as table (.csv)").splitlines()
    assert lines[0] == "text,label,probability"
    assert len(lines) == 9
    assert task(page, "many", "tag", {LINES: "Ada Lovelace wrote"}).startswith("Result")
    assert page.locator("#panel-texts .tagged mark small").count() >= 1
    shown = task(page, "many", "fill", {"Text with [MASK]": "one [MASK] and [MASK]"})
    assert "Gap 2" in shown
    assert page.locator("#panel-texts .bars:visible li").count() == 10
    context = "\U0001f600 Ada wrote the first program."
    task(page, "many", "answer", {"Question": "Who?", "Text that contains the answer": context})
    [wanted] = many.answer("Who?", [context])
    assert page.locator("#panel-texts mark:visible").text_content() == wanted.text == context[wanted.start : wanted.end]
    task(page, "many", "embed", {"Sentences, one per line": "one\none\nanother thing"})
    cosines = page.locator("#panel-texts .heat:visible").all_text_contents()
    vectors = many.embed(["one", "another thing"])
    assert cosines[:2] == ["1.00", "1.00"]
    cosine = float(vectors[0] @ vectors[1] / vectors[0].norm() / vectors[1].norm())
    assert float(cosines[2]) == pytest.approx(cosine, abs=0.0051)
    shown = task(page, "ranks", "rerank", {"Question or search": "q", "Texts to rank, one per line": "one\nanother"})
    best = hw.load(models[4].model.directory).rerank("q", ["one", "another"])[0]
    assert shown.splitlines()[2].split("\t")[-1] == best.document
    task(page, MARKUP, "translate", {"Text, one sentence per line": "ein Hund\n\nzwei"})
    assert page.locator("#panel-texts tbody tr:visible").count() == 2
    page.reload()
    expect(page.locator("#panel-texts").get_by_label("Text, one sentence per line")).to_have_value("ein Hund\n\nzwei")
    page.locator("#panel-texts .command summary").click()
    shell = page.locator("#panel-texts .command pre").first
    expect(shell).to_contain_text(f"headway translate '{MARKUP}' 'ein Hund' zwei --server {page.url[:16]}")


def test_wrong_input_keeps_what_was_typed(page: Page) -> None:
    page.locator("#tab-texts").click()
    panel = page.locator("#panel-texts")
    panel.get_by_label("Model", exact=True).select_option("many")
    panel.get_by_label("Task", exact=True).select_option("classify")
    field = panel.get_by_label(LINES)
    for text, message in (("word " * 100, "tokens, but the"), ("x" * 30_000, "20,000")):
        field.fill(text)
        panel.locator("button.main:visible").click()
        expect(page.locator("#message")).to_contain_text(message)
        expect(field).to_have_value(text)
    panel.get_by_text("More settings").click()
    field.fill("word " * 100)
    panel.get_by_label("Cut texts that are too long").check()
    panel.locator("button.main:visible").click()
    expect(page.locator("#notice")).to_be_hidden()
    expect(panel.get_by_text("Result", exact=True)).to_be_visible()
    field.fill("")
    panel.locator("button.main:visible").click()
    assert field.evaluate("(field) => field.validity.valueMissing")


@pytest.mark.parametrize(("dark", "width"), [(False, 360), (True, 1280)])
def test_it_is_read_by_everyone_on_every_screen(browser: Browser, url: str, dark: bool, width: int) -> None:
    with opened(browser, url, dark, width) as page:
        let_in(page)
        page.get_by_label("Colour tokens by surprise").check()
        send(page, LONG, "There is no answer yet.")
        send(page, "Hi")
        page.locator(".tokens .token").nth(3).focus()
        page.locator("summary", has_text="More settings").click()
        assert serious_violations(page) == []
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not page.evaluate(wide)
        page.locator("#tab-texts").click()
        for model, verb in (("many", "classify"), ("many", "tag"), ("many", "embed"), (MARKUP, "translate")):
            task(page, model, verb)
            assert not page.evaluate(wide)
        assert serious_violations(page) == []
