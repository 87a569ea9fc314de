"""A program: a table of instructions, and the compiled loops that run it.

An instruction is a row of whole numbers and a row of floats. Addresses from 0 on are in memory that threads share;
negative ones, -1 - offset, in the scratch that each thread has for itself. What lies in scratch every thread makes for
itself, so that it needs no barrier.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from headway.engine.attention import add_attend, attend_piece, keep, merge, prepare_head
from headway.engine.cells import associate, cell, combine, link
from headway.engine.machine import barrier, compiled, exp, f32, i64
from headway.engine.operations import BLOCK, at, norm_row, share, share_rows, splits_of
from headway.engine.products import multiply, quantise, unpack_row

FIELDS, FLOATS = 28, 4
SHARING = 8  # rows of one memory that attend to it at once


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


# The fields of each kind, in their order after the kind itself; floats follow a semicolon.
NAMES = {
    Opcode.EMBED: "format table scales width out stride positions limit offset; scale",
    Opcode.NORM: "src src_stride dst dst_stride width norm weight bias; eps",
    Opcode.QUANTISE: "format src stride columns q scales corrections",
    Opcode.MULTIPLY: "format w scales bias x x_scales corrections stride y y_stride start rows whole columns mode "
    "activation room; cap scale",
    Opcode.ATTEND: "qkv stride heads groups size writes norm q_weight q_bias k_weight k_bias cos sin half window bias "
    "span tables table_step lengths layer pieces q scores form group_bytes sharing; eps cap scale",
    Opcode.MERGE: "pieces heads size groups sinks out stride",
    Opcode.SUM: "src src_stride dst dst_stride width residual gain",
    Opcode.BARRIER: "",
    Opcode.COMBINE: "what a a_stride also also_stride b b_stride out out_stride width other",
    Opcode.CELL: "cell gates gates_stride also also_stride h stride width c peepholes forgets; scale",
    Opcode.ASSOCIATE: "qkv stride heads size strength decay gate controls_stride features nu squash key_norm delta "
    "ones norm weight bias keys rates memory memory_stride out room; eps",
    Opcode.LINK: "drive drive_stride x x_stride links links_stride width cells out out_stride; decay rate",
    Opcode.ADD_ATTEND: "query stride units width score tables table_step lengths layer pieces scores",
    Opcode.ROUTE: "logits stride count active normalise weights sum sum_stride width",
    Opcode.SKIP: "weights count expert instructions",
    Opcode.WEIGH: "weights count expert src src_stride sum sum_stride width",
}
EMBED, NORM, QUANTISE, MULTIPLY, ATTEND, MERGE, SUM, BARRIER = map(int, list(Opcode)[:8])
COMBINE, CELL, ASSOCIATE, LINK, ADD_ATTEND, ROUTE, SKIP, WEIGH = map(int, list(Opcode)[8:])


@compiled
def share_of(place: int, batch: int, thread: int, threads: int) -> tuple[int, int]:
    """The rows that a thread makes of what comes to lie at `place`: all where that is its own."""
    return share(batch, thread, threads) if place >= 0 else (0, batch)


@compiled
def _embed(
    op: np.ndarray, numbers: np.ndarray, symbols: int, places: int, batch: int, thread: int, threads: int
) -> None:
    first, last = share(batch, thread, threads)
    for b in range(first, last):
        out = op[5] + b * op[6]
        unpack_row(op[1], op[2], op[3], i64(symbols)[b], op[4], np.float32(numbers[0]), out)
        if op[7] != 0:
            place = min(max(i64(places)[b], 0) + op[9], op[8] - 1)
            x, y = f32(op[7] + 4 * place * op[4]), f32(out)
            for i in range(op[4]):
                y[i] += x[i]


@compiled
def _norm(op: np.ndarray, numbers: np.ndarray, batch: int, scratch: int, thread: int, threads: int) -> None:
    first, last = share_of(op[3], batch, thread, threads)
    for b in range(first, last):
        src, dst = at(op[1], scratch) + b * op[2], at(op[3], scratch) + b * op[4]
        norm_row(op[6], src, dst, op[5], op[7], op[8], numbers[0])


@compiled
def _keep(
    op: np.ndarray, numbers: np.ndarray, places: int, batch: int, scratch: int, thread: int, threads: int
) -> None:
    """Write the keys and values of the new tokens into their blocks, before any of them attends: several may be of one
    sequence.
    """
    heads, groups, size, half = op[3], op[4], op[5], op[14]
    first, last = share(batch * groups, thread, threads)
    for task in range(first, last):
        b, g = task // groups, task % groups
        place = i64(places)[b]
        if place < 0:
            continue
        row, key = op[1] + b * op[2], at(op[24], scratch)
        new, kept = f32(row + 4 * (heads + g) * size), f32(key)
        for d in range(size):
            kept[d] = new[d]
        cos, sin = op[12] + 4 * place * half, op[13] + 4 * place * half
        prepare_head(key, size, op[7], op[10], op[11], numbers[0], cos, sin, half)
        block = i64(op[18] + 8 * b * op[19])[place // BLOCK] + op[21] + g * op[26]
        keep(op[25], key, row + 4 * (heads + groups + g) * size, block, size, place % BLOCK)


@compiled
def _attend(
    op: np.ndarray, numbers: np.ndarray, places: int, batch: int, scratch: int, thread: int, threads: int
) -> None:
    """Heads of a group share each load of keys and values; where a group has one head, the rows that read the same
    memory do.
    """
    heads, groups, size, half = op[3], op[4], op[5], op[14]
    each, splits = heads // groups, splits_of(groups, threads)
    step = 4 * (size + 2) * splits  # between the heads of the pieces
    sharing = i64(op[27])[0] if op[27] != 0 and each == 1 else 1
    first, last = share(batch // sharing * groups * splits, thread, threads)
    eps, cap, scale = numbers[0], np.float32(numbers[1]), np.float32(numbers[2])
    for task in range(first, last):
        memory, rest = task // (groups * splits), task % (groups * splits)
        g, s = rest // splits, rest % splits
        for b in range(memory * sharing, (memory + 1) * sharing, SHARING):
            rows = min(SHARING, (memory + 1) * sharing - b)
            place = i64(places)[b]
            for r in range(1, rows):
                place = max(place, i64(places)[b + r])
            highest = place if op[6] else i64(op[20])[b] - 1
            out = op[22] + 4 * ((b * heads + g * each) * splits + s) * (size + 2)
            lowest = max(0, highest - op[15] + 1) if op[15] > 0 else 0
            start, stop = lowest // BLOCK, highest // BLOCK + 1
            begin, end = share(stop - start, s, splits)
            if place < 0 or highest < 0:
                begin, end = 0, 0
            q = at(op[23], scratch)
            for r in range(rows):
                row, turned = op[1] + (b + r) * op[2], max(i64(places)[b + r], 0)
                cos, sin = op[12] + 4 * turned * half, op[13] + 4 * turned * half
                for h in range(each):
                    old, new = f32(row + 4 * (g * each + h) * size), f32(q + 4 * (r + h) * size)
                    for d in range(size):
                        new[d] = old[d]
                    prepare_head(q + 4 * (r + h) * size, size, op[7], op[8], op[9], eps, cos, sin, half)
                    for d in range(size):
                        new[d] *= scale
            bias = 0 if op[16] == 0 else op[16] + 4 * g * each * op[17]
            attend_piece(
                op[25], q, each * rows, op[18] + 8 * b * op[19], op[21] + g * op[26], size, start + begin, start + end,
                lowest, highest, bias, op[17], cap, at(op[24], scratch), out, step * heads if rows > 1 else step,
            )  # fmt: skip


@compiled
def _sum(op: np.ndarray, batch: int, scratch: int, thread: int, threads: int) -> None:
    """dst = dst (if residual) + gain x src, the share of columns of one thread."""
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
    symbols: int,
    places: int,
    batch: int,
    scratch: int,
    counter: int,
    thread: int,
    threads: int,
) -> None:
    """All instructions for one new token of each row: `symbols` and `places` are addresses of int64, one a row. Those
    from COMBINE on are for `whole.run_whole`.
    """
    for number in range(table.shape[0]):
        op, numbers = table[number], floats[number]
        kind = op[0]
        if kind == MULTIPLY:
            multiply(
                op[1], op[2], op[3], op[4], at(op[5], scratch), at(op[6], scratch), at(op[7], scratch), op[8], op[9],
                op[10], op[11], op[12], op[13], op[14], batch, op[15], op[16], np.float32(numbers[0]),
                np.float32(numbers[1]), at(op[17], scratch), thread, threads,
            )  # fmt: skip
        elif kind == NORM:
            _norm(op, numbers, batch, scratch, thread, threads)
        elif kind == QUANTISE:
            q, xs, corr = at(op[5], scratch), at(op[6], scratch), at(op[7], scratch)
            first, last = share_of(op[5], batch, thread, threads)
            quantise(op[1], at(op[2], scratch), op[3], op[4], q, xs, corr, first, last)
        elif kind == ATTEND:
            if op[6]:
                _keep(op, numbers, places, batch, scratch, thread, threads)
                barrier(counter, threads)
            _attend(op, numbers, places, batch, scratch, thread, threads)
        elif kind == MERGE:
            pieces = splits_of(op[4], threads)
            first, last = share_of(op[6], batch, thread, threads)
            for b in range(first, last):
                start = op[1] + 4 * b * op[2] * pieces * (op[3] + 2)
                merge(start, pieces, op[2], op[3], op[5], at(op[6], scratch) + b * op[7])
        elif kind == EMBED:
            _embed(op, numbers, symbols, places, batch, thread, threads)
        elif kind == SUM:
            _sum(op, batch, scratch, thread, threads)
        else:
            barrier(counter, threads)


@compiled
def route(op: np.ndarray, batch: int, scratch: int, thread: int, threads: int) -> None:
    """Each thread for itself: the probability of each expert, 0 for all but the `active` likeliest. And sums of 0."""
    count, active = op[3], op[4]
    first, last = share_rows(op[9], thread, threads)
    for b in range(batch):
        x, y, total = f32(op[1] + b * op[2]), f32(at(op[6], scratch) + 4 * b * count), f32(op[7] + b * op[8])
        for i in range(first, last):
            total[i] = np.float32(0)
        top, whole, kept = x[0], np.float32(0), np.float32(0)
        for e in range(count):
            top = max(top, x[e])
            y[e] = np.float32(0)
        for e in range(count):
            whole += exp(x[e] - top)
        for _ in range(active):
            best = -1
            for e in range(count):
                if y[e] == 0 and (best < 0 or x[e] > x[best]):
                    best = e
            y[best] = exp(x[best] - top)
            kept += y[best]
        for e in range(count):
            y[e] /= kept if op[5] else whole


@compiled
def idle(op: np.ndarray, batch: int, scratch: int) -> bool:
    """Whether no row goes to the expert."""
    going = 0
    for b in range(batch):
        if f32(at(op[1], scratch) + 4 * b * op[2])[op[3]] != 0:
            going += 1
    return going == 0


@compiled
def weigh(op: np.ndarray, batch: int, scratch: int, thread: int, threads: int) -> None:
    """sum += probability x what the expert says, the share of columns of one thread."""
    first, last = share_rows(op[8], thread, threads)
    for b in range(batch):
        weight = f32(at(op[1], scratch) + 4 * b * op[2])[op[3]]
        x, y = f32(op[4] + b * op[5]), f32(op[6] + b * op[7])
        if weight != 0:
            for i in range(first, last):
                y[i] += weight * x[i]


@compiled
def run_whole(
    table: np.ndarray,
    floats: np.ndarray,
    symbols: int,
    places: int,
    batch: int,
    scratch: int,
    counter: int,
    thread: int,
    threads: int,
) -> None:
    """`program.run` with all instructions."""
    start, count = 0, table.shape[0]
    while start < count:
        stop = start
        while stop < count and table[stop, 0] < COMBINE:
            stop += 1
        run(table[start:stop], floats[start:stop], symbols, places, batch, scratch, counter, thread, threads)
        if stop < count:
            op, numbers = table[stop], floats[stop]
            kind = op[0]
            if kind == COMBINE:
                combine(op, batch, scratch)
            elif kind == CELL:
                cell(op, numbers, places, batch, thread, threads)
            elif kind == ASSOCIATE:
                associate(op, numbers, places, batch, scratch, thread, threads)
            elif kind == ADD_ATTEND:
                add_attend(op, batch, scratch, thread, threads)
            elif kind == LINK:
                link(op, numbers, places, batch, scratch, thread, threads)
            elif kind == ROUTE:
                route(op, batch, scratch, thread, threads)
            elif kind == SKIP:
                stop += op[4] if idle(op, batch, scratch) else 0
            else:
                weigh(op, batch, scratch, thread, threads)
        start = stop + 1
