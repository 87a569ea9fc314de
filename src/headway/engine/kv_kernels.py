"""Kernels over a block of keys and values: several query heads share each load.

Within a layer a block has, for each group, keys as [K, BLOCK], so that scores of neighbouring positions are computed
together, and values as [BLOCK, V]: in fp32, or in fp16, widened on load, so that all sums are in fp32. `int8_keys`
describes the layout in int8.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

from llvmlite import ir

from headway.engine.fp16 import widen
from headway.engine.machine import _F32, _I16, cgutils, compiled, intrinsic, types
from headway.engine.operations import BLOCK, CHUNK
from headway.engine.tiles import FP32, INT8
from headway.engine.vectors import STREAMED, broadcast, constant, emit_switch, multiply_add, prefetch, word

FP16 = 3  # in addition to the kinds of weights
CACHE_DTYPES: dict[str, int] = {"fp32": FP32, "fp16": FP16, "int8": INT8}
HEADS = 4  # heads computed at once
_LANES = 16
_WIDE = ir.VectorType(_F32, _LANES)
_PARTS = 2  # vectors per head computed at once
_COLUMNS = _PARTS * _LANES
_LINE = 64  # bytes per cache line
_KINDS = {FP32: _F32, FP16: _I16}
_BYTES = {FP32: 4, FP16: 2}  # per element


def block_bytes(dtype: int, groups: int, keys: int, values: int) -> int:
    """Bytes of a layer whose keys and values have these sizes per group."""
    return groups * (key_bytes(dtype, keys) + value_bytes(dtype, values) + (8 * BLOCK if dtype == INT8 else 0))


@compiled
def key_bytes(dtype: int, size: int) -> int:
    """Bytes of a group's keys in a block; in int8 features are in groups of four."""
    if dtype == INT8:
        return (size + 3) // 4 * 4 * BLOCK
    return (2 if dtype == FP16 else 4) * size * BLOCK


@compiled
def value_bytes(dtype: int, size: int) -> int:
    if dtype == INT8:
        return BLOCK * size
    return (2 if dtype == FP16 else 4) * BLOCK * size


def _at(builder: Any, base: Any, offset: Any, kind: ir.VectorType = _WIDE) -> Any:
    return builder.bitcast(builder.gep(base, [offset]), kind.as_pointer())


def _load(builder: Any, dtype: int, base: Any, offset: Any, kind: ir.VectorType = _WIDE) -> Any:
    """Elements from `offset` on, widened to fp32."""
    loaded = builder.load(_at(builder, base, offset, ir.VectorType(_KINDS[dtype], kind.count)), align=_BYTES[dtype])
    return loaded if dtype == FP32 else widen(builder, loaded)


def _multiply_add(builder: Any, total: Any, a: Any, b: Any) -> None:
    builder.store(multiply_add(builder, a, b, builder.load(total)), total)


def _totals(builder: Any, heads: int, parts: int, kind: ir.VectorType = _WIDE) -> list[list[Any]]:
    """Accumulators of zero: `parts` vectors per head."""
    totals = [[cgutils.alloca_once(builder, kind) for _ in range(parts)] for _ in range(heads)]
    for total in (total for head_totals in totals for total in head_totals):
        builder.store(constant(kind, 0.0), total)
    return totals


