"""Attention of one new token a row over keys and values, or a memory, that lie in blocks.

A block has BLOCK positions of all layers, as `keys` says; a row's table lists the addresses of its blocks. Contexts are
cut into pieces of PIECE positions, each with its own maximum and sum (Milakov and Gimelshein 2018; Dao et al. 2023),
which threads work on at once and which are joined in their order. Where they are cut is the same for any number of
threads, rows or tokens, and so is what comes of them, to the last bit.
"""

from __future__ import annotations

import numpy as np

from headway.engine.keys import HEADS, LOWEST, key_bytes, put_outside, scores, soften, value_bytes, weigh
from headway.engine.machine import F32, compiled, exp, f32, i64
from headway.engine.operations import BLOCK, PIECE, at, norm_row, share, tanh
from headway.engine.rounded_keys import (
    keep_key,
    keep_value,
    rounded_scores,
    rounded_weigh,
    rounding_bytes,
    split,
    split_bytes,
)
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
def keep(form: int, key: int, value: int, place: int, size: int, width: int, slot: int) -> None:
    """Write a key of `size` numbers and a value of `width` at their slot of a group's part of a block. In int8 the key
    is lost; where it stood there is room for `rounding_bytes` of each.
    """
    values, k, v = place + key_bytes(form, size), f32(key), f32(value)
    if form == FP32:
        keys, kept = f32(place), f32(values)
        for d in range(size):
            keys[d * BLOCK + slot] = k[d]
        for d in range(width):
            kept[slot * width + d] = v[d]
        return
    scales = f32(values + value_bytes(form, width))
    scales[slot] = keep_key(key, size, place, slot)
    for d in range(width):
        k[d] = v[d]
    scales[BLOCK + slot] = keep_value(key, width, values, slot)


