"""How a time becomes a number of steps, and what is shown while they are done."""

from __future__ import annotations

import pytest

from headway.errors import UserError
from headway.train import TrainConfig
from headway.train.budget import Speed, plan
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
