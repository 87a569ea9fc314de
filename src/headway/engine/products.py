"""Products of a matrix with rows of numbers, each for the share of one thread, and rows of a matrix as numbers."""

from __future__ import annotations

import numpy as np

from headway.engine import matrix_unit
from headway.engine.dots import dot32, eight_dots32, four_dots32
from headway.engine.machine import F32, HAS_MATRIX_UNIT, barrier, compiled, f32, i8, i64, u8
from headway.engine.matrix_unit import acquire, block_products, release
from headway.engine.operations import GATED, MAXOUT, NONE, STORE, share
from headway.engine.rounding import quantise_row
from headway.engine.storing import gate_tile, larger_tile, store_tile
from headway.engine.tiles import (
    FP32,
    GROUP,
    INT8,
    LINE,
    LINES4,
    TILE,
    TILE4,
    TILE8,
    tile_products,
)

AT_ONCE = matrix_unit.BLOCK_ROWS  # rows of numbers that a tile is multiplied with before its products are stored
SPAN = 8  # tiles that all rows of numbers are multiplied with before the next ones, so that results fill pages
_RESULTS = AT_ONCE * LINE  # bytes
_UNIT_ROOM = matrix_unit.ROOM
_UNIT = 4 * _RESULTS  # where the matrix unit's room begins
ROOM = 64 + _UNIT + _UNIT_ROOM + matrix_unit.CONFIGURATION  # of scratch of a product


@compiled
def groups_of(columns: int) -> int:
    return (columns + GROUP - 1) // GROUP


@compiled
def _tile(
    kind: int, w: int, ws: int, tile: int, groups: int, x: int, stride: int, xs: int, corr: int, out: int, room: int,
    count: int,
) -> None:  # fmt: skip
    """The products of one tile's rows with `count` rows of numbers, [count, 16] at `out`."""
    weights, scales = w + tile * groups * (TILE8 if kind == INT8 else TILE4), ws + tile * groups * LINE
    if HAS_MATRIX_UNIT and count == AT_ONCE:
        block_products(kind, weights, scales, x, stride, xs, corr, groups, out, room + _UNIT)
    else:
        tile_products(kind, weights, scales, x, stride, xs, corr, groups, out, count)


@compiled
def _plain(w: int, row: int, rows: int, columns: int, x: int, stride: int, out: int, count: int) -> None:
    """As `_sixteen` of fp32."""
    for r in range(min(TILE, rows - row)):
        weights, y, b = w + (row + r) * 4 * columns, f32(out + 4 * r), 0
        while b + 8 <= count:
            eight = eight_dots32(weights, x + b * stride, stride, columns)
            for k in range(8):
                y[(b + k) * TILE] = eight[k]
            b += 8
        if b + 4 <= count:
            four = four_dots32(weights, x + b * stride, stride, columns)
            for k in range(4):
                y[(b + k) * TILE] = four[k]
            b += 4
        while b < count:
            y[b * TILE] = dot32(weights, x + b * stride, 0, columns)
            b += 1


@compiled
def _sixteen(
    kind: int, w: int, ws: int, row: int, rows: int, columns: int, x: int, stride: int, xs: int, corr: int, out: int,
    room: int, count: int,
) -> None:  # fmt: skip
    """The products of rows `row` to `row` + 15 of a matrix of `rows` rows, [count, 16] at `out`. Where they do not
    begin with a tile, two tiles have them.
    """
    if kind == FP32:
        _plain(w, row, rows, columns, x, stride, out, count)
        return
    groups = groups_of(columns)
    tile, shift = row // TILE, row % TILE
    _tile(kind, w, ws, tile, groups, x, stride, xs, corr, out, room, count)
    if shift == 0:
        return
    after, spare = (tile + 1) * TILE < rows, room + 3 * _RESULTS
    if after:
        _tile(kind, w, ws, tile + 1, groups, x, stride, xs, corr, spare, room, count)
    for k in range(count):
        one, two = f32(out + k * LINE), f32(spare + k * LINE)
        for i in range(TILE - shift):
            one[i] = one[i + shift]
        for i in range(TILE - shift, TILE):
            one[i] = two[i + shift - TILE] if after else np.float32(0)