def _emit_scores(builder: Any, dtype: int, heads: int, parts: int, args: Any) -> None:
    """`scores` for one dtype and number of heads and of vectors of positions."""
    q, keys, out, size, ahead = args
    query, y = (builder.inttoptr(arg, _F32.as_pointer()) for arg in (q, out))
    k, called = (builder.inttoptr(arg, _KINDS[dtype].as_pointer()) for arg in (keys, ahead))
    queries = [builder.gep(query, [builder.mul(size, word(h))]) for h in range(heads)]
    totals = _totals(builder, heads, parts)
    with cgutils.for_range(builder, size) as loop:
        offsets = [builder.add(builder.mul(loop.index, word(BLOCK)), word(_LANES * part)) for part in range(parts)]
        loaded = [_load(builder, dtype, k, offset) for offset in offsets]
        for query_row, head_totals in zip(queries, totals):
            factor = broadcast(builder, builder.load(builder.gep(query_row, [loop.index])), _WIDE)
            for total, vector in zip(head_totals, loaded):
                _multiply_add(builder, total, vector, factor)
        for offset in offsets[:: _LINE // (_LANES * _BYTES[dtype])]:
            prefetch(builder, builder.gep(called, [offset]), STREAMED)
    for h, head_totals in enumerate(totals):
        for part, total in enumerate(head_totals):
            builder.store(builder.load(total), _at(builder, y, word(h * CHUNK + _LANES * part)), align=4)


def _emit_weigh(builder: Any, dtype: int, heads: int, args: Any) -> None:
    """`weigh` for one dtype and number of heads: features in pairs of vectors, then by eight, then one by one."""
    weights, rescales, first_position, end, near, far, ahead_near, ahead_far, size, out, step = args
    w, rescale, y = (builder.inttoptr(address, _F32.as_pointer()) for address in (weights, rescales, out))
    blocks = [
        (0, *halves(builder, first_position, end, 0), near, ahead_near),
        (1, *halves(builder, first_position, end, 1), far, ahead_far),
    ]

    def columns(first: Any, lanes: int, parts: int) -> None:
        kind = ir.VectorType(_F32, lanes)
        totals = _totals(builder, heads, parts, kind)
        for number, low, high, values, ahead in blocks:
            v, called = (builder.inttoptr(address, _KINDS[dtype].as_pointer()) for address in (values, ahead))
            with cgutils.for_range_slice(builder, low, high, word(1)) as (t, _):
                start = builder.add(first, builder.mul(t, size))
                offsets = [builder.add(start, word(lanes * part)) for part in range(parts)]
                loaded = [_load(builder, dtype, v, slot, kind) for slot in offsets]
                for h, head_totals in enumerate(totals):
                    slot = builder.add(t, word(h * CHUNK + number * BLOCK))
                    weight = broadcast(builder, builder.load(builder.gep(w, [slot])), kind)
                    for total, vector in zip(head_totals, loaded):
                        _multiply_add(builder, total, vector, weight)
                for line in range(0, lanes * parts, _LINE // _BYTES[dtype]):
                    prefetch(builder, builder.gep(called, [builder.add(start, word(line))]), STREAMED)
        for h, head_totals in enumerate(totals):
            row = builder.add(first, builder.mul(step, word(h)))
            rescaled = broadcast(builder, builder.load(builder.gep(rescale, [word(h)])), kind)
            for part, total in enumerate(head_totals):
                slot = _at(builder, y, builder.add(row, word(lanes * part)), kind)
                builder.store(
                    multiply_add(builder, builder.load(slot, align=4), rescaled, builder.load(total)), slot, align=4
                )

    done = word(0)
    for lanes, parts in ((_LANES, _PARTS), (8, 1), (1, 1)):
        step_of = word(lanes * parts)
        full_size = builder.mul(builder.sdiv(size, step_of), step_of)
        with cgutils.for_range_slice(builder, done, full_size, step_of) as (first, _):
            columns(first, lanes, parts)
        done = full_size


def halves(builder: Any, start: Any, end: Any, number: int) -> tuple[Any, Any]:
    """The part of positions `start` to `end` of a chunk in its first (0) or second (1) block, relative to the block."""
    zero, block = word(0), word(BLOCK)

    def within(position: Any) -> Any:
        position = builder.sub(position, ir.Constant(start.type, number * BLOCK))
        position = builder.select(builder.icmp_signed("<", position, zero), zero, position)
        return builder.select(builder.icmp_signed(">", position, block), block, position)

    return within(start), within(end)


@intrinsic
def scores(
    typing: Any, dtype: Any, heads: Any, q: Any, keys: Any, out: Any, size: Any, visible: Any, ahead: Any
) -> Any:
    """out[h, t] = sum over d of q[h, d] keys[d, t], for up to HEADS heads, features d up to `size`, and positions t of
    the block: all, or the first half if no more are `visible`. `dtype` is FP32 or FP16. Rows of `out` are CHUNK floats
    apart.

    Prefetches as many keys at `ahead`: blocks are far apart and too short for the processor's prefetcher.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        dtype, heads, q, keys, out, size, visible, ahead = args
        cases = {
            (kind * (HEADS + 1) + count) * _PARTS + parts - 1: partial(
                _emit_scores, builder, kind, count, parts, (q, keys, out, size, ahead)
            )
            for kind, count, parts in product(_KINDS, range(1, HEADS + 1), range(1, _PARTS + 1))
        }
        second_half = builder.zext(builder.icmp_signed(">", visible, word(_LANES)), heads.type)
        both = builder.add(builder.mul(dtype, word(HEADS + 1)), heads)
        emit_switch(builder, builder.add(builder.mul(both, word(_PARTS)), second_half), cases)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), generate


@intrinsic
def weigh(
    typing: Any, dtype: Any, heads: Any, weights: Any, rescales: Any, start: Any, end: Any, near: Any, far: Any,
    ahead_near: Any, ahead_far: Any, size: Any, out: Any, step: Any,
) -> Any:  # fmt: skip
    """out[h, d] = rescale[h] out[h, d] + sum over t from `start` to `end` of weights[h, t] values[t, d], for a chunk
    whose first values are at `near` and others at `far`. Weights of heads are CHUNK apart, rows of `out` `step` floats.

    Prefetches values at `ahead_near` and `ahead_far`.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        dtype, heads, *operands = args
        cases = {
            kind * (HEADS + 1) + count: partial(_emit_weigh, builder, kind, count, operands)
            for kind, count in product(_KINDS, range(1, HEADS + 1))
        }
        emit_switch(builder, builder.add(builder.mul(dtype, word(HEADS + 1)), heads), cases)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 13), generate
