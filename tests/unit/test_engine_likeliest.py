"""The likeliest symbols of many rows, beside what torch says of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from headway.engine.pool import pool
from headway.engine.sampling_batch import find_top_k


@pytest.mark.parametrize(("rows", "symbols", "count"), [(1, 1, 1), (3, 63, 5), (5, 64, 4), (8, 4099, 8), (2, 9000, 32)])
@pytest.mark.parametrize("some_never", [False, True])
def test_they_are_those_of_torch(rows: int, symbols: int, count: int, some_never: bool) -> None:
    draw = np.random.default_rng(symbols)
    logits = (4 * draw.standard_normal((rows, symbols))).astype(np.float32)
    never = np.flatnonzero(draw.random(symbols) < 0.3).tolist() if some_never and symbols > 2 * count else []
    wanted = torch.from_numpy(logits).log_softmax(-1)
    wanted[:, never] = -math.inf
    found, logprobs = find_top_k(logits, count, never, pool(2))
    values, places = wanted.topk(count)
    assert np.array_equal(found, places.numpy())
    np.testing.assert_allclose(logprobs, values.numpy(), rtol=0, atol=1e-5)


def test_equal_ones_come_in_their_order_and_no_row_changes_another() -> None:
    logits = np.zeros((65, 300), np.float32)
    logits[:, 200] = 1
    found, logprobs = find_top_k(logits, 4, (), pool(1))
    assert found.tolist() == [[200, 0, 1, 2]] * 65
    for threads in (2, 3, 64):
        again = find_top_k(logits, 4, (), pool(threads))
        assert np.array_equal(again[1].view(np.int32), logprobs.view(np.int32))
    alone = find_top_k(np.ascontiguousarray(logits[7:8]), 4, (), pool(2))[1]
    assert np.array_equal(alone.view(np.int32), logprobs[7:8].view(np.int32))


def test_what_is_never_chosen_has_no_probability_and_nan_is_told() -> None:
    logits = np.zeros((3, 100), np.float32)
    logits[0, 1:] = -np.inf
    logits[1, 50] = np.nan
    found, logprobs = find_top_k(logits, 2, (), pool(2))
    assert (found[0, 0], logprobs[0].tolist()) == (0, [0.0, -math.inf])
    assert np.isnan(logprobs[1]).all()
    found, logprobs = find_top_k(logits[2:], 2, [n for n in range(100) if n != 40], pool(2))
    assert found[0, 0] == 40
    assert logprobs[0].tolist() == [pytest.approx(-math.log(100)), -math.inf]