@compiled
def keep_positions(
    form: int, keys: int, values: int, slots: int, groups: int, size: int, width: int, begin: int, end: int,
    blocks: int, offset: int, group_bytes: int, room: int,
) -> None:  # fmt: skip
    """`keep` positions `begin` to `end`, of which p lies in slot p modulo `slots` of float32 keys [slots, groups, size]
    and values [slots, groups, width]. `blocks` are the addresses of the blocks from that of `begin` on, in which the
    first group's part is at byte `offset`.
    """
    table, key = i64(blocks), f32(room)
    for p in range(begin, end):
        block = table[p // BLOCK - begin // BLOCK] + offset
        for g in range(groups):
            row = p % slots * groups + g
            old = f32(keys + 4 * row * size)
            for d in range(size):
                key[d] = old[d]
            keep(form, room, values + 4 * row * width, block + g * group_bytes, size, width, p % BLOCK)


@compiled
def query_bytes(form: int, size: int) -> int:
    """From one query that is ready to the next."""
    return 4 * size if form == FP32 else split_bytes(size)


@compiled
def scratch_bytes(size: int) -> int:
    """What `attend_piece` needs for scores, their fades and what `split` makes of them, or what `keep` needs."""
    return max(HEADS * (4 * BLOCK + 4 + split_bytes(BLOCK)), rounding_bytes(size))


@compiled
def nothing(piece: int, size: int) -> None:
    """A piece that has seen no position: its maximum, its sum, and the weighted values."""
    result = f32(piece)
    result[0], result[1] = LOWEST, np.float32(0)
    for d in range(size):
        result[2 + d] = np.float32(0)


@compiled
def pieces_of(highest: int, window: int) -> tuple[int, int]:
    """The first piece of which a position sees anything that looks back `window` positions (0: to the beginning), and
    the one after the last.
    """
    if highest < 0:
        return 0, 0
    lowest = max(0, highest - window + 1) if window > 0 else 0
    return lowest // PIECE, highest // PIECE + 1


@compiled
def _weights(scores: int, begin: int, end: int, piece: int) -> F32:
    """`soften`, with weights of 0 outside of `begin` to `end`, where nothing may be."""
    fade = soften(scores, begin, end, piece) if begin < end else np.float32(1)
    put_outside(scores, begin, end, np.float32(0))
    return fade


@compiled
def attend_piece(
    form: int, q: int, tokens: int, each: int, blocks: int, offset: int, size: int, piece: int, follows: int,
    wanted: int, highest: int, climb: int, window: int, bias: int, span: int, cap: F32, scratch: int, out: int,
) -> None:  # fmt: skip
    """A piece of the context for `each` heads of one group in each of `tokens` rows, which read the same blocks; the
    keys of the group begin at byte `offset` of these. The first row sees positions up to `highest`, every further one
    `climb` more. There remain [tokens, each, size + 2] numbers at `out`: the maximum, the sum, and the values
    weighted by exp(score - maximum). `bias` is of the first head, by the distance back.

    What a row has does not depend on the others: what they alone see has weights of 0 there. `follows` is the address
    of the keys after this piece, of which so many positions are `wanted`.
    """
    table, asked, queries, step = i64(blocks), query_bytes(form, size), tokens * each, 4 * (size + 2)
    fades, weights = scratch + 4 * HEADS * BLOCK, scratch + 4 * HEADS * (BLOCK + 1)
    for query in range(queries):
        nothing(out + query * step, size)
    top = highest + climb * (tokens - 1)
    low = max(0, highest - window + 1) if window > 0 else 0
    first, last = max(piece * PIECE, low) // BLOCK, min(piece * PIECE + PIECE - 1, top) // BLOCK + 1
    for n in range(first, last):
        keys = table[n] + offset
        values = keys + key_bytes(form, size)
        scales = values + value_bytes(form, size)
        seen, ahead, more = min(top + 1 - n * BLOCK, BLOCK), follows, wanted
        if n + 1 < last:
            ahead, more = table[n + 1] + offset, top + 1 - (n + 1) * BLOCK
        for start in range(0, queries, HEADS):
            count = min(queries - start, HEADS)
            if form == FP32:
                scores(count, q + start * asked, keys, scratch, size, seen, ahead, more)
            else:
                fours = (size + 3) // 4
                rounded_scores(count, q + start * asked, asked, keys, scales, scratch, fours, seen, ahead, more)
            begins, ends = BLOCK, 0
            for i in range(count):
                sees = highest + climb * ((start + i) // each)
                begin = max(sees - window + 1 - n * BLOCK, 0) if window > 0 else 0
                end = min(sees + 1 - n * BLOCK, BLOCK)
                row = scratch + 4 * i * BLOCK
                s = f32(row)
                if begin < end:
                    begins, ends = min(begins, begin), max(ends, end)
                    if cap > 0:
                        for t in range(begin, end):
                            s[t] = cap * tanh(s[t] / cap)
                    if bias != 0:
                        distances = f32(bias + 4 * ((start + i) % each) * span)
                        for t in range(begin, end):
                            s[t] += distances[sees - n * BLOCK - t]
                f32(fades)[i] = _weights(row, begin, end, out + (start + i) * step)
                if form != FP32:
                    for t in range(begin, end):
                        s[t] *= f32(scales)[BLOCK + t]
                    split(row, BLOCK // 16, weights + i * split_bytes(BLOCK))
            into = out + start * step + 8
            if form == FP32:
                weigh(count, scratch, fades, begins, ends, values, size, into, step // 4)
            else:
                rounded_weigh(count, weights, fades, begins, ends, values, size, into, step // 4)


@compiled
def fold(y: int, top: F32, total: F32, piece: int, size: int) -> tuple[F32, F32]:
    """Take the next piece of a head into what those before it have left: numbers at y, their maximum and their sum."""
    numbers, more = f32(y), f32(piece)
    highest = max(top, more[0])
    old, new = exp(top - highest), exp(more[0] - highest)
    for d in range(size):
        numbers[d] = numbers[d] * old + more[2 + d] * new
    return highest, total * old + more[1] * new


@compiled
def merge(pieces: int, count: int, room: int, heads: int, size: int, sinks: int, out: int) -> None:
    """Join the first `count` pieces of each head of one row: [H, room, size + 2] to [H, size]. A sink takes its part of
    the sum.
    """
    for h in range(heads):
        y, place = f32(out + 4 * h * size), pieces + 4 * h * room * (size + 2)
        top, total = LOWEST, np.float32(0)
        for d in range(size):
            y[d] = np.float32(0)
        for p in range(count):
            top, total = fold(out + 4 * h * size, top, total, place + 4 * p * (size + 2), size)
        scale = np.float32(1)
        if sinks != 0:
            highest = max(top, f32(sinks)[h])
            scale = exp(top - highest) if total > 0 else np.float32(0)
            total = total * scale + exp(f32(sinks)[h] - highest)
        inverse = scale / total if total > 0 else np.float32(0)
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
    """score . tanh(query + key) of each position and what the values give, in pieces as `attend_piece` leaves them."""
    units, width, room = op[3], op[4], op[12]
    weights, row = f32(op[5]), at(op[11], scratch)
    s, fade = f32(row), f32(row + 4 * BLOCK)
    first, last = share(batch * room, thread, threads)
    for task in range(first, last):
        b, piece = task // room, task % room
        query, table, count = f32(op[1] + b * op[2]), i64(op[6] + 8 * b * op[7]), i64(op[8])[b]
        if piece * PIECE >= count:
            continue
        out = op[10] + 4 * task * (width + 2)
        nothing(out, width)
        for n in range(piece * PIECE // BLOCK, min(piece * PIECE + PIECE - 1, count - 1) // BLOCK + 1):
            base = table[n] + op[9]
            for t in range(BLOCK):
                s[t] = np.float32(0)
            for a in range(units):
                asked, weight, key = query[a], weights[a], f32(base + 4 * a * BLOCK)
                for t in range(BLOCK):
                    s[t] += weight * tanh(asked + key[t])
            seen = min(count - n * BLOCK, BLOCK)
            fade[0] = soften(row, 0, seen, out)
            weigh(1, row, row + 4 * BLOCK, 0, seen, base + 4 * units * BLOCK, width, out + 8, 0)
