"""The compiled loops that execute programs, and the kernels of single instructions."""

from __future__ import annotations

from typing import Any

import numpy as np

from headway.engine.barrier import barrier
from headway.engine.cells import associate, cell, combine, link
from headway.engine.instructions import SIZE, Opcode
from headway.engine.int8_keys import padded_to_vectors, split_query, subtract_mean
from headway.engine.machine import F32, compiled, f32, i64, intrinsic, types
from headway.engine.operations import BLOCK, CHUNK, GATED_SHARED, at, exp, norm_row, share, share_rows
from headway.engine.paged_attention import (
    add_attend,
    attend_segment,
    fold,
    merge,
    prepare_head,
    query_bytes,
    segment_of,
    segment_start,
    segments_of,
    store_kv,
)
from headway.engine.products import multiply, quantise, unpack_row
from headway.engine.sampling_kernels import sample_batch
from headway.engine.softmax import clear_partial
from headway.engine.tiles import INT8

SHARING = 16  # tokens of one sequence, or rows of one encoder output, that attend together
_RECURRENT = int(Opcode.COMBINE)  # from here on, instructions of recurrent mixers and experts


def _operands(kind: Opcode) -> Any:
    """A reader of instructions: kernels read operands by name. `Sum(row).width` is a load from the address `row`."""

    @intrinsic
    def read(typing: Any, row: Any) -> Any:
        from headway.engine.compiler import Operands  # imports numba, which compiled code does not need

        return Operands(int(kind))(types.int64), lambda context, builder, signature, args: args[0]

    return read


Embed, Norm, Quantise, Multiply, Attend, Merge, Sum, _, Combine = map(_operands, list(Opcode)[:9])
Cell, Associate, Link, AddAttend, Route, Gather, Weigh, AttendDocuments, Batch = map(_operands, list(Opcode)[9:])


@compiled
def share_of(address: int, batch: int, thread: int, threads: int) -> tuple[int, int]:
    """A thread's rows of a result at `address`: all rows if that is in its scratch."""
    return share(batch, thread, threads) if address >= 0 else (0, batch)


@compiled
def _embed(op: Any, tokens: int, positions: int, batch: int, thread: int, threads: int) -> None:
    first, last = share(batch, thread, threads)
    for b in range(first, last):
        out = op.out + b * op.stride
        unpack_row(op.format, op.table, op.scales, i64(tokens)[b], op.width, np.float32(op.scale), out)
        if op.positions != 0:
            position = min(max(i64(positions)[b], 0) + op.offset, op.limit - 1)
            x, y = f32(op.positions + 4 * position * op.width), f32(out)
            for i in range(op.width):
                y[i] += x[i]


@compiled
def _norm(op: Any, batch: int, scratch: int, thread: int, threads: int) -> None:
    first, last = share_of(op.dst, batch, thread, threads)
    for b in range(first, last):
        src, dst = at(op.src, scratch) + b * op.src_stride, at(op.dst, scratch) + b * op.dst_stride
        norm_row(op.norm, src, dst, op.width, op.weight, op.bias, op.eps)


@compiled
def _quantise(op: Any, batch: int, scratch: int, thread: int, threads: int) -> None:
    first, last = share_of(op.q, batch, thread, threads)
    q, xs, corr = at(op.q, scratch), at(op.scales, scratch), at(op.corrections, scratch)
    quantise(op.format, at(op.src, scratch), op.stride, op.columns, q, xs, corr, first, last)


