"""Whole runs: what they write, and how they go on after being stopped in every way."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_task
import torch
from tiny_task import CountingConfig, CountOn, counting, counting_recipe, train

from headway.errors import ConfigError, UserError
from headway.formats import native, tensorfile
from headway.io import durable
from headway.learn import Recipe, Trainer, UserInterrupt, checkpoint, open_run, read_recipe, trainer
from headway.learn.display import PlainDisplay
from headway.learn.learner import Learner, Update
from headway.learn.plan.budget import Speed
from headway.learn.run import Progress, RunDirectory, read_metrics
from headway.learn.run_report import repeat_command
from headway.learn.training_log import TrainingLog
from headway.nn.kernels import deterministic
from headway.nn.models import Transformer
from processes import Program

TIMES = ("seconds", "tokens_per_second", "evaluation_seconds")


def _figures(directory: Path) -> list[dict[str, Any]]:
    """The metrics without what the clock says."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(directory / "metrics.jsonl")]


def _same(one: Path, two: Path) -> bool:
    names = [native.FILE, *(str(p.relative_to(one)) for p in one.glob("checkpoints/*/*.safetensors"))]
    if {p.name for p in one.glob("checkpoints/*")} != {p.name for p in two.glob("checkpoints/*")}:
        return False
    return _figures(one) == _figures(two) and all((one / n).read_bytes() == (two / n).read_bytes() for n in names)


def _start(directory: Path, *settings: str) -> Program:
    return Program(directory.parent, Path(tiny_task.__file__), str(directory), "new", *settings)


def _wait_for(path: Path, program: Program) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert program.returncode is None, "the process ended too early"
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def test_a_run_leaves_all_that_is_promised(tmp_path: Path) -> None:
    run = train(tmp_path / "run", counting_recipe(steps=30, **{"optim.lr": 0.03}))
    names = {path.name for path in run.directory.iterdir()}
    files = {"recipe.json", "run.json", "tokenizer.json", "metrics.jsonl", "model.safetensors", "digests.json", ".lock"}
    assert names == {*files, "checkpoints"}
    assert [path.name for path in sorted(run.directory.glob("checkpoints/*"))] == ["step-00000027", "step-00000030"]
    steps = [line for line in run.metrics if "split" not in line]
    assert [line["step"] for line in steps] == list(range(1, 31))
    assert {"loss", "lr", "tokens", "tokens_per_second", "grad_norm", "seconds"} <= steps[0].keys()
    evaluations = [line for line in run.metrics if "split" in line]
    assert [line["step"] for line in evaluations] == list(range(3, 31, 3))
    assert run.summary["best"]["loss"] == min(line["loss"] for line in evaluations)
    assert run.summary["status"] == "finished"
    assert steps[-1]["loss"] < 0.7 * steps[0]["loss"]
    opened = open_run(run.directory)
    assert opened.recipe == run.recipe == read_recipe(run.directory / "recipe.json")
    ids = torch.arange(5)[None]
    assert torch.equal(opened.model.logits(ids), run.model.logits(ids))  # type: ignore[operator]
    assert native.load_model(run.directory / "checkpoints" / "step-00000030").config == run.recipe.model


