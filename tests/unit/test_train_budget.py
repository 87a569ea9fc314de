"""How a time becomes a number of steps, and what is shown while they are done."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from headway.config import from_dict, to_dict
from headway.errors import UserError
from headway.learn import (
    ConstantConfig,
    CosineConfig,
    InverseSqrtConfig,
    Recipe,
    ScheduleConfig,
    TaskConfig,
    TrainConfig,
    Trainer,
    WSDConfig,
)
from headway.learn.display import LiveDisplay, PlainDisplay, SilentDisplay, open_display
from headway.learn.plan.budget import Clock, Speed, StepTimes, TimeBudget, _evaluation_seconds, plan_recipe, plan_steps
from headway.nn.models import TransformerConfig


def _planned(train: TrainConfig, speed: Speed, seconds: float) -> float:
    evaluations = -(-train.steps // train.evaluation_interval)
    return (train.steps * speed.step + evaluations * speed.evaluation) / seconds


@pytest.mark.parametrize("evaluation", [0.0, 0.1, 2.0, 12.0])
@pytest.mark.parametrize("every", [0, 50])
def test_the_time_is_filled_with_steps_and_evaluations(evaluation: float, every: int) -> None:
    speed = Speed(0.01, evaluation)
    train = plan_steps(TrainConfig(evaluate_every=every), speed, 60)
    assert 0.85 < _planned(train, speed, 60) < 1.0 + evaluation / 60


def test_slow_evaluations_become_fewer() -> None:
    numbers = []
    for evaluation in (0.5, 3.0, 50.0):
        train = plan_steps(TrainConfig(), Speed(0.01, evaluation), 60)
        numbers.append(-(-train.steps // train.evaluation_interval))
    assert numbers == [5, 1, 1]


def test_too_little_time_says_what_is_needed() -> None:
    with pytest.raises(UserError, match=r"5 s are left for training, but a step takes 7 s, .* increase --minutes"):
        plan_steps(TrainConfig(), Speed(7.0, 0.1), 5.0)


class Stopped:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def elapsed(self) -> float:
        return self.now

    def leave_out(self, seconds: float) -> None:
        self.now -= seconds


def _recipe(train: TrainConfig, schedule: ScheduleConfig) -> Recipe:
    return Recipe("a", "text", "", (), TransformerConfig(), TaskConfig(), schedule=schedule, train=train)


def _run(seconds: float, speeds: Callable[[int], float], schedule: ScheduleConfig) -> tuple[Recipe, float, list[float]]:
    """A run of so many seconds whose step k takes speeds(k): its last recipe, the seconds it took, and its rates."""
    clock = Stopped()
    recipe = plan_recipe(_recipe(TrainConfig(), schedule), Speed(speeds(0), 0.0, 1.0), seconds)
    budget = TimeBudget(cast(Clock, clock), seconds, Speed(speeds(0), 0.0, 1.0))
    done, spent, rates = 0, 0.0, []
    budget.start_measuring(0, 0.0)
    while done < recipe.train.steps:
        rates.append(recipe.schedule.factor(done, recipe.train.steps))
        took = speeds(done)
        clock.now, spent, done = clock.now + took, spent + took, done + 1
        budget.record_step(took)
        if budget.is_revision_due(done, recipe.train.steps):
            found = budget.revise(recipe, done, spent, evaluated=True)
            recipe = found or recipe
    return recipe, clock.now + 1.0, rates


FLAT = WSDConfig(warmup=0.02, decay=0.6)


@pytest.mark.parametrize("change", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("after", [10, 400, 800])
def test_a_machine_that_changes_its_speed_keeps_the_minutes(change: float, after: int) -> None:
    recipe, took, rates = _run(100.0, lambda step: 0.1 * (change if step >= after else 1.0), FLAT)
    assert took == pytest.approx(100, rel=0.05)
    steps = recipe.train.steps
    assert rates == [recipe.schedule.factor(step, steps) for step in range(steps)]  # the recipe repeats the run
    assert rates[-1] < 0.02
    assert from_dict(ScheduleConfig, to_dict(recipe.schedule)) == recipe.schedule


def test_a_schedule_whose_rates_hang_on_its_steps_keeps_its_plan() -> None:
    recipe, _, _ = _run(100.0, lambda step: 0.1 if step < 300 else 0.2, CosineConfig())
    assert recipe.train.steps == pytest.approx(975, abs=10)


def test_time_in_which_the_machine_slept_is_not_counted() -> None:
    recipe, took, _ = _run(100.0, lambda step: 0.1 if step != 500 else 3600.0, FLAT)
    assert recipe.train.steps == pytest.approx(975, abs=15)
    assert took == pytest.approx(100, rel=0.03)


def test_the_final_split_is_evaluated_as_a_whole_in_a_tenth_of_the_time() -> None:
    """Also if the time that was planned for it turns out a little short; else in what is left, or half of that."""
    clock = Stopped()
    for final, now, limit in ((9.0, 95.0, math.inf), (30.0, 80.0, 18.0), (30.0, 99.0, 5.0)):
        clock.now = 0.0
        budget = TimeBudget(cast(Clock, clock), 100.0, Speed(0.1, 2.0, min(final, 10.0) + 2.0, final))
        clock.now = now
        assert budget.final_evaluation_seconds() == pytest.approx(limit)


def test_the_final_split_has_a_tenth_of_what_an_earlier_stage_left() -> None:
    clock = Stopped()
    clock.now = 840.0  # 14 of 20 minutes were for pre-training
    budget = TimeBudget(cast(Clock, clock), 1200.0, Speed(0.1, 2.0, 36.0 + 2.0, 200.0))
    clock.now = 1200 - 38.0
    assert budget.final_evaluation_seconds() == pytest.approx(36.0)


@pytest.mark.parametrize("has_interval", [True, False])
def test_an_evaluation_interval_that_was_set_stays(has_interval: bool) -> None:
    clock, schedule = Stopped(), FLAT
    recipe = plan_recipe(_recipe(TrainConfig(evaluate_every=500), schedule), Speed(0.1, 0.0, 1.0), 300.0)
    budget = TimeBudget(cast(Clock, clock), 300.0, Speed(0.1, 0.0, 1.0), has_interval=has_interval)
    budget.start_measuring(0, 0.0)
    clock.now = 40.0  # 200 steps at half the planned speed
    revised = budget.revise(recipe, 200, 40.0, evaluated=False)
    assert revised is not None
    assert revised.train.steps < recipe.train.steps
    assert (revised.train.evaluate_every == 500) is has_interval


def test_an_evaluation_tells_how_long_the_final_one_will_take() -> None:
    budget = TimeBudget(cast(Clock, Stopped()), 100.0, Speed(0.1, 4.0, 12.0, 20.0))
    budget.record_evaluation(1.0)  # it ends its texts now
    assert budget.speed == Speed(0.1, 1.0, 7.0, 5.0)
    budget.record_evaluation(1.5)
    assert budget.speed == Speed(0.1, 1.5, 9.5, 7.5)
    budget.record_evaluation(6.0)
    assert budget.speed == Speed(0.1, 6.0, 12.0, 30.0)


@pytest.mark.parametrize(("each", "asked"), [(0.05, [64]), (0.0005, [64, 2000]), (0.00001, [64, 381])])
def test_quick_evaluations_are_timed_by_more_samples(each: float, asked: list[int]) -> None:
    """As the first few take longer than their part of many: here 0.1 s more."""
    counts: list[int] = []

    def evaluation(split: str, count: int) -> float:
        counts.append(count)
        return 0.1 * (count <= 64 and each < 0.01) + count * each

    meter = SimpleNamespace(task=SimpleNamespace(count=lambda split: 4500), evaluation=evaluation)
    found = _evaluation_seconds(cast(Any, meter), "test", None, 411.0 if each == 0.0005 else 60.0)
    assert found == pytest.approx(4500 * each)
    assert counts == pytest.approx(asked, rel=0.01)
    assert _evaluation_seconds(cast(Any, meter), "test", 40, 60.0) == pytest.approx(40 * each, abs=0.11)
    assert counts[len(asked) :] == [40]


def test_another_plan_is_told_once_when_it_has_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not while it changes from look to look; what changes later is seen in the progress line."""
    monkeypatch.setattr("headway.learn.trainer.to_dict", lambda recipe: recipe)
    monkeypatch.setattr("headway.learn.trainer.from_dict", lambda kind, recipe: recipe)
    recipe, said, lines = _recipe(TrainConfig(steps=1000), FLAT.planned(1000)), [], []
    display = SimpleNamespace(print_line=said.append)
    log = SimpleNamespace(seconds=lambda: 1.0, set_recipe=lambda new: lines.append(new.train.steps), display=display)
    trainer: Any = object.__new__(Trainer)
    trainer.recipe, trainer.log, trainer.learner = recipe, log, SimpleNamespace()
    trainer.progress = SimpleNamespace(step=9, evaluated=0)
    trainer.processes = SimpleNamespace(broadcast_object=lambda found: found, is_main=False)
    trainer._reported_plan, trainer._stable_revisions = 1000, 0
    for steps in (1000, 700, 710, 705, 450, 455, 440, 445, 900, 890, 880, 885):
        revised = replace(recipe, train=replace(recipe.train, steps=steps, evaluate_every=100))
        plan = None if steps == trainer.recipe.train.steps else revised
        trainer._revise_plan(cast(Any, SimpleNamespace(revise=lambda *given, plan=plan: plan)))
        assert bool(said) == (steps in (445, 900, 890, 880, 885))
    assert said == ["at the current speed, the run takes 445 steps instead of the planned 1,000"]
    assert lines == [700, 710, 705, 450, 455, 440, 445, 900, 890, 880, 885]