@compiled
def _multiply(
    kind: int, w: int, ws: int, bias: int, x: int, xs: int, corr: int, stride: int, y: int, y_stride: int, start: int,
    rows: int, whole: int, columns: int, batch: int, mode: int, code: int, cap: F32, scale: F32, room: int,
    thread: int, threads: int,
) -> None:  # fmt: skip
    groups = groups_of(columns)
    first, last = share((rows + TILE - 1) // TILE, thread, threads)
    for span in range(first, last, SPAN):
        for b in range(0, batch, AT_ONCE):
            count, step = min(AT_ONCE, batch - b), 4 * b * groups
            numbers = x + b * stride
            for t in range(span, min(span + SPAN, last)):
                row = start + t * TILE
                _sixteen(kind, w, ws, row, whole, columns, numbers, stride, xs + step, corr + step, room, room, count)
                out, here = y + b * y_stride, min(TILE, rows - t * TILE)
                store_tile(mode, code, out, y_stride, t * TILE, room, count, here, bias, cap, scale)


@compiled
def _gated(
    kind: int, w: int, ws: int, bias: int, x: int, xs: int, corr: int, stride: int, y: int, y_stride: int, rows: int,
    columns: int, batch: int, code: int, room: int, thread: int, threads: int,
) -> None:  # fmt: skip
    groups, each = groups_of(columns), TILE // 2 if code == MAXOUT else TILE
    gates, ups = room, room + _RESULTS
    first, last = share((rows + each - 1) // each, thread, threads)
    for span in range(first, last, SPAN):
        for b in range(0, batch, AT_ONCE):
            count, step = min(AT_ONCE, batch - b), 4 * b * groups
            numbers, scales, sums = x + b * stride, xs + step, corr + step
            for t in range(span, min(span + SPAN, last)):
                unit, here = t * each, min(each, rows - t * each)
                row = 2 * unit if code == MAXOUT else unit
                _sixteen(kind, w, ws, row, 2 * rows, columns, numbers, stride, scales, sums, gates, room, count)
                if code != MAXOUT:
                    row += rows
                    _sixteen(kind, w, ws, row, 2 * rows, columns, numbers, stride, scales, sums, ups, room, count)
                if code == MAXOUT:
                    larger_tile(gates, bias, unit, y + b * y_stride, y_stride, count, here)
                else:
                    gate_tile(code, gates, ups, bias, unit, rows, y + b * y_stride, y_stride, count, here)


@compiled
def multiply(
    kind: int, w: int, ws: int, bias: int, x: int, xs: int, corr: int, stride: int, y: int, y_stride: int, start: int,
    rows: int, whole: int, columns: int, batch: int, mode: int, code: int, cap: F32, scale: F32, room: int,
    thread: int, threads: int,
) -> None:  # fmt: skip
    """y = activation(scale W x + bias), y += W x + bias, or (GATED) y = activation(gate x) * (up x), of `batch` rows of
    numbers; each weight comes from memory once.

    W is rows `start` to `start + rows` of a matrix of `whole` rows. GATED takes a whole matrix of 2 `rows` rows: the
    first half is the gate, the second the other; with MAXOUT y is the larger of each pair of neighbours. Strides are in
    bytes; the scales and corrections of quantised numbers lie a group apart. `room` has ROOM bytes.
    """
    room, on_unit = (room + 63) // 64 * 64, kind != FP32 and batch >= AT_ONCE
    if on_unit:
        acquire(room + _UNIT + _UNIT_ROOM)
    if mode == GATED:
        _gated(kind, w, ws, bias, x, xs, corr, stride, y, y_stride, rows, columns, batch, code, room, thread, threads)
    else:
        _multiply(
            kind, w, ws, bias, x, xs, corr, stride, y, y_stride, start, rows, whole, columns, batch, mode, code, cap,
            scale, room, thread, threads,
        )  # fmt: skip
    if on_unit:
        release()


@compiled
def quantise(kind: int, x: int, stride: int, columns: int, q: int, xs: int, corr: int, first: int, last: int) -> None:
    """Rows `first` to `last`."""
    groups = groups_of(columns)
    for b in range(first, last):
        quantise_row(
            x + b * stride, columns, kind, q + b * groups * GROUP, xs + b * groups * 4, corr + b * groups * 4, groups
        )


@compiled
def unpack_row(kind: int, w: int, ws: int, row: int, width: int, scale: F32, out: int) -> None:
    """A row of a matrix as numbers, times `scale`."""
    y = f32(out)
    if kind == FP32:
        numbers = f32(w + row * 4 * width)
        for i in range(width):
            y[i] = numbers[i] * scale
        return
    groups, tile, place = groups_of(width), row // TILE, row % TILE
    size = TILE8 if kind == INT8 else TILE4
    base, scales = w + tile * groups * size + 4 * place, f32(ws + tile * groups * LINE)
    for c in range(width):
        group, inside = c // GROUP, c % GROUP
        line, factor = inside // 4, scales[group * TILE + place] * scale
        if kind == INT8:
            code = np.int32(i8(base)[group * TILE8 + line * LINE + inside % 4])
        else:
            both = np.int32(u8(base)[group * TILE4 + line % LINES4 * LINE + inside % 4])
            code = ((both >> 4) if line >= LINES4 else (both & 15)) - 8
        y[c] = np.float32(code) * factor


@compiled
def unpack_rows(
    kind: int, w: int, ws: int, rows: int, count: int, width: int, out: int, thread: int, threads: int
) -> None:
    """`count` rows of a matrix, whose numbers are at `rows` (int64), as floats at `out`: one thread's share."""
    first, last = share(count, thread, threads)
    for n in range(first, last):
        unpack_row(kind, w, ws, i64(rows)[n], width, np.float32(1), out + 4 * n * width)


@compiled
def packed_product(
    kind: int, w: int, ws: int, bias: int, x: int, q: int, xs: int, corr: int, y: int, rows: int, columns: int,
    batch: int, room: int, counter: int, thread: int, threads: int,
) -> None:  # fmt: skip
    """y = x W^T + bias, with the memory for quantised numbers at `q`, `xs` and `corr`, and ROOM bytes for each thread
    at `room`; all threads.
    """
    first, last = share(batch, thread, threads)
    quantise(kind, x, 4 * columns, columns, q, xs, corr, first, last)
    barrier(counter, threads)
    # Constants would be types of their own, for which all that multiplies would be compiled once more.
    start, mode, code = np.int64(0), np.int64(STORE), np.int64(NONE)
    multiply(
        kind, w, ws, bias, q, xs, corr, groups_of(columns) * GROUP, y, 4 * rows, start, rows, rows, columns, batch,
        mode, code, np.float32(0), np.float32(1), room + thread * ROOM, thread, threads,
    )  # fmt: skip
