"""Recurrent cells, number by number: what follows once the matrix products have been made."""

from __future__ import annotations

import numpy as np

from headway.engine.machine import F32, compiled, exp, f32, i64
from headway.engine.operations import at, share, tanh

COPY, PRODUCT, RESET, OUTER = range(4)
ELMAN_TANH, ELMAN_LOGISTIC, LSTM, GRU, GRU_AFTER = range(5)


@compiled
def logistic(x: F32) -> F32:
    return np.float32(1) / (np.float32(1) + exp(-x))


@compiled
def combine(op: np.ndarray, batch: int, scratch: int) -> None:
    """What every thread makes for itself: out = a, a b, logistic(a + also) b, or each number of a times each of b."""
    what, width = op[1], op[10]
    for r in range(batch):
        a, b = f32(at(op[2], scratch) + r * op[3]), f32(at(op[6], scratch) + r * op[7])
        out = f32(at(op[8], scratch) + r * op[9])
        if what == COPY:
            for i in range(width):
                out[i] = a[i]
        elif what == PRODUCT:
            for i in range(width):
                out[i] = a[i] * b[i]
        elif what == RESET:
            also = f32(at(op[4], scratch) + r * op[5])
            for i in range(width):
                out[i] = logistic(a[i] + also[i]) * b[i]
        else:
            for j in range(width):
                for k in range(op[11]):
                    out[j * op[11] + k] = a[j] * b[k]


@compiled
def _lstm(gates: int, h: int, c: int, width: int, peepholes: int, forgets: int, scale: F32, i: int, stop: int) -> None:
    """c = f c + i tanh(scale g) / scale and h = o tanh(scale c): at a scale of 1/2 these are the stretched logistic
    functions of 1997. Gates come as i, f (where it `forgets`), g, o; peepholes as i, f, o.
    """
    first, count = 4 * i, stop - i
    after, seen = forgets * width, f32(c + first)
    into, keep = f32(gates + first), f32(gates + 4 * width + first)
    new, out = f32(gates + 4 * (width + after) + first), f32(gates + 4 * (2 * width + after) + first)
    if peepholes != 0:
        through = f32(peepholes + first)
        for n in range(count):
            into[n] += through[n] * seen[n]
        if forgets:
            through = f32(peepholes + 4 * width + first)
            for n in range(count):
                keep[n] += through[n] * seen[n]
    if forgets:
        for n in range(count):
            seen[n] *= logistic(keep[n])
    for n in range(count):
        seen[n] += logistic(into[n]) * tanh(scale * new[n]) / scale
    if peepholes != 0:
        through = f32(peepholes + 4 * (width + after) + first)
        for n in range(count):
            out[n] += through[n] * seen[n]
    y = f32(h + first)
    for n in range(count):
        y[n] = logistic(out[n]) * tanh(scale * seen[n])


@compiled
def _gru(gates: int, also: int, h: int, width: int, after: bool, i: int, stop: int) -> None:
    """h = z h + (1 - z) n of the gates r, z, n, each the sum of two parts; `after`: the reset gate acts on the second
    part of n, which else has been added to the first already.
    """
    first, count, state = 4 * i, stop - i, f32(h + 4 * i)
    update, updates = f32(gates + 4 * width + first), f32(also + 4 * width + first)
    new = f32(gates + 8 * width + first)
    if after:
        reset, resets, news = f32(gates + first), f32(also + first), f32(also + 8 * width + first)
        for n in range(count):
            new[n] += logistic(reset[n] + resets[n]) * news[n]
    for n in range(count):
        value = tanh(new[n])
        state[n] = value + logistic(update[n] + updates[n]) * (state[n] - value)


@compiled
def cell(op: np.ndarray, numbers: np.ndarray, places: int, batch: int, thread: int, threads: int) -> None:
    """The new state of each row that is no padding, the share of cells of one thread."""
    kind, width = op[1], op[8]
    first, last = share(width, thread, threads)
    for b in range(batch):
        if i64(places)[b] < 0:
            continue
        gates, also, h = op[2] + b * op[3], op[4] + b * op[5], op[6] + b * op[7]
        if kind == LSTM:
            scale = np.float32(numbers[0])
            _lstm(gates, h, op[9] + b * op[7], width, op[10], op[11], scale, first, last)
        elif kind == ELMAN_TANH:
            x, y = f32(gates), f32(h)
            for i in range(first, last):
                y[i] = tanh(x[i])
        elif kind == ELMAN_LOGISTIC:
            x, y = f32(gates), f32(h)
            for i in range(first, last):
                y[i] = logistic(x[i])
        else:
            _gru(gates, also, h, width, kind == GRU_AFTER, first, last)
