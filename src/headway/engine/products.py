"""Products of a matrix with input rows, each for one thread's share, and how they are stored."""

from __future__ import annotations

from typing import Any

import numpy as np

from headway.engine import matrix_unit
from headway.engine.barrier import barrier, barriers_passed, claim_part
from headway.engine.codegen import Float, Int, constant, kernel, loop
from headway.engine.dots import FEW, MANY, PANEL_BYTES, TILES, few_dots, many_dots
from headway.engine.machine import F32, compiled, f32, i8, i64, u8
from headway.engine.matrix_unit import BLOCK_ROWS, BLOCKS, acquire, block_products, release
from headway.engine.operations import (
    ADD,
    CLAMPED,
    GATED,
    GELU,
    GELU_TANH,
    MAXOUT,
    NONE,
    QUANTISED,
    QUICK_GELU,
    RELU,
    RELU_SQUARED,
    SILU,
    STORE,
    activate,
    share,
)
from headway.engine.processor import HAS_MATRIX_UNIT
from headway.engine.rounding import quantise_row
from headway.engine.tiles import FP32, GROUP, INT8, LINE, LINES4, TILE, TILE4, TILE8, tile_products
from headway.engine.vectors import (
    FLOATS,
    gelu_sixteen,
    gelu_tanh_sixteen,
    quick_gelu_sixteen,
    relu_squared_sixteen,
    silu_sixteen,
)


def _block(adds: bool, rectifies: bool, offset: bool) -> Any:
    """y = scale x (+ bias), or y += that, or its ReLU: for 16 neighbours in each of `count` rows, which are LINE bytes
    apart in x and `stride` in y.
    """

    @kernel
    def put(x: Int, y: Int, stride: Int, bias: Int, scale: Float, count: Int) -> None:
        factor = scale.broadcast(FLOATS)
        moved = bias.load(FLOATS, align=4) if offset else constant(FLOATS, 0.0)
        for row in loop(count):
            source, target = x + row * LINE, y + row * stride
            values = source.load(FLOATS, align=4) * factor
            if offset:
                values = values + moved
            if adds:
                values = target.load(FLOATS, align=4) + values
            if rectifies:  # as in `activate`: NaN stays NaN
                values = (values <= 0.0).select(0.0, values)
            target.store(values, align=4)

    return put


@kernel
def _prefetch_results(y: Int, stride: Int, count: Int) -> None:
    """Prefetch the line at y in each of `count` rows `stride` bytes apart, for writing. Results of many rows are on as
    many pages; otherwise each would wait for its line after the products instead of during them.
    """
    for row in loop(count):
        (y + row * stride).prefetch(to_write=True)


_store, _store_biased = _block(False, False, False), _block(False, False, True)
_add, _add_biased = _block(True, False, False), _block(True, False, True)
_rectify, _rectify_biased = _block(False, True, False), _block(False, True, True)


@compiled
def store(mode: int, code: int, y: int, row: int, value: F32, bias: int, cap: F32) -> None:
    """y[row] = activation(value + bias[row]), or y[row] += value + bias[row]."""
    out = f32(y)
    if bias != 0:
        value += f32(bias)[row]
    if mode == ADD:
        out[row] += value
    else:
        out[row] = activate(code, value, cap)


@compiled
def store_tile(
    mode: int, code: int, y: int, stride: int, row: int, values: int, count: int, width: int, bias: int, cap: F32,
    scale: F32,
) -> None:  # fmt: skip
    """`store` for `width` neighbours, starting at `row`, times `scale`, in each of `count` input rows."""
    address, offsets = y + 4 * row, bias + 4 * row
    if width < TILE:
        for k in range(count):
            for i in range(width):
                store(mode, code, y + k * stride, row + i, scale * f32(values + k * LINE)[i], bias, cap)
    elif mode == ADD:
        if bias != 0:
            _add_biased(values, address, stride, offsets, scale, count)
        else:
            _add(values, address, stride, offsets, scale, count)
    elif code == RELU:
        if bias != 0:
            _rectify_biased(values, address, stride, offsets, scale, count)
        else:
            _rectify(values, address, stride, offsets, scale, count)
    else:
        if bias != 0:
            _store_biased(values, address, stride, offsets, scale, count)
        else:
            _store(values, address, stride, offsets, scale, count)
        if code != NONE:
            for k in range(count):
                _activate_sixteen(code, address + k * stride, cap)


