"""Products of fp32 weights, as they lie in memory, with rows of numbers.

A block of a few rows of weights is multiplied with a few rows of numbers at once, so that each number that comes from
memory is used several times. Every product is summed in the same order whatever the block is: a row of numbers does
not depend on its neighbours.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils

from headway.engine.machine import _F32, _I8, _I32, F32, compiled, f32, intrinsic
from headway.engine.vectors import call_for

_FULL = bool(binding.get_host_cpu_features().get("avx512f"))
_LANES = 16 if _FULL else 8
_NUMBERS = ir.VectorType(_F32, _LANES)
WEIGHTS = 4  # rows of weights of a block
NUMBERS = 6 if _FULL else 3  # and of numbers, for whose products there are registers
PLAIN_ROWS = 24  # of numbers, that a tile of weights is multiplied with before the next one


def _shuffled(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(order)), order))


def _pairs(builder: Any, a: Any, b: Any) -> Any:
    """The sums of neighbours, of four lanes of a and then of four of b at a time."""
    orders = [
        [start + place for start in range(0, _LANES, 4) for place in (odd, 2 + odd, _LANES + odd, _LANES + 2 + odd)]
        for odd in (0, 1)
    ]
    return builder.fadd(*(_shuffled(builder, a, b, order) for order in orders))


def _four_sums(builder: Any, vectors: list[Any]) -> Any:
    """The sum of each of four vectors."""
    found = _pairs(builder, _pairs(builder, *vectors[:2]), _pairs(builder, *vectors[2:]))
    while found.type.count > 4:
        half = found.type.count // 2
        parts = (_shuffled(builder, found, found, list(range(start, start + half))) for start in (0, half))
        found = builder.fadd(*parts)
    return found


def _block(rows: int, count: int) -> Any:
    """out[k, r] = weights[r] . numbers[k], for `rows` rows of weights and `count` of numbers. Strides are in bytes."""

    @intrinsic
    def dots(typing: Any, w: Any, w_stride: Any, x: Any, x_stride: Any, columns: Any, out: Any, out_stride: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            word = args[0].type
            number = lambda value: ir.Constant(word, value)  # noqa: E731

            def pointers(base: Any, stride: Any, many: int) -> list[Any]:
                places = (builder.add(base, builder.mul(stride, number(n))) for n in range(many))
                return [builder.inttoptr(place, _F32.as_pointer()) for place in places]

            weights, numbers = pointers(args[0], args[1], rows), pointers(args[2], args[3], count)
            zero = ir.Constant(_NUMBERS, [0.0] * _LANES)
            sums = [[cgutils.alloca_once_value(builder, zero) for _ in weights] for _ in numbers]

            def load(base: Any, offset: Any) -> Any:
                found = builder.load(builder.bitcast(builder.gep(base, [offset]), _NUMBERS.as_pointer()))
                found.align = 4
                return found

            with cgutils.for_range(builder, builder.sdiv(args[4], number(_LANES))) as loop:
                start = builder.mul(loop.index, number(_LANES))
                found = [load(base, start) for base in weights]
                if count > 1:  # the next block's, as little is under way at once here
                    for base in weights:
                        here = builder.ptrtoint(builder.gep(base, [start]), word)
                        ahead = builder.add(here, builder.mul(args[1], number(rows)))
                        call_for(builder, builder.inttoptr(ahead, _I8.as_pointer()))
                for base, totals in zip(numbers, sums):
                    other = load(base, start)
                    for weight, total in zip(found, totals):
                        product = builder.fmul(weight, other, flags=("contract",))
                        builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
            done = builder.mul(builder.sdiv(args[4], number(_LANES)), number(_LANES))
            for k, totals in enumerate(sums):
                vectors = [builder.load(totals[r if r < rows else 0]) for r in range(WEIGHTS)]
                found = _four_sums(builder, vectors)
                place = builder.add(args[5], builder.mul(args[6], number(k)))
                for r in range(rows):
                    end = cgutils.alloca_once_value(builder, builder.extract_element(found, ir.Constant(_I32, r)))
                    with cgutils.for_range(builder, builder.sub(args[4], done)) as loop:
                        offset = builder.add(done, loop.index)
                        left, right = (builder.load(builder.gep(base, [offset])) for base in (weights[r], numbers[k]))
                        builder.store(builder.fadd(builder.load(end), builder.fmul(left, right)), end)
                    target = builder.inttoptr(builder.add(place, number(4 * r)), _F32.as_pointer())
                    builder.store(builder.load(end), target)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return dots


_BLOCKS = {(rows, count): _block(rows, count) for rows in (1, WEIGHTS) for count in range(1, NUMBERS + 1)}
_four_full, _one_full = _BLOCKS[WEIGHTS, NUMBERS], _BLOCKS[1, NUMBERS]
_four_three, _four_two, _four_one = (_BLOCKS[WEIGHTS, count] for count in (3, 2, 1))
_one_three, _one_two, _one_one = (_BLOCKS[1, count] for count in (3, 2, 1))


@compiled
def _of_four(w: int, w_stride: int, x: int, stride: int, columns: int, out: int, step: int, count: int) -> None:
    k = 0
    while k + NUMBERS <= count:
        _four_full(w, w_stride, x + k * stride, stride, columns, out + k * step, step)
        k += NUMBERS
    if k + 3 <= count:
        _four_three(w, w_stride, x + k * stride, stride, columns, out + k * step, step)
        k += 3
    if k + 2 <= count:
        _four_two(w, w_stride, x + k * stride, stride, columns, out + k * step, step)
        k += 2
    if k < count:
        _four_one(w, w_stride, x + k * stride, stride, columns, out + k * step, step)


@compiled
def _of_one(w: int, w_stride: int, x: int, stride: int, columns: int, out: int, step: int, count: int) -> None:
    k = 0
    while k + NUMBERS <= count:
        _one_full(w, w_stride, x + k * stride, stride, columns, out + k * step, step)
        k += NUMBERS
    if k + 3 <= count:
        _one_three(w, w_stride, x + k * stride, stride, columns, out + k * step, step)
        k += 3
    if k + 2 <= count:
        _one_two(w, w_stride, x + k * stride, stride, columns, out + k * step, step)
        k += 2
    if k < count:
        _one_one(w, w_stride, x + k * stride, stride, columns, out + k * step, step)


@compiled
def dots(w: int, rows: int, columns: int, x: int, stride: int, out: int, step: int, count: int) -> None:
    """The products of `rows` neighbouring rows of weights with `count` rows of numbers, each at out + k step + 4 r."""
    size, r = 4 * columns, 0
    while r + WEIGHTS <= rows:
        _of_four(w + r * size, size, x, stride, columns, out + 4 * r, step, count)
        r += WEIGHTS
    while r < rows:
        _of_one(w + r * size, size, x, stride, columns, out + 4 * r, step, count)
        r += 1


@compiled
def dot(w: int, x: int, columns: int, room: int) -> F32:
    """The product of two rows; `room` has a number's bytes."""
    _one_one(w, 4 * columns, x, 0, columns, room, 0)
    return f32(room)[0]
