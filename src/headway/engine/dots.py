"""Products of unpacked fp32 weights with input rows.

The lanes of a register are rows of weights, so no sum crosses lanes: weights are transposed in registers, four columns
at a time, and each column is multiplied with one element of every input row. Few input rows are multiplied with the
weights as they stream from memory; many with transposed panels in the nearest caches.

Every product is summed in one order for all instruction sets: columns in blocks of up to _COLUMNS, one after the other
from 0 on, then the sums of the blocks. An input row does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from headway.engine import codegen
from headway.engine.codegen import (
    Accumulator,
    Int,
    Value,
    constant,
    fold_halves,
    if_else,
    join,
    kernel,
    loop,
    shuffle,
    switch,
    vector,
    word,
)
from headway.engine.machine import F32, compiled, f32
from headway.engine.operations import share
from headway.engine.processor import FEATURES
from headway.engine.tiles import LINE, TILE

_FULL = FEATURES.get("avx512f", False)
_LANES = 16 if _FULL else 8
_PARTS = TILE // _LANES  # registers of a tile's rows
_FLOATS, _FOUR = vector(codegen.F32, _LANES), vector(codegen.F32, 4)
FEW = 8  # input rows whose sums fit into registers next to weights being transposed
MANY = 256  # maximum input rows that stay in cache while panels pass
TILES = 8  # tiles of weights whose panels are in cache at once
_ABREAST = 2 if _FULL else 1  # panels multiplied at once
_ROWS = 14 if _FULL else 6  # input rows whose sums with that many panels fit into registers
_COLUMNS = 256  # maximum columns summed one after the other
_STEP = 16  # columns: a line of memory of each row of weights
_AHEAD = 192  # columns prefetched ahead
_PAGE = 4096  # bytes
_PANEL = _COLUMNS * LINE
PANEL_BYTES = TILES * _PANEL


def _multiply_add(a: Value, b: Value, c: Value) -> Value:
    """a b + c, rounded once where the processor can; explicit, because compilers may do either."""
    return a.apply("fma", b, c) if FEATURES.get("fma", True) else c.plus(a.times(b))


def _shuffle_fours(a: Value, b: Value, order: list[int]) -> Value:
    """Elements of a (0 to 3) and of b (4 to 7), chosen alike in each four lanes."""
    return shuffle(a, b, [start + lane % 4 + lane // 4 * _LANES for start in range(0, _LANES, 4) for lane in order])


def _four_columns(rows: list[Value], column: Value) -> list[Value]:
    """Four columns from `column` on of _LANES rows."""
    fours = [(row + column).load(_FOUR, align=4) for row in rows]
    a, b, c, d = (
        fold_halves(fours[n::4], lambda low, high: shuffle(low, high, range(2 * low.type.count))) for n in range(4)
    )
    low, high = [0, 4, 1, 5], [2, 6, 3, 7]
    ab, cd = _shuffle_fours(a, b, low), _shuffle_fours(c, d, low)
    ab_after, cd_after = _shuffle_fours(a, b, high), _shuffle_fours(c, d, high)
    return [
        _shuffle_fours(left, right, order)
        for left, right in ((ab, cd), (ab_after, cd_after))
        for order in ([0, 1, 4, 5], [2, 3, 6, 7])
    ]


def _weights(w: Value, columns: Value, rows: Value) -> list[Value]:
    """The starts of _LANES rows; from `rows` on the last row is repeated."""
    last = rows - 1
    return [w.at(codegen.F32) + (word(n) < rows).select(word(n), last) * columns for n in range(_LANES)]


def _for_columns(
    bases: list[Value],
    start: Value,
    end: Value,
    use: Callable[[Value, Value], None],
    ahead: Callable[[Value], None] | None = None,
) -> None:
    """Call `use` to write code for columns `start` to `end` of _LANES rows of weights, with a vector per column and its
    index. `ahead` is called before each line of columns with the first of them.
    """
    full_end = start + (end - start) // _STEP * _STEP
    for column in loop(start, full_end, _STEP):
        if ahead is not None:
            ahead(column)
        for four in range(0, _STEP, 4):
            here = column + four
            for n, weights in enumerate(_four_columns(bases, here)):
                use(weights, here + n)
    for column in loop(full_end, end, 1):
        use(join([(base + column).load() for base in bases]), column)


def _prefetch_rows(w: Value, bases: list[Value], columns: Value, column: Value) -> None:
    """Prefetch as many weights as a line of each row has, which are needed soon.

    The processor's prefetcher follows rows that fill pages; weights are prefetched a little before that. Several
    shorter rows share a page, which it does not follow, so the rows after these are prefetched in memory order.
    """
    with if_else(columns < _PAGE // 4) as (in_order, by_row):
        with in_order:
            first_line = w.at(codegen.F32) + (columns + column) * _LANES
            for n in range(_LANES):
                (first_line + LINE // 4 * n).prefetch(cache=2)
        with by_row:
            soon = column + _AHEAD
            soon = (soon < columns).select(soon, soon + columns * (_LANES - 1))
            for base in bases:
                (base + soon).prefetch()


def _add_to_outputs(sums: list[Accumulator], outputs: list[Value], start: Value) -> None:
    """Add the sums of the columns from `start` on to the outputs of earlier columns."""
    with if_else(start.equals(0)) as (starts, goes_on):
        with starts:
            for total, output in zip(sums, outputs):
                output.store(total.value, align=4)
        with goes_on:
            before = [output.load(align=4) for output in outputs]  # load all first, because outputs may alias
            for total, output, old in zip(sums, outputs, before):
                output.store(old.plus(total.value), align=4)


def _rows(base: Value, stride: Value, count: int) -> list[Value]:
    return [(base + stride * n).at(codegen.F32) for n in range(count)]


def _write_few(
    count: int, w: Value, rows: Value, columns: Value, block: Value, x: Value, stride: Value, out: Value
) -> None:
    weights, inputs = _weights(w, columns, rows), _rows(x, stride, count)
    outputs = [base.at(_FLOATS) for base in _rows(out, word(LINE), count)]
    sums = [Accumulator(_FLOATS) for _ in range(count)]

    def use(weights: Value, column: Value) -> None:
        for base, total in zip(inputs, sums):
            total.value = _multiply_add(weights, (base + column).load().broadcast(_FLOATS), total.value)

    for start in loop(0, columns, block):
        for total in sums:
            total.value = constant(_FLOATS, 0.0)
        end = start + block
        end = (end < columns).select(end, columns)
        _for_columns(weights, start, end, use, partial(_prefetch_rows, w, weights, columns))
        _add_to_outputs(sums, outputs, start)


@kernel
def _few(count: Int, w: Int, rows: Int, columns: Int, block: Int, x: Int, stride: Int, out: Int) -> None:
    """Products of _LANES rows of weights with up to FEW input rows."""
    switch(count, {n: partial(_write_few, n, w, rows, columns, block, x, stride, out) for n in range(1, FEW + 1)})


@kernel
def _transpose(w: Int, rows: Int, columns: Int, start: Int, end: Int, panel: Int) -> None:
    """Columns `start` to `end` of _LANES rows of weights, a line of the panel each."""
    base = panel.at(codegen.F32)

    def use(weights: Value, column: Value) -> None:
        (base + (column - start) * TILE).store(weights, align=4)

    _for_columns(_weights(w, columns, rows), start, end, use)


@kernel
def _prefetch_line(address: Int) -> None:
    """Prefetch a line of memory."""
    address.prefetch()


def _write_many(
    count: int, panels: list[Value], x: Value, stride: Value, columns: Value, start: Value, outs: list[Value]
) -> None:
    inputs, sums = _rows(x, stride, count), [Accumulator(_FLOATS, 0.0) for _ in range(count * _ABREAST * _PARTS)]
    bases = [panel.at(codegen.F32) for panel in panels[:_ABREAST]]
    for column in loop(columns):
        offsets = [column * TILE + _LANES * part for part in range(_PARTS)]
        weights = [(base + offset).load(_FLOATS, align=4) for base in bases for offset in offsets]
        for n, row in enumerate(inputs):
            number = (row + column).load().broadcast(_FLOATS)
            for weight, total in zip(weights, sums[n * len(weights) : (n + 1) * len(weights)]):
                total.value = _multiply_add(weight, number, total.value)
    lines = [_rows(out, word(LINE), count) for out in outs[:_ABREAST]]
    outputs = [
        (lines[tile][n] + _LANES * part).at(_FLOATS)
        for n in range(count)
        for tile in range(_ABREAST)
        for part in range(_PARTS)
    ]
    _add_to_outputs(sums, outputs, start)


@kernel
def _many(
    count: Int, panel: Int, other_panel: Int, x: Int, stride: Int, columns: Int, start: Int, out: Int, other_out: Int
) -> None:
    """Products of two panels, or the first if _ABREAST is 1, with `count` input rows, added to those of the columns
    before `start` at `out` and `other_out`.
    """
    counts = range(min(many // -(-many // _ROWS) for many in range(FEW + 1, MANY + 1)), _ROWS + 1)
    panels, outs = [panel, other_panel], [out, other_out]
    switch(count, {n: partial(_write_many, n, panels, x, stride, columns, start, outs) for n in counts})


@compiled
def _block(columns: int) -> int:
    """How many columns are summed at once: full lines of memory, at most _COLUMNS, as equal as possible."""
    parts = (columns + _COLUMNS - 1) // _COLUMNS
    return ((columns + parts - 1) // parts + _STEP - 1) // _STEP * _STEP


@compiled
def few_dots(w: int, rows: int, columns: int, x: int, stride: int, count: int, out: int) -> None:
    """Products of up to TILE neighbouring rows of weights with up to FEW input rows, [count, 16] at `out`."""
    for row in range(0, min(rows, TILE), _LANES):
        _few(count, w + 4 * row * columns, rows - row, columns, _block(columns), x, stride, out + 4 * row)


@compiled
def _prefetch_columns(w: int, columns: int, start: int, end: int, first: int, last: int) -> None:
    """Prefetch those columns of rows `first` to `last`."""
    for row in range(first, last):
        for address in range(w + 4 * (row * columns + start), w + 4 * (row * columns + end), LINE):
            _prefetch_line(address)


@compiled
def many_dots(
    w: int, rows: int, columns: int, x: int, stride: int, count: int, out: int, panels: int, follows: int
) -> None:
    """Products of up to TILES tiles of neighbouring rows of weights with FEW to MANY input rows, [tiles, MANY, 16] at
    `out`. `panels` has PANEL_BYTES bytes. Rows at `follows` are needed next; 0: none.
    """
    passes, tiles, block = (count + _ROWS - 1) // _ROWS, (rows + TILE - 1) // TILE, _block(columns)
    calls = passes * ((tiles + _ABREAST - 1) // _ABREAST)
    for start in range(0, columns, block):
        end, done = min(start + block, columns), 0
        for row in range(0, rows, _LANES):
            panel = panels + row // TILE * _PANEL + 4 * (row % TILE)
            _transpose(w + 4 * row * columns, rows - row, columns, start, end, panel)
        for part in range(passes):
            low, high = share(count, part, passes)
            for tile in range(0, tiles, _ABREAST):
                first, last = share(rows, done, calls)
                if end < columns:
                    _prefetch_columns(w, columns, end, min(end + block, columns), first, last)
                elif follows != 0:
                    _prefetch_columns(follows, columns, 0, block, first, last)
                done += 1
                other_tile = min(tile + _ABREAST, tiles) - 1  # an odd tile at the end is computed twice
                _many(
                    high - low, panels + tile * _PANEL, panels + other_tile * _PANEL, x + low * stride + 4 * start,
                    stride, end - start, start, out + (tile * MANY + low) * LINE,
                    out + (other_tile * MANY + low) * LINE,
                )  # fmt: skip


@compiled
def dot(w: int, x: int, columns: int) -> F32:
    """The dot product of two rows."""
    a, b, total = f32(w), f32(x), f32(w)[0] * f32(x)[0]
    for i in range(1, columns):
        total += a[i] * b[i]
    return total
