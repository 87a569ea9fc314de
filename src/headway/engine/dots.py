"""Products of fp32 weights, as they lie in memory, with rows of numbers.

The lanes of a register are rows of weights, so that no sum goes across lanes: weights are transposed in registers, four
columns at a time, and each column is multiplied with one number of every row. Few rows of numbers meet the weights as
they come from memory; many meet panels of them, which lie transposed in the nearest caches.

Every product is summed in one order whatever the form: _COLUMNS columns one after the other, from 0 on, and these sums
one after the other. A row of numbers does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir

from headway.engine.machine import _F32, _I8, _I32, F32, FEATURES, cgutils, compiled, f32, intrinsic, types
from headway.engine.operations import share
from headway.engine.tiles import LINE, TILE
from headway.engine.vectors import call, call_for, choose, spread

_FULL = FEATURES.get("avx512f", False)
_LANES = 16 if _FULL else 8
_PARTS = TILE // _LANES  # registers of a tile's rows
_NUMBERS, _FOUR = ir.VectorType(_F32, _LANES), ir.VectorType(_F32, 4)
FEW = 8  # rows of numbers, whose sums fit beside weights that are being transposed
MANY = 256  # at most, that lie near while panels go by
TILES = 8  # of weights, whose panels lie near at once
_ABREAST = 2 if _FULL else 1  # panels that rows of numbers meet at once
_ROWS = 14 if _FULL else 6  # of numbers, for whose sums with so many panels there are registers
_COLUMNS = 256
_STEP = 16  # columns: a line of memory of each row of weights
_PANEL = _COLUMNS * LINE
PANEL_ROOM = TILES * _PANEL


def _word(value: int) -> ir.Constant:
    return ir.Constant(ir.IntType(64), value)


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _F32.as_pointer())


def _vector(builder: Any, base: Any, offset: Any, kind: ir.VectorType = _NUMBERS) -> Any:
    return builder.bitcast(builder.gep(base, [offset]), kind.as_pointer())


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c, rounded once wherever the processor can: said explicitly, as compilers may do either."""
    if FEATURES.get("fma", True):
        return call(builder, f"fma.v{_LANES}f32", _NUMBERS, a, b, c)
    return builder.fadd(builder.fmul(a, b), c)


def _shuffled(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(order)), order))


def _joined(builder: Any, parts: list[Any]) -> Any:
    """Short vectors as one."""
    while len(parts) > 1:
        order = list(range(2 * parts[0].type.count))
        parts = [_shuffled(builder, *parts[n : n + 2], order) for n in range(0, len(parts), 2)]
    return parts[0]


