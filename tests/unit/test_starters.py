"""Models to start with: what is listed, how one is made and continued, and what stops it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import urllib.error
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serve_models import asking
from starlette.testclient import TestClient
from tiny_runs import SETTINGS

from headway.app import api, starters
from headway.app.cli.main import main as cli
from headway.app.recipes import configure_recipe
from headway.data import known_set
from headway.data.registry import set_of
from headway.domains.text.task import NextToken
from headway.errors import UserError
from headway.learn.run import RunDirectory
from headway.serve import starters as endpoints
from headway.serve.app import create_app
from headway.serve.interfaces import ApiKey, ServerSettings
from headway.serve.models import LoadOptions, ServedModels

ROOT = Path(__file__).parents[2]
TINY = {**SETTINGS, "model.width": 32, "model.depth": 1, "model.heads": 2, "task.size": 300}
STORIES = ["One day a fox named Tom lost a red ball at the pond.", "Mia was a shy mole who lived near the sea."] * 200


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, brief_samples: None) -> str:
    """The stories, few of them, with a tiny model that trains for some steps whatever the minutes are."""

    def write(path: Path) -> None:
        path.write_text("".join(json.dumps({"text": f"{text} {number}"}) + "\n" for number, text in enumerate(STORIES)))

    known = known_set("stories")
    few = replace(known, write=write, files=(replace(known.files[0], lines=len(STORIES)),))
    monkeypatch.setitem(starters.known_set.__globals__["KNOWN_SETS"], "stories", few)
    monkeypatch.setitem(starters.STARTERS, "stories", replace(starters.STARTERS["stories"], settings=TINY))

    def train(recipe: str, minutes: float | None, **given: Any) -> Any:
        return api.train(recipe, progress=False, samples=0, **given)

    monkeypatch.setattr(starters, "train", train)
    return "stories"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **named: Any) -> Any:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.delenv("HEADWAY_DATA", raising=False)


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert cli(["models", "--json"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}


def test_the_list_states_what_each_needs(offline: None, capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed(capsys)
    assert set(rows) >= {"pronounce", "translation", "digits", "spoken-digits", "stories", "chess", "reach", "intents"}
    for name, row in rows.items():
        starter = starters.STARTERS[name]
        assert starter.directory == Path(os.environ["HEADWAY_CACHE"]) / "models" / name
        assert all(entry["licence"] and entry["source"] for entry in row["data"])
        assert row["state"] == "missing"
        assert row["needs_network"] == any(known.url for data in starter.known_sets for known in data.files)
        data = ["x"] if starter.sets or starter.demonstrations else None
        assert configure_recipe(starter.recipe, data, starter.settings, None).name == starter.recipe
    assert not rows["digits"]["needs_network"]
    assert rows["intents"]["needs_network"]


def test_figures_are_those_that_were_measured() -> None:
    measured = json.loads((ROOT / "benchmarks/results/starters.json").read_text())["models"]
    for name, starter in starters.STARTERS.items():
        entry = measured.get(name, {"megabytes": None, "score": "not measured"})
        assert (starter.megabytes, starter.score) == (entry["megabytes"], entry["score"])
        assert entry.get("minutes", starter.minutes) == starter.minutes


def test_a_model_is_made_once(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["models", "make", tiny]) == 0
    written = capsys.readouterr()
    assert "generating stories" in written.err
    directory = starters.STARTERS[tiny].directory
    assert f"next: headway generate {directory}" in written.out
    assert listed(capsys)[tiny]["state"] == "finished"
    before = (directory / "run.json").read_bytes()
    assert cli(["models", "make", tiny, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["was_made"] is True
    assert (directory / "run.json").read_bytes() == before
    recipe = json.loads((directory / "recipe.json").read_text())
    assert [known.name for path in recipe["data"] if (known := set_of(path))] == ["stories"]


def test_an_interrupted_model_continues(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = NextToken.evaluate

    def interrupted(self: NextToken, *given: Any, **named: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(NextToken, "evaluate", interrupted)
        assert cli(["models", "make", tiny]) == 130
    assert "continue with: headway models make stories" in capsys.readouterr().err
    assert listed(capsys)[tiny]["state"] == "stopped"
    assert cli(["models", "make", tiny]) == 0
    assert listed(capsys)[tiny]["state"] == "finished"


def test_a_killed_model_continues(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    starters.make(tiny)
    directory = RunDirectory(starters.STARTERS[tiny].directory)
    status = directory.read_status()
    del status["scores"]
    directory.write_status({**status, "status": "running"})  # as a kill leaves it
    (directory.path / ".lock").write_text("1")  # a process that lives, but trains nothing
    assert listed(capsys)[tiny]["state"] == "stopped"
    assert starters.make(tiny) is not None
    assert listed(capsys)[tiny]["state"] == "finished"


def test_two_do_not_make_one_model(tiny: str) -> None:
    starters.make(tiny)
    directory = RunDirectory(starters.STARTERS[tiny].directory)
    made = starters.progress(starters.STARTERS[tiny])
    assert (made["state"], made["share"], made["own_score"][:11]) == ("finished", 1, "perplexity ")
    with directory.locked():
        assert starters.progress(starters.STARTERS[tiny])["state"] == "evaluating"  # after the last step
        directory.write_status({**directory.read_status(), "status": "running", "step": 1, "steps": 4})
        directory.metrics.write_text('{"step": 2, "seconds": 1.5}\n{"step": 3, "sec')
        shown = starters.progress(starters.STARTERS[tiny])
        assert (shown["state"], shown["share"], shown["own_score"]) == ("running", 0.5, "")
        with pytest.raises(UserError, match=rf"stories is being made by another process \({os.getpid()}\)"):
            starters.make(tiny, minutes=1)


def test_demonstrations_are_played_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("metaworld", reason="the extra robotics is not installed")
    monkeypatch.setattr(starters, "_DEMONSTRATIONS", 2)
    notes: list[str] = []
    path = starters._demonstrate("metaworld/reach-v3", notes.append)
    assert starters._demonstrate("metaworld/reach-v3", notes.append) == path
    assert notes == ["playing 2 demonstrations of metaworld/reach-v3"]
    assert path.is_relative_to(os.environ["HEADWAY_CACHE"])


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli(words) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    return line


def test_what_stops_it_is_one_line(
    tiny: str, offline: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(["models", "make", "digit"], capsys).endswith("'digit'; did you mean 'digits'?")
    line = refusal(["models", "make", "intents"], capsys)
    assert "no route to host" in line
    assert "without a network you can make " in line
    assert "stories" in line.rpartition("make ")[2]
    assert "translation" not in line.rpartition("make ")[2]
    with monkeypatch.context() as patch:
        patch.setenv("HEADWAY_CACHE", "/proc/none")
        assert "/proc/none/models cannot be created" in refusal(["models", "make", tiny], capsys)
    found = starters.importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(starters.importlib.util, "find_spec", lambda name: None if name == "metaworld" else found(name))
        assert "needs the extra robotics; run: pip install 'headway[robotics]'" in refusal(
            ["models", "make", "reach"], capsys
        )

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    known = known_set("stories")
    monkeypatch.setitem(starters.known_set.__globals__["KNOWN_SETS"], "stories", replace(known, write=full))
    assert "the disk is full at" in refusal(["models", "make", tiny], capsys)
    assert not starters.STARTERS[tiny].directory.exists()


def test_only_those_who_may_train_make_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[Path, str, list[str]]] = []
    monkeypatch.setattr(endpoints, "start_job", lambda *given: started.append(given))
    keys = (ApiKey("uses"), ApiKey("trains", may_train=True))
    with asking(keys=keys, runs=tmp_path) as client:

        def answer(method: str, path: str, key: str) -> Any:
            return client.request(method, f"/v1/starters{path}", headers={"Authorization": f"Bearer {key}"})

        assert [answer("GET", "", key).json()["may_make"] for key in ("uses", "trains")] == [False, True]
        assert answer("POST", "/digits/make", "uses").json()["error"]["code"] == "may_not_train"
        assert started == []
        unknown = answer("POST", "/digit/make", "trains")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_starter")
        assert answer("POST", "/digits/stop", "trains").status_code == 400
        assert answer("POST", "/digits/make", "trains").json()["name"] == "digits"
        ((folder, name, command),) = started
        assert (folder, name, command[1:]) == (
            starters.models_folder(),
            "digits",
            ["-m", "headway", "models", "make", "digits"],
        )
    with asking() as client:  # a server that only serves
        assert client.get("/v1/starters").json()["may_make"] is False
        assert client.post("/v1/starters/digits/make").json()["error"]["code"] == "no_runs"


def test_a_job_is_a_model_before_its_run_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    from headway.app.jobs import Job

    job = Job("digits", (), 1, 0.0, "running", "downloading digits", Path("log"))
    monkeypatch.setattr(endpoints, "jobs", lambda folder: {"digits": job})
    shown = {model.name: model for model in endpoints._list({}, True)}
    assert (shown["digits"].state, shown["digits"].message) == ("starting", "downloading digits")
    job = job._replace(message="Stopped at step 5 of 9; continue with: headway models make digits")
    shown = {model.name: model for model in endpoints._list({}, True)}
    assert (shown["digits"].state, shown["digits"].message) == ("stopping", "")
    job = job._replace(state="failed", message="the disk is full")
    shown = {model.name: model for model in endpoints._list({}, True)}
    assert (shown["digits"].state, shown["digits"].message) == ("failed", "the disk is full")
    assert shown["stories"].state == "missing"


def test_a_made_model_has_its_own_report_and_name(tiny: str, tmp_path: Path) -> None:
    starters.make(tiny)
    directory = starters.STARTERS[tiny].directory
    (directory / "report.html").write_text("<h1>The report</h1>")
    older = RunDirectory(tmp_path / "runs" / tiny)
    shutil.copytree(directory, older.path)
    models = ServedModels([], [older.path.parent, directory.parent], LoadOptions("cpu"), lambda model, name: None)
    with TestClient(create_app(models, ServerSettings(runs=tmp_path)), base_url="http://localhost") as client:

        def training() -> dict[str, bool]:
            return {entry["id"]: entry["is_training"] for entry in client.get("/v1/models").json()["data"]}

        row = next(row for row in client.get("/v1/starters").json()["data"] if row["name"] == tiny)
        assert (row["state"], row["served"], row["has_report"]) == ("finished", f"models/{tiny}", True)
        assert training() == {tiny: False, f"models/{tiny}": False}
        found = {entry["id"]: entry for entry in client.get("/v1/models").json()["data"]}
        assert [found[name]["purpose"] for name in (tiny, f"models/{tiny}")] == ["", starters.STARTERS[tiny].purpose]
        assert found[f"models/{tiny}"]["examples"][0] == "Once upon a time there was a"
        with older.locked():
            assert training() == {tiny: True, f"models/{tiny}": False}
        path = client.post(f"/v1/starters/{tiny}/report").json()["path"]
        assert (client.get(path).text, path.partition("?")[0]) == ("<h1>The report</h1>", f"/v1/starters/{tiny}/report")
        assert client.post("/v1/starters/digit/report").status_code == 404
        assert client.get("/v1/starters/digits/report").status_code == 400
    with asking() as client:  # a server that shows no runs shows no reports
        assert not any(row["has_report"] for row in client.get("/v1/starters").json()["data"])
        assert client.get(f"/v1/starters/{tiny}/report").status_code == 404


def test_a_damaged_run_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = starters.STARTERS["digits"].directory
    directory.mkdir(parents=True)
    (directory / "run.json").write_text('{"format": 1, "sta')
    assert "run.json" in listed(capsys)["digits"]["problem"]
    assert "run.json" in refusal(["models", "make", "digits"], capsys)
    with asking(runs=tmp_path) as client:
        digits = next(row for row in client.get("/v1/starters").json()["data"] if row["name"] == "digits")
        assert (digits["state"], "run.json" in digits["message"]) == ("stopped", True)
    with asking() as client:
        assert str(directory) not in client.get("/v1/starters").text


def test_stories_are_the_same_for_everyone(tmp_path: Path) -> None:
    known_set("stories").write(tmp_path / "a")  # type: ignore[misc]
    known_set("stories").write(tmp_path / "b")  # type: ignore[misc]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    texts = [json.loads(line)["text"] for line in (tmp_path / "a").read_text().splitlines()]
    assert len(set(texts)) == len(texts) == 12_000
    assert not any(mark in text for text in texts for mark in "{}|")
