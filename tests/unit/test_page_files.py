"""The tabs of files, driven in a browser: images, sounds with the microphone, and time series."""

from __future__ import annotations

import csv
import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from queue import LifoQueue
from typing import Any

import file_models
import numpy as np
import pytest
import soundfile
from browsing import opened, serious_violations
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from serving import server
from sound_files import tone

import headway as hw
from headway.app.cli.main import main
from headway.domains.audio import Segment, Transcription, Word
from headway.domains.audio.transcriber import format_transcript
from headway.io.helper import Helper
from headway.serve import media, transcriptions
from headway.serve.engine_loop import open_engine_loop
from headway.serve.interfaces import ServerSettings
from headway.serve.models import LoadOptions, ServedModels

BROWSER_FLAGS = ("--use-fake-device-for-media-stream",)
LONG = "n" * 9_996 + ".png"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("files") / "models"
    place.mkdir()
    return file_models.folder(place)


@pytest.fixture(scope="module")
def url(models: Path) -> Iterator[str]:
    served = ServedModels([], [models], LoadOptions(device="cpu", backend="torch"), open_engine_loop)
    with server(served, ServerSettings(log=False)) as url:
        yield url


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with opened(browser, url) as page:
        yield page


def tab(page: Page, name: str, model: str | None = None) -> Any:
    """The panel of a tab, with a model chosen."""
    page.get_by_role("tab", name=name).click()
    panel = page.get_by_role("tabpanel")
    if model is not None:
        panel.get_by_label("Model", exact=True).select_option(model)
    return panel


