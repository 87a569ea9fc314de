"""Experts: which of them a token goes to, and the sum of what they say."""

from __future__ import annotations

import numpy as np

from headway.engine.machine import compiled, exp, f32
from headway.engine.operations import at, share_rows


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
