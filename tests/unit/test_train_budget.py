"""How a time becomes a number of steps, and what is shown while they are done."""

from __future__ import annotations

import time

import pytest

from headway.errors import UserError
from headway.models import TransformerConfig
from headway.train import CosineConfig, Recipe, ScheduleConfig, TaskConfig, TrainConfig, WSDConfig
from headway.train.budget import SecondLook, Speed, plan
from headway.train.display import Live, Plain, Silent, open_display


def _planned(train: TrainConfig, speed: Speed, seconds: float) -> float:
    evaluations = -(-train.steps // train.evaluation_interval)
    return (train.steps * speed.step + evaluations * speed.evaluation) / seconds


@pytest.mark.parametrize("evaluation", [0.0, 0.1, 2.0, 12.0])
@pytest.mark.parametrize("every", [0, 50])
def test_the_time_is_filled_with_steps_and_evaluations(evaluation: float, every: int) -> None:
    speed = Speed(0.01, evaluation)
    train = plan(TrainConfig(evaluate_every=every), speed, 60)
    assert 0.85 < _planned(train, speed, 60) < 1.0 + evaluation / 60


def test_slow_evaluations_become_fewer() -> None:
    numbers = []
    for evaluation in (0.5, 3.0, 50.0):
        train = plan(TrainConfig(), Speed(0.01, evaluation), 60)
        numbers.append(-(-train.steps // train.evaluation_interval))
    assert numbers == [10, 2, 1]


def test_too_little_time_says_what_is_needed() -> None:
    with pytest.raises(UserError, match=r"5 s are left for training, but a step takes 7 s .* give more --minutes"):
        plan(TrainConfig(), Speed(7.0, 0.1), 5)


def _recipe(train: TrainConfig, schedule: ScheduleConfig) -> Recipe:
    return Recipe("a", "text", "", (), TransformerConfig(), TaskConfig(), schedule=schedule, train=train)


def test_a_second_look_keeps_the_rates_of_the_steps_so_far() -> None:
    asked, speed = TrainConfig(steps=7), Speed(0.1, 0.0)
    look = SecondLook(asked, speed, time.perf_counter() + 90)
    train = plan(asked, speed, 100)
    done = look.at(train)
    assert done == train.evaluation_interval == 97
    flat, falling = WSDConfig(warmup=10, decay=0.6), CosineConfig()
    faster = look.plan(_recipe(train, flat), done, 0.02)
    assert 3000 < faster.steps < 97 + 4500
    assert 10 <= -(-faster.steps // faster.evaluation_interval) <= 11
    slower = look.plan(_recipe(train, flat), done, 0.2)
    assert 500 < slower.steps < 97 + 450
    assert slower.evaluation_interval == done  # the first evaluation is still to come
    assert look.plan(_recipe(train, flat), done, 0.1) == train  # nothing has changed
    assert look.plan(_recipe(train, falling), done, 0.02) == train  # its first rates depend on the number of steps
    assert look.plan(_recipe(train, flat), done, 2.0) == train  # it would have to fall already


def test_a_second_look_keeps_the_evaluations_that_were_asked_for() -> None:
    asked, speed = TrainConfig(evaluate_every=20), Speed(0.1, 0.0)
    look = SecondLook(asked, speed, time.perf_counter() + 90)
    train = plan(asked, speed, 100)
    assert look.at(train) == train.steps // 4
    anew = look.plan(_recipe(train, WSDConfig(warmup=10)), look.at(train), 0.02)
    assert (anew.evaluate_every, anew.steps > 2 * train.steps) == (20, True)


def test_a_live_line_shows_the_same_as_a_plain_one(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in (Live, Plain):
        display = kind(10, 1e6, "NVIDIA H100 80GB HBM3")
        display._meter.rate.values = {"step": 2.0, "tokens": 1e6, "computed": 1e8}
        display.say("a line that stays")
        display.update(10, 1.25, 100, 100)
        display.close()
        shown = capsys.readouterr().err
        assert "a line that stays" in shown
    assert "step 10/10 · loss 1.2500 · " in shown
    assert "MFU " in shown


def test_where_stderr_is_no_terminal_lines_are_plain() -> None:
    assert isinstance(open_display(True, 1, 1.0, "cpu"), Plain)
    assert isinstance(open_display(False, 1, 1.0, "cpu"), Silent)