def drop(panel: Any, name: str, kind: str, content: str) -> None:
    """Drop a file that no disk could have on the place for files."""
    panel.locator(".drop").first.evaluate(
        """(zone, [name, type, content]) => {
            const data = new DataTransfer();
            data.items.add(new File([content], name, { type }));
            zone.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        [name, kind, content],
    )


def saved(page: Page, button: str) -> bytes:
    """The file that a button saves."""
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    return Path(download.value.path()).read_bytes()


def picture(path: Path, seed: int = 0) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)).save(path)
    return path


def test_an_image_is_classified_and_shows_where_the_model_looked(page: Page, models: Path, tmp_path: Path) -> None:
    panel = tab(page, "Images", "sort")
    expect(panel.get_by_alt_text("A handwritten three")).to_be_visible()
    expect(panel).to_contain_text("Example, drawn by this page")
    panel.get_by_role("button", name="Classify").click()
    expect(panel.locator("article .bars li")).to_have_count(3)
    file, text = picture(tmp_path / "one.png"), tmp_path / "text.png"
    text.write_text("no image")
    panel.get_by_label("Image files").set_input_files([file, text])
    panel.get_by_role("button", name="Classify").click()
    expect(panel.locator("article")).to_have_count(2)
    expect(panel.locator("article").nth(1)).to_contain_text("text.png is not a supported image; use one of PNG")
    model = hw.load(models / "sort", backend="torch")
    labels: Any = model.classify(file)
    assert panel.locator(".bars .name").all_inner_texts() == list(labels)  # "7" is not first, as it is in JavaScript
    weights = model.look(file).weights
    expect(panel.locator(".looked")).to_have_count(0)
    panel.get_by_text("Where the model looked").first.click()
    shown = panel.get_by_role("img", name=re.compile("one.png. The model looked most at the"))
    expect(panel.get_by_role("img", name="one.png, as it is")).to_be_visible()
    expect(panel.locator(".legend")).to_have_text("Dark: hardly looked atBright: looked at most")
    expect(panel.get_by_label("Strength of these colours")).to_have_value("50")
    third = np.array([0, 1, 1, 2])  # of four patches
    shares = {
        (row, column): weights[np.ix_(third == row, third == column)].sum() / weights.sum()
        for row in range(3)
        for column in range(3)
    }
    panel.get_by_text("The same as numbers").click()
    cells = panel.locator("article td:not(:first-child)").all_inner_texts()
    assert [float(cell.split()[0]) for cell in cells] == pytest.approx(
        [100 * shares[row, column] for row in range(3) for column in range(3)], abs=0.51
    )
    before = shown.screenshot()
    panel.get_by_label("Strength of these colours").fill("0")
    assert shown.screenshot() != before
    page.get_by_text("Show me the command").locator("visible=true").click()
    expect(panel).to_contain_text(f"headway look sort one.png text.png --out looks --server {page.url.split('/#')[0]}")


def answer(page: Page, verb: str, answers: dict[str, float], **more: Any) -> None:
    """Let the server answer a verb like this."""
    page.route(f"**/v1/{verb}", lambda route: route.fulfill(json={"result": answers, **more}))


def test_the_result_is_a_sentence(page: Page) -> None:
    panel = tab(page, "Images", "sort")
    for answers, text in (
        ({"3": 0.55, "8": 0.25, "5": 0.15, "1": 0.05}, "This is probably a 3 (55 %)."),
        ({"8": 0.9, "3": 0.1}, "This is probably an 8 (90 %)."),
        ({"<b>cats": 0.5, "dogs": 0.5}, "This is probably “<b>cats” (50 %)."),
        ({"cats": 0.4, "dogs": 0.3, "birds": 0.3}, "The model is not sure. Its best guess is “cats” (40 %)."),
    ):
        answer(page, "classify", answers)
        panel.get_by_role("button", name="Classify").click()
        expect(panel.locator("article strong")).to_have_text(text)
        assert panel.locator(".bars .name").all_inner_texts() == list(answers)[:3]
        if len(answers) > 3:
            panel.get_by_text("The other classes").click()
            expect(panel.locator("details .bars .name")).to_have_text(list(answers)[3:])
    answer(page, "classify", {"cat": 0.4, "dog": 0.3}, thresholds={"cat": 0.35, "dog": 0.35})
    panel.get_by_role("button", name="Classify").click()
    expect(panel.locator("article strong")).to_have_text("Labels: cat.")
    answer(page, "classify", {"8": 0.9, "7": 0.1}, unexpected=["much brighter than the images in training"])
    panel.get_by_role("button", name="Classify").click()
    expect(panel.locator("article strong")).to_have_text("The model takes this for an 8 (90 %).")
    expect(panel).to_contain_text("Careful: this picture is much brighter than those that the model was trained on")
    answer(page, "classify", {"7": 1.0})
    panel.get_by_text("Try it with dark and light swapped").click()
    expect(panel.get_by_role("img", name="The example, dark and light swapped")).to_be_visible()
    expect(panel.locator("details .bars .name")).to_have_text("7")
    expect(panel.locator("details").first).to_contain_text("The model takes this for a 7 (100 %).")


def test_a_folder_of_images(page: Page, tmp_path: Path) -> None:
    panel = tab(page, "Images", "sort")
    panel.get_by_role("button", name="Classify").click()
    expect(panel.locator("article")).to_have_count(1)
    for label in ("zero", "one"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in (10, 9):
            picture(tmp_path / "photos" / label / f"photo{number}.png", number)
    (tmp_path / "photos" / ".DS_Store").write_text("x")
    (tmp_path / "photos" / "notes.txt").write_text("Hello")
    panel.get_by_label("Choose a folder").set_input_files(tmp_path / "photos")
    expect(panel.locator(".previews figcaption")).to_have_count(4)
    expect(panel.locator("article")).to_have_count(0)  # the result of the example has gone
    expect(panel).to_contain_text("1 other file is left out.")
    panel.get_by_role("button", name="Classify").click()
    names = [f"photos/{label}/photo{number}.png" for label in ("one", "zero") for number in (9, 10)]
    expect(panel.locator("article h3")).to_have_text(names)
    expect(panel.locator("article .bars")).to_have_count(4)
    assert page.evaluate("document.documentElement.scrollHeight") < 1400
    page.get_by_text("Show me the command").locator("visible=true").click()
    expect(panel).to_contain_text(f"headway classify sort {' '.join(names)} --server")
    panel.get_by_label("Image files").set_input_files(tmp_path / "photos" / "one" / "photo9.png")
    expect(panel.locator("article")).to_have_count(0)
    expect(panel.locator(".drop p").nth(1)).to_have_text("")
    panel.get_by_label("Model", exact=True).select_option("match")
    panel.get_by_label("Model", exact=True).select_option("sort")
    for number in range(101):
        picture(tmp_path / "photos" / f"{number}.png")
    panel.get_by_label("Choose a folder").set_input_files(tmp_path / "photos")
    expect(panel).to_contain_text("These are 105 images: the first 100 by name are used. 1 other file is left out.")
    expect(panel.locator(".previews figure")).to_have_count(12)
    expect(panel.locator(".previews")).to_contain_text("and 88 more")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("Hello")
    panel.get_by_label("Choose a folder").set_input_files(tmp_path / "empty")
    expect(page.locator("#message")).to_have_text(re.compile("^empty/notes.txt is not an image; choose files"))


def test_captions_and_matches(page: Page, models: Path, tmp_path: Path) -> None:
    panel = tab(page, "Images", "match")
    expect(panel.get_by_alt_text("A red circle and a blue square")).to_be_visible()
    files = [picture(tmp_path / f"{seed}.png", seed) for seed in range(2)]
    panel.get_by_label("Image files").set_input_files(files)
    panel.get_by_label("Texts to compare").fill("a cat\n\n<b>a dog</b>")
    panel.get_by_role("button", name="Match").click()
    wanted = hw.load(models / "match", backend="torch").match(files, ["a cat", "<b>a dog</b>"]).probabilities
    expect(panel.locator("tbody tr")).to_have_count(2)
    cells = panel.locator("tbody td:not(:first-child)").all_inner_texts()
    assert [float(cell.split()[0]) for cell in cells] == pytest.approx((100 * wanted).flatten().tolist(), abs=0.51)
    panel.get_by_label("Texts to compare").fill(" ")
    panel.get_by_role("button", name="Match").click()
    expect(page.locator("#message")).to_have_text("There is no text to compare with; write at least one.")
    panel.get_by_label("Model", exact=True).select_option("caption")
    panel.get_by_role("button", name="Write captions").click()
    expect(panel.locator("article p")).to_have_count(2)


def test_files_that_are_no_images(page: Page) -> None:
    panel = tab(page, "Images", "sort")
    drop(panel, "notes<i>.txt", "text/plain", "Hello")
    expect(page.locator("#message")).to_have_text(
        "notes<i>.txt is not an image; choose files such as .png, .jpg or .webp."
    )
    drop(panel, LONG, "image/png", "no image")
    panel.get_by_role("button", name="Classify").click()
    expect(panel.locator("article .wrong")).to_have_text(re.compile("^n{40}….*png is not a supported image; use one"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_limits_are_stated_before_the_upload(browser: Browser, models: Path, tmp_path: Path) -> None:
    served = ServedModels([models / "sort"], [], LoadOptions(device="cpu", backend="torch"), open_engine_loop)
    with (
        server(served, ServerSettings(runs=tmp_path / "runs", log=False, body_bytes=40_000)) as url,
        opened(browser, url) as page,
    ):
        panel = tab(page, "Images")
        expect(panel).to_contain_text("At most 23.9 kB each")
        expect(panel.get_by_label("Model", exact=True)).to_have_value("sort")  # the only one
        drop(panel, "large.png", "image/png", "x" * 24_000)
        expect(page.locator("#message")).to_have_text(
            "large.png has 24 kB, and the limit is 23.9 kB; choose a smaller file."
        )
        drop(panel, "fits.png", "image/png", "x" * 23_850)
        panel.get_by_role("button", name="Classify").click()
        expect(panel.locator("article .wrong")).to_contain_text("is not a supported image")  # and so has arrived
        panel.get_by_role("button", name="Train", exact=True).click()  # next to "Teach it your own photos"
        expect(page.get_by_role("heading", name="Train a model on your own files")).to_be_visible()
        expect(page.get_by_role("radio", name="Images in folders")).to_be_checked()


def test_a_model_that_was_trained_here_is_chosen_first(page: Page) -> None:
    for name in ("sort", "match"):
        page.evaluate("(name) => settings.set('trainings', [{ name, time: 0 }])", name)
        page.reload()
        expect(tab(page, "Images").get_by_label("Model", exact=True)).to_have_value(name)


def test_a_sound_is_classified(page: Page, models: Path, tmp_path: Path) -> None:
    panel = tab(page, "Sounds", "blips")
    expect(panel).to_contain_text("Example: three tones, made by this page")
    expect(panel).to_contain_text("At most 6.29 MB")
    soundfile.write(tmp_path / "blip.wav", tone(440, 0.5, rate=16000), 16000)
    panel.get_by_label("Sound or video file").set_input_files(tmp_path / "blip.wav")
    panel.get_by_role("button", name="Classify").click()
    labels: Any = hw.load(models / "blips").classify(tmp_path / "blip.wav", truncate=True)
    expect(panel.locator(".bars .name")).to_have_text(list(labels))
    assert panel.locator("audio").evaluate("audio => audio.duration") == pytest.approx(0.5, abs=0.01)
    drop(panel, "picture.png", "image/png", "x")
    expect(page.locator("#message")).to_have_text(re.compile(r"^picture.png is not a sound; choose files such as .wav"))
    drop(panel, "picture.wav", "audio/wav", "\x89PNG")
    panel.get_by_role("button", name="Classify").click()
    expect(page.locator("#message")).to_have_text(re.compile(r"^picture.wav is not a readable audio file"))


def test_a_transcript_is_shown_played_and_saved(page: Page, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spoken = Word(" Hello", 0.0, 0.1, 0.9), Word(" there.", 0.1, 0.2, 0.8)
    words = (*spoken, Word(" Mr.", 0.3, 0.35, 0.8), Word(" X?", 0.35, 0.4, 0.8)), (Word(" <i> -->", 0.5, 0.9, 0.7),)
    segments = [
        Segment(0.0, 0.45, " Hello there. Mr. X?", [1], 0.0, -0.1, 1.0, 0.0, words[0]),
        Segment(0.5, 0.9, " <i> -->", [1], 0.0, -0.1, 1.0, 0.0, words[1]),
    ]
    transcript, requests = Transcription("Hello there. Mr. X? <i> -->", "en", 1.0, segments), []

    async def transcribe(request: Any, context: object) -> Transcription:
        requests.append(request)
        return transcript

    monkeypatch.setattr(transcriptions, "_transcribe", transcribe)
    panel = tab(page, "Sounds", "hear")
    expect(panel).to_contain_text("Example: three tones, made by this page. Nobody speaks in it")
    panel.get_by_label("Language that is spoken").select_option(label="German")
    panel.get_by_label("Translate into English").check()
    panel.get_by_role("button", name="Transcribe").click()
    expect(panel.locator(".segments li")).to_have_text(["0:00.0 Hello there.", "0:00.3 Mr. X?", "0:00.5 <i> -->"])
    assert (requests[0].options.language, requests[0].options.task) == ("de", "translate")
    panel.get_by_role("button", name="Play from 0:00.5").click()
    expect(panel.locator("audio")).not_to_have_js_property("currentTime", 0)
    panel.get_by_text("Every word with its time").click()
    expect(panel.locator("tbody tr").nth(1)).to_have_text(re.compile(r"there\.\s*0\.10\s*0\.20\s*80 %"))
    for kind in ("txt", "srt", "vtt"):
        assert saved(page, f"Save as .{kind}").decode() == format_transcript(transcript, kind)  # type: ignore[arg-type]
    assert b'"language": "en"' in saved(page, "Save as .json")
    expect(panel).not_to_have_text("no speech")


def test_what_the_microphone_records_is_heard(page: Page) -> None:
    """Chromium's own webm with opus, which the server decodes."""
    page.context.grant_permissions(["microphone"])
    panel = tab(page, "Sounds", "blips")
    panel.get_by_role("button", name="Record").click()
    expect(panel.locator("output")).to_have_text("1 s")
    expect(panel.locator("meter")).not_to_have_js_property("value", 0)
    panel.get_by_role("button", name="Stop recording").click()
    expect(panel).to_contain_text("recording.webm")
    expect(panel.locator("audio")).not_to_have_js_property("readyState", 0)
    length = """audio => new Promise((done) => {
        const look = () => (isFinite(audio.duration) ? done(audio.duration) : setTimeout(look, 20));
        look();
    })"""
    assert 0.5 < panel.locator("audio").evaluate(length) < 60  # Chromium's own file does not state it
    panel.get_by_role("button", name="Classify").click()
    expect(panel.locator(".bars li")).to_have_count(2)
    panel.get_by_label("Model", exact=True).select_option("hear")
    panel.get_by_role("button", name="Transcribe").click()
    expect(panel).to_contain_text("The model heard no speech in this sound.")


def test_a_microphone_that_cannot_be_used_is_one_line(page: Page) -> None:
    panel = tab(page, "Sounds", "blips")
    no_device = "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', 'NotFoundError'))"
    for script, message in (
        ("", "The microphone is blocked; allow it next to the address of this page, or choose a file instead."),
        (no_device, "There is no microphone; connect one, or choose a file instead."),
        (
            "delete window.MediaRecorder",
            "This browser lets pages record only on this computer or over https; choose a file instead.",
        ),
    ):
        page.evaluate(f"() => {{ {script} }}")
        panel.get_by_role("button", name="Record").click()
        expect(page.locator("#message")).to_have_text(message)
        expect(panel.get_by_role("button", name="Record")).to_be_enabled()


def test_a_missing_extra_is_named(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    helper, idle = Helper("bare_decoder", media._MEMORY), LifoQueue[Helper]()
    idle.put(helper)
    monkeypatch.setattr(media, "_idle_helpers", idle)
    monkeypatch.setattr(media, "_sound_helper", helper)
    panel = tab(page, "Images", "sort")
    panel.get_by_role("button", name="Classify").click()
    expect(panel.locator("article .wrong")).to_have_text("Images need Pillow; install headway[vision].")
    panel = tab(page, "Sounds", "blips")
    for name in ("one.wav", "one.webm"):
        drop(panel, name, "audio/any", "RIFF")
        panel.get_by_role("button", name="Classify").click()
        expect(page.locator("#message")).to_have_text(re.compile("run pip install 'headway\\[audio\\]'"))
    helper.stop()


def test_a_table_is_forecast(page: Page, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    panel = tab(page, "Forecasts")
    expect(panel.locator(".chart svg")).to_be_visible()
    expect(panel).to_contain_text("Example: the last values that this model was trained on.")
    assert panel.get_by_label("Or paste or type a table here").input_value().startswith("time,sales\n2024-0")
    path = file_models.daily(tmp_path / "two.csv", 80, a=lambda n: n % 7, **{'b "<i>"': lambda n: 5 + n % 7})
    panel.get_by_label("Table", exact=True).set_input_files(path)
    panel.get_by_label("Number of steps").fill("3")
    panel.get_by_role("button", name="Forecast").click()
    panel.get_by_label("Series", exact=True).select_option('b "<i>"')
    expect(panel.get_by_role("img")).to_have_attribute("aria-label", re.compile(r'^b "<i>": 24 known values, and a'))
    code = main(
        ["forecast", str(models / "forecast"), "--data", str(path), "--steps", "3", "--out", f"{tmp_path}/o.csv"]
    )
    assert code == 0
    here, there = (
        list(csv.reader(io.StringIO(text)))
        for text in ((tmp_path / "o.csv").read_text(), saved(page, "Save as table (.csv)").decode())
    )
    assert [row[:2] for row in there] == [row[:2] for row in here]
    assert [float(value) for row in there[1:] for value in row[2:]] == pytest.approx(
        [float(value) for row in here[1:] for value in row[2:]]
    )
    panel.get_by_text("The same as numbers").click()
    assert len(panel.locator("tbody tr").all()) == 3
    drawing = ElementTree.fromstring(saved(page, "Save as picture (.svg)").decode())
    assert drawing.tag.endswith("svg")
    assert "var(" not in ElementTree.tostring(drawing, "unicode")
    image = Image.open(io.BytesIO(saved(page, "Save as picture (.png)"))).convert("RGB")
    assert image.width == 1920
    assert image.getpixel((3, 3)) == (255, 255, 255)
    assert len(image.getcolors(1 << 20) or ()) > 20
    page.reload()
    expect(panel.get_by_label("Number of steps")).to_have_value("3")


BAD_TABLES = {
    "": "There is no table; choose a file, or paste a table.",
    "date,sales\n": "The table: there are no rows; add some.",
    "date,sales\n2024-01-01,many\n2024-01-02,few": r"The table, line 2: 'sales' is 'many'.*write a number",
    "date,sales\n2024-01-01,1\n2024-01-02,2": "The series 'sales' has 2 values, but the model needs",
    "date,sales\n2024-01,1\n2024-02,2": "The data have one value per month, but the model was trained on",
    "<b>Hello</b>": "The table: there are no rows",
    "x" * 10_000 + "\n1": "^The table, line 2: it is not clear which of .{200,600}; name it time, or set",
}


def test_tables_that_cannot_be_forecast_are_one_line(page: Page) -> None:
    panel = tab(page, "Forecasts")
    expect(panel.locator(".chart svg")).to_be_visible()
    for table, message in BAD_TABLES.items():
        panel.get_by_label("Or paste").fill(table)
        panel.get_by_role("button", name="Forecast").click()
        expect(page.locator("#message")).to_have_text(re.compile(message))
        expect(panel.get_by_label("Or paste")).to_have_value(table)  # what was typed is kept
        expect(panel.locator(".chart")).to_have_count(0)  # and no older chart stands for it


def test_files_that_are_no_tables(page: Page) -> None:
    panel = tab(page, "Forecasts")
    expect(panel.locator(".chart svg")).to_be_visible()
    drop(panel, "photo.jpg", "image/jpeg", "x")
    expect(page.locator("#message")).to_have_text("photo.jpg is not a table; save it as .csv, .tsv, .jsonl or .xlsx.")
    drop(panel, "empty.csv", "text/csv", "")
    panel.get_by_role("button", name="Forecast").click()
    expect(page.locator("#message")).to_have_text("empty.csv is empty (0 bytes); pass a file with content.")
    drop(panel, "a.xlsx", "", "no workbook")
    panel.get_by_role("button", name="Forecast").click()
    expect(page.locator("#message")).to_have_text(re.compile(r"^a\.xlsx is damaged or not \.xlsx"))


@pytest.mark.parametrize("dark", [False, True])
def test_everybody_can_read_and_use_it(browser: Browser, url: str, dark: bool) -> None:
    with opened(browser, url, dark, width=360) as page:
        for name, model, button in (("Images", "sort", "Classify"), ("Sounds", "blips", "Classify")):
            panel = tab(page, name, model)
            panel.get_by_role("button", name=button).click()
            expect(panel.locator(".bars li").first).to_be_visible()
            if name == "Images":
                panel.get_by_text("Where the model looked").click()
                expect(panel.locator(".looked canvas")).to_be_visible()
            assert serious_violations(page) == []
            assert page.evaluate("document.documentElement.scrollWidth") == 360
        panel = tab(page, "Forecasts")
        expect(panel.locator(".chart svg")).to_be_visible()
        panel.get_by_text("The same as numbers").click()
        assert serious_violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == 360
