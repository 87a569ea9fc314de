"""Products of tiles with 16 or 32 input rows at a time on a processor's matrix unit (Intel AMX).

The unit multiplies a block of 16 rows of 64 bytes with a tile, as stored, in one instruction. Its integer sums equal
those of the other instruction sets, and so do the results, to the last bit. With 32 rows both blocks are multiplied
with a tile while it is in the unit, so the second hides behind the loading of the next tile. The unit's sums of a few
groups are buffered, then added for 16 rows, whose sums fit into registers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headway.engine.codegen import (
    AHEAD,
    F32,
    I8,
    I16,
    I32,
    VOID,
    Accumulator,
    Bool,
    Int,
    Value,
    call,
    constant,
    if_then,
    kernel,
    loop,
    vector,
    word,
)
from headway.engine.machine import compiled, u8
from headway.engine.processor import HAS_MATRIX_UNIT
from headway.engine.tiles import GROUP, INT4, INT8, LINE, LINES4, TILE, TILE4, TILE8

BLOCK_ROWS = 16  # input rows of a block
BLOCKS = 2  # maximum blocks that a tile is multiplied with at once
CONFIGURATION = 64  # bytes that describe the unit's registers
_GROUPS_HELD = 6  # groups whose integer sums are buffered before they are added
SCRATCH_BYTES = (_GROUPS_HELD * BLOCKS + 2) * TILE8  # buffered sums, and two int4 tiles as bytes
_REGISTERS, _WEIGHTS = 8, 7  # sums per block, inputs per block, weights; attention needs all
_SUMS, _FLOATS, _BYTES, _WORDS = vector(I32, TILE), vector(F32, TILE), vector(I8, LINE), vector(I16, LINE // 2)


def register(number: int) -> Value:
    return constant(I8, number)


def load_register(number: int, address: Value, stride: Value | int = LINE) -> None:
    """16 lines of memory, `stride` bytes apart."""
    call("x86.tileloadd64", VOID, register(number), address.at(I8), word(0).like(stride))


def store_register(number: int, address: Value) -> None:
    call("x86.tilestored64", VOID, register(number), address.at(I8), word(LINE))


@kernel
def _configure(address: Int) -> None:
    call("x86.ldtilecfg", VOID, address.at(I8))


@kernel
def _release() -> None:
    call("x86.tilerelease", VOID)


@compiled
def acquire(buffer: int) -> None:
    """Configure the unit for this thread; `buffer` has CONFIGURATION bytes."""
    if HAS_MATRIX_UNIT:
        description = u8(buffer)
        for i in range(CONFIGURATION):
            description[i] = np.uint8(0)
        description[0] = np.uint8(1)
        for number in range(_REGISTERS):
            description[16 + 2 * number] = np.uint8(LINE)
            description[48 + number] = np.uint8(BLOCK_ROWS)
        _configure(buffer)


@compiled
def release() -> None:
    if HAS_MATRIX_UNIT:
        _release()


def _add_groups(
    sums: Value, count: Value, factors: Value, shifts: Value | None, scales: Value, groups: Value, outputs: list[Value]
) -> None:
    """Add a block's buffered integer sums of `count` groups to the outputs, which are in registers meanwhile: (sums +
    shift of the weights) x scales of the weights x scale of the inputs.
    """
    totals = [Accumulator(_FLOATS, output.load(align=4)) for output in outputs]
    for group in loop(count):
        factor = (factors + group * TILE).load(_FLOATS, align=4)
        group_sums, here = sums + group * (BLOCKS * TILE8), group
        for row, total in enumerate(totals):
            shift = None if shifts is None else (shifts + here).load()
            scale, values = (scales + here).load(), (group_sums + row * LINE).load(_SUMS, align=64)
            if shift is not None:
                values = values + shift.broadcast(_SUMS)
            both = factor * scale.broadcast(_FLOATS)
            total.add_product(values.to(_FLOATS, "sitofp"), both)
            here = here + groups
    for output, total in zip(outputs, totals):
        output.store(total.value, align=4)


def _products(kind: int, blocks: int) -> Any:
    """`tiles.tile_products` for exactly this many blocks of rows; `scratch` is aligned to 64 bytes."""
    size, instruction = (TILE8, "x86.tdpbssd") if kind == INT8 else (TILE4, "x86.tdpbsud")

    @kernel
    def products(
        w: Int, w_scales: Int, x: Int, stride: Int, x_scales: Int, corrections: Int, groups: Int, out: Int,
        scratch: Int, new: Bool,
    ) -> None:  # fmt: skip
        weights, inputs, buffer = w.at(I8), x.at(I8), scratch.at(I8)
        factors, scales, shifts = w_scales.at(F32), x_scales.at(F32), corrections.at(I32)
        outputs = [(out.at(F32) + TILE * row).at(_FLOATS) for row in range(blocks * BLOCK_ROWS)]
        for output in outputs:
            output.store(constant(_FLOATS, 0.0), align=4)

        def multiply(group: Value, number: Value) -> None:
            """The integer sums of a group, in its buffer."""
            tile = widened = weights + group * size
            with if_then(new):
                for line in range(0, size, LINE):
                    (tile + (AHEAD + line)).prefetch()
            if kind != INT8:
                widened = buffer + _GROUPS_HELD * BLOCKS * TILE8 + (number & 1) * TILE8
                for line in range(LINES4):  # an int4 tile as bytes from 0 to 15
                    both = (tile + line * LINE).load(_BYTES, align=1)
                    high = both.to(_WORDS).shift_unsigned(4).to(_BYTES)
                    for start, half in ((0, both), (LINES4, high)):
                        (widened + (start + line) * LINE).store(half & 15, align=64)
            block_inputs, group_sums = inputs + group * GROUP, buffer + number * (BLOCKS * TILE8)
            load_register(_WEIGHTS, widened)
            for block in range(blocks):
                call("x86.tilezero", VOID, register(block))
                load_register(BLOCKS + block, block_inputs, stride)
                call(instruction, VOID, register(block), register(BLOCKS + block), register(_WEIGHTS))
                block_inputs = block_inputs + stride * BLOCK_ROWS
            for block in range(blocks):
                store_register(block, group_sums + block * TILE8)

        for first in loop(0, groups, _GROUPS_HELD):
            remaining = groups - first
            count = (remaining < _GROUPS_HELD).select(remaining, _GROUPS_HELD)
            for n in loop(count):
                multiply(first + n, n)
            for block in range(blocks):
                row = groups * (block * BLOCK_ROWS) + first
                _add_groups(
                    buffer + block * TILE8, count, factors + first * TILE, None if kind == INT8 else shifts + row,
                    scales + row, groups, outputs[block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS],
                )  # fmt: skip

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
