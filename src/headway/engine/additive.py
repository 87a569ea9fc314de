"""Additive attention of one new token a row, over a memory in blocks: keys as [A, BLOCK], then values as [BLOCK, E]."""

from __future__ import annotations

import numpy as np

from headway.engine.attention import nothing
from headway.engine.keys import soften, weigh
from headway.engine.machine import compiled, f32, i64
from headway.engine.operations import BLOCK, at, share, splits_of, tanh
from headway.engine.tiles import FP32


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
