"""Attention of one new token a row over keys and values, or a memory, that lie in blocks.

A block has BLOCK positions of all layers, as `keys` says; a row's table lists the addresses of its blocks. Long
contexts are cut into `splits` pieces that threads work on at once, each with its own maximum and sum (Milakov and
Gimelshein 2018; Dao et al. 2023), and joined afterwards.
"""

from __future__ import annotations

import numpy as np

from headway.engine.keys import HEADS, LOWEST, scores, soften, weigh
from headway.engine.machine import F32, compiled, exp, f32, i8, i64
from headway.engine.operations import BLOCK, at, norm_row, share, splits_of, tanh
from headway.engine.tiles import FP32


@compiled
def turn(x: int, cos: int, sin: int, half: int) -> None:
    """Rotary positions on the first 2 `half` features."""
    v, c, s = f32(x), f32(cos), f32(sin)
    for d in range(half):
        a, b = v[d], v[half + d]
        v[d] = a * c[d] - b * s[d]
        v[half + d] = b * c[d] + a * s[d]


@compiled
def keep(form: int, key: int, value: int, place: int, size: int, slot: int) -> None:
    """Write a key and a value at their slot of a group's part of a block."""
    values = place + value_bytes(form, size)
    k, v = f32(key), f32(value)
    if form == FP32:
        keys, kept = f32(place), f32(values)
        for d in range(size):
            keys[d * BLOCK + slot] = k[d]
            kept[slot * size + d] = v[d]
        return
    scales = f32(place + 2 * value_bytes(form, size))
    scales[slot] = _round(key, place + slot, BLOCK, size)
    scales[BLOCK + slot] = _round(value, values + slot * size, 1, size)


@compiled
def value_bytes(form: int, size: int) -> int:
    """Of a group's values in a block, and of its keys."""
    return (4 if form == FP32 else 1) * BLOCK * size


@compiled
def _round(numbers: int, out: int, step: int, size: int) -> F32:
    """Whole numbers from -127 to 127, `step` bytes apart; their scale, which is NaN where a number is none."""
    x, q = f32(numbers), i8(out)
    largest = total = np.float32(0)
    for d in range(size):
        largest = max(largest, abs(x[d]))
        total += x[d]
    inverse = np.float32(127) / largest if largest > 0 else np.float32(0)
    for d in range(size):
        q[d * step] = np.int8(np.int32(np.rint(x[d] * inverse)))
    return largest / np.float32(127) + np.float32(0) * total


@compiled
def nothing(piece: int, size: int) -> None:
    """A piece that has seen no position: its maximum, its sum, and the weighted values."""
    result = f32(piece)
    result[0], result[1] = LOWEST, np.float32(0)
    for d in range(size):
        result[2 + d] = np.float32(0)


@compiled
def attend_piece(
    form: int,
    q: int,
    heads: int,
    blocks: int,
    offset: int,
    size: int,
    first: int,
    last: int,
    lowest: int,
    highest: int,
    bias: int,
    span: int,
    cap: F32,
    scratch: int,
    out: int,
    step: int,
) -> None:
    """The share of positions in blocks `first` to `last` for the heads of one group, whose keys begin at byte `offset`
    of the blocks. Of each head there remain size + 2 numbers at `out`, `step` bytes apart: the maximum, the sum, and
    the values weighted by exp(score - maximum). `bias` is of the first head, by the distance back.
    """
    table, part = i64(blocks), value_bytes(form, size)
    fades = scratch + 4 * HEADS * BLOCK
    for h in range(heads):
        nothing(out + h * step, size)
    for n in range(first, last):
        keys = table[n] + offset
        ahead = table[n + 1] + offset if n + 1 < last else keys
        begin, end = max(lowest - n * BLOCK, 0), min(highest + 1 - n * BLOCK, BLOCK)
        back = highest - n * BLOCK
        for h in range(0, heads, HEADS):
            count = min(heads - h, HEADS)
            scores(form, count, q + 4 * h * size, keys, keys + 2 * part, scratch, size, ahead)
            for i in range(count):
                row = scratch + 4 * i * BLOCK
                s = f32(row)
                if cap > 0:
                    for t in range(BLOCK):
                        s[t] = cap * tanh(s[t] / cap)
                if bias != 0:
                    distances = f32(bias + 4 * (h + i) * span)
                    for t in range(begin, end):
                        s[t] += distances[back - t]
                f32(fades)[i] = soften(row, begin, end, out + (h + i) * step)
                if form != FP32:
                    scales = f32(keys + 2 * part + 4 * BLOCK)
                    for t in range(BLOCK):
                        s[t] *= scales[t]
            weigh(form, count, scratch, fades, begin, end, keys + part, size, out + h * step + 8, step // 4)


@compiled
def merge(pieces: int, splits: int, heads: int, size: int, sinks: int, out: int) -> None:
    """Join the pieces of each head of one row: [H, splits, size + 2] to [H, size]. A sink takes its part of the sum."""
    for h in range(heads):
        y = f32(out + 4 * h * size)
        top = LOWEST if sinks == 0 else f32(sinks)[h]
        for p in range(splits):
            top = max(top, f32(pieces + 4 * (h * splits + p) * (size + 2))[0])
        total = np.float32(0) if sinks == 0 else exp(f32(sinks)[h] - top)
        for d in range(size):
            y[d] = np.float32(0)
        for p in range(splits):
            piece = f32(pieces + 4 * (h * splits + p) * (size + 2))
            weight = exp(piece[0] - top) if piece[1] > 0 else np.float32(0)
            total += weight * piece[1]
            for d in range(size):
                y[d] += weight * piece[2 + d]
        inverse = np.float32(1) / total if total > 0 else np.float32(0)
        for d in range(size):
            y[d] *= inverse


@compiled
def prepare_head(x: int, size: int, norm: int, weight: int, bias: int, eps: F32, cos: int, sin: int, half: int) -> None:
    """QK norm and rotary positions of one head, in place."""
    if norm >= 0:
        norm_row(norm, x, x, size, weight, bias, eps)
    if half > 0:
        turn(x, cos, sin, half)


@compiled
def add_attend(op: np.ndarray, batch: int, scratch: int, thread: int, threads: int) -> None:
    """score . tanh(query + key) of each position and what the values give, in pieces as `attention.attend_piece` leaves
    them.
    """
    units, width, splits = op[3], op[4], splits_of(1, threads)
    weights, row = f32(op[5]), at(op[11], scratch)
    s, fade = f32(row), f32(row + 4 * BLOCK)
    first, last = share(batch * splits, thread, threads)
    for task in range(first, last):
        b, piece = task // splits, task % splits
        query, table, count = f32(op[1] + b * op[2]), i64(op[6] + 8 * b * op[7]), i64(op[8])[b]
        begin, end = share((count + BLOCK - 1) // BLOCK, piece, splits)
        out = op[10] + 4 * task * (width + 2)
        nothing(out, width)
        for n in range(begin, end):
            base = table[n] + op[9]
            for t in range(BLOCK):
                s[t] = np.float32(0)
            for a in range(units):
                asked, weight, key = query[a], weights[a], f32(base + 4 * a * BLOCK)
                for t in range(BLOCK):
                    s[t] += weight * tanh(asked + key[t])
            seen = min(count - n * BLOCK, BLOCK)
            fade[0] = soften(row, 0, seen, out)
            weigh(FP32, 1, row, row + 4 * BLOCK, 0, seen, base + 4 * units * BLOCK, width, out + 8, 0)
