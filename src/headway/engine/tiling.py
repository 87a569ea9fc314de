"""Quantisation of fp32 matrices into tiles, and the way back."""

from __future__ import annotations

import numpy as np

from headway.engine.machine import F32, compiled, f32, i8, u8
from headway.engine.operations import share
from headway.engine.tiles import GROUP, INT8, LINE, LINES4, LINES8, TILE, TILE4, TILE8

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


@compiled
def unpack_tiles(
    kind: int, codes: int, scales: int, groups: int, tiles: int, first_group: int, count: int, out: int, thread: int,
    threads: int,
) -> None:  # fmt: skip
    """One thread's share of `count` groups of columns from `first_group` on, of the first `tiles` rows of tiles at
    `codes`, as floats at `out`: [tiles * TILE, count * GROUP], padding included.

    Four bytes that are next to each other are loaded before four floats are stored, which compilers turn into vectors.
    """
    first, last = share(tiles, thread, threads)
    for t in range(first, last):
        for g in range(count):
            index = t * groups + first_group + g
            row_scales = f32(scales + index * LINE)
            for r in range(TILE):
                y, scale = f32(out + 4 * ((t * TILE + r) * count + g) * GROUP), row_scales[r]
                if kind == INT8:
                    codes8 = i8(codes + index * TILE8 + 4 * r)
                    for line in range(LINES8):
                        at = line * LINE
                        a, b, c, d = codes8[at], codes8[at + 1], codes8[at + 2], codes8[at + 3]
                        y[4 * line] = np.float32(a) * scale
                        y[4 * line + 1] = np.float32(b) * scale
                        y[4 * line + 2] = np.float32(c) * scale
                        y[4 * line + 3] = np.float32(d) * scale
                else:
                    codes4 = u8(codes + index * TILE4 + 4 * r)
                    for line in range(LINES4):
                        at, high = line * LINE, 4 * line + GROUP // 2
                        a, b = np.int32(codes4[at]), np.int32(codes4[at + 1])
                        c, d = np.int32(codes4[at + 2]), np.int32(codes4[at + 3])
                        y[4 * line] = np.float32((a & 15) - 8) * scale
                        y[4 * line + 1] = np.float32((b & 15) - 8) * scale
                        y[4 * line + 2] = np.float32((c & 15) - 8) * scale
                        y[4 * line + 3] = np.float32((d & 15) - 8) * scale
                        y[high] = np.float32((a >> 4) - 8) * scale
                        y[high + 1] = np.float32((b >> 4) - 8) * scale
                        y[high + 2] = np.float32((c >> 4) - 8) * scale
                        y[high + 3] = np.float32((d >> 4) - 8) * scale
