"""Products of fp32 weights, as they lie in memory, with rows of numbers.

A block of a few rows of weights is multiplied with a few rows of numbers at once, so that each number that comes from
memory is used several times. Every product is summed in the same order whatever the block is: a row of numbers does
not depend on its neighbours.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from headway.engine.machine import _F32, _I8, _I32, F32, FEATURES, cgutils, compiled, f32, intrinsic, types
from headway.engine.tiles import TILE
from headway.engine.vectors import call, call_for

_FULL = FEATURES.get("avx512f", False)
_LANES = 16 if _FULL else 8
_NUMBERS = ir.VectorType(_F32, _LANES)
WEIGHTS = 4  # rows of weights of a block
NUMBERS = 6 if _FULL else 3  # and of numbers, for whose products there are registers
PLAIN_ROWS = 24  # of numbers, that a tile of weights is multiplied with before the next one
_COLUMNS = 768  # at once, of so many rows of numbers that they stay near
_PARTIAL = 4 * _LANES  # bytes of a sum that is under way
DOT_ROOM = TILE * NUMBERS * _PARTIAL


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
    """out[k, r] = weights[r] . numbers[k], for `rows` rows of weights and `count` of numbers. Strides are in bytes.

    Of the columns those from `begin` to `end`, which is a multiple of the lanes, or all there are. What is not whole
    yet lies in `room`, and is taken up from there.
    """

    @intrinsic
    def dots(
        typing: Any, w: Any, w_stride: Any, x: Any, x_stride: Any, begin: Any, end: Any, columns: Any, out: Any,
        out_stride: Any, room: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            w, w_stride, x, x_stride, begin, end, columns, out, out_stride, room = args
            word = w.type
            number = lambda value: ir.Constant(word, value)  # noqa: E731

            def pointers(base: Any, stride: Any, many: int) -> list[Any]:
                places = (builder.add(base, builder.mul(stride, number(n))) for n in range(many))
                return [builder.inttoptr(place, _F32.as_pointer()) for place in places]

            def vector(base: Any, offset: Any) -> Any:
                return builder.bitcast(builder.gep(base, [offset]), _NUMBERS.as_pointer())

            weights, numbers = pointers(w, w_stride, rows), pointers(x, x_stride, count)
            zero = ir.Constant(_NUMBERS, [0.0] * _LANES)
            sums = [cgutils.alloca_once_value(builder, zero) for _ in range(rows * count)]
            partial = builder.inttoptr(room, _F32.as_pointer())
            places = [vector(partial, number(_LANES * n)) for n in range(rows * count)]
            with builder.if_then(builder.icmp_signed(">", begin, number(0)), likely=False):
                for place, total in zip(places, sums):
                    builder.store(builder.load(place, align=4), total)
            start = builder.sdiv(begin, number(_LANES))
            with cgutils.for_range_slice(builder, start, builder.sdiv(end, number(_LANES)), number(1)) as (index, _):
                here = builder.mul(index, number(_LANES))
                found = [builder.load(vector(base, here), align=4) for base in weights]
                if count > 1:  # the next block's, as little is under way at once here
                    for base in weights:
                        ahead = builder.ptrtoint(builder.gep(base, [here]), word)
                        ahead = builder.add(ahead, builder.mul(w_stride, number(rows)))
                        call_for(builder, builder.inttoptr(ahead, _I8.as_pointer()))
                for k, base in enumerate(numbers):
                    other = builder.load(vector(base, here), align=4)
                    for weight, total in zip(found, sums[k * rows : (k + 1) * rows]):
                        product = builder.fmul(weight, other, flags=("contract",))
                        builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
            with builder.if_else(builder.icmp_signed("<", end, columns), likely=False) as (goes_on, ends):
                with goes_on:
                    for place, total in zip(places, sums):
                        builder.store(builder.load(total), place, align=4)
                with ends:
                    for k, base in enumerate(numbers):
                        place = builder.add(out, builder.mul(out_stride, number(k)))
                        _finish(builder, sums[k * rows : (k + 1) * rows], weights, base, columns, place)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), generate

    return dots


def _finish(builder: Any, sums: list[Any], weights: list[Any], numbers: Any, columns: Any, out: Any) -> None:
    """Add up what the lanes hold and what is left of the columns, and store it: of one row of numbers."""
    number = lambda value: ir.Constant(columns.type, value)  # noqa: E731
    done = builder.mul(builder.sdiv(columns, number(_LANES)), number(_LANES))
    found = _four_sums(builder, [builder.load(sums[r if r < len(sums) else 0]) for r in range(WEIGHTS)])
    for r, base in enumerate(weights):
        total = cgutils.alloca_once_value(builder, builder.extract_element(found, ir.Constant(_I32, r)))
        builder.store(builder.extract_element(found, ir.Constant(_I32, r)), total)
        with cgutils.for_range(builder, builder.sub(columns, done)) as loop:
            offset = builder.add(done, loop.index)
            left, right = (builder.load(builder.gep(side, [offset])) for side in (base, numbers))
            # Fused in every block, as a compiler may or may not do.
            builder.store(call(builder, "fma.f32", _F32, left, right, builder.load(total)), total)
        builder.store(
            builder.load(total), builder.inttoptr(builder.add(out, number(4 * r)), _F32.as_pointer()), align=4
        )


_four_full, _one_full, _one_one = _block(WEIGHTS, NUMBERS), _block(1, NUMBERS), _block(1, 1)
_four_three, _four_two, _four_one = (_block(WEIGHTS, count) for count in (3, 2, 1))


@compiled
def _full(w: int, rows: int, x: int, stride: int, columns: int, out: int, step: int, room: int) -> None:
    """NUMBERS rows of numbers, which stay near while weights go by."""
    size, each = 4 * columns, WEIGHTS * NUMBERS * _PARTIAL
    for begin in range(0, columns, _COLUMNS):
        end = columns if columns - begin <= _COLUMNS else begin + _COLUMNS
        for n in range(rows // WEIGHTS):
            weights, to, partial = w + n * WEIGHTS * size, out + 4 * n * WEIGHTS, room + n * each
            _four_full(weights, size, x, stride, begin, end, columns, to, step, partial)
    for r in range(rows // WEIGHTS * WEIGHTS, rows):
        _one_full(w + r * size, size, x, stride, 0, columns, columns, out + 4 * r, step, room)


@compiled
def _few(w: int, rows: int, x: int, stride: int, columns: int, out: int, step: int, count: int, room: int) -> None:
    """Fewer rows of numbers, all of them with each block of weights, so that these come from memory once."""
    r, size = 0, 4 * columns
    while r + WEIGHTS <= rows:
        weights, to, k = w + r * size, out + 4 * r, 0
        if k + 3 <= count:
            _four_three(weights, size, x, stride, 0, columns, columns, to, step, room)
            k += 3
        if k + 2 <= count:
            _four_two(weights, size, x + k * stride, stride, 0, columns, columns, to + k * step, step, room)
            k += 2
        if k < count:
            _four_one(weights, size, x + k * stride, stride, 0, columns, columns, to + k * step, step, room)
        r += WEIGHTS
    while r < rows:
        for k in range(count):
            to = out + 4 * r + k * step
            _one_one(w + r * size, size, x + k * stride, stride, 0, columns, columns, to, step, room)
        r += 1


@compiled
def dots(w: int, rows: int, columns: int, x: int, stride: int, out: int, step: int, count: int, room: int) -> None:
    """The products of up to TILE neighbouring rows of weights with `count` rows of numbers, each at
    out + k step + 4 r. `room` has DOT_ROOM bytes.
    """
    k = 0
    while k + NUMBERS <= count:
        _full(w, rows, x + k * stride, stride, columns, out + k * step, step, room)
        k += NUMBERS
    if k < count:
        _few(w, rows, x + k * stride, stride, columns, out + k * step, step, count - k, room)


@compiled
def dot(w: int, x: int, columns: int, place: int) -> F32:
    """The product of two rows, which also lies at `place` afterwards."""
    _one_one(w, 0, x, 0, 0, columns, columns, place, 0, 0)
    return f32(place)[0]