@compiled
def _store_token(op: Any, position: int, b: int, g: int, scratch: int) -> None:
    """Write the key and value of one token and one group."""
    heads, groups, size, half = op.heads, op.groups, op.size, op.half
    row, key = op.qkv + b * op.stride, at(op.scores, scratch)
    new, rotated_key = f32(row + 4 * (heads + g) * size), f32(key)
    for d in range(size):
        rotated_key[d] = new[d]
    cos, sin = op.cos + 4 * position * half, op.sin + 4 * position * half
    prepare_head(key, size, op.norm, op.k_weight, op.k_bias, op.eps, cos, sin, half)
    if op.mean != 0:
        rotation = op.rotations + 4 * padded_to_vectors(2 * half) * (position // CHUNK)
        subtract_mean(key, size, op.mean + 4 * g * size, rotation, half)
    block = i64(op.tables + 8 * b * op.table_step)[position // BLOCK] + op.layer + g * op.group_bytes
    store_kv(op.dtype, key, row + 4 * (heads + groups + g) * size, block, size, size, position % BLOCK)


@compiled
def _attend_run(
    op: Any, b: int, tokens: int, g: int, segment: int, follows: int, onwards: int, highest: int, scratch: int
) -> None:
    """One segment for the rows of a run and the heads of a group, whose queries are prepared: [tokens, heads, size + 2]
    at `spare`. Each row's part is then copied to its partial results, or folded into its sums.
    """
    heads, size, window, capacity = op.heads, op.size, op.window, op.capacity
    group_heads, width = heads // op.groups, size + 2
    bias, spare = 0 if op.bias == 0 else op.bias + 4 * g * group_heads * op.span, at(op.spare, scratch)
    attend_segment(
        op.dtype, at(op.q, scratch), tokens, group_heads, op.tables + 8 * b * op.table_step,
        op.layer + g * op.group_bytes, size, segment, follows, onwards, highest, op.stores_kv, window, bias, op.span,
        np.float32(op.cap), op.rotations, op.half, at(op.scores, scratch), spare,
    )  # fmt: skip
    for r in range(tokens):
        start, end = segments_of(highest + op.stores_kv * r, window)
        if segment < start or segment >= end:
            continue
        for h in range(group_heads):
            partial = spare + 4 * (r * group_heads + h) * width
            row = (b + r) * heads + g * group_heads + h
            if capacity == 0:
                stored = f32(op.partials + 4 * row * width)
                stored[0], stored[1] = fold(op.partials + 4 * (row * width + 2), stored[0], stored[1], partial, size)
                continue
            stored, new = f32(op.partials + 4 * (row * capacity + segment - start) * width), f32(partial)
            for d in range(width):
                stored[d] = new[d]


@compiled
def _run_of(op: Any, positions: int, n: int) -> tuple[int, int, int, int, int]:
    """The first row of a run, the number of rows, the highest position of the first, the first segment that any of them
    sees, and the one after the last.
    """
    runs = i64(op.runs)
    b, tokens = runs[n + 2], runs[n + 3] - runs[n + 2]
    highest = i64(positions)[b] if op.stores_kv else i64(op.lengths)[b] - 1
    if highest < 0:
        return b, tokens, highest, 0, 0
    end = segments_of(highest + op.stores_kv * (tokens - 1), 0)[1]
    return b, tokens, highest, segments_of(highest, op.window)[0], end


@compiled
def _blocks_of(op: Any, b: int, position: int) -> int:
    """Address in a row's table of the block with the first position of a chunk."""
    return op.tables + 8 * (b * op.table_step + position // CHUNK * CHUNK // BLOCK)


@compiled
def _attend_segments(
    op: Any, positions: int, n: int, g: int, low: int, high: int, next_run: int, next_group: int, scratch: int
) -> None:
    """Segments `low` to `high` of a run and a group; the prefetch continues with another. Writes the run's keys and
    values in these segments, if only the thread that attends to them reads them.
    """
    b, tokens, highest, _, _ = _run_of(op, positions, n)
    onwards = op.layer + g * op.group_bytes
    if op.stores_kv and i64(op.runs)[1]:
        for r in range(b, b + tokens):
            position = i64(positions)[r]
            if segment_start(low) <= position < segment_start(high):
                _store_token(op, position, r, g, scratch)
    # Queries of the run and the group, [tokens, heads of a group], in the format of the keys' dtype.
    size, half, dtype, group_heads = op.size, op.half, op.dtype, op.heads // op.groups
    for query in range(tokens * group_heads):
        r, ready = b + query // group_heads, at(op.q, scratch) + query * query_bytes(dtype, size)
        new = at(op.scores, scratch) if dtype == INT8 else ready
        old = f32(op.qkv + r * op.stride + 4 * (g * group_heads + query % group_heads) * size)
        position = max(i64(positions)[r], 0)
        for d in range(size):
            f32(new)[d] = old[d]
        cos, sin = op.cos + 4 * position * half, op.sin + 4 * position * half
        prepare_head(new, size, op.norm, op.q_weight, op.q_bias, op.eps, cos, sin, half)
        for d in range(size):
            f32(new)[d] *= np.float32(op.scale)
        if dtype == INT8:
            split_query(new, size, op.mean + 4 * g * size if op.mean != 0 else 0, half, ready)
    for segment in range(low, high):
        follows = _blocks_of(op, b, segment_start(segment + 1))
        if segment + 1 == high:  # the first visible blocks of the next run; of the last run if there is no such run
            next_b, _, next_highest, start, _ = _run_of(op, positions, min(next_run, i64(op.runs)[0] - 1))
            lowest = max(0, next_highest - op.window + 1) if op.window > 0 else 0
            follows = _blocks_of(op, next_b, max(segment_start(start), lowest))
            onwards = op.layer + next_group * op.group_bytes
        _attend_run(op, b, tokens, g, segment, follows, onwards, highest, scratch)


@compiled
def _reach(op: Any, positions: int, n: int) -> tuple[int, int, int, int]:
    """The segments that a run sees, from the first to the one after the last; their first position and length."""
    _, tokens, highest, segment, end = _run_of(op, positions, n)
    start, top = segment_start(segment), highest + op.stores_kv * (tokens - 1)
    return segment, end, start, min(segment_start(end), top + 1) - start


@compiled
def _segment_after(first: int, start: int, end: int, positions: int, all_of_it: int) -> int:
    """The first segment, of `start` to `end`, whose middle is at least that many positions after their start."""
    if positions >= all_of_it:
        return end
    return min(end, max(start, segment_of(max(0, first + positions - CHUNK // 2 - 1)) + (positions > CHUNK // 2)))


@compiled
def _attend(op: Any, positions: int, batch: int, scratch: int, counter: int, thread: int, threads: int) -> None:
    groups, runs = op.groups, i64(op.runs)[0]
    if op.stores_kv and not i64(op.runs)[1]:
        # All keys and values are in their blocks before any token attends: several may belong to one sequence.
        first, last = share(batch * groups, thread, threads)
        for task in range(first, last):
            b, g = task // groups, task % groups
            if i64(positions)[b] >= 0:
                _store_token(op, i64(positions)[b], b, g, scratch)
        barrier(counter, threads)
    if op.capacity == 0:  # for many rows: the segments of a run and a group are merged by the thread that computes them
        heads, size, width = op.heads, op.size, op.size + 2
        group_heads = heads // groups
        for task in range(thread, runs * groups, threads):
            n, g, after = task // groups, task % groups, task + threads
            b, tokens, _, start, end = _run_of(op, positions, n)
            for r in range(b, b + tokens):
                for h in range(g * group_heads, g * group_heads + group_heads):
                    clear_partial(op.partials + 4 * (r * heads + h) * width, size)
            _attend_segments(op, positions, n, g, start, end, after // groups, after % groups, scratch)
        return
    # For few rows: segments are shared among threads by position, and merged later.
    total = 0
    for n in range(runs):
        total += _reach(op, positions, n)[3] * groups
    first, last = share(total, thread, threads)
    done = 0
    for n in range(runs):
        segment, end, start, length = _reach(op, positions, n)
        for g in range(groups):
            low = _segment_after(start, segment, end, first - done, length)
            high = _segment_after(start, segment, end, last - done, length)
            done += length
            if low < high:
                next_run, next_group = (n, g + 1) if g + 1 < groups else (n + 1, 0)
                _attend_segments(op, positions, n, g, low, high, next_run, next_group, scratch)


@compiled
def _merge(op: Any, positions: int, batch: int, scratch: int, thread: int, threads: int) -> None:
    first, last = share_of(op.out, batch, thread, threads)
    for b in range(first, last):
        highest = i64(op.lengths)[b] - 1 if op.lengths != 0 else i64(positions)[b]
        first_segment, end = segments_of(highest, op.window)
        capacity, count = (1, min(end, 1)) if op.capacity == 0 else (op.capacity, end - first_segment)
        start = op.partials + 4 * b * op.heads * capacity * (op.size + 2)
        merge(start, count, capacity, op.heads, op.size, op.sinks, at(op.out, scratch) + b * op.stride)


@compiled
def _sum(op: Any, batch: int, scratch: int, thread: int, threads: int) -> None:
    """dst = dst (if residual) + gain x src, one thread's share of the columns."""
    first, last = share_rows(op.width, thread, threads)
    for b in range(batch):
        x, y = f32(at(op.src, scratch) + b * op.src_stride), f32(at(op.dst, scratch) + b * op.dst_stride)
        for i in range(first, last):
            value = x[i] * f32(op.gain)[i] if op.gain != 0 else x[i]
            y[i] = y[i] + value if op.residual else value


@compiled
def execute(
    row: int, tokens: int, positions: int, batch: int, scratch: int, counter: int, thread: int, threads: int
) -> None:
    """Execute the instruction at `row` for one new token per batch row: `tokens` and `positions` are addresses of
    int64, one per batch row. `execute_all` also knows the instructions from COMBINE on.
    """
    kind = i64(row)[0]
    if kind == Opcode.MULTIPLY:
        op = Multiply(row)
        multiply(
            op.format, op.w, op.scales, op.bias, at(op.x, scratch), at(op.x_scales, scratch),
            at(op.corrections, scratch), op.stride, op.y, op.y_stride, op.y_format, op.y_scales, op.y_corrections,
            op.start, op.rows, op.total_rows, op.columns, batch, op.mode, op.activation, np.float32(op.cap),
            np.float32(op.scale), at(op.scratch, scratch), counter if op.free else 0, thread, threads,
        )  # fmt: skip
    elif kind == Opcode.NORM:
        _norm(Norm(row), batch, scratch, thread, threads)
    elif kind == Opcode.QUANTISE:
        _quantise(Quantise(row), batch, scratch, thread, threads)
    elif kind == Opcode.ATTEND:
        _attend(Attend(row), positions, batch, scratch, counter, thread, threads)
    elif kind == Opcode.MERGE:
        _merge(Merge(row), positions, batch, scratch, thread, threads)
    elif kind == Opcode.EMBED:
        _embed(Embed(row), tokens, positions, batch, thread, threads)
    elif kind == Opcode.SUM:
        _sum(Sum(row), batch, scratch, thread, threads)
    else:
        barrier(counter, threads)


@compiled
def _logistic(x: F32) -> F32:
    return np.float32(1) / (np.float32(1) + exp(-x))


@compiled
def route(op: Any, batch: int, scratch: int, thread: int, threads: int) -> None:
    """Private to each thread: the weight of each expert, 0 for all but the `active` ones, and of the shared layer.
    Clears the sums. With a `correction`, scores are sigmoids, and the highest sums of both are active.
    """
    count, active = op.count, op.active
    first, last = share_rows(op.width, thread, threads)
    for b in range(batch):
        x = f32(op.logits + b * op.stride)
        y = f32(at(op.weights, scratch) + b * op.weights_stride)
        total = f32(op.sum + b * op.sum_stride)
        for i in range(first, last):
            total[i] = np.float32(0)
        top, total_mass, active_mass = x[0], np.float32(0), np.float32(0)
        for e in range(count):
            top = max(top, x[e])
            y[e] = np.float32(0)
        for e in range(count):
            total_mass += exp(x[e] - top)
        for _ in range(active):
            best, highest = -1, np.float32(0)
            for e in range(count):
                if y[e] == 0:
                    preference = x[e] if op.correction == 0 else _logistic(x[e]) + f32(op.correction)[e]
                    if best < 0 or preference > highest:
                        best, highest = e, preference
            y[best] = exp(x[best] - top) if op.correction == 0 else _logistic(x[best])
            active_mass += y[best]
        if not op.normalise:
            active_mass = total_mass if op.correction == 0 else np.float32(1)
        for e in range(count):
            y[e] = np.float32(op.scale) * (y[e] / active_mass)
        if op.shared:
            y[count] = _logistic(x[count]) if op.shared == GATED_SHARED else np.float32(1)


@compiled
def gather(op: Any, batch: int, scratch: int, thread: int, threads: int) -> int:
    """Copy the rows that are routed to an expert to consecutive ones, and list them. Returns their number."""
    rows, count = i64(at(op.rows, scratch)), 0
    for b in range(batch):
        if f32(at(op.weights, scratch) + 4 * b * op.count)[op.expert] != 0:
            rows[count] = b
            count += 1
    first, last = share_of(op.dst, count, thread, threads)
    for n in range(first, last):
        x, y = f32(at(op.src, scratch) + rows[n] * op.src_stride), f32(at(op.dst, scratch) + n * op.dst_stride)
        for i in range(op.width):
            y[i] = x[i]
    return count


@compiled
def weigh(op: Any, count: int, scratch: int, thread: int, threads: int) -> None:
    """sum += weight x the expert's output, for the rows that `gather` listed: one thread's share of the columns."""
    first, last = share_rows(op.width, thread, threads)
    for n in range(count):
        b = i64(at(op.rows, scratch))[n]
        weight = f32(at(op.weights, scratch) + 4 * b * op.count)[op.expert]
        x, y = f32(op.src + n * op.src_stride), f32(op.sum + b * op.sum_stride)
        for i in range(first, last):
            y[i] += weight * x[i]


@compiled
def execute_all(
    row: int, tokens: int, positions: int, batch: int, rows: int, scratch: int, counter: int, thread: int, threads: int
) -> tuple[int, int]:
    """`execute` with all instructions. `rows` is the number of rows; from GATHER to WEIGH they are those of one expert.
    Returns how many instructions to skip, and the number of rows of the next one.
    """
    kind = i64(row)[0]
    if kind < _RECURRENT:
        execute(row, tokens, positions, rows, scratch, counter, thread, threads)
    elif kind == Opcode.COMBINE:
        combine(Combine(row), batch, scratch)
    elif kind == Opcode.CELL:
        cell(Cell(row), positions, batch, thread, threads)
    elif kind == Opcode.ASSOCIATE:
        associate(Associate(row), positions, batch, scratch, thread, threads)
    elif kind == Opcode.ADD_ATTEND:
        add_attend(AddAttend(row), batch, scratch, thread, threads)
    elif kind == Opcode.LINK:
        link(Link(row), positions, batch, scratch, thread, threads)
    elif kind == Opcode.ROUTE:
        route(Route(row), batch, scratch, thread, threads)
    elif kind == Opcode.GATHER:
        rows = gather(Gather(row), batch, scratch, thread, threads)
        if rows == 0:
            return Gather(row).instructions, batch
    else:
        weigh(Weigh(row), rows, scratch, thread, threads)
        rows = batch
    return 0, rows


@compiled
def run_step(
    program: int, count: int, tokens: int, positions: int, batch: int, scratch: int, counter: int, thread: int,
    threads: int, sampling_call: int,
) -> None:  # fmt: skip
    """Execute the `count` instructions at `program`, then sample the next token of the requested rows
    (`sampling_kernels.sample_batch`); 0: none.
    """
    for row in range(program, program + SIZE * count, SIZE):
        execute(row, tokens, positions, batch, scratch, counter, thread, threads)
    if sampling_call:
        sample_batch(sampling_call, counter, thread, threads)


@compiled
def run_all_step(
    program: int, count: int, tokens: int, positions: int, batch: int, scratch: int, counter: int, thread: int,
    threads: int, sampling_call: int,
) -> None:  # fmt: skip
    """`run_step` with all instructions, whose code takes longer to compile."""
    row, end, rows = program, program + SIZE * count, batch
    while row < end:
        skipped, rows = execute_all(row, tokens, positions, batch, rows, scratch, counter, thread, threads)
        row += SIZE * (1 + skipped)
    if sampling_call:
        sample_batch(sampling_call, counter, thread, threads)