SETTINGS = {"steps": 24, "ema": 0.9, "accumulate": 2, "checkpoint_every": 5, "average": 3, "optim": "muon"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    return train(tmp_path_factory.mktemp("runs") / "whole", counting_recipe(**SETTINGS)).directory


def test_resume_after_a_kill_is_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    program = _start(killed, "delay=0.05", *(f"{k}={v}" for k, v in SETTINGS.items()))
    _wait_for(killed / "checkpoints" / "step-00000010", program)
    program.signal(signal.SIGKILL)
    program.wait()
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "loss"')  # a line cut off
    (killed / "checkpoints" / ".step-00000015.1.draft").mkdir(exist_ok=True)
    train(killed, counting_recipe(**SETTINGS), resume=True)
    assert _same(whole, killed)
    assert not list(killed.glob("checkpoints/.*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_saves_and_resume_is_bit_for_bit(number: signal.Signals, whole: Path, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    program = _start(stopped, "delay=0.05", *(f"{k}={v}" for k, v in SETTINGS.items()))
    _wait_for(stopped / "checkpoints" / "step-00000005", program)
    program.signal(number)
    _, error = program.wait()
    assert program.returncode == 128 + number
    step = json.loads((stopped / "run.json").read_text())["step"]
    assert f"stopped at step {step} of 24" in error
    assert (stopped / "checkpoints" / f"step-{step:08d}").is_dir()
    train(stopped, counting_recipe(**SETTINGS), resume=True)
    assert _same(whole, stopped)


@pytest.mark.parametrize(("call", "step"), [(3, 9), (8, 24), (9, 24)])  # the last is of the mean of checkpoints
def test_interrupt_within_an_evaluation_is_made_up_for(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, step: int
) -> None:
    stopped = tmp_path / "stopped"
    judge, calls = CountOn.evaluate, []

    def interrupted(self: CountOn, *arguments: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return judge(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(CountOn, "evaluate", interrupted)
        with pytest.raises(UserInterrupt, match=f"stopped at step {step}"):
            train(stopped, counting_recipe(**SETTINGS))
    train(stopped, counting_recipe(**SETTINGS), resume=True)
    assert _same(whole, stopped)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("where", ["eval", "train"])
def test_weights_are_the_trained_ones_after_a_second_signal_within_an_evaluation(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the moving average stands in their place: as the model is made ready for it, and as it is given back."""
    settings = {**SETTINGS, "ema": 0.5, "average": 0}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(whole, counting_recipe(**settings))
    turned, measured, calls = getattr(Transformer, where), Trainer._measure, []

    def counted(self: Trainer) -> dict[str, float] | None:
        calls.append(1)
        return measured(self)

    def interrupted(self: Transformer, *given: Any) -> Any:
        if len(calls) == 3 and given != (False,):  # eval() is train(False)
            calls.append(1)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return turned(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_measure", counted)
        patch.setattr(Transformer, where, interrupted)
        with pytest.raises(UserInterrupt):
            train(stopped, counting_recipe(**settings))
    train(stopped, counting_recipe(**settings), resume=True)
    assert _same(whole, stopped)


def test_an_evaluation_that_is_broken_off_is_no_time_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(self: CountOn, *arguments: Any) -> dict[str, float]:
        time.sleep(0.6)
        os.kill(os.getpid(), signal.SIGINT)
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(CountOn, "evaluate", slow)
        with pytest.raises(UserInterrupt):
            train(tmp_path / "a", counting_recipe(**SETTINGS))
    summary = json.loads((tmp_path / "a" / "run.json").read_text())
    assert summary["seconds"] < summary["elapsed"] - 0.5  # of the evaluation, which was broken off
    resumed = train(tmp_path / "a", counting_recipe(**SETTINGS), resume=True).summary
    assert resumed["elapsed"] > summary["elapsed"]


def test_an_evaluation_that_is_made_up_for_stands_once(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run that made up for it is killed before its next checkpoint."""
    stopped = tmp_path / "stopped"

    def interrupted(self: CountOn, *arguments: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return {}

    def killed(*given: Any) -> None:
        raise RuntimeError("killed")

    for target, name, fault, error in (
        (CountOn, "evaluate", interrupted, UserInterrupt),
        (Learner, "update", killed, RuntimeError),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, fault)
            with pytest.raises(error):
                train(stopped, counting_recipe(**SETTINGS), resume=True)
    train(stopped, counting_recipe(**SETTINGS), resume=True)
    assert _same(whole, stopped)


def test_what_is_asked_beside_the_recipe_is_as_it_was(tmp_path: Path) -> None:
    def trainer_of(minutes: float | None) -> Trainer:
        recipe = counting_recipe(steps=4)
        return Trainer(recipe, recipe.task.open(recipe, None, tmp_path), tmp_path, progress=False, minutes=minutes)

    trainer_of(None).fit()
    with pytest.raises(UserError, match=r"no checkpoint from before its learning rate decayed, .* and schedule=wsd"):
        trainer_of(3).fit(resume=True)
    with deterministic(), pytest.raises(UserError, match="was started without --deterministic; resume it without it"):
        trainer_of(None).fit(resume=True)
    with deterministic():
        run = train(tmp_path / "same", counting_recipe(steps=4))
    assert run.summary["deterministic"] is True
    assert repeat_command(run.directory, run.summary).endswith(" --deterministic")
    with pytest.raises(UserError, match="was started with --deterministic; resume it with it"):
        train(tmp_path / "same", counting_recipe(steps=4), resume=True)


def test_resume_starts_where_there_is_nothing_and_reads_what_is_finished(tmp_path: Path) -> None:
    first = train(tmp_path, counting_recipe(), resume=True)
    before = (tmp_path / "metrics.jsonl").read_text()
    again = train(tmp_path, counting_recipe(), resume=True)
    assert again.summary == first.summary
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_an_existing_run_is_never_overwritten(tmp_path: Path) -> None:
    train(tmp_path, counting_recipe())
    with pytest.raises(UserError, match=r"already contains a run \(finished\); resume it with --resume, or choose"):
        train(tmp_path, counting_recipe())
    with pytest.raises(UserError, match=r"another recipe: optim.lr is 0.001, not 0.5"):
        train(tmp_path, counting_recipe(**{"optim.lr": 0.5}), resume=True)


def test_a_run_of_another_format_is_refused(tmp_path: Path) -> None:
    train(tmp_path, counting_recipe())
    status = json.loads((tmp_path / "run.json").read_text())
    durable.write_json(tmp_path / "run.json", {**status, "format": 99})
    with pytest.raises(
        UserError, match="a run in format 99, but this version of headway reads 1; use the version that wrote it"
    ):
        train(tmp_path, counting_recipe(), resume=True)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json is not JSON"):
        train(tmp_path, counting_recipe(), resume=True)


def test_a_full_disk_is_told_and_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    recipe = counting_recipe(steps=20, checkpoint_every=5, evaluate_every=20, keep=4)
    whole, full = tmp_path / "whole", tmp_path / "full"
    train(whole, recipe)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (whole / "checkpoints/step-00000005/optimizer.safetensors").stat().st_size
    write = tensorfile.write_tensors

    def fill(path: Path, *arguments: Any) -> None:
        if "step-00000010" in str(path) and path.name == "optimizer.safetensors":
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
        write(path, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", fill)
        try:
            with pytest.raises(UserError, match=r"could not be written: .*free space or choose another folder"):
                train(full, recipe)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (full / "checkpoints").iterdir()] == ["step-00000005"]
    train(full, recipe, resume=True)
    assert _same(whole, full)


def test_no_space_names_the_space(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with (
        pytest.raises(UserError, match=r"No space left on device \(\d+ MB are free there\)"),
        durable.atomic_write(target),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert target.read_text() == "old"


def test_names_that_are_no_unicode_are_kept(tmp_path: Path) -> None:
    names = {"file": os.fsdecode(b"caf\xe9.png")}
    durable.write_json(tmp_path / "a.json", names)
    assert durable.read_json(tmp_path / "a.json") == names
    durable.write_text(tmp_path / "a.html", names["file"])
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == "caf\\udce9.png"


def _unfinished(directory: Path, recipe: Recipe) -> None:
    """A run whose last word is that it goes on."""
    train(directory, recipe)
    status = json.loads((directory / "run.json").read_text())
    RunDirectory(directory).write_status({**status, "status": "running"})


@pytest.mark.parametrize("name", ["optimizer.safetensors", "model.safetensors", "state.json"])
def test_a_run_goes_on_from_the_last_whole_checkpoint(name: str, tmp_path: Path) -> None:
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    recipe = counting_recipe(keep=3, checkpoint_every=5)
    train(whole, recipe)
    _unfinished(damaged, recipe)
    path = damaged / "checkpoints" / "step-00000020" / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    task = counting(recipe.task, recipe.train.seed)
    trainer = Trainer(recipe, task, damaged, device="cpu", threads=1, progress=False)  # type: ignore[arg-type]
    trainer.fit(resume=True)
    (told,) = trainer._damage_messages
    assert f"{name} has changed; the run resumes from an intact checkpoint" in told
    aside = damaged / "checkpoints" / "damaged-step-00000020"
    assert (aside / name).read_bytes() == content
    shutil.rmtree(aside)
    assert _same(whole, damaged)


def test_a_run_without_a_whole_checkpoint_is_left_as_it_is(tmp_path: Path) -> None:
    _unfinished(tmp_path, counting_recipe())
    for folder in (tmp_path / "checkpoints").iterdir():
        (folder / "digests.json").unlink()  # as earlier versions wrote them
        path = folder / "optimizer.safetensors"
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(
        UserError, match=r"step-00000020.*not a complete safetensors file.* no intact checkpoint is left; restore one"
    ):
        train(tmp_path, counting_recipe(), resume=True)
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) == 2


def test_a_fresh_run_takes_nothing_up(tmp_path: Path) -> None:
    train(tmp_path, counting_recipe())
    (tmp_path / "run.json").unlink()
    with pytest.raises(UserError, match=r"checkpoints from a run whose run.json is missing; restore that file, or"):
        train(tmp_path, counting_recipe())


def test_one_process_at_a_time_trains_in_a_folder(tmp_path: Path) -> None:
    place = tmp_path / "run"
    program = _start(place, "delay=0.1", "steps=200")
    _wait_for(place / ".lock", program)
    for resume in (False, True):
        with pytest.raises(UserError, match=rf"{place} (is being trained by another process|already contains a run)"):
            train(place, counting_recipe(), resume=resume)
    _wait_for(place / "run.json", program)
    with pytest.raises(UserError, match=r"is being trained by another process \(\d+\); wait until it ends, or choose"):
        train(place, counting_recipe(steps=200), resume=True)
    program.signal(signal.SIGKILL)
    program.wait()
    with RunDirectory(place).locked():  # which a dead process does not keep
        assert (place / "run.json").exists()


def test_a_folder_in_which_no_run_begins_is_not_left(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add"), RunDirectory(tmp_path / "run").locked():
        raise UserError("add something")
    assert not (tmp_path / "run").exists()


def test_mean_of_checkpoints_is_judged_and_kept_if_better(tmp_path: Path) -> None:
    run = train(tmp_path, counting_recipe(average=3, **{"optim.lr": 0.02, "schedule": "constant"}))
    last = run.metrics[-1]
    assert last["weights"] == "mean of 3 checkpoints"
    weights = [native.read_model(path / native.FILE)[0] for path in sorted(tmp_path.glob("checkpoints/*"))]
    assert len(weights) == 3
    mean = {name: torch.stack([w[name].double() for w in weights]).mean(0).float() for name in weights[0]}
    if run.summary["best"]["loss"] == last["loss"]:
        torch.testing.assert_close(dict(native.named_tensors(run.model)), mean)
    assert run.summary["best"]["loss"] == min(line["loss"] for line in run.metrics if "split" in line)


def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([3.0, 2.0, 2.5, 2.1, 1.0])
    monkeypatch.setattr(CountOn, "evaluate", lambda *_: {"loss": next(values)})
    run = train(tmp_path, counting_recipe(patience=2))
    assert (run.summary["step"], run.summary["best"]) == (8, {"step": 4, "loss": 2.0})
    assert train(tmp_path, counting_recipe(patience=2), resume=True).summary == run.summary


def test_an_unusable_model_ends_the_run_and_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([3.0, 2.0, 1.0])
    monkeypatch.setattr(CountOn, "evaluate", lambda *_: {"loss": next(values)})
    empty = lambda _, scores, best: "it is empty" if scores["loss"] == 1.0 else None  # noqa: E731
    monkeypatch.setattr(CountOn, "failure_reason", empty)
    run = train(tmp_path, counting_recipe())
    assert (run.summary["step"], run.summary["best"]) == (6, {"step": 4, "loss": 2.0})
    assert run.summary["status"] == "finished"


def test_a_model_that_needs_no_more_training_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountOn, "stop_reason", lambda *_: "it is good")
    run = train(tmp_path, counting_recipe())
    assert (run.summary["step"], run.summary["best"]["step"]) == (2, 2)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.learn.schedule.ScheduleConfig.factor", lambda *_: 1e30)
    recipe = counting_recipe(clip=None, **{"optim": "sgd"})
    with pytest.raises(UserError, match=r"at step 2 .micro-batch 1.; check these samples, or lower optim.lr"):
        train(tmp_path, recipe)


def test_minutes_fix_the_steps_of_a_recipe_that_repeats_the_run(tmp_path: Path) -> None:
    timed, repeated = tmp_path / "timed", tmp_path / "repeated"
    start = time.perf_counter()
    run = train(timed, counting_recipe(), minutes=2 / 60, delay=0.01)
    assert 1.0 < time.perf_counter() - start < 30.0  # on a busy machine, too
    assert run.recipe.train.steps > counting_recipe().train.steps  # how many more is the machine's affair
    assert run.summary["minutes"] == 2 / 60
    train(repeated, read_recipe(timed / "recipe.json"))
    assert _same(timed, repeated)
    assert train(timed, counting_recipe(), resume=True).summary == run.summary  # a cosine's plan is never changed
    with pytest.raises(UserError, match="are left for training"):
        train(tmp_path / "short", counting_recipe(), minutes=0.001)
    with pytest.raises(UserError, match="minutes is -1; use a number above 0"):
        train(tmp_path / "never", counting_recipe(), minutes=-1)


@pytest.mark.parametrize("pessimism", [0.3, 30.0])
def test_a_plan_by_a_wrong_speed_is_made_anew(
    pessimism: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed, repeated = tmp_path / "timed", tmp_path / "repeated"
    monkeypatch.setattr(trainer, "measure_speed", lambda *_: Speed(0.004 * pessimism, 0.001))
    recipe = counting_recipe(schedule="wsd")
    start = time.perf_counter()
    run = train(timed, recipe, minutes=2 / 60, delay=0.01)
    assert 1.0 < time.perf_counter() - start < 30.0  # on a busy machine, too
    planned = 1.94 / (0.004 * pessimism)
    assert run.summary["steps"] == run.recipe.train.steps == read_recipe(timed / "recipe.json").train.steps
    assert (run.recipe.train.steps < 0.9 * planned) == (pessimism < 1)
    assert train(timed, recipe, resume=True).summary == run.summary
    train(repeated, read_recipe(timed / "recipe.json"))
    names = [native.FILE, *(str(p.relative_to(timed)) for p in timed.glob("checkpoints/*/*.safetensors"))]
    assert len(names) > 2
    assert all((timed / name).read_bytes() == (repeated / name).read_bytes() for name in names)
    evaluated = [[line for line in _figures(place) if "split" in line] for place in (timed, repeated)]
    assert evaluated[0] == evaluated[1]


def test_a_longer_run_is_as_if_it_had_been_asked_for_at_once(tmp_path: Path) -> None:
    short, whole = tmp_path / "short", tmp_path / "whole"
    recipe = counting_recipe(steps=20, schedule="wsd", checkpoint_every=7)
    first = train(short, recipe)
    assert [path.name for path in (short / "trunk").iterdir()] == ["step-00000008"]
    run = train(short, recipe, resume=True, minutes=4 / 60, delay=0.01)
    steps = run.recipe.train.steps
    assert steps > recipe.train.steps
    assert run.summary["minutes"] > 4 / 60
    assert {line["step"] for line in _figures(short)} >= {7, steps}
    assert run.summary["best"]["loss"] <= first.summary["best"]["loss"]
    train(whole, read_recipe(short / "recipe.json"))
    names = [path.name for path in (whole / "checkpoints").iterdir()]
    assert names == [path.name for path in (short / "checkpoints").iterdir()]
    for name in names:
        place = Path("checkpoints", name, native.FILE)
        assert (short / place).read_bytes() == (whole / place).read_bytes()
    run.summary["scores"] = {"split": "test", "loss": 1.0}  # as judged: then only more minutes go on with it
    RunDirectory(short).write_status(run.summary)
    with pytest.raises(UserError, match=r"more minutes reach only step [\d,]+; use --minutes"):
        train(short, recipe, resume=True, minutes=0.8 / 60, delay=0.01)


def test_a_stopped_run_ends_soon_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = counting_recipe(steps=500, schedule="wsd", checkpoint_every=50)
    update = Learner.update

    def stopped(self: Learner, step: int, *given: Any) -> Update:
        if step + 1 == 150:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, step, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", stopped)
        with pytest.raises(UserInterrupt):
            train(tmp_path, recipe)
    task = counting(recipe.task, recipe.train.seed, 0.0)  # type: ignore[arg-type]
    given = {"device": "cpu", "threads": 1, "progress": False}
    run = Trainer(recipe, task, tmp_path, **given).fit(resume=True, finish=True)  # type: ignore[arg-type]
    assert (run.recipe.train.steps, run.summary["status"]) == (165, "finished")
    rates = [line["lr"] for line in run.metrics if "split" not in line]
    assert rates[100] == rates[149] == max(rates)
    assert rates[-1] < 0.1 * max(rates)
    with pytest.raises(UserError, match="is already finished; remove --finish"):
        Trainer(run.recipe, task, tmp_path, **given).fit(resume=True, finish=True)  # type: ignore[arg-type]


def test_recipes_are_read_strictly(tmp_path: Path) -> None:
    train(tmp_path, counting_recipe())
    path = tmp_path / "recipe.json"
    data = json.loads(path.read_text())
    data["train"]["stepz"] = 3
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=r"no setting 'stepz'; did you mean 'steps'"):
        read_recipe(path)
    with pytest.raises(ConfigError, match=r"train.steps is 0; use 1 or more"):
        counting_recipe(steps=0)


def test_the_display_shows_rate_loss_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = counting_recipe(steps=5)
    task = counting(CountingConfig(), 1, delay=0.3)
    Trainer(recipe, task, tmp_path, device="cpu", threads=1).fit()
    shown = capsys.readouterr().err
    assert "training for 5 steps, in" in shown
    assert "validation loss" in shown
    for part in ("step 5/5", "loss ", "tokens/s", "GFLOP/s", " left"):
        assert part in shown.splitlines()[-2] + shown.splitlines()[-1]


def test_loggers_are_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_LOG", "tensorbord")
    with pytest.raises(UserError, match="'tensorbord'; did you mean 'tensorboard'"):
        train(tmp_path / "a", counting_recipe())
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv("HEADWAY_LOG", "wandb")
    with pytest.raises(UserError, match=r"names wandb, which is not installed; run pip install 'headway\[logging\]'"):
        train(tmp_path / "b", replace(counting_recipe(), name="b"))


def test_divergence_is_told_when_it_happens(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    journal = TrainingLog(counting_recipe(steps=100), progress, [], PlainDisplay(100, 1.0, ""))
    for step in range(1, 101):
        loss = 40.0 if step == 5 or step > 30 else 2.0  # a spike is no divergence
        progress.step = step
        journal.add(Update(("next",), torch.tensor(1.0), torch.tensor([0.0, 8.0, 1.0, loss])), 8, 8)
        journal.flush()
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert told == [
        "warning: the loss jumps to 40 at step 31, from a median of 2, and stays high (step 31); check these samples, "
        "or lower optim.lr, lengthen schedule.warmup, or set train.clip",
        "warning: training diverges: the loss is 40 at step 50, started at 2, and has been far above that since step "
        "31; lower optim.lr, lengthen schedule.warmup, or set train.clip",
    ]


def test_an_evaluation_that_is_no_number_is_never_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([math.nan, 3.0, math.nan, math.inf])
    monkeypatch.setattr(CountOn, "evaluate", lambda *_: {"loss": next(values, 4.0)})
    assert train(tmp_path / "a", counting_recipe()).summary["best"] == {"step": 4, "loss": 3.0}
    monkeypatch.setattr(CountOn, "evaluate", lambda *_: {"loss": math.nan})
    with pytest.raises(UserError, match=r"was not finite in any evaluation.*; lower optim.lr"):
        train(tmp_path / "b", counting_recipe())


def test_of_equal_goals_the_model_of_the_smaller_loss_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([(0.5, 3.0), (0.75, 2.0), (0.75, 1.0), (0.75, 1.5), (0.5, 0.1)])
    monkeypatch.setattr(CountOn, "goal", "accuracy")
    monkeypatch.setattr(CountOn, "goal_better", "max")
    monkeypatch.setattr(CountOn, "evaluate", lambda *_: dict(zip(("accuracy", "loss"), next(scores, (0.1, 9.0)))))
    assert train(tmp_path, counting_recipe()).summary["best"] == {"step": 6, "accuracy": 0.75, "loss": 1.0}


@pytest.mark.parametrize(
    "setting", ["optim.lr", "optim.eps", "schedule.warmup", "schedule.floor", "train.clip", "optim.weight_decay"]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_rates_are_finite_and_none_is_negative(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{setting} is {value}; use"):
        counting_recipe(**{setting: value})
