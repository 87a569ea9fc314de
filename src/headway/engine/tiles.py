"""Products of int8 or int4 weights with int8 input rows, 16 weight rows at a time.

Quantised matrices are stored in tiles of TILE rows and GROUP columns, with a scale per row of a tile. A tile has a line
for every four columns: four bytes of each of its 16 rows, so that one instruction multiplies a line with four inputs,
and the sums of 16 rows stay separate. An int8 tile has 16 lines. An int4 tile has 8, of which line i holds columns 4i
to 4i + 3 in the low halves of its bytes and columns 32 + 4i to 32 + 4i + 3 in the high ones, each plus 8. Processors
multiply unsigned with signed bytes, so weights are shifted by 128 or 8, and a correction per group of inputs cancels
the shift.

Integer sums of a group are exact and the groups of a row are added in order, so a row's result is the same to the last
bit next to any number of other rows, with any instruction set.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir

from headway.engine.machine import (
    _F32,
    _I8,
    _I16,
    _I32,
    INSTRUCTIONS,
    WIDE,
    cgutils,
    compiled,
    intrinsic,
    types,
)
from headway.engine.vectors import (
    AHEAD,
    STREAMED,
    broadcast,
    call,
    constant,
    emit_switch,
    fold_halves,
    multiply_add,
    pointer,
    prefetch,
    word,
)

FP32, INT8, INT4 = 0, 1, 2
GROUP, TILE = 64, 16  # columns and rows of a tile
LINES8, LINES4 = GROUP // 4, GROUP // 8
LINE = 4 * TILE  # bytes
TILE8, TILE4 = LINES8 * LINE, LINES4 * LINE
# Shift of weights; AVX2 multiplies absolute values instead, because its sums of 16 bits could overflow.
SHIFT8 = 128 if INSTRUCTIONS == "vnni" else 0
SHIFT4 = 8
LANES = 16 if WIDE else 8  # sums in a register
_PARTS = TILE // LANES
_SCALES_AHEAD = 8  # groups
BYTES, _WORDS = ir.VectorType(_I8, 4 * LANES), ir.VectorType(_I16, 2 * LANES)
SUMS, FLOATS = ir.VectorType(_I32, LANES), ir.VectorType(_F32, LANES)


def _load(builder: Any, base: Any, offset: Any, kind: ir.VectorType, align: int = 1) -> Any:
    loaded = builder.load(builder.bitcast(builder.gep(base, [offset]), kind.as_pointer()))
    loaded.align = align
    return loaded


def _multiply_bytes(builder: Any, total: Any, w: Any, x: Any, signed: bool) -> Any:
    """The four products of a lane one after the other, in 32-bit integers."""
    weights, inputs = builder.bitcast(w, SUMS), builder.bitcast(x, SUMS)
    for byte in range(4):
        up, down = constant(SUMS, 24 - 8 * byte), constant(SUMS, 24)
        code = (builder.ashr if signed else builder.lshr)(builder.shl(weights, up), down)
        total = builder.add(total, builder.mul(code, builder.ashr(builder.shl(inputs, up), down)))
    return total


def unsigned(builder: Any, total: Any, w: Any, x: Any) -> Any:
    """total + products of unsigned w with signed x, four per lane."""
    if INSTRUCTIONS == "portable":
        return _multiply_bytes(builder, total, w, x, False)
    if INSTRUCTIONS == "vnni":
        return call(builder, f"x86.avx512.vpdpbusd.{32 * LANES}", SUMS, total, w, x)
    pairs = call(builder, "x86.avx2.pmadd.ub.sw", _WORDS, w, x)
    return builder.add(total, call(builder, "x86.avx2.pmadd.wd", SUMS, pairs, constant(_WORDS, 1)))


def signed(builder: Any, totals: list[Any], w: Any, xs: list[Any]) -> list[Any]:
    """Each total + products of w with one of xs, bytes from -127 to 127, four per lane. With VNNI w is shifted by
    SHIFT8, which totals must compensate. Work that concerns only w is done once.
    """
    if INSTRUCTIONS == "portable":
        return [_multiply_bytes(builder, total, w, x, True) for total, x in zip(totals, xs)]
    if INSTRUCTIONS == "vnni":
        moved = builder.xor(w, constant(BYTES, 128))
        return [unsigned(builder, total, moved, x) for total, x in zip(totals, xs)]
    size = call(builder, "x86.avx2.psign.b", BYTES, w, w)
    signed_xs = [call(builder, "x86.avx2.psign.b", BYTES, x, w) for x in xs]
    return [unsigned(builder, total, size, x) for total, x in zip(totals, signed_xs)]


def _four_bytes(builder: Any, base: Any, line: Any) -> Any:
    """The four bytes of a line of inputs, in all lanes."""
    address = builder.gep(base, [builder.mul(line, word(4))])
    four = builder.load(builder.bitcast(address, _I32.as_pointer()))
    four.align = 4
    return builder.bitcast(broadcast(builder, four, SUMS), BYTES)


def _lines(builder: Any, kind: int, tile: Any, line: Any, part: int) -> list[tuple[int, Any]]:
    """One stored line of a tile as vectors of bytes, each with the line of inputs that it is multiplied with, relative
    to `line`.
    """
    start = builder.add(builder.mul(line, word(LINE)), word(4 * LANES * part))
    both = _load(builder, tile, start, BYTES)
    if kind == INT8:
        return [(0, both)]
    high = builder.bitcast(builder.lshr(builder.bitcast(both, _WORDS), constant(_WORDS, 4)), BYTES)
    return [(0, builder.and_(both, constant(BYTES, 15))), (LINES4, builder.and_(high, constant(BYTES, 15)))]


def _narrow(builder: Any, total: Any, lines: list[Any], fours: list[Any]) -> Any:
    """total + products of lines of int4 weights with fours of a row, by AVX2: two products with weights of at most 15
    sum to less than 2^12, so those of eight lines are added in 16 bits, twice as many at once.
    """
    words = [call(builder, "x86.avx2.pmadd.ub.sw", _WORDS, *both) for both in zip(lines, fours)]
    return builder.add(
        total, call(builder, "x86.avx2.pmadd.wd", SUMS, fold_halves(words, builder.add), constant(_WORDS, 1))
    )


def _multiply_lines(
    builder: Any, kind: int, narrow: bool, totals: list[Any], lines: list[Any], fours: list[list[Any]]
) -> list[Any]:
    """Each total + products of some lines with the four input bytes of its row that each line needs, in all lanes."""
    if narrow:
        return [_narrow(builder, total, lines, row_fours) for total, row_fours in zip(totals, fours)]
    for line, now in zip(lines, zip(*fours)):
        if kind == INT8:
            totals = signed(builder, totals, line, list(now))
        else:
            totals = [unsigned(builder, total, line, four) for total, four in zip(totals, now)]
    return totals


def _emit(builder: Any, kind: int, count: int, args: Any) -> None:
    """The code of `_vector_tile`, for one kind of weights."""
    size, lines = (TILE8, LINES8) if kind == INT8 else (TILE4, LINES4)
    narrow = kind == INT4 and INSTRUCTIONS == "avx2" and count > 1
    together = 4 if narrow else 1  # lines
    # For many rows one part after the other, because all their sums would not fit into registers.
    passes = [[part] for part in range(_PARTS)] if count > 2 or narrow else [list(range(_PARTS))]
    groups = args[6]
    weights = pointer(builder, args[0], _I8)
    ws, output = (pointer(builder, arg, _F32) for arg in (args[1], args[7]))
    xs = [pointer(builder, builder.add(args[2], builder.mul(args[3], word(b))), _I8) for b in range(count)]
    scales, corr = pointer(builder, args[4], _F32), pointer(builder, args[5], _I32)
    sums = [[cgutils.alloca_once_value(builder, constant(FLOATS, 0.0)) for _ in range(_PARTS)] for _ in xs]
    with cgutils.for_range(builder, groups) as loop:
        group = loop.index
        tile = builder.gep(weights, [builder.mul(group, word(size))])
        indices = [builder.add(builder.mul(groups, word(b)), group) for b in range(count)]
        firsts = [broadcast(builder, builder.load(builder.gep(corr, [index])), SUMS) for index in indices]
        totals = [[cgutils.alloca_once(builder, SUMS) for _ in range(_PARTS)] for _ in xs]
        inputs = [builder.gep(x, [builder.mul(group, word(GROUP))]) for x in xs]
        prefetch(builder, builder.gep(ws, [builder.mul(builder.add(group, word(_SCALES_AHEAD)), word(TILE))]))
        for parts in passes:
            for first, row in zip(firsts, totals):
                for part in parts:
                    builder.store(first, row[part])
            with cgutils.for_range_slice(builder, word(0), word(lines), word(together)) as (first, _):
                here = [builder.add(first, word(line)) for line in range(together)]
                for line in here if 0 in parts else ():
                    ahead = builder.add(builder.mul(line, word(LINE)), word(AHEAD))
                    # int4 is bound by arithmetic as much as by memory, and was slower from the second cache.
                    prefetch(builder, builder.gep(tile, [ahead]), STREAMED if kind == INT8 else 3)
                for part in parts:
                    line_vectors = [(line, *pair) for line in here for pair in _lines(builder, kind, tile, line, part)]
                    fours = [
                        [_four_bytes(builder, base, builder.add(line, word(ahead))) for line, ahead, _ in line_vectors]
                        for base in inputs
                    ]
                    now = [builder.load(row[part]) for row in totals]
                    after = _multiply_lines(builder, kind, narrow, now, [line for *_, line in line_vectors], fours)
                    for row, total in zip(totals, after):
                        builder.store(total, row[part])
            for part in parts:
                at = builder.add(builder.mul(group, word(TILE)), word(LANES * part))
                factor = _load(builder, ws, at, FLOATS, 4)
                for row, total, index in zip(sums, totals, indices):
                    scale = broadcast(builder, builder.load(builder.gep(scales, [index])), FLOATS)
                    products = builder.sitofp(builder.load(total[part]), FLOATS)
                    both = builder.fmul(factor, scale)
                    builder.store(multiply_add(builder, products, both, builder.load(row[part])), row[part])
    for b, row in enumerate(sums):
        for part, total in enumerate(row):
            at = builder.gep(output, [word(TILE * b + LANES * part)])
            builder.store(builder.load(total), builder.bitcast(at, FLOATS.as_pointer())).align = 4


def _vector_tile(count: int) -> Any:
    """Products of 16 rows of weights with `count` input rows, [count, 16] floats at `out`.

    `w` and `w_scales` belong to the first of `groups` consecutive tiles. Input rows are `stride` bytes apart, their
    scales and corrections 4 `groups`.
    """

    @intrinsic
    def products(
        typing: Any, kind: Any, w: Any, w_scales: Any, x: Any, stride: Any, x_scales: Any, corrections: Any,
        groups: Any, out: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cases = {kind: partial(_emit, builder, kind, count, args[1:]) for kind in (INT8, INT4)}
            emit_switch(builder, args[0], cases)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), generate

    return products


_one_row, _two_rows, _four_rows, _eight_rows = map(_vector_tile, (1, 2, 4, 8))


@compiled
def tile_products(
    kind: int, w: int, ws: int, x: int, stride: int, xs: int, corr: int, groups: int, out: int, count: int
) -> None:
    """Products of one tile's rows with `count` input rows, [count, 16] at `out`."""
    b, step = 0, 4 * groups
    while count - b >= 8:
        _eight_rows(kind, w, ws, x + b * stride, stride, xs + b * step, corr + b * step, groups, out + b * LINE)
        b += 8
    if count - b >= 4:
        _four_rows(kind, w, ws, x + b * stride, stride, xs + b * step, corr + b * step, groups, out + b * LINE)
        b += 4
    if count - b >= 2:
        _two_rows(kind, w, ws, x + b * stride, stride, xs + b * step, corr + b * step, groups, out + b * LINE)
        b += 2
    if count - b >= 1:
        _one_row(kind, w, ws, x + b * stride, stride, xs + b * step, corr + b * step, groups, out + b * LINE)
