"""A run whose own files hold wrong values is refused in one line by every command that reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import cut_back, play_file, train

import headway as hw
from headway.app.cli import main as cli
from headway.errors import UserError
from headway.io.durable import seal
from headway.learn.run import open_run, read_metrics
from headway.learn.run_report import run_sections

STATE = "checkpoints/step-00000003/state.json"


@pytest.fixture(scope="module")
def runs(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run, and a copy that was stopped after three steps."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headway.app.api.available", lambda: False)
        train(folder / "run", play_file(data_dir, folder), set={"train.evaluate_every": 3})
    stopped = cut_back(folder / "run", folder / "stopped", 3)
    (stopped / "digests.json").unlink()
    return folder / "run", stopped


@pytest.fixture
def copies(runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr("headway.app.api.available", lambda: False)
    return [shutil.copytree(run, tmp_path / run.name) for run in runs]


def change(path: Path, name: str, value: Any) -> None:
    """Another value in a JSON file, at a dotted name; without it where the value is missing."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    inner = tree
    *above, last = name.split(".")
    for part in above:
        inner = inner[part]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    path.write_text(json.dumps(tree), encoding="utf-8")


STATUS = [
    ("step", "7", "run.json: step is '7'; use an integer"),
    ("step", -1, "run.json: step is -1; use 0 or more"),
    ("steps", 1 << 70, "run.json: steps is an integer of 71 bits"),
    ("tokens", ..., "run.json has no 'tokens'"),
    ("seconds", float("nan"), "run.json: seconds is nan; use a finite number"),
    ("elapsed", 1e300, "run.json: elapsed is 1e+300; use a number from"),
    ("minutes", [5], "run.json: minutes is [5]; use a number"),
    ("status", {}, "run.json: status is {}; choose from: running, interrupted, finished"),
    ("fresh", 3, "run.json: fresh is 3; use a list"),
    ("goal", None, "run.json: goal is None; use a string"),
    ("best", [], "run.json: best is []; use a mapping"),
    ("best.loss", [1.0], "run.json: best: loss is [1.0], not a number"),
    ("best.step", "x", "run.json: best: step is 'x'; use an integer"),
    ("forecast", {"step": 1, "loss": "x", "loss_interval": [1, 2]}, "run.json: forecast: loss is 'x'; use a number"),
    ("packages", ["torch"], "run.json: packages is ['torch']; use a mapping"),
    ("machine", {"cores": [2]}, "run.json: machine.cores is [2]; use"),
]


@pytest.mark.parametrize(("name", "value", "message"), STATUS)
def test_a_wrong_value_in_run_json_is_one_line(
    name: str, value: Any, message: str, copies: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, stopped = copies
    for place in copies:
        change(place / "run.json", name, value)
    for command in (
        ["show", str(run)],
        ["generate", str(run), "--prompt", "a"],
        ["evaluate", str(run)],
        ["train", "shakespeare", "--run", str(stopped), "--resume"],
        ["train", "shakespeare", "--run", str(stopped), "--resume", "--finish"],
    ):
        assert cli.main(command) == cli.USER_ERROR, command
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    with pytest.raises(UserError):
        open_run(run)


PROGRESS = [
    ("step", None, "step is None; use an integer"),
    ("step", 2, "is from step 2, but its folder is step-00000003"),
    ("tokens", ..., "has no 'tokens'"),
    ("seconds", float("inf"), "seconds is inf; use a finite number"),
    ("seconds", "3", "seconds is '3'; use a number"),
    ("stale", 1.5, "stale is 1.5; use an integer"),
    ("best", {"step": 3, "loss": {}}, "best: loss is {}, not a number"),
    ("best", {"step": 3}, "state.json has no loss; restore it"),
    ("forecast", [1, 2], "forecast is [1, 2]; use a JSON object"),
    ("more", 1, "has no setting 'more'"),
    ("version", [], "has version [], but this headway reads 1"),
]


@pytest.mark.parametrize(("name", "value", "message"), PROGRESS)
def test_a_wrong_value_in_state_json_is_one_line(
    name: str, value: Any, message: str, copies: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = copies[1]
    change(stopped / STATE, name, value)
    seal((stopped / STATE).parent)
    for more in ([], ["--finish"]):
        assert cli.main(["train", "shakespeare", "--run", str(stopped), "--resume", *more]) == cli.USER_ERROR
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("headway: ")]
        assert len(errors) == 1
        assert message in errors[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda line: [line], "line 1 is [{"),
        (lambda line: {**line, "step": {}}, "line 1: step is {}; use an integer"),
        (lambda line: {**line, "loss": "low"}, "line 1: loss is 'low', not a number"),
        (lambda line: {**line, "loss": 1e200}, "line 1: loss is 1e+200, not a number"),
        (lambda line: {**line, "split": 3}, "line 1: split is 3; use a string"),
        (lambda line: {**line, "bleu_interval": [1]}, "line 1: bleu_interval is [1], not two numbers"),
        (lambda line: {"loss": 1.0}, "line 1 has no 'step'"),
    ],
)
def test_a_wrong_line_of_metrics_is_one_line(
    damage: Callable[[dict[str, Any]], Any], message: str, copies: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for place in copies:
        first, *rest = (place / "metrics.jsonl").read_text().splitlines()
        (place / "metrics.jsonl").write_text("\n".join([json.dumps(damage(json.loads(first))), *rest, ""]))
    assert cli.main(["train", "shakespeare", "--run", str(copies[1]), "--resume"]) == cli.USER_ERROR
    assert message in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(UserError):
        open_run(copies[0])


def test_only_the_last_line_of_metrics_may_be_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": null}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": None}]
    for text in (b'{"step": 1\n{"step": 2}\n', b'{"a": "\xff"}\n{"step": 2}\n', b"[" * 100_000 + b'\n{"step": 2}\n'):
        path.write_bytes(text)
        with pytest.raises(UserError, match="line 1 is not JSON"):
            read_metrics(path)


def test_what_a_later_version_adds_is_passed_over(copies: list[Path]) -> None:
    change(copies[0] / "run.json", "later", {"a": [1]})
    run = open_run(copies[0])
    assert run.summary["later"] == {"a": [1]}
    run_sections(run)


def test_weights_of_another_model_than_the_recipe_are_refused(
    copies: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    change(copies[0] / "recipe.json", "model.context", 8)
    message = f"the weights in {copies[0]} do not match its recipe.json (model.context is null, not 8)"
    for use in (lambda: hw.load(copies[0]), lambda: open_run(copies[0])):
        with pytest.raises(UserError) as caught:
            use()
        assert str(caught.value).startswith(message)