@compiled
def _activate_sixteen(code: int, address: int, cap: F32) -> None:
    if code == SILU:
        silu_sixteen(address)
    elif code == GELU_TANH:
        gelu_tanh_sixteen(address)
    elif code == GELU:
        gelu_sixteen(address)
    elif code == QUICK_GELU:
        quick_gelu_sixteen(address)
    elif code == RELU_SQUARED:
        relu_squared_sixteen(address)
    else:
        y = f32(address)
        for i in range(TILE):
            y[i] = activate(code, y[i], cap)


@compiled
def gate(code: int, gate: F32, up: F32, bias: int, gate_row: int, up_row: int, cap: F32) -> F32:
    """activation(gate) * up, or with MAXOUT the larger one; their rows in the matrix are `gate_row` and `up_row`.
    CLAMPED is QUICK_GELU with both within `cap`, and 1 added to `up`.
    """
    if bias != 0:
        gate += f32(bias)[gate_row]
        up += f32(bias)[up_row]
    if code == CLAMPED:
        return activate(QUICK_GELU, min(gate, cap), cap) * (min(max(up, -cap), cap) + np.float32(1))
    return max(gate, up) if code == MAXOUT else activate(code, gate, cap) * up


@compiled
def gate_tile(
    code: int, gates: int, ups: int, bias: int, row: int, rows: int, y: int, stride: int, count: int, width: int,
    cap: F32,
) -> None:  # fmt: skip
    """`gate` for `width` neighbouring units, starting at `row`, in each of `count` input rows."""
    if width < TILE or code == CLAMPED:
        for k in range(count):
            g, u, out = f32(gates + k * LINE), f32(ups + k * LINE), f32(y + k * stride)
            for i in range(width):
                out[row + i] = gate(code, g[i], u[i], bias, row + i, rows + row + i, cap)
        return
    if bias != 0:
        _store_biased(gates, gates, LINE, bias + 4 * row, np.float32(1), count)
        _store_biased(ups, ups, LINE, bias + 4 * (rows + row), np.float32(1), count)
    for k in range(count):
        _activate_sixteen(code, gates + k * LINE, cap)
        g, u, out = f32(gates + k * LINE), f32(ups + k * LINE), f32(y + k * stride + 4 * row)
        for i in range(TILE):
            out[i] = g[i] * u[i]


@compiled
def larger_tile(values: int, bias: int, row: int, y: int, stride: int, count: int, width: int) -> None:
    """The larger of each pair of neighbours, for `width` units, starting at `row`, in each of `count` rows."""
    for k in range(count):
        x, out = f32(values + k * LINE), f32(y + k * stride)
        for i in range(row, row + width):
            left, right = 2 * i, 2 * i + 1
            out[i] = gate(MAXOUT, x[left - 2 * row], x[right - 2 * row], bias, left, right, np.float32(0))


ROWS_AT_ONCE = BLOCKS * BLOCK_ROWS  # input rows that a tile is multiplied with before storing
SPAN = 4  # tiles of packed weights that all input rows are multiplied with: few, to stay in cache
_PART = 1 << 15  # bytes of weights that a thread claims at once, one or two microseconds of loading
_MAX_HELPED = 4  # threads whose shares one may help with, itself included
_RESULTS = ROWS_AT_ONCE * LINE  # bytes
_UNIT_SCRATCH = matrix_unit.SCRATCH_BYTES
_UNROUNDED = 4 * _RESULTS  # offset of values before quantisation
_UNIT = _UNROUNDED + ROWS_AT_ONCE * 4 * GROUP  # offset of the matrix unit's scratch
_APART = MANY * LINE  # bytes between the results of two tiles
_PANELS = 2 * TILES * _APART  # offset of the panels of fp32
SCRATCH_BYTES = 64 + max(_UNIT + _UNIT_SCRATCH + matrix_unit.CONFIGURATION, _PANELS + PANEL_BYTES)  # per product


@compiled
def groups_of(columns: int) -> int:
    return (columns + GROUP - 1) // GROUP


@compiled
def _tile(
    kind: int, w: int, ws: int, tile: int, groups: int, x: int, stride: int, xs: int, corr: int, out: int, scratch: int,
    count: int, new: bool,
) -> None:  # fmt: skip
    """Products of one tile's rows with `count` input rows, [count, 16] at `out`. If the tile is `new`, that is not in
    cache yet, the matrix unit prefetches what follows it.
    """
    weights, scales = w + tile * groups * (TILE8 if kind == INT8 else TILE4), ws + tile * groups * LINE
    done, step = 0, 4 * groups
    if HAS_MATRIX_UNIT and count >= BLOCK_ROWS:
        done = count // BLOCK_ROWS * BLOCK_ROWS
        block_products(kind, weights, scales, x, stride, xs, corr, groups, out, done, scratch + _UNIT, new)
    tile_products(
        kind, weights, scales, x + done * stride, stride, xs + done * step, corr + done * step, groups,
        out + done * LINE, count - done,
    )  # fmt: skip