def _within(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    """Numbers of a (0 to 3) and of b (4 to 7), chosen alike in each four lanes."""
    places = [start + place % 4 + place // 4 * _LANES for start in range(0, _LANES, 4) for place in order]
    return _shuffled(builder, a, b, places)


def _four_columns(builder: Any, rows: list[Any], column: Any) -> list[Any]:
    """Those from `column` on of _LANES rows."""
    fours = [builder.load(_vector(builder, row, column, _FOUR), align=4) for row in rows]
    a, b, c, d = (_joined(builder, fours[n::4]) for n in range(4))
    low, high = [0, 4, 1, 5], [2, 6, 3, 7]
    ab, cd = _within(builder, a, b, low), _within(builder, c, d, low)
    ab_after, cd_after = _within(builder, a, b, high), _within(builder, c, d, high)
    return [
        _within(builder, one, two, order)
        for one, two in ((ab, cd), (ab_after, cd_after))
        for order in ([0, 1, 4, 5], [2, 3, 6, 7])
    ]


def _each_column(
    builder: Any, w: Any, size: Any, rows: Any, begin: Any, end: Any, use: Callable[[Any, Any], None]
) -> None:
    """Have `use` write what becomes of each column of _LANES rows of weights, a vector and its number. From `rows` on
    the last row stands for those that are not there.
    """
    last = builder.sub(rows, _word(1))
    bases = []
    for n in range(_LANES):
        row = builder.select(builder.icmp_signed("<", _word(n), rows), _word(n), last)
        bases.append(_pointer(builder, builder.add(w, builder.mul(row, size))))
    count = builder.sdiv(builder.sub(end, begin), _word(_STEP))
    whole = builder.add(begin, builder.mul(count, _word(_STEP)))
    with cgutils.for_range_slice(builder, begin, whole, _word(_STEP)) as (column, _):
        # Of the rows that follow, as much as is used up of these.
        ahead = builder.add(builder.mul(size, _word(_LANES)), builder.mul(column, _word(4 * _LANES)))
        ahead = builder.add(w, ahead)
        for n in range(_LANES):
            call_for(builder, builder.inttoptr(builder.add(ahead, _word(64 * n)), _I8.as_pointer()))
        for four in range(0, _STEP, 4):
            here = builder.add(column, _word(four))
            for n, weights in enumerate(_four_columns(builder, bases, here)):
                use(weights, builder.add(here, _word(n)))
    with cgutils.for_range_slice(builder, whole, end, _word(1)) as (column, _):
        weights = ir.Constant(_NUMBERS, ir.Undefined)
        for n, base in enumerate(bases):
            weight = builder.load(builder.gep(base, [column]))
            weights = builder.insert_element(weights, weight, ir.Constant(_I32, n))
        use(weights, column)


def _sums(builder: Any, count: int) -> list[Any]:
    zero = ir.Constant(_NUMBERS, [0.0] * _LANES)
    return [cgutils.alloca_once_value(builder, zero) for _ in range(count)]


def _put(builder: Any, sums: list[Any], places: list[Any], begin: Any) -> None:
    """Sums of the columns from `begin` on, added to what those before have left."""
    first = builder.icmp_signed("==", begin, _word(0))
    with builder.if_else(first) as (starts, goes_on):
        with starts:
            for total, place in zip(sums, places):
                builder.store(builder.load(total), place, align=4)
        with goes_on:
            before = [builder.load(place, align=4) for place in places]  # all, as places may be the same
            for total, place, old in zip(sums, places, before):
                builder.store(builder.fadd(old, builder.load(total)), place, align=4)


def _rows(builder: Any, base: Any, stride: Any, count: int) -> list[Any]:
    places = (builder.add(base, builder.mul(stride, _word(n))) for n in range(count))
    return [_pointer(builder, place) for place in places]


def _emit_few(builder: Any, count: int, args: Any) -> None:
    w, size, rows, x, stride, begin, end, out = args
    numbers, sums = _rows(builder, x, stride, count), _sums(builder, count)

    def use(weights: Any, column: Any) -> None:
        for base, total in zip(numbers, sums):
            number = spread(builder, builder.load(builder.gep(base, [column])), _NUMBERS)
            builder.store(_fused(builder, weights, number, builder.load(total)), total)

    _each_column(builder, w, size, rows, begin, end, use)
    places = [_vector(builder, base, _word(0)) for base in _rows(builder, out, _word(LINE), count)]
    _put(builder, sums, places, begin)


@intrinsic
def _few(
    typing: Any, count: Any, w: Any, size: Any, rows: Any, x: Any, stride: Any, begin: Any, end: Any, out: Any
) -> Any:
    """Products of _LANES rows of weights, `size` bytes each, with up to FEW rows of numbers, columns `begin` to `end`,
    added at `out` to those of the columns before.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        choose(builder, args[0], {n: partial(_emit_few, builder, n, args[1:]) for n in range(1, FEW + 1)})
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), generate


@intrinsic
def _transpose(typing: Any, w: Any, size: Any, rows: Any, begin: Any, end: Any, panel: Any) -> Any:
    """Columns `begin` to `end` of _LANES rows of weights, a line of the panel each."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        *where, panel = args
        base = _pointer(builder, panel)

        def use(weights: Any, column: Any) -> None:
            line = builder.mul(builder.sub(column, where[3]), _word(TILE))
            builder.store(weights, _vector(builder, base, line), align=4)

        _each_column(builder, *where, use)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate


def _emit_many(builder: Any, count: int, args: Any) -> None:
    *panels, x, stride, columns, begin = args[:6]
    outs = args[6:]
    numbers, sums = _rows(builder, x, stride, count), _sums(builder, count * _ABREAST * _PARTS)
    bases = [_pointer(builder, panel) for panel in panels[:_ABREAST]]
    with cgutils.for_range(builder, columns) as loop:
        line = builder.mul(loop.index, _word(TILE))
        offsets = [builder.add(line, _word(_LANES * part)) for part in range(_PARTS)]
        weights = [builder.load(_vector(builder, base, at), align=4) for base in bases for at in offsets]
        for n, row in enumerate(numbers):
            number = spread(builder, builder.load(builder.gep(row, [loop.index])), _NUMBERS)
            for weight, total in zip(weights, sums[n * len(weights) : (n + 1) * len(weights)]):
                builder.store(_fused(builder, weight, number, builder.load(total)), total)
    lines = [_rows(builder, out, _word(LINE), count) for out in outs[:_ABREAST]]
    places = [
        _vector(builder, lines[tile][n], _word(_LANES * part))
        for n in range(count)
        for tile in range(_ABREAST)
        for part in range(_PARTS)
    ]
    _put(builder, sums, places, begin)


@intrinsic
def _many(
    typing: Any, count: Any, one: Any, two: Any, x: Any, stride: Any, columns: Any, begin: Any, out: Any, other: Any
) -> Any:
    """Products of two panels, or where _ABREAST is 1 of the first, with `count` rows of numbers, added at `out` and
    `other` to those of the columns before `begin`.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        counts = range(min(many // -(-many // _ROWS) for many in range(FEW + 1, MANY + 1)), _ROWS + 1)
        choose(builder, args[0], {n: partial(_emit_many, builder, n, args[1:]) for n in counts})
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), generate


@compiled
def few_dots(w: int, rows: int, columns: int, x: int, stride: int, count: int, out: int) -> None:
    """The products of up to TILE neighbouring rows of weights with up to FEW rows of numbers, [count, 16] at `out`."""
    size = 4 * columns
    for part in range(0, min(rows, TILE), _LANES):
        for begin in range(0, columns, _COLUMNS):
            end, to = min(begin + _COLUMNS, columns), out + 4 * part
            _few(count, w + part * size, size, rows - part, x, stride, begin, end, to)


@compiled
def many_dots(w: int, rows: int, columns: int, x: int, stride: int, count: int, out: int, room: int) -> None:
    """The products of up to TILES tiles of neighbouring rows of weights with FEW to MANY rows of numbers, [tiles, MANY,
    16] at `out`. `room` has PANEL_ROOM bytes.
    """
    size, turns, last = 4 * columns, (count + _ROWS - 1) // _ROWS, (rows - 1) // TILE
    for begin in range(0, columns, _COLUMNS):
        end = min(begin + _COLUMNS, columns)
        for row in range(0, rows, _LANES):
            panel = room + row // TILE * _PANEL + 4 * (row % TILE)
            _transpose(w + row * size, size, rows - row, begin, end, panel)
        for turn in range(turns):
            low, high = share(count, turn, turns)
            numbers = x + low * stride + 4 * begin
            for tile in range(0, last + 1, _ABREAST):
                # An odd tile at the end is met twice.
                other, to = min(tile + _ABREAST - 1, last), out + low * LINE
                _many(
                    high - low, room + tile * _PANEL, room + other * _PANEL, numbers, stride, end - begin, begin,
                    to + tile * MANY * LINE, to + other * MANY * LINE,
                )  # fmt: skip


@compiled
def dot(w: int, x: int, columns: int) -> F32:
    """The product of two rows."""
    one, two, total = f32(w), f32(x), f32(w)[0] * f32(x)[0]
    for i in range(1, columns):
        total += one[i] * two[i]
    return total
