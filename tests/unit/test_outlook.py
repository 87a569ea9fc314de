"""How the end of a run is predicted: slopes, intervals with two sides, and domains for which nothing was fitted."""

from __future__ import annotations

import math

import pytest

from headway.app.fitting import foretelling
from headway.config import override
from headway.domains import homes, scale_of
from headway.domains import recipe as find_recipe
from headway.learn.outlook import Descent, slope_of


def test_the_slope_is_that_of_a_power_of_the_steps() -> None:
    training = [(step, 6.0 * step**-0.3) for step in range(1, 401)]
    for step in (40, 200, 400):
        assert slope_of(training, step) == pytest.approx(0.3, abs=0.01)
    assert slope_of([(step, 2.0) for step in range(1, 41)], 40) == 0.0
    assert slope_of(training[30:], 40) is None  # nothing is known of the steps from 10 to 20
    assert slope_of([], 10) is None


def test_an_interval_has_two_sides() -> None:
    descent = Descent(own=0.02, slope=0.8, least=0.05, most=0.1)
    low, loss, high = descent.forecast(4.0, 0.1, 0.25)
    assert loss == pytest.approx(4.0 * 0.25**0.1)
    assert (low, high) == (pytest.approx(4.0 * 0.25**0.2), pytest.approx(4.0 * 0.25**0.05))
    assert descent.forecast(4.0, 0.1, 1.0) == (4.0, 4.0, 4.0)


@pytest.mark.parametrize("name", sorted(name for name in homes() if scale_of(name) is not None))
def test_only_what_was_fitted_predicts(name: str) -> None:
    scale = scale_of(name)
    assert scale is not None
    recipe = find_recipe(name)
    assert (foretelling(recipe) is None) == (scale.descent is None)
    if scale.descent is not None:
        assert scale.descent.least > 0
        assert scale.descent.most > 0
        assert math.isfinite(scale.descent.own + scale.descent.slope)
        assert foretelling(override(recipe, {"start": "runs/other"})) is None