@compiled
def _tiles(
    kind: int, w: int, ws: int, row: int, tiles: int, follows: int, rows: int, columns: int, x: int, stride: int,
    xs: int, corr: int, out: int, scratch: int, count: int, new: bool,
) -> None:  # fmt: skip
    """Products of rows from `row` on, this many tiles of a matrix of `rows` rows, [count, 16] at `out`, _APART bytes
    apart. There is one tile, unless `_rows_at_once` allows several; if its rows do not start a tile of packed weights,
    they come from two. Rows from `follows` on come next.
    """
    if kind == FP32 and count > FEW:
        here, ahead = min(tiles * TILE, rows - row), w + follows * 4 * columns if follows < rows else 0
        many_dots(w + row * 4 * columns, here, columns, x, stride, count, out, scratch + _PANELS, ahead)
        return
    if kind == FP32:
        few_dots(w + row * 4 * columns, min(TILE, rows - row), columns, x, stride, count, out)
        return
    groups = groups_of(columns)
    tile, shift = row // TILE, row % TILE
    _tile(kind, w, ws, tile, groups, x, stride, xs, corr, out, scratch, count, new)
    if shift == 0:
        return
    after, spare = (tile + 1) * TILE < rows, scratch + 3 * _RESULTS
    if after:
        _tile(kind, w, ws, tile + 1, groups, x, stride, xs, corr, spare, scratch, count, new)
    for k in range(count):
        first_tile, second_tile = f32(out + k * LINE), f32(spare + k * LINE)
        for i in range(TILE - shift):
            first_tile[i] = first_tile[i + shift]
        for i in range(TILE - shift, TILE):
            first_tile[i] = second_tile[i + shift - TILE] if after else np.float32(0)


@compiled
def _span_of(kind: int) -> int:
    """How many tiles all input rows are multiplied with before the next ones."""
    return TILES if kind == FP32 else SPAN


@compiled
def _rows_at_once(kind: int, rows: int) -> tuple[int, int]:
    """How many input rows are multiplied before their products are stored, and with how many tiles."""
    if kind == FP32 and rows > FEW:
        parts = (rows + MANY - 1) // MANY
        return (rows + parts - 1) // parts, TILES
    return min(ROWS_AT_ONCE, rows), 1


@compiled
def _multiply(
    kind: int, w: int, ws: int, bias: int, x: int, xs: int, corr: int, stride: int, y: int, y_stride: int, start: int,
    rows: int, total_rows: int, columns: int, batch: int, mode: int, code: int, cap: F32, scale: F32, scratch: int,
    first: int, last: int,
) -> None:  # fmt: skip
    groups, together = groups_of(columns), _span_of(kind)
    for span in range(first, last, together):
        b = 0
        while b < batch:
            count, tiles_at_once = _rows_at_once(kind, batch - b)
            step, inputs = 4 * b * groups, x + b * stride
            for t in range(span, min(span + together, last), tiles_at_once):
                row, tiles = start + t * TILE, min(tiles_at_once, last - t)
                if kind != FP32:
                    _prefetch_results(y + b * y_stride + 4 * t * TILE, y_stride, count)
                _tiles(
                    kind, w, ws, row, tiles, row + tiles * TILE, total_rows, columns, inputs, stride, xs + step,
                    corr + step, scratch, scratch, count, b == 0,
                )  # fmt: skip
                for tile in range(t, t + tiles):
                    out, values, here = y + b * y_stride, scratch + (tile - t) * _APART, min(TILE, rows - tile * TILE)
                    store_tile(mode, code, out, y_stride, tile * TILE, values, count, here, bias, cap, scale)
            b += count


