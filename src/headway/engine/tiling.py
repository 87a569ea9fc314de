"""Quantisation of fp32 matrices into tiles."""

from __future__ import annotations

import numpy as np

from headway.engine.machine import F32, compiled, f32, i8, u8
from headway.engine.operations import share
from headway.engine.tiles import GROUP, INT8, LINE, TILE, TILE4, TILE8

TRIES = 5  # candidate scales of an int4 group, in descending order from its largest weight's
_STEP = np.float32(0.05)


@compiled
def _inverse(scale: F32) -> F32:
    return np.float32(1) / scale if scale != 0 else np.float32(0)


@compiled
def _code4(x: F32, inverse: F32) -> F32:
    return min(max(np.rint(x * inverse), np.float32(-8)), np.float32(7))


@compiled
def _scale4(x: int, count: int) -> F32:
    """Map the weight of largest magnitude to -8 or slightly beyond, with the least squared error."""
    weights, largest = f32(x), np.float32(0)
    for c in range(count):
        if abs(weights[c]) > abs(largest):
            largest = weights[c]
    best, scale = np.float32(np.inf), np.float32(0)
    for n in range(TRIES):
        tried = largest * (np.float32(1) - np.float32(n) * _STEP) / np.float32(-8)
        inverse, error = _inverse(tried), np.float32(0)
        for c in range(count):
            difference = _code4(weights[c], inverse) * tried - weights[c]
            error += difference * difference
        if error < best:
            best, scale = error, tried
    return scale


@compiled
def pack_tiles(kind: int, w: int, rows: int, columns: int, codes: int, scales: int, thread: int, threads: int) -> None:
    """One thread's share of a matrix at `w`, as codes and scales, padded with zeros."""
    groups, size = (columns + GROUP - 1) // GROUP, TILE8 if kind == INT8 else TILE4
    first, last = share((rows + TILE - 1) // TILE, thread, threads)
    for t in range(first, last):
        for g in range(groups):
            tile, row_scales = codes + (t * groups + g) * size, f32(scales + (t * groups + g) * LINE)
            for r in range(TILE):
                row = t * TILE + r
                count = min(GROUP, columns - g * GROUP) if row < rows else 0
                x = w + 4 * (min(row, rows - 1) * columns + g * GROUP)
                weights = f32(x)
                if kind == INT8:
                    largest, codes8 = np.float32(0), i8(tile + 4 * r)
                    for c in range(count):
                        largest = max(largest, abs(weights[c]))
                    row_scales[r] = largest / np.float32(127)
                    inverse = _inverse(row_scales[r])
                    for c in range(GROUP):
                        code = np.rint(weights[c] * inverse) if c < count else np.float32(0)
                        codes8[c // 4 * LINE + c % 4] = np.int8(code)
                else:
                    row_scales[r], codes4 = _scale4(x, count), u8(tile + 4 * r)
                    inverse = _inverse(row_scales[r])
                    for c in range(GROUP // 2):
                        low = _code4(weights[c], inverse) if c < count else np.float32(0)
                        high = _code4(weights[c + GROUP // 2], inverse) if c + GROUP // 2 < count else np.float32(0)
                        codes4[c // 4 * LINE + c % 4] = np.uint8(np.int32(low) + 8 + 16 * (np.int32(high) + 8))
