"""The likeliest symbols of many rows, beside what torch says of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from headway.engine.likeliest import find_likeliest
from headway.engine.pool import pool


def bits(allowed: np.ndarray) -> np.ndarray:
    padded = np.zeros(-(-len(allowed) // 32) * 32, bool)
    padded[: len(allowed)] = allowed
    return np.packbits(padded, bitorder="little").view(np.int32)


@pytest.mark.parametrize(("rows", "symbols", "count"), [(1, 1, 1), (3, 63, 5), (5, 64, 4), (8, 4099, 8), (2, 9000, 32)])
@pytest.mark.parametrize("masked", [False, True])
def test_they_are_those_of_torch(rows: int, symbols: int, count: int, masked: bool) -> None:
    draw = np.random.default_rng(symbols)
    logits = (4 * draw.standard_normal((rows, symbols))).astype(np.float32)
    allowed = draw.random(symbols) < 0.7 if masked and symbols > 2 * count else np.ones(symbols, bool)
    found, logprobs = find_likeliest(logits, count, bits(allowed) if masked else None, pool(2))
    wanted = torch.from_numpy(logits).log_softmax(-1)
    wanted[:, ~torch.from_numpy(allowed)] = -math.inf
    values, places = wanted.topk(count)
    assert np.array_equal(found, places.numpy())
    np.testing.assert_allclose(logprobs, values.numpy(), rtol=0, atol=1e-5)


def test_equal_ones_come_in_their_order_and_no_row_changes_another() -> None:
    logits = np.zeros((65, 300), np.float32)
    logits[:, 200] = 1
    found, logprobs = find_likeliest(logits, 4, None, pool(1))
    assert found.tolist() == [[200, 0, 1, 2]] * 65
    for threads in (2, 3, 64):
        again = find_likeliest(logits, 4, None, pool(threads))
        assert np.array_equal(again[1].view(np.int32), logprobs.view(np.int32))
    alone = find_likeliest(np.ascontiguousarray(logits[7:8]), 4, None, pool(2))[1]
    assert np.array_equal(alone.view(np.int32), logprobs[7:8].view(np.int32))


def test_what_a_mask_or_infinity_leaves_out_has_no_probability_and_nan_is_told() -> None:
    logits = np.zeros((3, 100), np.float32)
    logits[0, 1:] = -np.inf
    logits[1, 50] = np.nan
    found, logprobs = find_likeliest(logits, 2, None, pool(2))
    assert (found[0, 0], logprobs[0].tolist()) == (0, [0.0, -math.inf])
    assert np.isnan(logprobs[1]).all()
    allowed = np.zeros(100, bool)
    allowed[40] = True
    found, logprobs = find_likeliest(logits[2:], 2, bits(allowed), pool(2))
    assert found[0, 0] == 40
    assert logprobs[0].tolist() == [pytest.approx(-math.log(100)), -math.inf]
