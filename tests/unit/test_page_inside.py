"""The tab that shows a model from inside, driven in a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import opened, serious_violations
from lens_models import TEXT, save, save_models
from playwright.sync_api import Browser, Page, expect
from serving import server

import headway as hw
from headway.codecs import train_codec
from headway.config import override
from headway.domains.text.recipes import modern_decoder
from headway.serve.engine_loop import open_engine_loop
from headway.serve.interfaces import ServerSettings
from headway.serve.models import LoadOptions, ServedModels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    save_models(place)
    save(
        place / "lstm-letters",
        override(modern_decoder(8, 2, 2, 256, 10), {"mixer": "lstm"}),
        train_codec("char", iter([TEXT])),
    )
    return place


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    models = ServedModels([], [folder], LoadOptions(device="cpu", backend="torch"), open_engine_loop)
    with server(models, ServerSettings(log=False)) as url:
        yield url


def look(page: Page, text: str, model: str | None = None) -> None:
    page.get_by_label("Sentence").fill(text)
    if model is not None:
        page.get_by_label("Model").first.select_option(model)
    page.get_by_role("button", name="Look inside").click()
    expect(page.locator("form[aria-busy]")).to_have_count(0)


def part(page: Page, title: str) -> object:
    return page.locator("section.part", has=page.get_by_role("heading", name=title))


def test_a_sentence_is_followed_through_a_model(browser: Browser, url: str, folder: Path) -> None:
    lens = hw.load(folder / "decoder", backend="torch").lens(TEXT, top=5)
    attention = hw.load(folder / "decoder", backend="torch").attention(TEXT)
    with opened(browser, f"{url}/#inside") as page:
        expect(page.locator(".part").first).to_be_visible()  # the example is shown at once
        look(page, TEXT, "decoder")
        assert page.locator(".chips li .token-text").all_inner_texts() == [
            token.text.replace(" ", "␣") for token in lens.tokens
        ]
        assert page.locator(".chips li .soft").all_inner_texts() == [str(token.id) for token in lens.tokens]
        page.get_by_label("Layer", exact=True).select_option("1")
        page.get_by_label("Head", exact=True).select_option("0")
        weights = attention.maps["stack.blocks.1.mixer"][0][5]
        strongest = int(weights.argmax())
        drawing = page.get_by_role("application", name="Attention map of Layer 2")
        told = page.locator(".told")
        page.locator("section.part").nth(2).locator(".strip button").nth(5).click()
        expect(page.locator(".finding").nth(1)).to_contain_text(
            re.compile(f"“mat” looks at “{lens.tokens[strongest].text.strip()}”( .token {strongest + 1}.)? with")
        )
        expect(told).to_contain_text(
            f"(token 6) looks at “{lens.tokens[strongest].text.strip()}” (token {strongest + 1})"
        )
        drawing.focus()
        for key in (*["ArrowUp"] * 2, *["ArrowLeft"] * 9):
            page.keyboard.press(key)
        share = round(100 * float(attention.maps["stack.blocks.1.mixer"][0][3][0]))
        expect(told).to_contain_text(re.compile(r"“on” \(token 4\) looks at “the” \(token 1\) with"))
        assert abs(float(re.search(r"with ([\d.]+)\s%", told.inner_text())[1]) - share) <= 1  # type: ignore[index]
        box = drawing.bounding_box()
        assert box is not None
        drawing.hover(position={"x": 110 + 30, "y": 70})
        expect(told).to_contain_text("(token 4) looks at “cat” (token 2)")
        drawing.hover(position={"x": 110 + 22 * 5 + 10, "y": 70})
        expect(told).to_contain_text("“on” (token 4) cannot look at “mat” (token 6), which is not yet written.")
        strip = page.locator("section.part").nth(2).locator(".strip").first
        assert strip.locator(".number").all_inner_texts()[4:] == ["not yet"] * 2
        page.get_by_text("The numbers of this picture as a table").click()
        rows = page.get_by_role("region", name="Attention weights").locator("tbody tr")
        expect(rows).to_have_count(6)
        assert rows.nth(3).locator("td").all_inner_texts()[5:] == ["not yet"] * 2
        square = page.get_by_role("button", name="Layer 2, token 6, mat:").first
        square.focus()
        page.keyboard.press("ArrowUp")
        expect(page.locator(".lens-grid button:focus")).to_have_attribute("aria-label", re.compile("^Layer 1, token 6"))
        best = lens.layers[0].predictions[5]
        details = page.locator(".lens-grid + div .bars .name").all_inner_texts()[:5]
        assert details == [token.text.replace(" ", "␣") for token in best]


def test_temperature_moves_the_bars_of_the_chosen_token(browser: Browser, url: str, folder: Path) -> None:
    lens = hw.load(folder / "decoder", backend="torch").lens(TEXT, top=5)
    unsure = max(lens.each, key=lambda one: one.entropy).position
    with opened(browser, f"{url}/#inside") as page:
        look(page, TEXT, "decoder")
        slider, section = page.get_by_label("Temperature, 0 to 2"), part(page, "6. Temperature")
        numbers = section.locator(".bars .number")  # type: ignore[attr-defined]
        expect(section.get_by_text("this is where the temperature changes most")).to_be_visible()  # type: ignore[attr-defined]
        for position in (unsure, 2):
            page.get_by_role("button", name=f"Layer 2, token {position + 1},").first.click()
            slider.fill("1")
            first = 100 * lens.layers[-1].predictions[position][0].score
            assert float(numbers.first.inner_text().removesuffix(" %")) == pytest.approx(first, abs=0.51)
            slider.fill("0")
            assert numbers.all_inner_texts() == ["100 %", *["0 %"] * (numbers.count() - 1)]
            slider.fill("2")
            assert float(numbers.first.inner_text().removesuffix(" %")) < first
        expect(section.get_by_text("after “the cat sat”")).to_be_visible()  # type: ignore[attr-defined]
        page.reload()
        assert page.get_by_label("Temperature, 0 to 2").input_value() == "2"
        assert page.get_by_label("Sentence").input_value() == TEXT
        look(page, TEXT, "masked")  # another model starts at 1
        assert page.get_by_label("Temperature, 0 to 2").input_value() == "1"


def test_two_words_are_swapped(browser: Browser, url: str) -> None:
    with opened(browser, f"{url}/#inside") as page:
        look(page, TEXT, "decoder")
        section = part(page, "4. Why the order matters")
        strips = section.locator(".strip")  # type: ignore[attr-defined]
        expect(section.get_by_text("What changed: the first guess for the token after the last one")).to_be_visible()  # type: ignore[attr-defined]
        assert page.get_by_label("First word").input_value() == "1"  # cat and mat, which both follow "the"
        assert page.get_by_label("Second word").input_value() == "5"
        expect(section.get_by_text("the mat sat on the cat")).to_be_visible()  # type: ignore[attr-defined]
        page.get_by_label("First word").select_option("0")
        page.get_by_label("Second word").select_option("4")
        page.get_by_role("button", name="Swap both words").click()
        expect(section.get_by_text("“the” and “the” are the same word; choose two different ones.")).to_be_visible()  # type: ignore[attr-defined]
        expect(section.get_by_text("What changed")).to_have_count(0)  # type: ignore[attr-defined]
        expect(page.locator("#notice")).to_be_hidden()
        page.get_by_label("First word").select_option("1")
        page.get_by_label("Second word").select_option("5")
        page.get_by_role("button", name="Swap both words").click()
        expect(section.get_by_text("another order: the mat sat on the cat")).to_be_visible()  # type: ignore[attr-defined]
        expect(section.get_by_text("where “mat” looks, as token 6")).to_be_visible()  # type: ignore[attr-defined]
        expect(section.get_by_text("where “mat” looks, as token 2")).to_be_visible()  # type: ignore[attr-defined]
        for layer in ("0", "1"):
            page.get_by_label("Layer", exact=True).select_option(layer)
            expect(strips).to_have_count(2)
            expect(section.get_by_text(f"(layer {int(layer) + 1}, head")).to_have_count(2)  # type: ignore[attr-defined]
        # Of a model that the first swap leaves as it is, the page shows the first swap that changes its prediction.
        page.evaluate("""() => {
          const read = (text, share) => ({ model: { id: "x", parameters: 1e6 }, text, head: [0, 0],
            tokens: text.split(" ").map((text, id) => ({ text, id })),
            attention: { maps: { one: [text.split(" ").map((_, t, all) => all.map((_, s) => Number(s === t)))] },
              symbols: text.split(" "), source: [], across: [] },
            lens: { masked: false, next: { temperatures: [1], log_totals: [0],
              candidates: [{ text: "a", id: 1, score: Math.log(share) }] } } });
          const ask = async (text) => read(text, text === "The man bit the dog" ? 0.9 : 0.5);
          document.getElementById("panel-inside").replaceChildren(orderPart(read("The dog bit the man", 0.9), ask));
        }""")
        expect(
            page.get_by_text("the first guess for the token after the last one stays “a”: 90 % before, 50 % after.")
        ).to_be_visible()
        assert [page.get_by_label(f"{name} word").input_value() for name in ("First", "Second")] != ["1", "4"]
        page.get_by_label("First word").select_option("1")
        page.get_by_label("Second word").select_option("4")
        page.get_by_role("button", name="Swap both words").click()
        expect(page.get_by_text("stays “a”: 90 % before and after. This prediction hardly depends on")).to_be_visible()
        # Of a word in several tokens, the same token is compared; one whose tokens differ is not.
        spans = page.evaluate(
            """tokenSpans({ text: "a Straße on 42",
              tokens: ["a", " Stra", "\ufffd", "\ufffd", "e", " on", " 42"].map((text) => ({ text })) })"""
        )
        assert spans == [[0, 1], [2, 6], None, None, [7, 8], [9, 11], [12, 14]]
        readers = """([one, other]) => swappedToken(["It is red", "red is It"].map((text, index) =>
          ({ text, tokens: [one, other][index].map((text) => ({ text })) })), [[6, 9], [0, 3]])"""
        assert page.evaluate(readers, [["It", " is", " re", "d"], ["r", "e", "d", " is", " It"]]) == [3, 2]
        assert page.evaluate(readers, [["It", " is", " red"], ["r", "ed", " is", " It"]]) is None


def test_only_neighbours_above_chance_are_shown(browser: Browser, url: str, folder: Path) -> None:
    lens = hw.load(folder / "decoder", backend="torch").lens(TEXT, neighbours=8)
    with opened(browser, f"{url}/#inside") as page:
        look(page, TEXT, "decoder")
        section = part(page, "2. Tokens as lists of numbers")
        for index, nearest in enumerate(lens.neighbours):
            page.get_by_label("Token", exact=True).select_option(str(index))
            near = [one for one in nearest if one.score > lens.chance]
            expect(section.locator(".bars li")).to_have_count(len(near))  # type: ignore[attr-defined]
            expect(section.get_by_text("has not learned any neighbour of")).to_have_count(0 if near else 1)  # type: ignore[attr-defined]


def test_a_clear_head_is_shown_first(browser: Browser, url: str) -> None:
    """In maps made for it: a head that looks everywhere, one that looks at the token before, and no clear one."""
    maps = """([clear]) => {
      const even = [[1, 0, 0], [.5, .5, 0], [.3, .3, .4]], before = [[1, 0, 0], [.7, .3, 0], [.05, .9, .05]];
      const maps = { one: [even], two: [clear ? before : even] }, symbols = ["a", "b", "c"];
      const attention = { maps, symbols, source: [], across: [] }, tokens = symbols.map((text) => ({ text }));
      sessionStorage.clear();
      const part = attentionPart({ model: { id: "x" }, attention, lens: null, tokens });
      document.getElementById("panel-inside").replaceChildren(part);
    }"""
    with opened(browser, f"{url}/#inside") as page:
        expect(page.locator(".part").first).to_be_visible()
        page.evaluate(maps, [True])
        meanings = page.get_by_role("list", name="What the labels mean").get_by_role("listitem")
        assert [line.split(":")[0] for line in meanings.all_inner_texts()] == ["before", "%", "even"]
        finding = page.locator(".finding").first
        expect(finding).to_contain_text("“c” looks at “b” with 90 %. Over the whole sentence, head 1 of layer 2 mostly")
        expect(page.get_by_role("button", name="Layer 2, head 1: before 80 %")).to_have_attribute(
            "aria-pressed", "true"
        )
        page.get_by_role("button", name="Layer 1, head 1: even").click()
        assert page.get_by_label("Layer", exact=True).input_value() == "0"
        page.evaluate(maps, [False])
        expect(page.get_by_text("With this sentence, no head follows one rule clearly.")).to_be_visible()
        expect(page.get_by_role("button", name="Layer 2, head 1: even")).to_be_visible()  # the table agrees
        expect(page.get_by_role("list", name="What the labels mean")).to_have_text(re.compile("^even: spreads"))
        page.evaluate("""() => {
          const first = [[[1, 0], [.9, .1]]], tokens = ["<s>", "cat"].map((text) => ({ text }));
          const head = headHint(first[0], { rows: tokens, columns: tokens, kind: "own", causal: true });
          document.getElementById("panel-inside").replaceChildren(head.text);
        }""")
        expect(page.locator("#panel-inside")).to_contain_text("mostly looks at the first token")
        page.set_viewport_size({"width": 360, "height": 800})  # the open tab stays in sight
        page.wait_for_timeout(100)
        box = page.locator("#tab-inside").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360


def test_it_opens_with_the_language_model(browser: Browser, url: str) -> None:
    with opened(browser, f"{url}/#inside") as page:
        expect(page.locator(".part").first).to_be_visible()
        assert page.get_by_label("Model", exact=True).input_value() == "decoder"
        names = ["tales", "stories-gru", "stories-lstm"]
        order = "names => names.map((id) => ({ id, parameters: 1 })).sort(byLikeness('stories')).map(({ id }) => id)"
        assert page.evaluate(order, names) == ["stories-lstm", "stories-gru", "tales"]


def test_an_lstm_reads_the_same_sentence(browser: Browser, url: str, folder: Path) -> None:
    lens = hw.load(folder / "lstm", backend="torch").lens(TEXT)
    with opened(browser, f"{url}/#inside") as page:
        look(page, TEXT, "decoder")
        section = part(page, "7. The same sentence in an LSTM")
        shares = section.locator(".strip").nth(1).locator(".number").all_inner_texts()  # type: ignore[attr-defined]
        assert [float(share.removesuffix(" %")) for share in shares] == pytest.approx(
            [100 * change for change in lens.layers[1].changes], abs=0.51
        )
        page.get_by_label("Recurrent model").select_option("lstm-letters")
        expect(
            page.get_by_text("lstm-letters cuts the sentence into 22 tokens, decoder into 6 tokens.")
        ).to_be_visible()
        letters = hw.load(folder / "lstm-letters", backend="torch").lens(TEXT).layers[1].changes
        words = section.locator(".strip").nth(1).locator(".still")  # type: ignore[attr-defined]
        shares = [float(text.split("\n")[-1].removesuffix(" %")) for text in words.all_inner_texts()]
        assert shares[0] == pytest.approx(100 * max(letters[:3]), abs=0.51)  # of "the"
        page.get_by_label("Recurrent model").select_option("lstm")
        page.get_by_text("Show me the command").click()
        expect(page.locator("pre").first).to_contain_text(f"headway lens decoder --text '{TEXT}' --server {url}")
        look(page, "the cat sat")
        expect(page.locator("pre").first).to_contain_text("headway lens decoder --text 'the cat sat' --server")


def test_a_word_far_back_and_complete_words(browser: Browser, url: str) -> None:
    """In answers made for it: what step 7 finds in a long text, and where steps 5 and 6 look first."""
    with opened(browser, f"{url}/#inside") as page:
        expect(page.locator(".part").first).to_be_visible()
        answer = """const answer = (id, text, guess, share) => ({ model: { id }, text,
          tokens: text.split(/(?= )/).map((text) => ({ text })),
          lens: { next: { temperatures: [1], log_totals: [0], candidates: [
            { text: guess, id: 1, score: Math.log(share) }, { text: " golden", id: 2, score: Math.log(.1) }] } } });"""
        text = "a golden key" + " and so on" * 5 + " the"
        finding = f"""([one, other]) => {{ {answer} const text = {text!r};
          return recallFinding(answer("stories", text, one, .9), answer("lstm", text, other, .3)); }}"""
        told = page.evaluate(finding, [" golden", " blue"])
        assert told.replace("\u00a0", " ") == (
            "stories predicts “golden” (90 %), which it read 18 tokens before. lstm predicts “blue” (30 %), which is"
            " not in the text. It gives “golden” 10 %. The transformer looked back and found the word; the state of the"
            " other network has lost it."
        )
        assert "the state of lstm has kept it" in page.evaluate(finding, [" golden", " golden"])
        assert "has lost it" not in page.evaluate(finding, [" golden", " and"])
        assert page.evaluate(finding, [" blue", "."]) is None
        tokens = "[' The', ' gir', 'l', ' is', '.'].map((text) => ({ text }))"
        assert page.evaluate(f"{tokens}.map((_, index, all) => endsWord(all, index))") == [
            True,
            False,
            True,
            True,
            True,
        ]
        assert page.evaluate(f"{tokens}.map((_, index, all) => isWholeWord(all, index))") == [
            True, False, False, True, False
        ]  # fmt: skip
        # "gir" moves most, but it is not a complete word.
        place = "temperatures: [0.5, 2], candidates: [{ score: 0 }], log_totals: [0, -Math.log(1 - range)]"
        each = f"""{{ tokens: {tokens}, next: {{ position: 4 }},
          each: [0.2, 0.9, 0.8, 0.7, 0].map((range, position) => ({{ position, {place} }})) }}"""
        assert page.evaluate(f"mostMoved({each})") == 2
        assert page.evaluate(f"textUpTo({each}, 3)") == "The girl is"
        page.set_viewport_size({"width": 360, "height": 800})  # a table that scrolls begins with a complete column
        look(page, "the cat sat on the mat on the mat on the mat", "decoder")
        grid = page.locator(".lens-grid").first
        expect(page.get_by_text("Scroll the table sideways to see all 12 tokens.").first).to_be_visible()
        edges = """(grid) => { const [names, ...columns] = grid.querySelectorAll("th[scope=col]");
          const { right } = names.getBoundingClientRect();
          return columns.map((column) => Math.abs(column.getBoundingClientRect().left - right)); }"""
        page.wait_for_function(f"(grid) => Math.min(...({edges})(grid)) < 1.5", arg=grid.element_handle())
        assert page.locator(".lens-grid").nth(1).evaluate("(grid) => grid.scrollLeft") == 0
        look(page, TEXT)
        expect(page.get_by_text("Neither predicts a word here that it read far back.")).to_be_visible()
        page.evaluate("LONG_TEXTS.splice(0, 3, 'the cat sat')")
        page.get_by_role("button", name="Find a longer text where they differ").click()
        expect(page.get_by_text("In 1 longer texts, decoder predicted no word far back that")).to_be_visible()
        look(page, "cat")
        expect(page.get_by_text("A swap needs two different words")).to_be_visible()
        page.evaluate("""() => {
          server.models = server.models.filter(({ id }) => /^(decoder|lstm)$/.test(id))
            .map((model) => ({ ...model, examples: ["was a duck.", "The duck."] }));
          page.tabs.find((tab) => tab.id === "inside").refresh();
        }""")
        expect(page.locator("#panel-inside .model").first).to_contain_text("A language model with")
        assert page.evaluate("page.tabs.find((tab) => tab.id === 'inside').sentences()") == ["The duck."]


@pytest.mark.parametrize("dark", [False, True])
def test_other_models_and_bad_input(browser: Browser, url: str, dark: bool) -> None:
    with opened(browser, f"{url}/#inside", dark, 360) as page:
        look(page, "the cat [MASK] on the mat", "masked")
        expect(page.get_by_text("Here are the most probable ones in the place of token 3, “[MASK]”")).to_be_visible()
        assert serious_violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        look(page, TEXT, "classes")
        expect(page.get_by_text("classes has no vocabulary to predict words from")).to_be_visible()
        expect(page.get_by_role("application")).to_have_count(1)
        look(page, "cat " * 300, "decoder")
        expect(page.locator("#message")).to_contain_text("the limit is 256; shorten it.")
        expect(page.locator(".inside .part")).to_have_count(0)  # the answer before is not that of this text
        look(page, " ")
        expect(page.locator("#message")).to_have_text("The text is empty; pass at least one word.")
        assert page.get_by_label("Sentence").input_value() == " "


def test_a_translator_looks_at_its_source(browser: Browser, url: str) -> None:
    with opened(browser, f"{url}/#inside") as page:
        look(page, TEXT, "translator")
        expect(page.get_by_text("This model reads a source sentence and writes a target.")).to_be_visible()
        page.get_by_label("Layer", exact=True).select_option(label="Target looks at source, layer 2")
        expect(page.get_by_role("application", name="Attention map of Target looks at source, layer 2")).to_be_visible()
        expect(page.get_by_text("Source: where it looks")).to_be_visible()
        expect(page.get_by_text(re.compile(r"^translator read 6 tokens and wrote \d+ tokens?\."))).to_be_visible()
        # The model's own examples come first, and a sentence that does not fit it is explained.
        page.evaluate("""() => {
          const withExample = (model) => ({ ...model, examples: ["mat sat"] });
          server.models = server.models.map((model) => model.id === "translator" ? withExample(model) : model);
          drafts.set("inside", null);
          page.tabs.find((tab) => tab.id === "inside").modelChanged();
        }""")
        assert page.get_by_label("Sentence").input_value() == "mat sat"
        expect(page.get_by_text("translator read 2 tokens")).to_be_visible()
        page.get_by_label("Sentence").fill("dog")
        page.get_by_role("button", name="mat sat").click()
        assert page.get_by_label("Sentence").input_value() == "mat sat"
        answer = "{ model: { id: 'm' }, tokens: [{ text: '<begin>' }], attention: { source: ['<unk>', 'a'] } }"
        told = page.evaluate(f"misfit({answer}).textContent")
        assert told.startswith(
            "1 of the 2 tokens that m read is “<unk>”: words or letters that its vocabulary does not"
        )
        assert "m wrote nothing for this sentence" in told


def test_only_an_lstm_and_no_lstm(browser: Browser, folder: Path, tmp_path: Path) -> None:
    for name, message in (("lstm", "lstm has no attention. Choose"), ("decoder", "headway models make stories-lstm")):
        models = ServedModels([folder / name], [], LoadOptions(device="cpu", backend="torch"), open_engine_loop)
        with server(models, ServerSettings(log=False)) as url, opened(browser, f"{url}/#inside") as page:
            look(page, TEXT)
            expect(page.get_by_text(message)).to_be_visible()
