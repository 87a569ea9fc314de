"""A run knows its data by their contents, in every domain: it goes on with no others, and says so of an evaluation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import chess_data
import image_text_data
import numpy as np
import pytest
import sound_files
import trajectory_data
from tiny_runs import SETTINGS, cut_back, play_file, small, train

import headway as hw
from headway import domains
from headway.app.cli.main import INTERRUPTED, USER_ERROR, main
from headway.app.recipes import configure_recipe
from headway.data.array_store import column_digest
from headway.data.episode_files import write_episodes
from headway.data.token_store import content_digest
from headway.errors import UserError
from headway.learn import Recipe
from headway.learn.examples import Examples, IndexedExamples, OnPolicyExamples
from headway.learn.objectives.classes import ClassifiedExamples
from headway.learn.objectives.predictions import NumberSamples
from headway.learn.objectives.quantiles import ForecastSamples
from headway.learn.objectives.sequences import SourceTargetExamples
from headway.learn.recipe import open_task
from headway.learn.resume import differences, fingerprint

pytestmark = pytest.mark.usefixtures("brief_samples")
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SPLIT = {"task.split.validation": 0.3, "task.split.test": 0.2}
Write = Callable[[Path, bool], Path]


def lines(name: str, header: str, row: Callable[[int, bool], str]) -> Write:
    """A file of forty rows, of which the first is another one where the data are `changed`."""

    def write(folder: Path, changed: bool) -> Path:
        rows = [row(number, changed and number < 2) for number in range(40)]
        (folder / name).write_text(header + "".join(f"{each}\n" for each in rows), encoding="utf-8")
        return folder / name

    return write


def phrase(number: int) -> str:
    return f"{WORDS[number % 10]} and {WORDS[number // 10]} more"


def kind(number: int, changed: bool) -> str:
    return ("odd", "even")[(number + changed) % 2]


def chat(number: int, changed: bool) -> str:
    said = [("user", phrase(number)), ("assistant", "no" if changed else "yes")]
    return json.dumps({"messages": [{"role": role, "content": text} for role, text in said]})


def choice(number: int, changed: bool) -> str:
    ends = ("well", "badly")
    return json.dumps({"prompt": phrase(number), "chosen": ends[changed], "rejected": ends[not changed]})


def days(number: int, changed: bool) -> str:
    return f"{date.fromordinal(738_000 + number)},{number % 7 + changed}"


def images(folder: Path, changed: bool) -> Path:
    image_text_data.draw(folder)
    names = sorted(path.name for path in folder.glob("*.png"))
    rows = [f"{name},{kind(number, changed and number < 2)}" for number, name in enumerate(names)]
    (folder / "labels.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    return folder / "labels.csv"


def captions(folder: Path, changed: bool) -> Path:
    table = image_text_data.draw(folder)
    if changed:
        table.write_text(table.read_text().replace("a pale red picture", "a pale red painting"))
    return table


def tones(label: str, value: Callable[[int, bool], str]) -> Write:
    def write(folder: Path, changed: bool) -> Path:
        rows = [f"path,{label}"]
        for number in range(12):
            sound_files.write(folder / f"{number}.wav", sound_files.tone(200 + 50 * number, 0.1, number))
            rows.append(f"{number}.wav,{value(number, changed and number < 2)}")
        (folder / "sounds.csv").write_text("\n".join(rows) + "\n")
        return folder / "sounds.csv"

    return write


def episodes(folder: Path, changed: bool) -> Path:
    found = trajectory_data.made(discrete=False)
    found.rewards[0] += changed
    write_episodes(folder / "a.npz", found)
    return folder / "a.npz"


def demonstrations(folder: Path, changed: bool) -> Path:
    found = trajectory_data.made(discrete=False)
    found.actions[0] += changed
    write_episodes(folder / "a.npz", found)
    return folder / "a.npz"


def games(folder: Path, changed: bool) -> Path:
    path = chess_data.games_file(folder)
    path.write_text(path.read_text().replace("%eval 0.5", "%eval 0.9", int(changed)))
    return path


CASES: dict[str, tuple[str | Recipe, Write, dict[str, Any], str]] = {
    "text": (
        "text",
        lines("a.txt", "", lambda n, c: phrase(n + c)),
        {"task.context": 8, "train.batch_tokens": 64},
        "texts",
    ),
    "masked": ("masked", lines("a.txt", "", lambda n, c: phrase(n + c)), {"task.context": 8}, "texts"),
    "translation": (
        "translation",
        lines("a.tsv", "", lambda n, c: f"{phrase(n)}\t{n + c}"),
        {"task.size": 300},
        "target texts",
    ),
    "reversed": (
        "translation",
        lines("a.tsv", "", lambda n, c: f"{phrase(n)}\t{n + c}"),
        {"task.size": 300, "task.reverse": True},
        "source texts",
    ),
    "instruct": ("instruct", lines("a.jsonl", "", chat), {"task.size": 300, "task.context": 64}, "conversations"),
    "preference": ("preference", lines("a.jsonl", "", choice), {"task.size": 300, "task.context": 64}, "choices"),
    "classification": (
        "classification",
        lines("a.csv", "text,label\n", lambda n, c: f"{phrase(n)},{kind(n, c)}"),
        {},
        "labels",
    ),
    "numbers": (
        "pairs",
        lines("a.csv", "text,text2,label\n", lambda n, c: f"{phrase(n)},{phrase(n + 1)},{n + c}.5"),
        {"task.target": "number"},
        "numbers",
    ),
    "reranking": (
        "reranking",
        lines("a.csv", "query,document,label\n", lambda n, c: f"{phrase(n // 2)},{phrase(n + 1)},{(n + c) % 2}"),
        {},
        "relevance",
    ),
    "tagging": ("tagging", lines("a.conll", "", lambda n, c: f"{phrase(n)[:3]} {kind(n, c)}\nmore O\n"), {}, "labels"),
    "embedding": (
        "embedding",
        lines("a.csv", "text,text2\n", lambda n, c: f"{phrase(n)},{WORDS[n % 10]} {n + c}"),
        {"train.batch_size": 4},
        "texts",
    ),
    "vision": (
        "vision",
        images,
        {"model.embed.size": [16, 16], "model.embed.patch": [8, 8], "train.batch_size": 2},
        "labels",
    ),
    "image-text": ("image-text", captions, image_text_data.TINY, "texts"),
    "caption": (
        "caption",
        captions,
        {"model.tower.embed.size": [16, 16], "model.tower.embed.patch": [8, 8]},
        "captions",
    ),
    "audio": ("audio", tones("label", kind), {}, "labels"),
    "transcription": ("transcription", tones("text", lambda n, c: f"{phrase(n)}{' once' * c}"), {}, "transcripts"),
    "forecast": ("forecast", lines("a.csv", "date,sold\n", days), {}, "values"),
    "trajectories": (trajectory_data.tiny(), episodes, {"task.episodes": 0}, "rewards"),
    "robotics": ("robotics", demonstrations, {"task.episodes": 0}, "states and actions"),
    "chess": (chess_data.recipe(), games, {}, "values"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_data_elsewhere_are_the_same_and_changed_ones_are_not(case: str, tmp_path: Path) -> None:
    recipe, write, settings, part = CASES[case]
    sides = {} if case == "forecast" else SPLIT

    def opened(place: str, changed: bool) -> dict[str, int | str]:
        (tmp_path / place).mkdir(parents=True)
        chosen = configure_recipe(recipe, write(tmp_path / place, changed), {**sides, **settings}, None)
        task = open_task(chosen, tmp_path / "run")
        if place == "here":
            (tmp_path / "run").mkdir()
            task.save(tmp_path / "run")
        return json.loads(json.dumps(fingerprint(task)))  # as run.json has it

    known = opened("here", False)
    assert known.keys() >= {"samples", "splits", part}
    elsewhere = opened("else/where", False)
    assert elsewhere == known
    assert differences(known, elsewhere) is None
    told = differences(known, opened("other", True))
    assert told is not None
    assert f"other {part}" in told


def test_all_examples_of_all_domains_say_what_they_read() -> None:
    for folder in domains.__path__:
        for path in sorted(Path(folder).rglob("*.py")):
            module = ".".join(path.relative_to(folder).with_suffix("").parts)
            import_module(f"headway.domains.{module}".removesuffix(".__init__"))

    def below(kind: type) -> set[type]:
        return {kind}.union(*(below(each) for each in kind.__subclasses__()))

    bases = (
        Examples,
        IndexedExamples,
        OnPolicyExamples,
        SourceTargetExamples,
        ForecastSamples,
        ClassifiedExamples,
        NumberSamples,
    )
    silent = {
        each.__name__
        for each in below(Examples)
        if each.__module__.startswith("headway.domains.")
        and not each.__subclasses__()
        and all(each.contents is base.contents for base in bases if issubclass(each, base))
    }
    assert silent == set()


@pytest.fixture(scope="module")
def stopped(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that was stopped after two; its data are next to it."""
    folder = tmp_path_factory.mktemp("stopped")
    train(folder / "run", play_file(data_dir, folder), set={"train.evaluate_every": 2})
    return cut_back(folder / "run", folder / "copy", 2)


