"""Products of tiles with 16 or 32 input rows at a time on a processor's matrix unit (Intel AMX).

The unit multiplies a block of 16 rows of 64 bytes with a tile, as stored, in one instruction. Its integer sums equal
those of the other instruction sets, and so do the results, to the last bit. With 32 rows both blocks are multiplied
with a tile while it is in the unit, so the second hides behind the loading of the next tile. The unit's sums of a few
groups are buffered, then added for 16 rows, whose sums fit into registers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir

from headway.engine.machine import _F32, _I8, _I32, _I64, HAS_MATRIX_UNIT, cgutils, compiled, intrinsic, types, u8
from headway.engine.tiles import GROUP, INT4, INT8, LINE, LINES4, TILE, TILE4, TILE8
from headway.engine.vectors import AHEAD, broadcast, call, constant, multiply_add, prefetch, word

BLOCK_ROWS = 16  # input rows of a block
BLOCKS = 2  # maximum blocks that a tile is multiplied with at once
CONFIGURATION = 64  # bytes that describe the unit's registers
_GROUPS_HELD = 6  # groups whose integer sums are buffered before they are added
SCRATCH_BYTES = (_GROUPS_HELD * BLOCKS + 2) * TILE8  # buffered sums, and two int4 tiles as bytes
_REGISTERS, _WEIGHTS = 8, 7  # sums per block, inputs per block, weights; attention needs all
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
def acquire(buffer: int) -> None:
    """Configure the unit for this thread; `buffer` has CONFIGURATION bytes."""
    if HAS_MATRIX_UNIT:
        description = u8(buffer)
        for i in range(CONFIGURATION):
            description[i] = np.uint8(0)
        description[0] = np.uint8(1)
        for register in range(_REGISTERS):
            description[16 + 2 * register] = np.uint8(LINE)
            description[48 + register] = np.uint8(BLOCK_ROWS)
        _configure(buffer)


@compiled
def release() -> None:
    if HAS_MATRIX_UNIT:
        _release()


def _at(builder: Any, base: Any, offset: Any, kind: ir.VectorType) -> Any:
    return builder.bitcast(builder.gep(base, [offset]), kind.as_pointer())


def _widen(builder: Any, tile: Any, buffer: Any) -> None:
    """An int4 tile as bytes from 0 to 15."""
    low = constant(_BYTES, 15)
    for line in range(LINES4):
        both = builder.load(_at(builder, tile, word(line * LINE), _BYTES))
        both.align = 1
        shifted = builder.lshr(builder.bitcast(both, _WORDS), constant(_WORDS, 4))
        for start, half in ((0, both), (LINES4, builder.bitcast(shifted, _BYTES))):
            target = _at(builder, buffer, word((start + line) * LINE), _BYTES)
            builder.store(builder.and_(half, low), target).align = 64


def _group_buffer(builder: Any, buffer: Any, number: Any) -> Any:
    return builder.gep(buffer, [builder.mul(number, word(BLOCKS * TILE8))])


def _scale(builder: Any, sums: Any, shift: Any, factor: Any, scale: Any, total: Any) -> None:
    """total += (integer sums + shift of the weights) x scales of the weights x scale of the inputs."""
    values = builder.load(sums)
    values.align = 64
    if shift is not None:
        values = builder.add(values, broadcast(builder, shift, _SUMS))
    scales = builder.fmul(factor, broadcast(builder, scale, _FLOATS))
    builder.store(multiply_add(builder, builder.sitofp(values, _FLOATS), scales, builder.load(total)), total)


def _add(
    builder: Any, buffer: Any, count: Any, factors: Any, shifts: Any, scales: Any, groups: Any, outputs: list[Any]
) -> None:
    """Add the buffered integer sums of a block in `count` groups to those at `outputs`, in registers meanwhile."""
    sums = [cgutils.alloca_once(builder, _FLOATS) for _ in outputs]
    for output, total in zip(outputs, sums):
        builder.store(builder.load(output, align=4), total)
    with cgutils.for_range(builder, count) as loop:
        factor = builder.load(_at(builder, factors, builder.mul(loop.index, word(TILE)), _FLOATS), align=4)
        group_sums, here = _group_buffer(builder, buffer, loop.index), loop.index
        for row, total in enumerate(sums):
            shift = shifts and builder.load(builder.gep(shifts, [here]))
            scale = builder.load(builder.gep(scales, [here]))
            _scale(builder, _at(builder, group_sums, word(row * LINE), _SUMS), shift, factor, scale, total)
            here = builder.add(here, groups)
    for output, total in zip(outputs, sums):
        builder.store(builder.load(total), output).align = 4


def _products(kind: int, blocks: int) -> Any:
    """`tiles.tile_products` for exactly this many blocks of rows; `scratch` is aligned to 64 bytes."""
    size, name = (TILE8, "x86.tdpbssd") if kind == INT8 else (TILE4, "x86.tdpbsud")

    @intrinsic
    def products(
        typing: Any, w: Any, w_scales: Any, x: Any, stride: Any, x_scales: Any, corrections: Any, groups: Any,
        out: Any, scratch: Any, new: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = (_I8, _F32, _I8, None, _F32, _I32, None, _F32, _I8, None)
            pointers = [kind and builder.inttoptr(arg, kind.as_pointer()) for arg, kind in zip(args, kinds)]
            weights, ws, inputs, _, scales, corr, _, output_base, scratch_base, _ = pointers
            stride, groups, number = args[3], args[6], partial(ir.Constant, _I64)
            spare = builder.gep(scratch_base, [number(_GROUPS_HELD * BLOCKS * TILE8)])
            outputs = [_at(builder, output_base, number(TILE * row), _FLOATS) for row in range(blocks * BLOCK_ROWS)]
            for output in outputs:
                builder.store(constant(_FLOATS, 0.0), output).align = 4

            def multiply(group: Any, n: Any) -> None:
                """The integer sums of a group, in its buffer."""
                tile = widened = builder.gep(weights, [builder.mul(group, number(size))])
                with builder.if_then(args[9]):
                    for line in range(0, size, LINE):
                        prefetch(builder, builder.gep(tile, [number(AHEAD + line)]))
                if kind != INT8:
                    widened = builder.gep(spare, [builder.mul(builder.and_(n, number(1)), number(TILE8))])
                    _widen(builder, tile, widened)
                input_block = builder.gep(inputs, [builder.mul(group, number(GROUP))])
                group_sums = _group_buffer(builder, scratch_base, n)
                call(builder, "x86.tileloadd64", _VOID, _register(_WEIGHTS), widened, number(LINE))
                for block in range(blocks):
                    total, row = _register(block), _register(BLOCKS + block)
                    call(builder, "x86.tilezero", _VOID, total)
                    call(builder, "x86.tileloadd64", _VOID, row, input_block, stride)
                    call(builder, name, _VOID, total, row, _register(_WEIGHTS))
                    input_block = builder.gep(input_block, [builder.mul(stride, number(BLOCK_ROWS))])
                for block in range(blocks):
                    target = builder.gep(group_sums, [number(block * TILE8)])
                    call(builder, "x86.tilestored64", _VOID, _register(block), target, number(LINE))

            with cgutils.for_range_slice(builder, number(0), groups, number(_GROUPS_HELD)) as (first, _):
                remaining = builder.sub(groups, first)
                count = builder.select(
                    builder.icmp_signed("<", remaining, number(_GROUPS_HELD)), remaining, number(_GROUPS_HELD)
                )
                with cgutils.for_range(builder, count) as loop:
                    multiply(builder.add(first, loop.index), loop.index)
                for block in range(blocks):
                    block_sums = builder.gep(scratch_base, [number(block * TILE8)])
                    block_outputs = outputs[block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS]
                    row = builder.add(builder.mul(groups, number(block * BLOCK_ROWS)), first)
                    factors = builder.gep(ws, [builder.mul(first, number(TILE))])
                    shifts_and_scales = (None if kind == INT8 else builder.gep(corr, [row]), builder.gep(scales, [row]))
                    _add(builder, block_sums, count, factors, *shifts_and_scales, groups, block_outputs)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9, types.boolean), generate

    return products


_int8_one_block, _int8_two_blocks, _int4_one_block, _int4_two_blocks = (
    _products(kind, blocks) for kind in (INT8, INT4) for blocks in range(1, BLOCKS + 1)
)


@compiled
def block_products(
    kind: int, w: int, ws: int, x: int, stride: int, xs: int, corr: int, groups: int, out: int, count: int,
    scratch: int, new: bool,
) -> None:  # fmt: skip
    """`tiles.tile_products` for 16 or 32 input rows, on a unit that `acquire` has configured."""
    if HAS_MATRIX_UNIT:
        if kind == INT8 and count == BLOCK_ROWS:
            _int8_one_block(w, ws, x, stride, xs, corr, groups, out, scratch, new)
        elif kind == INT8:
            _int8_two_blocks(w, ws, x, stride, xs, corr, groups, out, scratch, new)
        elif count == BLOCK_ROWS:
            _int4_one_block(w, ws, x, stride, xs, corr, groups, out, scratch, new)
        else:
            _int4_two_blocks(w, ws, x, stride, xs, corr, groups, out, scratch, new)
