"""What is judged where not all is: samples spread over a split."""

from __future__ import annotations

import numpy as np
import pytest

from headway.learn import examples


@pytest.mark.parametrize(("limit", "wanted"), [(None, 20), (50, 20), (20, 20), (7, 7), (1, 1)])
def test_rows_are_spread_over_all(limit: int | None, wanted: int) -> None:
    """The first ones are of one class, where files lie in folders by classes."""
    rows = np.arange(100, 120)
    found = examples.spread_evenly(rows, limit)
    assert len(found) == len(np.unique(found)) == wanted
    assert np.isin(found, rows).all()
    if wanted > 1:
        assert (found[0], found[-1]) == (100, 119)
