"""The tab Train in a browser: files, what was read, plans and a training. The commands are faked but for one test."""

from __future__ import annotations

import json
import re
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from browsing import opened, serious_violations
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from serve_models import asking
from served import Resident
from serving import server

from headway.app.jobs import jobs, stop_job
from headway.app.uploads import TrainingFileLimits
from headway.serve import training
from headway.serve.child_process import CommandResult
from headway.serve.interfaces import ApiKey, ServerSettings

CSV = "text,label\nWhere is it?,question\nIt is broken,complaint\n"
RAW = {"Content-Type": "application/octet-stream"}
PLAN = {"minutes": 5.0, "reasons": ["67k parameters"], "parameters": 67138, "width": 64, "layers": 1, "batch": 1024}
PLAN |= {"steps": 240, "epochs": 240.0, "memory": 877952, "settings": {"model.width": 64, "model.rope": True}}
DATA = {
    "noun": "texts",
    "samples": {"train": 80, "validation": 10, "test": 10},
    "targets": 80,
    "unit": "text",
    "classes": {"<b>question</b>": 60, "complaint": 40},
    "preview": ["Where is it? → <b>question</b>"],
    "remarks": ["2 of 102 texts have no label and are skipped."],
}
TRAINING = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--run") + 1])
folder.mkdir()
recipe = {"name": "classification", "data": sys.argv[4:5]}
status = {"format": 1, "status": "finished", "recipe": "classification", "parameters": 5, "steps": 2, "step": 2}
status |= {"tokens": 10, "seconds": 1.0, "best": {"step": 2, "loss": 0.5}}
status["samples"] = [{"source": "a", "output": "<i>b</i>"}]
lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "split": "validation", "loss": 0.5}]
(folder / "recipe.json").write_text(json.dumps(recipe))
(folder / "metrics.jsonl").write_text("".join(json.dumps(line) + chr(10) for line in lines))
(folder / "run.json").write_text(json.dumps(status))
"""
STOPPED = (  # before its first evaluation, so without a model
    TRAINING.replace('"finished"', '"interrupted"').replace('"steps": 2, "step": 2', '"steps": 507, "step": 15')
    + """
