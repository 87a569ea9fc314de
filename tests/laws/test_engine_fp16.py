"""Laws of fp16 in compiled code: what numpy makes of the same bits, by instructions for it and without."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from headway.engine import fp16
from headway.engine.codegen import I16, Int, kernel, vector

COUNT = 16


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.skipif(not fp16._HAS_HALVES, reason="none here"))])
def able(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp16, "_HAS_HALVES", request.param)


@pytest.mark.usefixtures("able")
def test_every_number_is_widened() -> None:
    @kernel
    def widen(source: Int, target: Int) -> None:
        target.store(fp16.widen(source.load(vector(I16, COUNT), align=2)), align=4)

    @njit
    def run(source: int, target: int, count: int) -> None:
        for n in range(0, count, COUNT):
            widen(source + 2 * n, target + 4 * n)

    codes = np.arange(1 << 16, dtype=np.uint16)
    found = np.empty(codes.size, np.float32)
    run(codes.ctypes.data, found.ctypes.data, codes.size)
    wanted = codes.view(np.float16).astype(np.float32)
    lost = np.isnan(wanted)
    assert np.array_equal(np.isnan(found), lost)
    assert np.array_equal(found[~lost].view(np.uint32), wanted[~lost].view(np.uint32))  # signs of zeros, too


@pytest.mark.usefixtures("able")
def test_the_nearest_number_is_written() -> None:
    """Of drawn numbers of every size, of all that lie in the middle of two, and of their neighbours."""

    @njit
    def run(numbers: np.ndarray, target: int) -> None:
        for n in range(numbers.size):
            fp16.put_fp16(target + 2 * n, numbers[n])

    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[1:] + halves[:-1]) / 2  # exact in fp32
    near = [np.nextafter(middles, np.float32(way)) for way in (-np.inf, np.inf)]
    drawn = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32).view(np.float32)
    edges = np.array([65519, 65520, 1e30, np.inf, np.nan], np.float32)
    numbers = np.concatenate([halves, middles, *near, drawn, edges])
    numbers = np.concatenate([numbers, -numbers])
    found = np.empty(numbers.size, np.float16)
    run(numbers, found.ctypes.data)
    with np.errstate(invalid="ignore"):
        wanted = np.where(np.isinf(numbers), numbers, np.clip(numbers, -65504, 65504)).astype(np.float16)
    lost = np.isnan(wanted)
    assert np.array_equal(np.isnan(found), lost)
    assert np.array_equal(found[~lost].view(np.uint16), wanted[~lost].view(np.uint16))
