"""Programs: tables of instructions, and the compiled loops that execute them.

An instruction is a row of integers and a row of floats. Addresses from 0 on are in memory shared by threads; negative
ones, -1 - offset, in each thread's scratch. Every thread fills its own scratch, so that no barrier is needed.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from headway.engine.cells import associate, cell, combine, link
from headway.engine.int8_keys import padded_to_vectors, split_query, subtract_mean
from headway.engine.machine import barrier, compiled, exp, f32, i64
from headway.engine.operations import BLOCK, CHUNK, at, norm_row, share, share_rows
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

FIELDS, FLOATS = 32, 4
SHARING = 16  # tokens of one sequence, or rows of one encoder output, that attend together


class Opcode(IntEnum):
    EMBED = 0
    NORM = 1
    QUANTISE = 2
    MULTIPLY = 3
    ATTEND = 4
    MERGE = 5
    SUM = 6
    BARRIER = 7
    COMBINE = 8
    CELL = 9
    ASSOCIATE = 10
    LINK = 11
    ADD_ATTEND = 12
    ROUTE = 13
    SKIP = 14
    WEIGH = 15
    ATTEND_DOCUMENTS = 16
    BATCH = 17


# The fields of each kind, in their order after the kind itself; floats follow a semicolon.
NAMES = {
    Opcode.EMBED: "format table scales width out stride positions limit offset; scale",
    Opcode.NORM: "src src_stride dst dst_stride width norm weight bias; eps",
    Opcode.QUANTISE: "format src stride columns q scales corrections",
    Opcode.MULTIPLY: "format w scales bias x x_scales corrections stride y y_stride start rows whole columns mode "
    "activation free room y_format y_scales y_corrections; cap scale",
    Opcode.ATTEND: "qkv stride heads groups size writes norm q_weight q_bias k_weight k_bias cos sin half window bias "
    "span tables table_step lengths layer pieces q scores form group_bytes runs room spare mean turns; eps cap scale",
    Opcode.MERGE: "pieces heads size room sinks out stride lengths window",
    Opcode.SUM: "src src_stride dst dst_stride width residual gain",
    Opcode.BARRIER: "",
    Opcode.COMBINE: "what a a_stride also also_stride b b_stride out out_stride width other",
    Opcode.CELL: "cell gates gates_stride also also_stride h stride width c peepholes forgets; scale",
    Opcode.ASSOCIATE: "qkv stride heads size strength decay gate controls_stride features nu squash key_norm delta "
    "ones norm weight bias keys rates memory memory_stride out room; eps",
    Opcode.LINK: "drive drive_stride x x_stride links links_stride width cells out out_stride; decay rate",
    Opcode.ADD_ATTEND: "query stride units width score tables table_step lengths layer pieces scores room",
    Opcode.ROUTE: "logits stride count active normalise weights sum sum_stride width",
    Opcode.SKIP: "weights count expert instructions",
    Opcode.WEIGH: "weights count expert src src_stride sum sum_stride width",
    Opcode.ATTEND_DOCUMENTS: "qkv stride heads groups size after norm q_weight q_bias k_weight k_bias cos sin half "
    "before biased bias span table sinks keys values q scores spare result out out_stride rough; eps cap scale",
    Opcode.BATCH: "each",
}
EMBED, NORM, QUANTISE, MULTIPLY, ATTEND, MERGE, SUM, BARRIER = map(int, list(Opcode)[:8])
COMBINE, CELL, ASSOCIATE, LINK, ADD_ATTEND, ROUTE, SKIP, WEIGH = map(int, list(Opcode)[8:16])


@compiled
def share_of(address: int, batch: int, thread: int, threads: int) -> tuple[int, int]:
    """A thread's rows of a result at `address`: all rows if that is in its scratch."""
    return share(batch, thread, threads) if address >= 0 else (0, batch)


@compiled
def _embed(
    op: np.ndarray, op_floats: np.ndarray, tokens: int, positions: int, batch: int, thread: int, threads: int
) -> None:
    first, last = share(batch, thread, threads)
    for b in range(first, last):
        out = op[5] + b * op[6]
        unpack_row(op[1], op[2], op[3], i64(tokens)[b], op[4], np.float32(op_floats[0]), out)
        if op[7] != 0:
            position = min(max(i64(positions)[b], 0) + op[9], op[8] - 1)
            x, y = f32(op[7] + 4 * position * op[4]), f32(out)
            for i in range(op[4]):
                y[i] += x[i]


