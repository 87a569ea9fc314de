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
from typing import Any

from llvmlite import ir

from headway.engine.machine import _F32, _I8, _I32, F32, FEATURES, cgutils, compiled, f32, intrinsic, types
from headway.engine.operations import share
from headway.engine.tiles import LINE, TILE
from headway.engine.vectors import broadcast, call, constant, emit_switch, prefetch, word

_FULL = FEATURES.get("avx512f", False)
_LANES = 16 if _FULL else 8
_PARTS = TILE // _LANES  # registers of a tile's rows
_FLOATS, _FOUR = ir.VectorType(_F32, _LANES), ir.VectorType(_F32, 4)
FEW = 8  # input rows whose sums fit into registers next to weights being transposed
MANY = 256  # maximum input rows that stay in cache while panels pass
TILES = 8  # tiles of weights whose panels are in cache at once
_ABREAST = 2 if _FULL else 1  # panels multiplied at once
_ROWS = 14 if _FULL else 6  # input rows whose sums with that many panels fit into registers
_COLUMNS = 256  # maximum columns summed one after the other
_STEP = 16  # columns: a line of memory of each row of weights
_AHEAD = 192  # columns prefetched ahead
_PAGE = 4096  # bytes
_IN_ORDER = ("contract",)  # without flags an addition gets the compiler's, which may reorder sums
_PANEL = _COLUMNS * LINE
PANEL_BYTES = TILES * _PANEL


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _F32.as_pointer())


def _vector(builder: Any, base: Any, offset: Any, kind: ir.VectorType = _FLOATS) -> Any:
    return builder.bitcast(builder.gep(base, [offset]), kind.as_pointer())


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c, rounded once where the processor can; explicit, because compilers may do either."""
    if FEATURES.get("fma", True):
        return call(builder, f"fma.v{_LANES}f32", _FLOATS, a, b, c)
    return _add(builder, c, builder.fmul(a, b, flags=_IN_ORDER))


def _add(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b, flags=_IN_ORDER)


def _shuffle(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(order)), order))


def _concatenate(builder: Any, parts: list[Any]) -> Any:
    """Short vectors as one."""
    while len(parts) > 1:
        order = list(range(2 * parts[0].type.count))
        parts = [_shuffle(builder, *parts[n : n + 2], order) for n in range(0, len(parts), 2)]
    return parts[0]


def _shuffle_fours(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    """Elements of a (0 to 3) and of b (4 to 7), chosen alike in each four lanes."""
    lanes = [start + lane % 4 + lane // 4 * _LANES for start in range(0, _LANES, 4) for lane in order]
    return _shuffle(builder, a, b, lanes)


def _four_columns(builder: Any, rows: list[Any], column: Any) -> list[Any]:
    """Four columns from `column` on of _LANES rows."""
    fours = [builder.load(_vector(builder, row, column, _FOUR), align=4) for row in rows]
    a, b, c, d = (_concatenate(builder, fours[n::4]) for n in range(4))
    low, high = [0, 4, 1, 5], [2, 6, 3, 7]
    ab, cd = _shuffle_fours(builder, a, b, low), _shuffle_fours(builder, c, d, low)
    ab_after, cd_after = _shuffle_fours(builder, a, b, high), _shuffle_fours(builder, c, d, high)
    return [
        _shuffle_fours(builder, left, right, order)
        for left, right in ((ab, cd), (ab_after, cd_after))
        for order in ([0, 1, 4, 5], [2, 3, 6, 7])
    ]


def _weights(builder: Any, w: Any, columns: Any, rows: Any) -> list[Any]:
    """The starts of _LANES rows; from `rows` on the last row is repeated."""
    last, bases = builder.sub(rows, word(1)), []
    for n in range(_LANES):
        row = builder.select(builder.icmp_signed("<", word(n), rows), word(n), last)
        bases.append(builder.gep(_pointer(builder, w), [builder.mul(row, columns)]))
    return bases


def _for_columns(
    builder: Any,
    bases: list[Any],
    start: Any,
    end: Any,
    use: Callable[[Any, Any], None],
    ahead: Callable[[Any], None] | None = None,
) -> None:
    """Call `use` to emit code for columns `start` to `end` of _LANES rows of weights, with a vector per column and its
    index. `ahead` is called before each line of columns with the first of them.
    """
    count = builder.sdiv(builder.sub(end, start), word(_STEP))
    full_end = builder.add(start, builder.mul(count, word(_STEP)))
    with cgutils.for_range_slice(builder, start, full_end, word(_STEP)) as (column, _):
        if ahead is not None:
            ahead(column)
        for four in range(0, _STEP, 4):
            here = builder.add(column, word(four))
            for n, weights in enumerate(_four_columns(builder, bases, here)):
                use(weights, builder.add(here, word(n)))
    with cgutils.for_range_slice(builder, full_end, end, word(1)) as (column, _):
        weights = ir.Constant(_FLOATS, ir.Undefined)
        for n, base in enumerate(bases):
            weight = builder.load(builder.gep(base, [column]))
            weights = builder.insert_element(weights, weight, ir.Constant(_I32, n))
        use(weights, column)


def _prefetch_rows(builder: Any, w: Any, bases: list[Any], columns: Any, column: Any) -> None:
    """Prefetch as many weights as a line of each row has, which are needed soon.

    The processor's prefetcher follows rows that fill pages; weights are prefetched a little before that. Several
    shorter rows share a page, which it does not follow, so the rows after these are prefetched in memory order.
    """
    short = builder.icmp_signed("<", columns, word(_PAGE // 4))
    with builder.if_else(short) as (in_order, by_row):
        with in_order:
            start = builder.mul(builder.add(columns, column), word(_LANES))
            first_line = builder.gep(_pointer(builder, w), [start])
            for n in range(_LANES):
                prefetch(builder, builder.gep(first_line, [word(LINE // 4 * n)]), cache=2)
        with by_row:
            soon = builder.add(column, word(_AHEAD))
            after = builder.add(soon, builder.mul(columns, word(_LANES - 1)))
            soon = builder.select(builder.icmp_signed("<", soon, columns), soon, after)
            for base in bases:
                prefetch(builder, builder.gep(base, [soon]))


def _sums(builder: Any, count: int) -> list[Any]:
    sums = [cgutils.alloca_once(builder, _FLOATS) for _ in range(count)]
    for total in sums:
        builder.store(constant(_FLOATS, 0.0), total)
    return sums


def _add_to_outputs(builder: Any, sums: list[Any], outputs: list[Any], start: Any) -> None:
    """Add the sums of the columns from `start` on to the outputs of earlier columns."""
    first = builder.icmp_signed("==", start, word(0))
    with builder.if_else(first) as (starts, goes_on):
        with starts:
            for total, output in zip(sums, outputs):
                builder.store(builder.load(total), output, align=4)
        with goes_on:
            before = [builder.load(output, align=4) for output in outputs]  # load all first, because outputs may alias
            for total, output, old in zip(sums, outputs, before):
                builder.store(_add(builder, old, builder.load(total)), output, align=4)


def _rows(builder: Any, base: Any, stride: Any, count: int) -> list[Any]:
    addresses = (builder.add(base, builder.mul(stride, word(n))) for n in range(count))
    return [_pointer(builder, address) for address in addresses]


def _emit_few(builder: Any, count: int, args: Any) -> None:
    w, rows, columns, block, x, stride, out = args
    weights, inputs = _weights(builder, w, columns, rows), _rows(builder, x, stride, count)
    outputs = [_vector(builder, base, word(0)) for base in _rows(builder, out, word(LINE), count)]
    with cgutils.for_range_slice(builder, word(0), columns, block) as (start, _):
        sums = _sums(builder, count)

        def use(weights: Any, column: Any) -> None:
            for base, total in zip(inputs, sums):
                number = broadcast(builder, builder.load(builder.gep(base, [column])), _FLOATS)
                builder.store(_multiply_add(builder, weights, number, builder.load(total)), total)

        end = builder.add(start, block)
        end = builder.select(builder.icmp_signed("<", end, columns), end, columns)
        _for_columns(builder, weights, start, end, use, partial(_prefetch_rows, builder, w, weights, columns))
        _add_to_outputs(builder, sums, outputs, start)


@intrinsic
def _few(typing: Any, count: Any, w: Any, rows: Any, columns: Any, block: Any, x: Any, stride: Any, out: Any) -> Any:
    """Products of _LANES rows of weights with up to FEW input rows."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit_switch(builder, args[0], {n: partial(_emit_few, builder, n, args[1:]) for n in range(1, FEW + 1)})
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), generate