def test_evaluations_that_were_made_stay_where_they_are() -> None:
    recipe = _recipe(TrainConfig(steps=1000, evaluate_every=100), FLAT.planned(1000))
    for judged, every in ((True, 100), (False, 217)):
        budget = TimeBudget(cast(Clock, Stopped()), 100.0, Speed(0.1, 0.0, 1.0))
        budget.start_measuring(0, 0.0)
        found = budget.revise(recipe, 50, 2.3, judged)
        assert found is not None
        assert found.train.steps == pytest.approx(2169, abs=5)
        assert found.train.evaluate_every == pytest.approx(every, abs=4)


def test_a_warm_up_takes_a_tenth_at_most_and_parts_become_steps() -> None:
    assert WSDConfig(warmup=1000, decay=0.6).planned(171) == WSDConfig(warmup=17.0, decay=103.0)
    assert FLAT.planned(1000) == WSDConfig(warmup=20.0, decay=600.0)
    assert InverseSqrtConfig(warmup=1000).planned(50).warmup == 5


def test_a_longer_run_goes_back_to_before_its_rate_fell() -> None:
    first = FLAT.planned(1000).rescheduled(700, 1000, 900)
    assert first is not None
    assert first.decay_start(900) == 400
    longer = first.extended(400, 900, 3000)
    assert longer == WSDConfig(warmup=20.0, decay=1800.0)
    risen = FLAT.extended(400, 1000, 3000)  # warm for 20 steps, as before, not for 60
    assert risen is not None
    assert risen.warmup == 20
    assert CosineConfig().decay_start(100) is None
    assert ConstantConfig().decay_start(100) == 100