@compiled
def _norm(op: np.ndarray, op_floats: np.ndarray, batch: int, scratch: int, thread: int, threads: int) -> None:
    first, last = share_of(op[3], batch, thread, threads)
    for b in range(first, last):
        src, dst = at(op[1], scratch) + b * op[2], at(op[3], scratch) + b * op[4]
        norm_row(op[6], src, dst, op[5], op[7], op[8], op_floats[0])


@compiled
def _store_kv(
    op: np.ndarray, op_floats: np.ndarray, positions: int, batch: int, scratch: int, thread: int, threads: int
) -> None:
    """Write the keys and values of the new tokens into their blocks, before any of them attends: several may belong to
    one sequence.
    """
    groups = op[4]
    first, last = share(batch * groups, thread, threads)
    for task in range(first, last):
        b, g = task // groups, task % groups
        if i64(positions)[b] >= 0:
            _store_token(op, op_floats, i64(positions)[b], b, g, scratch)


@compiled
def _store_token(op: np.ndarray, op_floats: np.ndarray, position: int, b: int, g: int, scratch: int) -> None:
    """Write the key and value of one token and one group."""
    heads, groups, size, half = op[3], op[4], op[5], op[14]
    row, key = op[1] + b * op[2], at(op[24], scratch)
    new, rotated_key = f32(row + 4 * (heads + g) * size), f32(key)
    for d in range(size):
        rotated_key[d] = new[d]
    cos, sin = op[12] + 4 * position * half, op[13] + 4 * position * half
    prepare_head(key, size, op[7], op[10], op[11], op_floats[0], cos, sin, half)
    if op[30] != 0:
        subtract_mean(
            key, size, op[30] + 4 * g * size, op[31] + 4 * padded_to_vectors(2 * half) * (position // CHUNK), half
        )
    block = i64(op[18] + 8 * b * op[19])[position // BLOCK] + op[21] + g * op[26]
    store_kv(op[25], key, row + 4 * (heads + groups + g) * size, block, size, size, position % BLOCK)


@compiled
def _store_run(
    op: np.ndarray,
    op_floats: np.ndarray,
    positions: int,
    b: int,
    tokens: int,
    g: int,
    start: int,
    end: int,
    scratch: int,
) -> None:
    """Write the keys and values of a run in segments `start` to `end`, if only the thread that attends to these reads
    them.
    """
    if op[6] and i64(op[27])[1]:
        for r in range(b, b + tokens):
            position = i64(positions)[r]
            if segment_start(start) <= position < segment_start(end):
                _store_token(op, op_floats, position, r, g, scratch)


@compiled
def _prepare_queries(
    op: np.ndarray, op_floats: np.ndarray, positions: int, b: int, tokens: int, g: int, scratch: int
) -> None:
    """Queries of one group in rows b to b + `tokens`, [tokens, heads of a group], in the format of the keys' dtype."""
    heads, groups, size, half = op[3], op[4], op[5], op[14]
    group_heads, dtype = heads // groups, op[25]
    for query in range(tokens * group_heads):
        r, ready = b + query // group_heads, at(op[23], scratch) + query * query_bytes(dtype, size)
        new, old = (
            at(op[24], scratch) if dtype == INT8 else ready,
            f32(op[1] + r * op[2] + 4 * (g * group_heads + query % group_heads) * size),
        )
        position = max(i64(positions)[r], 0)
        for d in range(size):
            f32(new)[d] = old[d]
        prepare_head(
            new,
            size,
            op[7],
            op[8],
            op[9],
            op_floats[0],
            op[12] + 4 * position * half,
            op[13] + 4 * position * half,
            half,
        )
        for d in range(size):
            f32(new)[d] *= np.float32(op_floats[2])
        if dtype == INT8:
            split_query(new, size, op[30] + 4 * g * size if op[30] != 0 else 0, half, ready)


@compiled
def _attend_run(
    op: np.ndarray, op_floats: np.ndarray, b: int, tokens: int, g: int, segment: int, follows: int, onwards: int,
    highest: int, scratch: int,
) -> None:  # fmt: skip
    """One segment for the rows of a run and the heads of a group, whose queries are prepared: [tokens, heads, size + 2]
    at `spare`. Each row's part is then copied to its partial results, or folded into its sums.
    """
    heads, size, window, capacity = op[3], op[5], op[15], op[28]
    group_heads, width = heads // op[4], op[5] + 2
    bias, spare = 0 if op[16] == 0 else op[16] + 4 * g * group_heads * op[17], at(op[29], scratch)
    attend_segment(
        op[25], at(op[23], scratch), tokens, group_heads, op[18] + 8 * b * op[19], op[21] + g * op[26], size, segment,
        follows, onwards, highest, op[6], window, bias, op[17], np.float32(op_floats[1]), op[31], op[14],
        at(op[24], scratch), spare,
    )  # fmt: skip
    for r in range(tokens):
        start, end = segments_of(highest + op[6] * r, window)
        if segment < start or segment >= end:
            continue
        for h in range(group_heads):
            partial = spare + 4 * (r * group_heads + h) * width
            row = (b + r) * heads + g * group_heads + h
            if capacity == 0:
                stored = f32(op[22] + 4 * row * width)
                stored[0], stored[1] = fold(op[22] + 4 * (row * width + 2), stored[0], stored[1], partial, size)
                continue
            stored, new = f32(op[22] + 4 * (row * capacity + segment - start) * width), f32(partial)
            for d in range(width):
                stored[d] = new[d]


@compiled
def _run_of(op: np.ndarray, positions: int, n: int) -> tuple[int, int, int, int, int]:
    """The first row of a run, the number of rows, the highest position of the first, the first segment that any of them
    sees, and the one after the last.
    """
    runs = i64(op[27])
    b, tokens = runs[n + 2], runs[n + 3] - runs[n + 2]
    highest = i64(positions)[b] if op[6] else i64(op[20])[b] - 1
    if highest < 0:
        return b, tokens, highest, 0, 0
    return b, tokens, highest, segments_of(highest, op[15])[0], segments_of(highest + op[6] * (tokens - 1), 0)[1]


@compiled
def _blocks_of(op: np.ndarray, b: int, position: int) -> int:
    """Address in a row's table of the block with the first position of a chunk."""
    return op[18] + 8 * (b * op[19] + position // CHUNK * CHUNK // BLOCK)


@compiled
def _first_blocks(op: np.ndarray, positions: int, n: int) -> int:
    """Address of the first visible blocks of a run; of the last run if there is no such run."""
    n = min(n, i64(op[27])[0] - 1)
    b, _, highest, start, _ = _run_of(op, positions, n)
    lowest = max(0, highest - op[15] + 1) if op[15] > 0 else 0
    return _blocks_of(op, b, max(segment_start(start), lowest))


@compiled
def _attend_segments(
    op: np.ndarray, op_floats: np.ndarray, positions: int, n: int, g: int, low: int, high: int, next_run: int,
    next_group: int, scratch: int,
) -> None:  # fmt: skip
    """Segments `low` to `high` of a run and a group; the prefetch continues with another."""
    b, tokens, highest, _, _ = _run_of(op, positions, n)
    onwards = op[21] + g * op[26]
    _store_run(op, op_floats, positions, b, tokens, g, low, high, scratch)
    _prepare_queries(op, op_floats, positions, b, tokens, g, scratch)
    for segment in range(low, high):
        follows = _blocks_of(op, b, segment_start(segment + 1))
        if segment + 1 == high:
            follows, onwards = _first_blocks(op, positions, next_run), op[21] + next_group * op[26]
        _attend_run(op, op_floats, b, tokens, g, segment, follows, onwards, highest, scratch)


@compiled
def _reach(op: np.ndarray, positions: int, n: int) -> tuple[int, int, int, int]:
    """The segments that a run sees, from the first to the one after the last; their first position and length."""
    _, tokens, highest, segment, end = _run_of(op, positions, n)
    start, top = segment_start(segment), highest + op[6] * (tokens - 1)
    return segment, end, start, min(segment_start(end), top + 1) - start


@compiled
def _segment_after(first: int, start: int, end: int, positions: int, all_of_it: int) -> int:
    """The first segment, of `start` to `end`, whose middle is at least that many positions after their start."""
    if positions >= all_of_it:
        return end
    return min(end, max(start, segment_of(max(0, first + positions - CHUNK // 2 - 1)) + (positions > CHUNK // 2)))


@compiled
def _attend(
    op: np.ndarray, op_floats: np.ndarray, token_positions: int, scratch: int, thread: int, threads: int
) -> None:
    """For few rows: segments are shared among threads by position, and merged later."""
    groups, runs = op[4], i64(op[27])[0]
    total = 0
    for n in range(runs):
        total += _reach(op, token_positions, n)[3] * groups
    first, last = share(total, thread, threads)
    done = 0
    for n in range(runs):
        segment, end, start, positions = _reach(op, token_positions, n)
        for g in range(groups):
            low = _segment_after(start, segment, end, first - done, positions)
            high = _segment_after(start, segment, end, last - done, positions)
            done += positions
            if low < high:
                after = (n, g + 1) if g + 1 < groups else (n + 1, 0)
                _attend_segments(op, op_floats, token_positions, n, g, low, high, after[0], after[1], scratch)


@compiled
def _attend_joined(
    op: np.ndarray, op_floats: np.ndarray, positions: int, scratch: int, thread: int, threads: int
) -> None:
    """For many rows: the segments of a run and a group are merged by the thread that computes them."""
    heads, groups, size, width = op[3], op[4], op[5], op[5] + 2
    group_heads = heads // groups
    for task in range(thread, i64(op[27])[0] * groups, threads):
        n, g, after = task // groups, task % groups, task + threads
        b, tokens, _, start, end = _run_of(op, positions, n)
        for r in range(b, b + tokens):
            for h in range(g * group_heads, g * group_heads + group_heads):
                clear_partial(op[22] + 4 * (r * heads + h) * width, size)
        _attend_segments(op, op_floats, positions, n, g, start, end, after // groups, after % groups, scratch)


@compiled
def _sum(op: np.ndarray, batch: int, scratch: int, thread: int, threads: int) -> None:
    """dst = dst (if residual) + gain x src, one thread's share of the columns."""
    first, last = share_rows(op[5], thread, threads)
    for b in range(batch):
        x, y = f32(at(op[1], scratch) + b * op[2]), f32(at(op[3], scratch) + b * op[4])
        for i in range(first, last):
            value = x[i] * f32(op[7])[i] if op[7] != 0 else x[i]
            y[i] = y[i] + value if op[6] else value


@compiled
def run(
    table: np.ndarray,
    floats: np.ndarray,
    tokens: int,
    positions: int,
    batch: int,
    scratch: int,
    counter: int,
    thread: int,
    threads: int,
) -> None:
    """Execute all instructions for one new token per row: `tokens` and `positions` are addresses of int64, one per row.
    Instructions from COMBINE on need `run_all`.
    """
    for number in range(table.shape[0]):
        op, op_floats = table[number], floats[number]
        kind = op[0]
        if kind == MULTIPLY:
            multiply(
                op[1], op[2], op[3], op[4], at(op[5], scratch), at(op[6], scratch), at(op[7], scratch), op[8], op[9],
                op[10], op[19], op[20], op[21], op[11], op[12], op[13], op[14], batch, op[15], op[16],
                np.float32(op_floats[0]), np.float32(op_floats[1]), at(op[18], scratch), counter if op[17] else 0,
                thread, threads,
            )  # fmt: skip
        elif kind == NORM:
            _norm(op, op_floats, batch, scratch, thread, threads)
        elif kind == QUANTISE:
            q, xs, corr = at(op[5], scratch), at(op[6], scratch), at(op[7], scratch)
            first, last = share_of(op[5], batch, thread, threads)
            quantise(op[1], at(op[2], scratch), op[3], op[4], q, xs, corr, first, last)
        elif kind == ATTEND:
            if op[6] and not i64(op[27])[1]:
                _store_kv(op, op_floats, positions, batch, scratch, thread, threads)
                barrier(counter, threads)
            if op[28] == 0:
                _attend_joined(op, op_floats, positions, scratch, thread, threads)
            else:
                _attend(op, op_floats, positions, scratch, thread, threads)
        elif kind == MERGE:
            first, last = share_of(op[6], batch, thread, threads)
            for b in range(first, last):
                highest = i64(op[8])[b] - 1 if op[8] != 0 else i64(positions)[b]
                first_segment, end = segments_of(highest, op[9])
                capacity, count = (1, min(end, 1)) if op[4] == 0 else (op[4], end - first_segment)
                start = op[1] + 4 * b * op[2] * capacity * (op[3] + 2)
                merge(start, count, capacity, op[2], op[3], op[5], at(op[6], scratch) + b * op[7])
        elif kind == EMBED:
            _embed(op, op_floats, tokens, positions, batch, thread, threads)
        elif kind == SUM:
            _sum(op, batch, scratch, thread, threads)
        else:
            barrier(counter, threads)


@compiled
def route(op: np.ndarray, batch: int, scratch: int, thread: int, threads: int) -> None:
    """Private to each thread: the probability of each expert, 0 for all but the `active` most probable ones. Clears the
    sums.
    """
    count, active = op[3], op[4]
    first, last = share_rows(op[9], thread, threads)
    for b in range(batch):
        x, y, total = f32(op[1] + b * op[2]), f32(at(op[6], scratch) + 4 * b * count), f32(op[7] + b * op[8])
        for i in range(first, last):
            total[i] = np.float32(0)
        top, total_mass, active_mass = x[0], np.float32(0), np.float32(0)
        for e in range(count):
            top = max(top, x[e])
            y[e] = np.float32(0)
        for e in range(count):
            total_mass += exp(x[e] - top)
        for _ in range(active):
            best = -1
            for e in range(count):
                if y[e] == 0 and (best < 0 or x[e] > x[best]):
                    best = e
            y[best] = exp(x[best] - top)
            active_mass += y[best]
        for e in range(count):
            y[e] /= active_mass if op[5] else total_mass


@compiled
def idle(op: np.ndarray, batch: int, scratch: int) -> bool:
    """Whether no row is routed to the expert."""
    going = 0
    for b in range(batch):
        if f32(at(op[1], scratch) + 4 * b * op[2])[op[3]] != 0:
            going += 1
    return going == 0


@compiled
def weigh(op: np.ndarray, batch: int, scratch: int, thread: int, threads: int) -> None:
    """sum += probability x the expert's output, one thread's share of the columns."""
    first, last = share_rows(op[8], thread, threads)
    for b in range(batch):
        weight = f32(at(op[1], scratch) + 4 * b * op[2])[op[3]]
        x, y = f32(op[4] + b * op[5]), f32(op[6] + b * op[7])
        if weight != 0:
            for i in range(first, last):
                y[i] += weight * x[i]


@compiled
def run_all(
    table: np.ndarray,
    floats: np.ndarray,
    tokens: int,
    positions: int,
    batch: int,
    scratch: int,
    counter: int,
    thread: int,
    threads: int,
) -> None:
    """`run` with all instructions."""
    start, count = 0, table.shape[0]
    while start < count:
        stop = start
        while stop < count and table[stop, 0] < COMBINE:
            stop += 1
        run(table[start:stop], floats[start:stop], tokens, positions, batch, scratch, counter, thread, threads)
        if stop < count:
            op, op_floats = table[stop], floats[stop]
            kind = op[0]
            if kind == COMBINE:
                combine(op, batch, scratch)
            elif kind == CELL:
                cell(op, op_floats, positions, batch, thread, threads)
            elif kind == ASSOCIATE:
                associate(op, op_floats, positions, batch, scratch, thread, threads)
            elif kind == ADD_ATTEND:
                add_attend(op, batch, scratch, thread, threads)
            elif kind == LINK:
                link(op, op_floats, positions, batch, scratch, thread, threads)
            elif kind == ROUTE:
                route(op, batch, scratch, thread, threads)
            elif kind == SKIP:
                stop += op[4] if idle(op, batch, scratch) else 0
            else:
                weigh(op, batch, scratch, thread, threads)
        start = stop + 1


@compiled
def run_step(
    table: np.ndarray,
    floats: np.ndarray,
    tokens: int,
    positions: int,
    batch: int,
    scratch: int,
    counter: int,
    thread: int,
    threads: int,
    sampling_call: int,
) -> None:
    """`run`, then sample the next token of the requested rows (`sampling_kernels.sample_batch`); 0: none."""
    run(table, floats, tokens, positions, batch, scratch, counter, thread, threads)
    if sampling_call:
        sample_batch(sampling_call, counter, thread, threads)


@compiled
def run_all_step(
    table: np.ndarray,
    floats: np.ndarray,
    tokens: int,
    positions: int,
    batch: int,
    scratch: int,
    counter: int,
    thread: int,
    threads: int,
    sampling_call: int,
) -> None:
    """`run_step` with all instructions."""
    run_all(table, floats, tokens, positions, batch, scratch, counter, thread, threads)
    if sampling_call:
        sample_batch(sampling_call, counter, thread, threads)
