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

from headway.engine.codegen import (
    AHEAD,
    F32,
    I8,
    I16,
    I32,
    STREAMED,
    Accumulator,
    Int,
    Value,
    add,
    call,
    constant,
    fold_halves,
    kernel,
    loop,
    switch,
    vector,
)
from headway.engine.machine import compiled
from headway.engine.processor import INSTRUCTIONS, WIDE

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
BYTES, _WORDS = vector(I8, 4 * LANES), vector(I16, 2 * LANES)
SUMS, FLOATS = vector(I32, LANES), vector(F32, LANES)


def _multiply_bytes(total: Value, w: Value, x: Value, signed: bool) -> Value:
    """The four products of a lane one after the other, in 32-bit integers."""
    weights, inputs = w.to(SUMS), x.to(SUMS)
    for byte in range(4):
        up = 24 - 8 * byte
        code = weights << up
        total = total + (code >> 24 if signed else code.shift_unsigned(24)) * ((inputs << up) >> 24)
    return total


def unsigned(total: Value, w: Value, x: Value) -> Value:
    """total + products of unsigned w with signed x, four per lane."""
    if INSTRUCTIONS == "portable":
        return _multiply_bytes(total, w, x, False)
    if INSTRUCTIONS == "vnni":
        return call(f"x86.avx512.vpdpbusd.{32 * LANES}", SUMS, total, w, x)
    pairs = call("x86.avx2.pmadd.ub.sw", _WORDS, w, x)
    return total + call("x86.avx2.pmadd.wd", SUMS, pairs, constant(_WORDS, 1))


def signed(totals: list[Value], w: Value, xs: list[Value]) -> list[Value]:
    """Each total + products of w with one of xs, bytes from -127 to 127, four per lane. With VNNI w is shifted by
    SHIFT8, which totals must compensate. Work that concerns only w is done once.
    """
    if INSTRUCTIONS == "portable":
        return [_multiply_bytes(total, w, x, True) for total, x in zip(totals, xs)]
    if INSTRUCTIONS == "vnni":
        moved = w ^ 128
        return [unsigned(total, moved, x) for total, x in zip(totals, xs)]
    size = call("x86.avx2.psign.b", BYTES, w, w)
    signed_xs = [call("x86.avx2.psign.b", BYTES, x, w) for x in xs]
    return [unsigned(total, size, x) for total, x in zip(totals, signed_xs)]


def _multiply_lines(
    kind: int, narrow: bool, totals: list[Value], lines: list[Value], fours: list[list[Value]]
) -> list[Value]:
    """Each total + products of some lines with the four input bytes of its row that each line needs, in all lanes.

    `narrow`, for int4 by AVX2: two products with weights of at most 15 sum to less than 2^12, so those of eight lines
    are added in 16 bits, twice as many at once.
    """
    if narrow:
        sums = []
        for total, row in zip(totals, fours):
            words = fold_halves([call("x86.avx2.pmadd.ub.sw", _WORDS, *both) for both in zip(lines, row)], add)
            sums.append(total + call("x86.avx2.pmadd.wd", SUMS, words, constant(_WORDS, 1)))
        return sums
    for line, now in zip(lines, zip(*fours)):
        if kind == INT8:
            totals = signed(totals, line, list(now))
        else:
            totals = [unsigned(total, line, four) for total, four in zip(totals, now)]
    return totals


def _emit(kind: int, count: int, args: tuple[Value, ...]) -> None:
    """The code of `_vector_tile`, for one kind of weights."""
    w, w_scales, x, stride, x_scales, corrections, groups, out = args
    size, lines = (TILE8, LINES8) if kind == INT8 else (TILE4, LINES4)
    narrow = kind == INT4 and INSTRUCTIONS == "avx2" and count > 1
    together = 4 if narrow else 1  # lines
    # For many rows one part after the other, because all their sums would not fit into registers.
    passes = [[part] for part in range(_PARTS)] if count > 2 or narrow else [list(range(_PARTS))]
    weights, factors, output = w.at(I8), w_scales.at(F32), out.at(F32)
    xs = [(x + stride * b).at(I8) for b in range(count)]
    scales, shifts = x_scales.at(F32), corrections.at(I32)
    sums = [[Accumulator(FLOATS, 0.0) for _ in range(_PARTS)] for _ in xs]
    for group in loop(groups):
        tile = weights + group * size
        indices = [groups * b + group for b in range(count)]
        firsts = [(shifts + index).load().broadcast(SUMS) for index in indices]
        totals = [[Accumulator(SUMS) for _ in range(_PARTS)] for _ in xs]
        inputs = [row + group * GROUP for row in xs]
        (factors + (group + _SCALES_AHEAD) * TILE).prefetch()
        for parts in passes:
            for start, row in zip(firsts, totals):
                for part in parts:
                    row[part].value = start
            for first in loop(0, lines, together):
                here = [first + line for line in range(together)]
                for line in here if 0 in parts else ():
                    # int4 is bound by arithmetic as much as by memory, and was slower from the second cache.
                    (tile + (line * LINE + AHEAD)).prefetch(STREAMED if kind == INT8 else 3)
                for part in parts:
                    line_vectors, needed = [], []  # bytes, and the line of inputs that they are multiplied with
                    for line in here:
                        both = (tile + (line * LINE + 4 * LANES * part)).load(BYTES, align=1)
                        needed.append((line, 0))
                        if kind == INT8:
                            line_vectors.append(both)
                            continue
                        high = both.to(_WORDS).shift_unsigned(4).to(BYTES)
                        line_vectors += [both & 15, high & 15]
                        needed.append((line, LINES4))
                    fours = [
                        [
                            (base + (line + after) * 4).load(I32, align=4).broadcast(SUMS).to(BYTES)
                            for line, after in needed
                        ]
                        for base in inputs
                    ]
                    now = [row[part].value for row in totals]
                    after = _multiply_lines(kind, narrow, now, line_vectors, fours)
                    for row, total in zip(totals, after):
                        row[part].value = total
            for part in parts:
                factor = (factors + (group * TILE + LANES * part)).load(FLOATS, align=4)
                for row, total, index in zip(sums, totals, indices):
                    scale = (scales + index).load().broadcast(FLOATS)
                    row[part].add_product(total[part].value.to(FLOATS, "sitofp"), factor * scale)
    for b, row in enumerate(sums):
        for part, total in enumerate(row):
            (output + (TILE * b + LANES * part)).store(total.value, align=4)


def _vector_tile(count: int) -> Any:
    """Products of 16 rows of weights with `count` input rows, [count, 16] floats at `out`.

    `w` and `w_scales` belong to the first of `groups` consecutive tiles. Input rows are `stride` bytes apart, their
    scales and corrections 4 `groups`.
    """

    @kernel
    def products(
        kind: Int, w: Int, w_scales: Int, x: Int, stride: Int, x_scales: Int, corrections: Int, groups: Int, out: Int
    ) -> None:
        args = (w, w_scales, x, stride, x_scales, corrections, groups, out)
        switch(kind, {form: partial(_emit, form, count, args) for form in (INT8, INT4)})

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