(folder / "metrics.jsonl").unlink()
sys.exit(f"headway: stopped at step 15 of 507; resume {folder} with --resume")
"""
)
STARTING = """
import sys, time
print("headway: training for 240 steps", flush=True)
time.sleep(60)
"""


class Commands:
    """What stands in for the commands: the answer of a plan, and the program of a training."""

    def __init__(self) -> None:
        self.code, self.output, self.notes = 0, "", ""
        self.asked: list[list[str]] = []
        self.training = TRAINING

    async def run(self, command: list[str], seconds: float, environment: Mapping[str, str]) -> CommandResult:
        assert command[command.index("--data") + 1].startswith(environment["HEADWAY_DATA_ROOT"])
        self.asked.append(command)
        if self.code:
            return CommandResult(self.code, "", self.notes.format(root=command[command.index("--data") + 1]))
        minutes = command[command.index("--minutes") + 1].split(",")
        plans = [{**PLAN, "minutes": float(number)} for number in minutes]
        return CommandResult(0, json.dumps({"plans": plans, "data": DATA}), self.notes)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    made, original = Commands(), training._command
    monkeypatch.setattr(training, "run_command", made.run)

    def command(verb: str, *rest: Any) -> list[str]:
        words = original(verb, *rest)
        return words if verb == "plan" else [sys.executable, "-c", made.training, *words[3:]]

    monkeypatch.setattr(training, "_command", command)
    return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training") / "runs"


@pytest.fixture(scope="module")
def url(runs: Path) -> Iterator[str]:
    with server(Resident(()), ServerSettings(runs=runs, log=False)) as url:
        yield f"{url}/#new"


def choose(page: Page, kind: str, *files: Any) -> None:
    """Choose what you have, and send files."""
    page.get_by_role("radio", name=re.compile(f"^{kind}")).check()
    page.get_by_label("Choose files").set_input_files(list(files))


def named(name: str, content: str | bytes) -> dict[str, Any]:
    raw = content if isinstance(content, bytes) else content.encode()
    return {"name": name, "mimeType": "text/plain", "buffer": raw}


def test_from_files_to_a_model(browser: Browser, url: str, runs: Path, commands: Commands) -> None:
    commands.notes = "notes.csv: skipped 1 line\n"
    with opened(browser, url) as page:
        choose(page, "Labelled texts", named("a.csv", CSV), named("notes.docx", "x"))
        expect(page.get_by_text("1 file has arrived")).to_be_visible()
        expect(page.get_by_text("Your own files are used: a.csv.")).to_be_visible()
        expect(
            page.get_by_text("1 file is left out, because it is empty or of another kind: notes.docx")
        ).to_be_visible()
        expect(page.get_by_text("100 texts: 80 to learn from, 10 to check while learning")).to_be_visible()
        expect(page.get_by_text("<b>question</b>", exact=True)).to_be_visible()  # as text
        expect(page.get_by_text("2 of 102 texts have no label")).to_be_visible()
        expect(page.get_by_text("Notes.csv: skipped 1 line")).to_be_visible()
        page.get_by_role("radio", name="30 minutes").check()
        assert [command[-2] for command in commands.asked] == ["5", "30,120"]
        page.get_by_label("Name of the model").fill("shop")
        page.get_by_role("tabpanel").get_by_text("Show me the command").click()
        expect(page.get_by_text("--minutes 30 --set model.width=64 model.rope=true")).to_be_visible()
        expect(page.get_by_text('set={"model.width": 64, "model.rope": True}')).to_be_visible()
        assert serious_violations(page) == []
        page.reload()  # everything is remembered
        expect(page.get_by_role("radio", name="30 minutes")).to_be_checked()
        expect(page.get_by_label("Name of the model")).to_have_value("shop")
        page.get_by_role("button", name="Start the training").click()
        expect(page.get_by_text("Finished.")).to_be_visible()
        expect(page.get_by_role("img", name=re.compile("From 2 to 1 after 2 steps"))).to_be_visible()
        expect(page.get_by_text("<i>b</i>", exact=True)).to_be_visible()
        assert serious_violations(page) == []
        page.get_by_role("tab", name="Models").click()
        notices = page.get_by_role("region", name="Your trainings")
        expect(notices.get_by_text("shop is ready.")).to_be_visible()
        assert serious_violations(page) == []
        page.get_by_role("button", name="Close the line about shop").click()
        page.reload()
        expect(page.get_by_role("heading", name="Make one")).to_be_visible()
        expect(notices.get_by_text("shop is ready.")).to_be_hidden()
        page.get_by_role("tab", name="Train", exact=True).click()
        expect(page.get_by_role("heading", name="The training of shop")).to_be_visible()
        expect(page.get_by_text("how wrong the model is, so lower is better")).to_be_visible()
        expect(page.locator(".loss text").filter(has_text="steps")).to_be_visible()
        page.get_by_role("button", name="Use it").click()
        expect(page.get_by_role("alert")).to_contain_text("does not offer the models of its runs", timeout=10_000)
        page.get_by_role("tab", name="Models").click()
        expect(page.get_by_role("alert")).to_be_hidden()  # it stays on its tab
        page.get_by_role("tab", name="Train", exact=True).click()
        page.get_by_role("button", name="Train another").click()
        expect(page.get_by_text("1 file has arrived")).to_be_visible()
        page.get_by_role("button", name="Start the training").click()  # the name is taken
        expect(page.get_by_role("heading", name="The training of shop-2")).to_be_visible()
        expect(page.get_by_text("Finished.")).to_be_visible()
    assert json.loads((runs / "shop-2/recipe.json").read_text())["data"][0].startswith(str(runs / ".uploads"))
    words = jobs(runs)["shop"].command  # it trains what was planned
    assert words[words.index("--set") :][1:3] == ("model.width=64", "model.rope=true")


def test_a_wrong_line_is_shown_with_those_around_it(browser: Browser, url: str, commands: Commands) -> None:
    commands.code, commands.notes = 2, "headway: {root}, line 3 has 3 columns but the header has 2; put quotes\n"
    with opened(browser, url, dark=True, width=360) as page:
        choose(page, "Labelled texts", named("a.csv", "text,label\nfine,good\n<b>no</b>, never,bad\nok,good\n"))
        expect(page.get_by_text("A.csv, line 3 has 3 columns but the header has 2; put quotes.")).to_be_visible()
        expect(page.locator("mark")).to_have_text(re.compile(r"3\s+<b>no</b>, never,bad"))
        assert serious_violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        hints = "no column 'text' (did you mean 'body'?) and no column 'label' (choose from: id, kind)"
        commands.notes = f"headway: {{root}} has {hints}; add --set task.text=body task.label=NAME\n"
        page.get_by_role("button", name="Read the files again").click()
        expect(page.get_by_text("; rename the columns, or choose some below.")).to_be_visible()
        expect(page.get_by_role("button", name="Use the column id as label")).to_be_visible()
        expect(page.get_by_role("button", name="Use the column body as text")).to_be_visible()
        column = page.get_by_role("button", name="Use the column kind as label")
        expect(column).to_be_visible()
        commands.code, commands.notes = 0, ""
        column.click()
        expect(page.get_by_text("100 texts")).to_be_visible()
        assert commands.asked[-1][-5:-2] == ["--set", "task.label=kind", "--minutes"]
        encoding = "is not UTF-8 at byte 14 (0xe9), but perhaps Windows' cp1252; convert it: iconv -f CP1252"
        commands.code, commands.notes = 2, f"headway: {{root}} {encoding}\n"
        choose(page, "Labelled texts", named("b.csv", "text,label\ncafé €,good\n".encode("cp1252")))
        expect(page.get_by_text("cp1252; open it with a text editor, and save it as UTF-8.")).to_be_visible()
        commands.code, commands.notes = 0, ""
        page.get_by_role("button", name="Convert the text of an older program").click()
        expect(page.get_by_text("100 texts")).to_be_visible()
        path = commands.asked[-1][commands.asked[-1].index("--data") + 1]
        assert Path(path).read_text(encoding="utf-8") == "text,label\ncafé €,good\n"


def test_a_dropped_folder_keeps_its_folders(browser: Browser, url: str, runs: Path, commands: Commands) -> None:
    with opened(browser, url) as page:
        page.get_by_role("radio", name="Images in folders").check()
        with page.expect_download() as download:
            page.get_by_role("button", name="Download the example").click()
        with zipfile.ZipFile(download.value.path()) as archive:
            assert archive.testzip() is None
            assert len(archive.namelist()) == 72
            assert archive.read("shapes/circle/1.png").startswith(b"\x89PNG")
        page.get_by_role("button", name="Try it with an example").click()
        expect(page.get_by_text("72 files have arrived")).to_be_visible()
        expect(page.get_by_text("The example is used, not files of yours: shapes/circle/1.png")).to_be_visible()
        expect(page.get_by_text("100 texts")).to_be_visible()
        folder = Path(commands.asked[0][commands.asked[0].index("--data") + 1])
        assert sorted(path.name for path in folder.iterdir()) == ["circle", "cross", "square"]
        ticks = page.get_by_role("group", name="The 3 folders")
        expect(ticks.get_by_text("24 images")).to_have_count(3)
        page.wait_for_function(
            "[...document.querySelectorAll('.thumbs img')].filter((i) => i.naturalWidth).length === 12"
        )
        ticks.get_by_label("cross").uncheck()
        expect(page.get_by_text("100 texts")).to_be_hidden()
        expect(page.get_by_role("button", name="Read the files again")).to_be_hidden()
        page.get_by_role("button", name="Use these 2 folders").click()
        expect(page.get_by_text("48 files have arrived")).to_be_visible()
        expect(page.get_by_text("100 texts")).to_be_visible()
        assert sorted(path.name for path in folder.iterdir()) == ["circle", "square"]
        assert serious_violations(page) == []
        ticks.get_by_label("circle").uncheck()
        expect(page.get_by_text("at least two folders")).to_be_visible()
        ticks.get_by_label("cross").check()
        page.get_by_role("button", name="Use these 2 folders").click()
        expect(page.get_by_text("100 texts")).to_be_visible()
        assert sorted(path.name for path in folder.iterdir()) == ["cross", "square"]
        page.reload()  # without the files, a folder that is left out cannot come back
        expect(ticks.get_by_label("circle")).to_be_disabled()
        expect(page.get_by_text("choose the same files again.")).to_be_visible()
        page.evaluate(
            """async () => {
              const canvas = new OffscreenCanvas(2400, 1200), pen = canvas.getContext("2d");
              const noise = pen.createImageData(300, 300);
              crypto.getRandomValues(noise.data.subarray(0, 60000));
              noise.data.forEach((_, index) => { noise.data[index] = noise.data[index % 60000]; });
              pen.putImageData(noise, 0, 0);
              Object.assign(newRun.limits, { file_bytes: 60000, upload_bytes: 1e6 });
              const large = new File([await canvas.convertToBlob()], "large.png");
              const broken = new File([new Uint8Array(70000)], "broken.png");
              large.path = "a/x/large.png"; broken.path = "a/x/broken.png";
              const small = new File(["small"], "small.png"); small.path = "a/y/small.png";
              if (large.size < 60000) throw Error(`the photo has only ${large.size} bytes`);
              page.current.take([large, broken, small]);
            }"""
        )
        expect(page.get_by_text("1 file is larger than 60 kB and left out: a/x/broken.png (70 kB)")).to_be_visible()
        expect(page.get_by_text("1 large photo was sent with 1,024 pixels")).to_be_visible()
        expect(page.get_by_text("small.png cannot be shown")).to_be_visible()
        stored = Path(page.evaluate("newRun.state.upload"), "files/a/x/large.png")
        with Image.open(runs / ".uploads" / stored) as photo:
            assert photo.size == (1024, 512)
        dropped = page.evaluate(
            """async () => {
              const file = (name) => ({ isFile: true, name, file: (done) => done(new File(["x"], name)) });
              const reader = (entries) => ({ readEntries: (done) => done(entries.splice(0, 2)) });
              const folder = (name, entries) => ({ name, createReader: () => reader(entries) });
              const cats = folder("cat", [file("1.png"), file("2.png"), file("3.png")]);
              const entry = folder("pets", [cats, file(".DS_Store")]);
              const files = await droppedFiles({ items: [{ webkitGetAsEntry: () => entry }], files: [] });
              return [files.map(filePath), sortFiles(files, [".png"]).usable.length];
            }"""
        )
        assert dropped == [["pets/cat/1.png", "pets/cat/2.png", "pets/cat/3.png", "pets/.DS_Store"], 3]


KINDS = {"Texts": "a.csv", "Pairs of texts": "a.png", "Labelled texts": "a.txt", "Images in folders": "a.csv"}
KINDS |= {
    "Sounds in folders": "a.png",
    "A time series": "a.wav",
    "Conversations": "a.csv",
    "Transcribed sounds": "a.png",
}


def test_files_of_another_kind_too_many_and_too_large(
    browser: Browser, url: str, runs: Path, monkeypatch: pytest.MonkeyPatch, commands: Commands
) -> None:
    with opened(browser, url) as page:
        for kind, name in KINDS.items():
            choose(page, kind, named(name, "x"))
            expect(page.get_by_role("alert")).to_contain_text(re.compile(f"{name} is not of a kind that is read", re.I))
        choose(page, "Pairs of texts", named("a.txt", "x"))
        expect(page.get_by_role("alert")).to_contain_text("This is one text file; choose two, whose lines belong")
        choose(page, "Images in folders", named("a.png", "x"))
        expect(page.get_by_role("alert")).to_contain_text(
            "These files are in no folders; choose a folder that contains two"
        )
        choose(page, "Texts", named("leer.txt", ""))
        expect(page.get_by_role("alert")).to_contain_text("leer.txt is empty; choose a file with content")
        page.get_by_role("radio", name="Labelled texts").check()
        page.evaluate("page.current.take(Array(100001).fill(new File(['x'], 'a.csv')))")
        expect(page.get_by_role("alert")).to_contain_text("100,001 files, and the limit is 100,000")
        monkeypatch.setattr(training._uploads_in(runs), "limits", TrainingFileLimits(file_bytes=5, reserve=0))
        choose(page, "Labelled texts", named("a.csv", CSV))  # the page was opened with another limit
        expect(page.get_by_role("alert")).to_contain_text("more than 5 bytes")
        monkeypatch.setattr(training._uploads_in(runs), "limits", TrainingFileLimits(reserve=1 << 60))
        choose(page, "A time series", named("b.csv", CSV))
        expect(page.get_by_role("alert")).to_contain_text("must stay free")
        assert commands.asked == []


def test_a_lost_connection_continues_where_it_was(
    browser: Browser, url: str, commands: Commands, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("a.csv", "b.csv", "c.csv")]
    for path in files:
        path.write_text(CSV, encoding="utf-8")
    with opened(browser, url) as page:
        page.route("**/files/b.csv", lambda route: route.abort())
        choose(page, "Labelled texts", *files)
        expect(page.get_by_role("alert")).to_contain_text("connection was lost")
        page.unroute("**/files/b.csv")
        sent: list[str] = []
        page.on("request", lambda request: sent.append(request.url) if request.method == "PUT" else None)
        page.reload()
        expect(page.get_by_text(re.compile(r"of 3 files have arrived. Choose the same files again"))).to_be_visible()
        page.route("**/v1/uploads/*", lambda route: route.abort())
        page.get_by_label("Choose files").set_input_files(files)
        expect(page.get_by_role("alert")).to_be_visible()  # what has arrived is not given up
        page.unroute("**/v1/uploads/*")
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_text("3 files have arrived")).to_be_visible()
        assert any("b.csv" in address for address in sent)
        assert not any("a.csv" in address for address in sent)
        expect(page.get_by_text("100 texts")).to_be_visible()
        used = page.evaluate("newRun.state.upload")
        page.get_by_role("button", name="Start the training").click()
        expect(page.get_by_text("Finished.")).to_be_visible()
        page.get_by_role("button", name="Train another").click()
        edited = CSV.replace("broken", "BROKEN")  # of the same size
        files[0].write_text(edited, encoding="utf-8")
        page.get_by_label("Choose files").set_input_files(files)
        expect(page.get_by_text("100 texts")).to_be_visible()
        roots = [Path(commands.asked[index][commands.asked[index].index("--data") + 1]) for index in (0, -1)]
        assert used in str(roots[0])
        assert [(root / "a.csv").read_text(encoding="utf-8") for root in roots] == [CSV, edited]


def test_a_training_that_fails_at_once_is_one_line(browser: Browser, url: str, commands: Commands) -> None:
    commands.training = (
        "import sys; sys.exit('headway: ' + sys.argv[sys.argv.index('--data') + 1] + ': the disk is full; free space')"
    )
    with opened(browser, url) as page:
        choose(page, "Labelled texts", named("a.csv", CSV))
        page.get_by_label("Name of the model").fill("a/b")
        page.get_by_role("button", name="Start the training").click()
        expect(page.get_by_role("alert")).to_contain_text("cannot be the name of a run")
        page.get_by_label("Name of the model").fill("fails")
        page.get_by_role("button", name="Start the training").click()
        expect(page.get_by_text("It failed. A.csv: the disk is full; free space.")).to_be_visible()
        page.get_by_role("button", name="Back to the files").click()
        expect(page.get_by_label("Name of the model")).to_have_value("fails")


def test_a_training_that_starts_shows_its_output_and_other_trainings(
    browser: Browser, url: str, commands: Commands
) -> None:
    commands.training = STARTING
    with opened(browser, url) as page:
        choose(page, "Labelled texts", named("own.csv", CSV))
        expect(page.get_by_text("100 texts")).to_be_visible()
        page.get_by_role("button", name="Try it with an example").click()
        expect(page.get_by_text("The example is used, not files of yours: messages.csv.")).to_be_visible()
        assert page.get_by_label("Choose files").input_value() == ""
        expect(page.get_by_text("own.csv")).to_be_hidden()
        for name in ("slow", "slower"):
            page.get_by_label("Name of the model").fill(name)
            page.get_by_role("button", name="Start the training").click()
            expect(page.get_by_text("Its last message: Training for 240 steps.")).to_be_visible()
            expect(page.get_by_text("The first point comes after the first step")).to_be_visible()
            if name == "slow":
                page.evaluate("newRun.remember({ run: null })")
                page.reload()
        expect(page.get_by_text("another training on this computer, slow, is going on")).to_be_visible()
        expect(page.get_by_text("slow is being trained: reading its data")).to_be_visible()
        assert serious_violations(page) == []
        for name in ("slow", "slower"):
            page.evaluate("(name) => server.json(`/v1/runs/${name}/stop`, { body: {} })", name)
        expect(page.get_by_role("button", name="Stop the training")).to_be_hidden()


def test_a_stopped_training_without_a_model_offers_an_early_end(
    browser: Browser, url: str, runs: Path, commands: Commands
) -> None:
    commands.training = STOPPED
    with opened(browser, url, width=360) as page:
        choose(page, "Labelled texts", named("a.csv", CSV))
        page.get_by_label("Name of the model").fill("stopped")
        page.get_by_role("button", name="Start the training").click()
        state = "Stopped at 2 %. It can continue from its last saved state."
        expect(page.get_by_text(state, exact=True)).to_be_visible()
        expect(page.get_by_role("button", name="Finish early")).to_be_visible()
        expect(page.get_by_text("It has no model to use yet.")).to_be_visible()
        expect(page.get_by_role("button", name="Use it as it is")).to_be_hidden()
        (runs / "stopped/model.safetensors").write_bytes(b"")
        expect(page.get_by_role("button", name="Use it as it is")).to_be_visible()
        expect(page.get_by_role("button", name="Finish early")).to_be_hidden()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert serious_violations(page) == []
        page.get_by_role("tab", name="Models").click()
        expect(page.get_by_text("stopped is stopped at 2 %.")).to_be_visible()
        expect(page.get_by_role("button", name="Continue stopped")).to_be_visible()


def test_times_that_are_too_short_say_why(browser: Browser, url: str, commands: Commands) -> None:
    few = "only 200 s are left for training, and the smallest model can take only 3 steps; increase --minutes by 2.5"
    commands.code, commands.notes = 2, f"headway: {few}\n"
    with opened(browser, url) as page:
        page.route("**/v1/plans", lambda route: route.continue_() if "[5]" in (route.request.post_data or "") else None)
        choose(page, "Labelled texts", named("a.csv", CSV))
        reason = "200 seconds are left, in which the smallest model could correct itself only 3 times"
        expect(page.get_by_text(reason)).to_be_visible()
        expect(page.get_by_text("about 2.5 minutes more are needed")).to_be_visible()
        expect(page.get_by_text("as soon as the longer plans below have read the files")).to_be_visible()
        expect(page.get_by_text("measuring this computer for the plans of 30 minutes and 2 hours")).to_be_visible()


def test_without_runs_there_is_no_tab_and_a_key_that_may_not_train_is_told(browser: Browser, tmp_path: Path) -> None:
    with server(Resident(()), ServerSettings(log=False)) as url, opened(browser, f"{url}/#new") as page:
        expect(page.get_by_role("tab", name="Models")).to_be_visible()
        expect(page.get_by_role("tab", name="Train", exact=True)).to_be_hidden()
    settings = ServerSettings(runs=tmp_path, keys=(ApiKey("reads"),), log=False)
    with server(Resident(()), settings) as url, opened(browser, f"{url}/#new") as page:
        page.get_by_label("API key").fill("reads")
        page.get_by_role("button", name="Use key").click()
        page.get_by_role("tab", name="Train", exact=True).click()
        expect(page.get_by_text("This key may not train")).to_be_visible()


def test_plans_and_trainings_of_real_commands(tmp_path: Path) -> None:
    """The real plan names the wrong line; the real training starts, fails at once on it, and its job has the line."""
    with asking(runs=tmp_path) as client:
        upload = client.post("/v1/uploads", json={}).json()["id"]
        client.put(f"/v1/uploads/{upload}/files/a.csv", content=b"text,label\na,b\na,b,c\n", headers=RAW)
        body = {"recipe": "classification", "upload": upload}
        answer = client.post("/v1/plans", json={**body, "minutes": [5]})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["message"].startswith("a.csv, line 3 has 3 columns but the header has 2")
        assert error["param"] == "a.csv:3"
        lines = client.get(f"/v1/uploads/{upload}/lines/3/a.csv").json()
        assert lines["lines"] == ["text,label", "a,b", "a,b,c"]
        for more in ({"recipe": "/etc/x.json"}, {"settings": {"task.tokenizer": "x"}}, {"files": ["../a"]}):
            assert client.post("/v1/plans", json={**body, "minutes": [5], **more}).status_code in (400, 404)
        started = client.post("/v1/runs", json={**body, "minutes": 0.1, "name": "run"}).json()["name"]
        end = time.monotonic() + 30
        while (row := client.get(f"/v1/runs/{started}").json()["run"])["state"] == "starting":
            assert time.monotonic() < end
            time.sleep(0.2)
        assert row["state"] == "broken"
        assert "line 3 has 3 columns" in row["reason"]


def test_a_run_reads_only_its_upload_and_gets_a_free_name(tmp_path: Path, commands: Commands) -> None:
    commands.training = "import os, sys, time; print(os.environ['HEADWAY_DATA_ROOT']); time.sleep(60)"
    with asking(runs=tmp_path) as client:
        upload = client.post("/v1/uploads", json={}).json()["id"]
        client.put(f"/v1/uploads/{upload}/files/a.csv", content=CSV.encode(), headers=RAW)
        body = {"recipe": "classification", "upload": upload, "minutes": 5}
        plans = client.post("/v1/plans", json={**body, "minutes": [5, 30]}).json()["plans"]
        client.put(f"/v1/uploads/{upload}/files/a.csv", content=CSV.replace("a", "b").encode(), headers=RAW)
        refused = [{"plan": plans[0]["id"]}, {"plan": plans[1]["id"]}, {"plan": "../x"}, {"plan": "0" * 20}]
        answers = [client.post("/v1/runs", json={**body, "name": "x", **more}) for more in refused]
        assert [answer.status_code for answer in answers] == [409, 400, 404, 404]
        assert "the files have changed since this plan was made" in answers[0].json()["error"]["message"]
        for name in ("exports", " exports ", "shop (export)"):
            answer = client.post("/v1/runs", json={**body, "name": name})
            assert answer.status_code == 400
            assert "is a name for exported models; choose another name" in answer.json()["error"]["message"]
        (tmp_path / "shop").mkdir()
        names = ["n" * 100, "n" * 98 + "-2", "n" * 98 + "-3", "ä" * 100, "ä" * 98 + "-2", "shop-2", "shop-3"]
        asked = [*["n" * 100] * 3, *["ä" * 100] * 2, "shop", "shop"]
        started = [client.post("/v1/runs", json={**body, "name": name}).json().get("name") for name in asked]
        try:
            assert started == names
            answer = client.put(f"/v1/uploads/{upload}/files/a.csv", content=b"x", headers=RAW)
            assert answer.status_code == 409
            end = time.monotonic() + 20
            while not (message := jobs(tmp_path)["shop-2"].message):
                assert time.monotonic() < end
                time.sleep(0.05)
            assert message == str(tmp_path / ".uploads" / upload / "files")
        finally:
            for name in jobs(tmp_path):
                stop_job(tmp_path, name)


def test_lines_that_are_too_far_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_MAX_BEFORE", 30)
    with asking(runs=tmp_path) as client:
        upload = client.post("/v1/uploads", json={}).json()["id"]
        client.put(f"/v1/uploads/{upload}/files/a.csv", content=b"a\n" * 100, headers=RAW)
        answers = {
            line: client.get(f"/v1/uploads/{upload}/lines/{line}/a.csv")
            for line in ("9", "99", "0", "-1", "x", "9" * 9, "9" * 30, "9" * 5000)
        }
        assert answers.pop("9").json()["lines"] == ["a"] * 5
        for answer in answers.values():
            assert answer.status_code == 400
            assert len(answer.json()["error"]["message"]) < 200