@compiled
def _gated(
    kind: int, w: int, ws: int, bias: int, x: int, xs: int, corr: int, stride: int, y: int, y_stride: int, rows: int,
    columns: int, batch: int, code: int, cap: F32, scratch: int, first: int, last: int,
) -> None:  # fmt: skip
    groups, tile_units, pairs = groups_of(columns), TILE // 2 if code == MAXOUT else TILE, code == MAXOUT
    together = _span_of(kind)
    for span in range(first, last, together):
        b = 0
        while b < batch:
            count, tiles_at_once = _rows_at_once(kind, batch - b)
            step, inputs, out = 4 * b * groups, x + b * stride, y + b * y_stride
            scales, sums, ups = xs + step, corr + step, scratch + (_RESULTS if tiles_at_once == 1 else TILES * _APART)
            for t in range(span, min(span + together, last), tiles_at_once):
                row, tiles = t * TILE, min(tiles_at_once, last - t)
                if kind != FP32:
                    _prefetch_results(out + 4 * t * tile_units, y_stride, count)
                after = row + tiles * TILE
                _tiles(
                    kind, w, ws, row, tiles, after if pairs else row + rows, 2 * rows, columns, inputs, stride, scales,
                    sums, scratch, scratch, count, b == 0,
                )  # fmt: skip
                if not pairs:
                    _tiles(
                        kind, w, ws, row + rows, tiles, after, 2 * rows, columns, inputs, stride, scales, sums, ups,
                        scratch, count, b == 0,
                    )  # fmt: skip
                for tile in range(t, t + tiles):
                    unit, here, at = tile * tile_units, min(tile_units, rows - tile * tile_units), (tile - t) * _APART
                    if pairs:
                        larger_tile(scratch + at, bias, unit, out, y_stride, count, here)
                    else:
                        gate_tile(code, scratch + at, ups + at, bias, unit, rows, out, y_stride, count, here, cap)
            b += count


@compiled
def _quantised_product(
    kind: int, w: int, ws: int, bias: int, x: int, xs: int, corr: int, stride: int, y: int, y_kind: int, ys: int,
    y_corr: int, rows: int, columns: int, batch: int, code: int, cap: F32, scale: F32, scratch: int, first: int,
    last: int,
) -> None:  # fmt: skip
    """Groups `first` to `last` of the quantised output, each of several tiles."""
    groups, into, values = groups_of(columns), groups_of(rows), scratch + _UNROUNDED
    for g in range(first, last):
        row, width = g * GROUP, min(GROUP, rows - g * GROUP)
        offset = 0 if bias == 0 else bias + 4 * row
        for b in range(0, batch, ROWS_AT_ONCE):
            count, step = min(ROWS_AT_ONCE, batch - b), 4 * b * groups
            inputs, scales, sums = x + b * stride, xs + step, corr + step
            for t in range(0, width, TILE):
                tile = (row + t) // TILE
                _tile(kind, w, ws, tile, groups, inputs, stride, scales, sums, scratch, scratch, count, b == 0)
                store_tile(STORE, code, values, 4 * GROUP, t, scratch, count, min(TILE, width - t), offset, cap, scale)
            for k in range(count):
                n = (b + k) * into + g
                quantise_row(values + 4 * k * GROUP, width, y_kind, y + n * GROUP, ys + 4 * n, y_corr + 4 * n, 1)