def test_a_live_line_shows_the_same_as_a_plain_one(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in (LiveDisplay, PlainDisplay):
        display = kind(10, 1e6, "NVIDIA H100 80GB HBM3")
        display.speed.values = {"step": 2.0, "tokens": 1e6, "computed": 1e8}
        display.print_line("a line that stays")
        display.update(10, 1.25, 100, 100)
        display.close()
        shown = capsys.readouterr().err
        assert "a line that stays" in shown
    assert "step 10/10 · loss 1.2500 · " in shown
    assert "MFU " in shown


def test_where_stderr_is_no_terminal_lines_are_plain() -> None:
    assert isinstance(open_display(True, 1, 1.0, "cpu"), PlainDisplay)
    assert isinstance(open_display(False, 1, 1.0, "cpu"), SilentDisplay)


def _judged(
    losses: Callable[[int], float], patience: int | None, seconds: float = 1000.0
) -> tuple[Recipe, list[float]]:
    """A run of steps of 0.1 s that few data limit to 100 at first, whose evaluation after step k is losses(k): its last
    recipe, and the rates of its steps.
    """
    clock, speed = Stopped(), Speed(0.1, 0.0, 1.0)
    recipe = plan_recipe(_recipe(TrainConfig(), WSDConfig(warmup=0.06, decay=0.8)), speed, seconds, 100)
    budget = TimeBudget(cast(Clock, clock), seconds, speed, 100, patience)
    budget.start_measuring(0, 0.0)
    done, best, stale, rates = 0, float("inf"), 0, []
    while done < recipe.train.steps:
        rates.append(recipe.schedule.factor(done, recipe.train.steps))
        clock.now, done = clock.now + 0.1, done + 1
        budget.record_step(0.1)
        changed = budget.is_revision_due(done, recipe.train.steps)
        if done % recipe.train.evaluation_interval == 0:
            loss = losses(done)
            best, stale = (loss, 0) if loss < best else (best, stale + 1)
            changed |= budget.update_max_steps(recipe, done, stale)
        if changed and (found := budget.revise(recipe, done, clock.now, evaluated=True)) is not None:
            recipe = found
    return recipe, rates


def test_a_plan_for_few_data_grows_while_some_evaluations_improve() -> None:
    """Scores of few samples rise by fits and starts: every third evaluation alone is better than all before."""
    evaluations = iter(range(10_000))
    recipe, _ = _judged(lambda step: 1 / step if next(evaluations) % 3 == 1 else 9.0, patience=None)
    assert recipe.train.steps > 1000


def test_a_plan_for_few_data_grows_while_evaluations_improve() -> None:
    recipe, rates = _judged(lambda step: 1 / step, patience=3)
    assert recipe.train.steps > 1000  # as the time allows: nothing but the plan limits it
    assert max(rates[200:]) == 1.0
    assert rates == [recipe.schedule.factor(step, len(rates)) for step in range(len(rates))]  # the recipe repeats it


def test_a_plan_for_few_data_ends_soon_after_the_last_better_evaluation() -> None:
    recipe, rates = _judged(lambda step: abs(40 - step), patience=3)
    assert recipe.train.evaluation_interval == 5
    assert recipe.train.steps == 40 + 3 * 5 + 3 * 5
    assert rates[-1] < 0.1  # at a rate that has fallen
    assert rates == [recipe.schedule.factor(step, len(rates)) for step in range(len(rates))]


def test_a_plan_without_patience_keeps_its_steps_when_evaluations_get_worse() -> None:
    recipe, _ = _judged(lambda step: step, patience=None)
    assert recipe.train.steps == 100


def test_step_times_on_a_gpu_are_those_of_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queued step is no pause: its time is known when the GPU has passed its events."""
    clock, passed = iter(range(1, 100)), 0.0

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.time = next(clock)

        def query(self) -> bool:
            return self.time <= passed

        def elapsed_time(self, end: Event) -> float:
            return 1000.0 * (end.time - self.time)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    times, found = StepTimes(torch.device("cuda")), []
    for reached in (0.0, 2.0, 3.0, 8.0):
        times.begin()
        passed = reached
        found.append(times.finished())
    assert found == [[], [1.0], [], [1.0, 1.0, 1.0]]
    times = StepTimes(torch.device("cpu"))
    times.begin()
    [seconds] = times.finished()
    assert 0 <= seconds < 60
