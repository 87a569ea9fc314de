"""Differences in strength."""

from __future__ import annotations

import random

import pytest

from headway.errors import UserError
from headway.metrics import elo_difference


def test_it_is_elos_scale() -> None:
    even = elo_difference(10, 5, 10)
    assert (even["score"], even["samples"]) == (0.5, 25)
    assert even["elo"] == pytest.approx(0)
    assert even["elo_interval"][0] == pytest.approx(-even["elo_interval"][1])
    assert elo_difference(10, 0, 1)["elo"] == pytest.approx(400)  # ten points of eleven
    assert elo_difference(1, 0, 10)["elo"] == pytest.approx(-400)


def test_draws_make_it_surer_and_a_clean_sweep_has_no_end() -> None:
    few, many = (elo_difference(w, d, w)["elo_interval"] for w, d in ((50, 0), (5, 90)))
    assert many[1] < few[1]
    assert elo_difference(4, 0, 0)["elo"] is None
    assert elo_difference(4, 0, 0)["elo_interval"][0] > 0
    assert elo_difference(0, 0, 4)["elo_interval"][0] is None
    with pytest.raises(UserError, match="0 games"):
        elo_difference(0, 0, 0)


def test_the_interval_holds_the_truth_about_nineteen_times_of_twenty() -> None:
    draw, inside = random.Random(1), 0
    for _ in range(400):
        games = [draw.choices((1.0, 0.5, 0.0), (0.3, 0.5, 0.2))[0] for _ in range(100)]
        low, high = elo_difference(games.count(1.0), games.count(0.5), games.count(0.0))["score_interval"]
        inside += low <= 0.55 <= high
    assert 365 <= inside <= 393