def again(run: Path, data: Path | None = None, **given: Any) -> hw.Run:
    settings = {**SETTINGS, "train.evaluate_every": 2}
    return hw.train(small(), data=data, set=settings, run=run, resume=True, progress=False, samples=0, **given)


def test_a_run_goes_on_with_no_other_data(stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    text = (stopped.parent / "play.txt").read_text()
    (tmp_path / "play.txt").write_text(text.replace("Citizen", "citizen", 1))
    (tmp_path / "more.txt").write_text(f"{text}\nThe end.\n")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    for name in ("play.txt", "more.txt"):
        with pytest.raises(UserError) as caught:
            again(run, tmp_path / name)
        said = str(caught.value)
        assert said.startswith(f"{run} was trained on other data: the new data have other texts")
        assert said.endswith(f"train a new run from it: --from {run} --run NEW")
    words = ["train", "shakespeare", "--run", str(run), "--resume", "--data", str(tmp_path / "play.txt")]
    assert main(words) == USER_ERROR
    assert capsys.readouterr().err.count("\n") == 1
    assert {path: path.read_bytes() for path in before} == before
    more = hw.train(
        "text", tmp_path / "more.txt", {"train.steps": 1}, run=tmp_path / "new", start=run, progress=False, samples=0
    )
    assert more.summary["status"] == "finished"


def test_a_run_goes_on_where_its_data_have_moved_to(stopped: Path, tmp_path: Path) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    moved = Path(shutil.copy(stopped.parent / "play.txt", tmp_path / "moved.txt"))
    found = again(run, moved)
    assert found.summary["status"] == "finished"
    assert found.recipe.data == (str(moved),)
    assert json.loads((run / "recipe.json").read_text())["data"] == [str(moved)]
    assert again(run).summary["step"] == 6
    assert "note" not in hw.load(run).evaluate()


def test_a_run_without_a_fingerprint_goes_on_as_before(stopped: Path, tmp_path: Path) -> None:
    for number, broken in enumerate((None, {"version": 99, "texts": "other"})):
        run = shutil.copytree(stopped, tmp_path / f"run{number}")
        status = json.loads((run / "run.json").read_text())
        assert status.pop("data")["version"] == 1
        (run / "run.json").write_text(json.dumps(status if broken is None else {**status, "data": broken}))
        assert again(run).summary["data"]["version"] == 1


def test_an_evaluation_says_that_the_data_are_others(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped.parent / "run"
    assert "note" not in hw.load(run).evaluate()
    play = stopped.parent / "play.txt"
    copy, other = tmp_path / "copy.txt", tmp_path / "other.txt"
    copy.write_text(play.read_text())
    other.write_text(play.read_text().replace("Citizen", "citizen"))
    assert "note" not in hw.load(run).evaluate(copy)
    note = "the run was trained on other data: other texts"
    assert hw.load(run).evaluate(other)["note"].startswith(note)
    assert main(["evaluate", str(run), "--data", str(other)]) == 0
    told = capsys.readouterr()
    assert note in told.err
    assert "note" not in told.out
    assert main(["evaluate", str(run), "--data", str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["note"].startswith(note)


def test_a_digest_of_columns_is_made_once(tmp_path: Path) -> None:
    (tmp_path / "ids.bin").write_bytes(b"123")
    first = column_digest(tmp_path, "ids")
    (tmp_path / "ids.bin").write_bytes(b"456")
    assert column_digest(tmp_path, "ids") == first
    (tmp_path / "ids.digest").write_text("half")
    assert column_digest(tmp_path, "ids") != first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.bin", "ids.digest"]


def test_a_comparison_goes_on_with_no_other_data(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    play = play_file(data_dir, tmp_path)
    settings = [f"{key}={value}" for key, value in (*SETTINGS.items(), ("model.width", 16), ("model.depth", 1))]
    settings += ["model.heads=1", "optim.lr=0.001,0.002"]
    words = ["compare", "text", "--data", str(play), "--set", *settings, "--run", str(tmp_path / "all"), "--resume"]
    begin: Any = import_module("headway.app.compare").train
    begun: list[Path] = []

    def one(recipe: Recipe, **given: Any) -> Any:
        begun.append(given["run"])
        if len(begun) == 2:
            raise KeyboardInterrupt
        return begin(recipe, **given)

    monkeypatch.setattr("headway.app.compare.train", one)
    for name in ("compare", "api"):  # no pages
        monkeypatch.setattr(f"headway.app.{name}.available", lambda: False)
    assert main(words) == INTERRUPTED
    first = cut_back(begun[0], tmp_path / "cut", 1)
    shutil.rmtree(begun[0])
    first.rename(begun[0])
    words[3] = str(play.rename(tmp_path / "moved.txt"))
    text = Path(words[3]).read_text()
    Path(words[3]).write_text(text.replace("Citizen", "citizen", 1))
    capsys.readouterr()
    assert main(words) == USER_ERROR
    assert "all were trained on other data: the new data have other texts" in capsys.readouterr().err
    Path(words[3]).write_text(text)
    assert main(words) == 0
    for place in begun[:2]:
        assert json.loads((place / "run.json").read_text())["status"] == "finished"


def test_what_differs_in_type_shape_or_limits_has_another_digest() -> None:
    found = [np.zeros(4), np.zeros((2, 2)), np.zeros(4, np.float32), ["", "0"], ["0", ""], ["0"], [], np.zeros(0)]
    many = [["ab"] * 5000, ["ab"] * 4095 + ["abab"] + ["ab"] * 903, ["\ud800"]]
    digests = {content_digest([values]) for values in [*found, *many]}
    assert len(digests) == len(found) + len(many)