@intrinsic
def _transpose(typing: Any, w: Any, rows: Any, columns: Any, start: Any, end: Any, panel: Any) -> Any:
    """Columns `start` to `end` of _LANES rows of weights, a line of the panel each."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        w, rows, columns, start, end, panel = args
        base = _pointer(builder, panel)

        def use(weights: Any, column: Any) -> None:
            line = builder.mul(builder.sub(column, start), word(TILE))
            builder.store(weights, _vector(builder, base, line), align=4)

        _for_columns(builder, _weights(builder, w, columns, rows), start, end, use)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate


@intrinsic
def _prefetch_line(typing: Any, address: Any) -> Any:
    """Prefetch a line of memory."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        prefetch(builder, builder.inttoptr(args[0], _I8.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64), generate


def _emit_many(builder: Any, count: int, args: Any) -> None:
    *panels, x, stride, columns, start = args[:6]
    outs = args[6:]
    inputs, sums = _rows(builder, x, stride, count), _sums(builder, count * _ABREAST * _PARTS)
    bases = [_pointer(builder, panel) for panel in panels[:_ABREAST]]
    with cgutils.for_range(builder, columns) as loop:
        line = builder.mul(loop.index, word(TILE))
        offsets = [builder.add(line, word(_LANES * part)) for part in range(_PARTS)]
        weights = [builder.load(_vector(builder, base, at), align=4) for base in bases for at in offsets]
        for n, row in enumerate(inputs):
            number = broadcast(builder, builder.load(builder.gep(row, [loop.index])), _FLOATS)
            for weight, total in zip(weights, sums[n * len(weights) : (n + 1) * len(weights)]):
                builder.store(_multiply_add(builder, weight, number, builder.load(total)), total)
    lines = [_rows(builder, out, word(LINE), count) for out in outs[:_ABREAST]]
    outputs = [
        _vector(builder, lines[tile][n], word(_LANES * part))
        for n in range(count)
        for tile in range(_ABREAST)
        for part in range(_PARTS)
    ]
    _add_to_outputs(builder, sums, outputs, start)


@intrinsic
def _many(
    typing: Any,
    count: Any,
    panel: Any,
    other_panel: Any,
    x: Any,
    stride: Any,
    columns: Any,
    start: Any,
    out: Any,
    other_out: Any,
) -> Any:
    """Products of two panels, or the first if _ABREAST is 1, with `count` input rows, added to those of the columns
    before `start` at `out` and `other_out`.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        counts = range(min(many // -(-many // _ROWS) for many in range(FEW + 1, MANY + 1)), _ROWS + 1)
        emit_switch(builder, args[0], {n: partial(_emit_many, builder, n, args[1:]) for n in counts})
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), generate


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
