"""Products of tiles with 16 or 32 rows of numbers at a time on a processor's matrix unit (Intel AMX).

The unit multiplies a block of 16 rows of 64 bytes with a tile, as it lies in memory, in one instruction. Its whole sums
are those of the other forms, and so are the results, to the last bit. Of 32 rows both blocks are multiplied with a tile
while it is in the unit, so that what the second costs passes while memory brings the next tile.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import numpy as np
from llvmlite import ir

from headway.engine.machine import _F32, _I8, _I32, _I64, HAS_MATRIX_UNIT, cgutils, compiled, intrinsic, types, u8
from headway.engine.tiles import GROUP, INT4, INT8, LINE, LINES4, TILE, TILE4, TILE8
from headway.engine.vectors import AHEAD, call, call_for, spread

BLOCK_ROWS = 16  # rows of numbers
BLOCKS = 2  # of them that a tile is multiplied with at once, at most
CONFIGURATION = 64  # bytes that describe the unit's registers
_ABREAST = 2  # groups: the unit multiplies one while the sums of the other are added
_EACH = (BLOCKS + 1) * TILE8  # bytes of scratch of a group: the whole sums of each block, and an int4 tile as bytes
ROOM = _EACH * _ABREAST
_REGISTERS = (BLOCKS + 2) * _ABREAST  # sums of each block, numbers, weights
_SUMS, _FLOATS, _BYTES = ir.VectorType(_I32, TILE), ir.VectorType(_F32, TILE), ir.VectorType(_I8, LINE)
_VOID = ir.VoidType()
_WORDS = ir.VectorType(ir.IntType(16), LINE // 2)


def _register(number: int) -> ir.Constant:
    return ir.Constant(_I8, number)


@intrinsic
def _configure(typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        call(builder, "x86.ldtilecfg", _VOID, builder.inttoptr(args[0], _I8.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def _release(typing: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        call(builder, "x86.tilerelease", _VOID)
        return context.get_dummy_value()

    return types.void(), generate


@compiled
def acquire(room: int) -> None:
    """Set up the unit for this thread; `room` has CONFIGURATION bytes."""
    if HAS_MATRIX_UNIT:
        description = u8(room)
        for i in range(CONFIGURATION):
            description[i] = np.uint8(0)
        description[0] = np.uint8(1)
        for register in range(_REGISTERS):
            description[16 + 2 * register] = np.uint8(LINE)
            description[48 + register] = np.uint8(BLOCK_ROWS)
        _configure(room)


@compiled
def release() -> None:
    if HAS_MATRIX_UNIT:
        _release()


def _at(builder: Any, base: Any, offset: Any, kind: ir.VectorType) -> Any:
    return builder.bitcast(builder.gep(base, [offset]), kind.as_pointer())


def _widen(builder: Any, tile: Any, room: Any) -> None:
    """An int4 tile as bytes from 0 to 15."""
    low = ir.Constant(_BYTES, [15] * LINE)
    for line in range(LINES4):
        both = builder.load(_at(builder, tile, ir.Constant(_I64, line * LINE), _BYTES))
        both.align = 1
        shifted = builder.lshr(builder.bitcast(both, _WORDS), ir.Constant(_WORDS, [4] * _WORDS.count))
        for start, half in ((0, both), (LINES4, builder.bitcast(shifted, _BYTES))):
            place = _at(builder, room, ir.Constant(_I64, (start + line) * LINE), _BYTES)
            builder.store(builder.and_(half, low), place).align = 64


def _scale(builder: Any, whole: Any, shift: Any, factor: Any, scale: Any, total: Any) -> None:
    """total += (whole sums + what the weights are moved up by) x scales of the weights x that of the numbers."""
    found = builder.load(whole)
    found.align = 64
    if shift is not None:
        found = builder.add(found, spread(builder, shift, _SUMS))
    scales = builder.fmul(factor, spread(builder, scale, _FLOATS))
    product = builder.fmul(builder.sitofp(found, _FLOATS), scales, flags=("contract",))
    builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)


def _products(kind: int, blocks: int) -> Any:
    """As `tiles.tile_products` for exactly so many blocks of rows; `room` is on a boundary of 64 bytes."""
    size = TILE8 if kind == INT8 else TILE4

    @intrinsic
    def products(
        typing: Any, w: Any, w_scales: Any, x: Any, stride: Any, x_scales: Any, corrections: Any, groups: Any,
        out: Any, room: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = (_I8, _F32, _I8, None, _F32, _I32, None, _F32, _I8)
            pointers = [kind and builder.inttoptr(arg, kind.as_pointer()) for arg, kind in zip(args, kinds)]
            weights, ws, numbers, _, scales, corr, _, result, whole = pointers
            stride, groups, number = args[3], args[6], partial(ir.Constant, _I64)
            zero = ir.Constant(_FLOATS, [0.0] * TILE)
            sums = [cgutils.alloca_once_value(builder, zero) for _ in range(blocks * BLOCK_ROWS)]
            rooms = [builder.gep(whole, [number(n * _EACH)]) for n in range(_ABREAST)]

            def multiply(group: Any, n: int) -> None:
                """The whole sums of a group, in a room of its own."""
                tile, widened = builder.gep(weights, [builder.mul(group, number(size))]), rooms[n]
                for line in range(0, size, LINE):
                    call_for(builder, builder.gep(tile, [number(AHEAD + line)]))
                if kind != INT8:
                    widened = builder.gep(rooms[n], [number(BLOCKS * TILE8)])
                    _widen(builder, tile, widened)
                column, place = _register(_REGISTERS - 1 - n), builder.gep(numbers, [builder.mul(group, number(GROUP))])
                call(builder, "x86.tileloadd64", _VOID, column, tile if kind == INT8 else widened, number(LINE))
                for block in range(blocks):
                    total, row = _register(BLOCKS * n + block), _register(BLOCKS * _ABREAST + (n + block) % _ABREAST)
                    call(builder, "x86.tilezero", _VOID, total)
                    call(builder, "x86.tileloadd64", _VOID, row, place, stride)
                    call(builder, "x86.tdpbssd" if kind == INT8 else "x86.tdpbsud", _VOID, total, row, column)
                    place = builder.gep(place, [builder.mul(stride, number(BLOCK_ROWS))])
                for block in range(blocks):
                    made = builder.gep(rooms[n], [number(block * TILE8)])
                    call(builder, "x86.tilestored64", _VOID, _register(BLOCKS * n + block), made, number(LINE))

            def add(group: Any, n: int) -> None:
                factor = builder.load(_at(builder, ws, builder.mul(group, number(TILE)), _FLOATS), align=4)
                for b, total in enumerate(sums):
                    place = builder.add(builder.mul(groups, number(b)), group)
                    shift = None if kind == INT8 else builder.load(builder.gep(corr, [place]))
                    scale = builder.load(builder.gep(scales, [place]))
                    _scale(builder, _at(builder, rooms[n], number(b * LINE), _SUMS), shift, factor, scale, total)

            with cgutils.for_range(builder, builder.sdiv(groups, number(_ABREAST))) as loop:
                first = builder.mul(loop.index, number(_ABREAST))
                for part, n in product((multiply, add), range(_ABREAST)):
                    part(builder.add(first, number(n)), n)
            done = builder.mul(builder.sdiv(groups, number(_ABREAST)), number(_ABREAST))
            with cgutils.for_range_slice(builder, done, groups, number(1)) as (group, _):
                multiply(group, 0)
                add(group, 0)
            for b, total in enumerate(sums):
                builder.store(builder.load(total), _at(builder, result, number(TILE * b), _FLOATS)).align = 4
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), generate

    return products


_eight_one, _eight_two, _four_one, _four_two = (
    _products(kind, blocks) for kind in (INT8, INT4) for blocks in range(1, BLOCKS + 1)
)


@compiled
def block_products(
    kind: int, w: int, ws: int, x: int, stride: int, xs: int, corr: int, groups: int, out: int, count: int, room: int
) -> None:
    """As `tiles.tile_products` for 16 or 32 rows of numbers, on a unit that `acquire` has set up."""
    if HAS_MATRIX_UNIT:
        if kind == INT8 and count == BLOCK_ROWS:
            _eight_one(w, ws, x, stride, xs, corr, groups, out, room)
        elif kind == INT8:
            _eight_two(w, ws, x, stride, xs, corr, groups, out, room)
        elif count == BLOCK_ROWS:
            _four_one(w, ws, x, stride, xs, corr, groups, out, room)
        else:
            _four_two(w, ws, x, stride, xs, corr, groups, out, room)