@compiled
def _tiles_of_part(kind: int, columns: int, batch: int) -> int:
    tile = TILE * 4 * columns if kind == FP32 else groups_of(columns) * (TILE8 if kind == INT8 else TILE4)
    span = _span_of(kind)
    return span if batch > (FEW if kind == FP32 else BLOCK_ROWS) else max(1, min(span, _PART // tile))


@compiled
def _next_part(counter: int, barriers: int, tiles: int, size: int, helped: int, thread: int, threads: int) -> Any:
    """The first tile of a thread's next part, the one after the last, and whose share it is, counted from its own:
    after its own share it helps others.
    """
    while helped < min(threads, _MAX_HELPED):
        owner = (thread + helped) % threads
        first, last = share(tiles, owner, threads)
        count = (last - first + size - 1) // size
        part = claim_part(counter, owner, barriers, count)
        if part < count:
            return first + part * size, min(first + (part + 1) * size, last), helped
        helped += 1
    return 0, 0, helped


@compiled
def multiply(
    kind: int, w: int, ws: int, bias: int, x: int, xs: int, corr: int, stride: int, y: int, y_stride: int, y_kind: int,
    ys: int, y_corr: int, start: int, rows: int, total_rows: int, columns: int, batch: int, mode: int, code: int,
    cap: F32, scale: F32, scratch: int, counter: int, thread: int, threads: int,
) -> None:  # fmt: skip
    """y = activation(scale W x + bias), y += W x + bias, or (GATED) y = activation(gate x) * (up x), for `batch` input
    rows; each weight is loaded from memory once. QUANTISED is the first of these for a complete matrix, quantised for
    weights of `y_kind`, with scales and corrections at `ys` and `y_corr`.

    W is rows `start` to `start + rows` of a matrix of `total_rows` rows. GATED takes a complete matrix of 2 `rows`
    rows: the first half is the gate, the second the other; with MAXOUT y is the larger of each pair of neighbours.
    Strides are in bytes; quantised inputs have one scale and correction per group. `scratch` has SCRATCH_BYTES bytes.
    With the counter of a barrier idle threads claim parts of others' shares; with 0 each computes its own.
    """
    scratch, on_unit = (scratch + 63) // 64 * 64, kind != FP32 and batch >= BLOCK_ROWS
    if on_unit:
        acquire(scratch + _UNIT + _UNIT_SCRATCH)
    unit_rows = TILE // 2 if mode == GATED and code == MAXOUT else GROUP if mode == QUANTISED else TILE
    tiles, barriers, size, helped = (rows + unit_rows - 1) // unit_rows, 0, 0, 0
    first, last = share(tiles, thread, threads)
    counter = counter if threads > 1 else 0  # a single thread passes no barriers
    if counter != 0:
        barriers, size = barriers_passed(counter, threads), _tiles_of_part(kind, columns, batch)
        size = max(1, size * TILE // GROUP) if mode == QUANTISED else size
        first, last, helped = _next_part(counter, barriers, tiles, size, helped, thread, threads)
    while first < last:
        if mode == GATED:
            _gated(
                kind, w, ws, bias, x, xs, corr, stride, y, y_stride, rows, columns, batch, code, cap, scratch, first,
                last,
            )  # fmt: skip
        elif mode == QUANTISED:
            _quantised_product(
                kind, w, ws, bias, x, xs, corr, stride, y, y_kind, ys, y_corr, rows, columns, batch, code, cap, scale,
                scratch, first, last,
            )  # fmt: skip
        else:
            _multiply(
                kind, w, ws, bias, x, xs, corr, stride, y, y_stride, start, rows, total_rows, columns, batch, mode,
                code, cap, scale, scratch, first, last,
            )  # fmt: skip
        first = last
        if counter != 0:
            first, last, helped = _next_part(counter, barriers, tiles, size, helped, thread, threads)
    if on_unit:
        release()


@compiled
def quantise(kind: int, x: int, stride: int, columns: int, q: int, xs: int, corr: int, first: int, last: int) -> None:
    """Quantise rows `first` to `last`."""
    groups = groups_of(columns)
    for b in range(first, last):
        quantise_row(
            x + b * stride, columns, kind, q + b * groups * GROUP, xs + b * groups * 4, corr + b * groups * 4, groups
        )


@compiled
def unpack_row(kind: int, w: int, ws: int, row: int, width: int, scale: F32, out: int) -> None:
    """A row of a matrix as floats, times `scale`."""
    y = f32(out)
    if kind == FP32:
        weights = f32(w + row * 4 * width)
        for i in range(width):
            y[i] = weights[i] * scale
        return
    groups, tile, tile_row = groups_of(width), row // TILE, row % TILE
    size = TILE8 if kind == INT8 else TILE4
    base, scales = w + tile * groups * size + 4 * tile_row, f32(ws + tile * groups * LINE)
    for c in range(width):
        group, inside = c // GROUP, c % GROUP
        line, factor = inside // 4, scales[group * TILE + tile_row] * scale
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
    """`count` rows of a matrix, whose indices are at `rows` (int64), as floats at `out`: one thread's share."""
    first, last = share(count, thread, threads)
    for n in range(first, last):
        unpack_row(kind, w, ws, i64(rows)[n], width, np.float32(1), out + 4 * n * width)


@compiled
def packed_product(
    kind: int, w: int, ws: int, bias: int, x: int, q: int, xs: int, corr: int, y: int, rows: int, columns: int,
    batch: int, scratch: int, counter: int, thread: int, threads: int,
) -> None:  # fmt: skip
    """y = x W^T + bias, with buffers for quantised inputs at `q`, `xs` and `corr`, and SCRATCH_BYTES bytes per thread
    at `scratch`; runs on all threads.
    """
    first, last = share(batch, thread, threads)
    quantise(kind, x, 4 * columns, columns, q, xs, corr, first, last)
    barrier(counter, threads)
    # Literal constants have types of their own, for which `multiply` would be compiled again.
    start, mode, code, none = np.int64(0), np.int64(STORE), np.int64(NONE), np.int64(0)
    multiply(
        kind, w, ws, bias, q, xs, corr, groups_of(columns) * GROUP, y, 4 * rows, none, none, none, start, rows,
        rows, columns, batch, mode, code, np.float32(0), np.float32(1), scratch + thread * SCRATCH_BYTES, none,
        thread, threads,
    )  # fmt: skip
