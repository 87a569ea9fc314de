"""Exponential smoothing, and how forecasts of a network are mixed with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headway.domains.forecast.exponential_smoothing import LAST, LAST_SEASON, SmoothedSeries, select_params, smooth
from headway.domains.forecast.task import LEVELS, ForecastMixture, Forecasts, Observed, choose_mixture
from headway.errors import ConfigError
from headway.metrics.forecasts import simple_forecasts

STEPS = np.arange(120)
YEAR = 10 + 0.1 * STEPS + 3 * np.sin(2 * np.pi * STEPS / 12)


def best(values: np.ndarray, season: int, end: int | None = None) -> SmoothedSeries:
    (form,) = select_params([values[:end]], season)
    return smooth(values, end or len(values), form, season)


def test_the_naive_forms_are_the_naive_forecasts() -> None:
    values = np.random.default_rng(0).normal(size=60)
    at = np.array([24, 47, 60])
    windows = np.stack([values[n - 24 : n] for n in at])
    known = simple_forecasts(windows, 15, 7)
    for form, name in ((LAST, "last"), (LAST_SEASON, "season")):
        middle = smooth(values, 40, form, 7).quantiles(at, 15, (0.5,))[..., 0]
        np.testing.assert_allclose(middle, known[name])


def test_trends_seasons_and_growth_go_on() -> None:
    rng = np.random.default_rng(1)
    for values, of_logarithms in (
        (YEAR + rng.normal(0, 0.05, 120), False),
        (np.exp(0.03 * STEPS + 0.3 * np.sin(2 * np.pi * STEPS / 12) + rng.normal(0, 0.01, 120)), True),
    ):
        found = best(values, 12, 108)
        assert found.params.seasonal
        assert found.params.has_trend
        assert found.params.of_logarithms == of_logarithms
        middle = found.quantiles(np.array([108]), 12, (0.5,))[0, :, 0]
        np.testing.assert_allclose(middle, values[108:], rtol=0.06)


def test_series_together_have_the_forms_that_they_have_alone() -> None:
    rng = np.random.default_rng(2)
    series = [rng.normal(size=40).cumsum(), YEAR, rng.normal(size=90), np.full(30, 4.0), np.array([1.0, 2.0])]
    assert select_params(series, 12) == [select_params([values], 12)[0] for values in series]


def test_a_forecast_depends_on_nothing_later() -> None:
    later = YEAR.copy()
    later[90:] = 1000.0
    one, two = (smooth(values, 80, select_params([YEAR[:80]], 12)[0], 12) for values in (YEAR, later))
    at = np.array([70, 90])
    np.testing.assert_array_equal(one.quantiles(at, 5, LEVELS), two.quantiles(at, 5, LEVELS))


def test_eight_of_ten_values_lie_within_the_quantiles() -> None:
    values = np.random.default_rng(3).normal(size=1500).cumsum()
    at = np.arange(1000, 1490)
    said = best(values, 1, 1000).quantiles(at, 10, LEVELS)
    came = values[at[:, None] + np.arange(10)]
    assert ((said[..., 0] <= came) & (came <= said[..., -1])).mean() == pytest.approx(0.8, abs=0.06)


NORMAL = np.array([-1.28, -0.84, -0.52, -0.25, 0.0, 0.25, 0.52, 0.84, 1.28])


def zeros(windows: int) -> Observed:
    return Observed(np.zeros((windows, 5)), np.ones((windows, 5), bool), np.ones(windows))


def mixed(network: float, smoothing: float, naive: float, windows: int) -> ForecastMixture:
    """Of forecasts whose medians have normal errors of these deviations."""
    rng, came = np.random.default_rng(4), zeros(windows)
    said = Forecasts(*(rng.normal(0, size, (windows, 5, 1)) + size * NORMAL for size in (network, smoothing, naive)))
    return choose_mixture(said[1:], came, said, came)


def test_the_better_one_is_taken() -> None:
    assert mixed(0.1, 1.0, 3.0, 400).shares[0] > 0.9
    assert mixed(1.0, 0.1, 3.0, 400).shares[1] > 0.9
    assert mixed(3.0, 1.0, 0.1, 400).shares[2] > 0.9
    alike = mixed(1.0, 1.0, 1.0, 400)
    assert min(alike.shares) > 0.2
    assert mixed(0.1, 1.0, 3.0, 5).shares[0] < 0.4  # a window says little


@pytest.mark.parametrize("spread", [0.4, 3.0])
def test_widths_are_those_of_the_errors(spread: float) -> None:
    middle = np.random.default_rng(5).normal(size=(400, 5, 1))
    said = Forecasts(*[middle + spread * NORMAL] * 3)
    found = choose_mixture(said[1:], zeros(400), said, zeros(400))
    assert found.widths == pytest.approx((1 / spread, 1 / spread), rel=0.1)
    one = np.linspace(0, 8, 9)[None, None]
    wide = replace(found, shares=(1.0, 0.0, 0.0), widths=(0.5, 2.0)).mix(Forecasts(one, one, one))
    assert wide[0, 0].tolist() == [2, 2.5, 3, 3.5, 4, 6, 8, 10, 12]


@pytest.mark.parametrize(
    ("shares", "widths"),
    [
        ((0.5, 0.2, 0.2), (1.0, 1.0)),
        ((1.0, 0.0, 0.0), (0.0, 1.0)),
        ((1.0, 0.0, 0.0), (1.0, np.inf)),
        ((np.nan, 0.5, 0.5), (1.0, 1.0)),
    ],
)
def test_shares_that_cannot_be(shares: tuple[float, float, float], widths: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"restore forecast\.json"):
        ForecastMixture(shares, widths, (1.0, 1.0, 1.0))
