"""Elementwise parts of recurrent cells, and matrix states, computed after the matrix products."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from headway.engine.dots import dot
from headway.engine.machine import F32, compiled, f32, i64
from headway.engine.operations import RELU, SILU, TANH, at, exp, norm_row, share, share_rows, tanh

COPY, PRODUCT, RESET, OUTER = range(4)
ELMAN_TANH, ELMAN_LOGISTIC, LSTM, GRU, GRU_AFTER = range(5)


@compiled
def logistic(x: F32) -> F32:
    return np.float32(1) / (np.float32(1) + exp(-x))


@compiled
def combine(op: Any, batch: int, scratch: int) -> None:
    """Private to each thread: out = a, a b, logistic(a + also) b, or the outer product of a and b."""
    operation, width = op.operation, op.width
    for r in range(batch):
        a, b = f32(at(op.a, scratch) + r * op.a_stride), f32(at(op.b, scratch) + r * op.b_stride)
        out = f32(at(op.out, scratch) + r * op.out_stride)
        if operation == COPY:
            for i in range(width):
                out[i] = a[i]
        elif operation == PRODUCT:
            for i in range(width):
                out[i] = a[i] * b[i]
        elif operation == RESET:
            also = f32(at(op.also, scratch) + r * op.also_stride)
            for i in range(width):
                out[i] = logistic(a[i] + also[i]) * b[i]
        else:
            for j in range(width):
                for k in range(op.b_width):
                    out[j * op.b_width + k] = a[j] * b[k]


@compiled
def _lstm(gates: int, h: int, c: int, width: int, peepholes: int, forgets: int, scale: F32, i: int, stop: int) -> None:
    """c = f c + i tanh(scale g) / scale and h = o tanh(scale c); a scale of 1/2 gives the stretched logistic functions
    of 1997. Gates come as i, f (if `forgets`), g, o; peepholes as i, f, o.
    """
    first, count = 4 * i, stop - i
    after, state = forgets * width, f32(c + first)
    into, forget = f32(gates + first), f32(gates + 4 * width + first)
    new, out = f32(gates + 4 * (width + after) + first), f32(gates + 4 * (2 * width + after) + first)
    if peepholes != 0:
        through = f32(peepholes + first)
        for n in range(count):
            into[n] += through[n] * state[n]
        if forgets:
            through = f32(peepholes + 4 * width + first)
            for n in range(count):
                forget[n] += through[n] * state[n]
    if forgets:
        for n in range(count):
            state[n] *= logistic(forget[n])
    for n in range(count):
        state[n] += logistic(into[n]) * tanh(scale * new[n]) / scale
    if peepholes != 0:
        through = f32(peepholes + 4 * (width + after) + first)
        for n in range(count):
            out[n] += through[n] * state[n]
    y = f32(h + first)
    for n in range(count):
        y[n] = logistic(out[n]) * tanh(scale * state[n])


@compiled
def _gru(gates: int, also: int, h: int, width: int, after: bool, i: int, stop: int) -> None:
    """h = z h + (1 - z) n of the gates r, z, n, each the sum of two parts; `after`: the reset gate acts on the second
    part of n, otherwise it has been added to the first already.
    """
    first, count, state = 4 * i, stop - i, f32(h + 4 * i)
    update, updates = f32(gates + 4 * width + first), f32(also + 4 * width + first)
    new = f32(gates + 8 * width + first)
    if after:
        reset, resets, hidden_new = f32(gates + first), f32(also + first), f32(also + 8 * width + first)
        for n in range(count):
            new[n] += logistic(reset[n] + resets[n]) * hidden_new[n]
    for n in range(count):
        candidate = tanh(new[n])
        state[n] = candidate + logistic(update[n] + updates[n]) * (state[n] - candidate)


@compiled
def cell(op: Any, positions: int, batch: int, thread: int, threads: int) -> None:
    """The new state of each row that is not padding; one thread's share of the cells."""
    kind, width = op.cell, op.width
    first, last = share(width, thread, threads)
    for b in range(batch):
        if i64(positions)[b] < 0:
            continue
        gates, also, h = op.gates + b * op.gates_stride, op.also + b * op.also_stride, op.h + b * op.stride
        if kind == LSTM:
            scale = np.float32(op.scale)
            _lstm(gates, h, op.c + b * op.stride, width, op.peepholes, op.forgets, scale, first, last)
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


ELU, DPFP = 32, 33  # feature maps in addition to the activations
PLAIN, BY_SUM, BY_LENGTH = range(3)
_EPS = np.float32(1e-6)


@compiled
def _features(kind: int, nu: int, x: int, size: int, out: int) -> None:
    """Feature maps of headway.nn.parts.norm, for one head."""
    v, y = f32(x), f32(out)
    if kind == DPFP:
        for j in range(1, nu + 1):
            for i in range(2 * size):
                k = i - j if i >= j else i - j + 2 * size
                a = v[i] if i < size else -v[i - size]
                b = v[k] if k < size else -v[k - size]
                y[2 * size * (j - 1) + i] = max(a, np.float32(0)) * max(b, np.float32(0))
    elif kind == ELU:
        for i in range(size):
            y[i] = v[i] + np.float32(1) if v[i] > 0 else exp(v[i])
    elif kind == SILU:
        for i in range(size):
            y[i] = v[i] * logistic(v[i])
    elif kind == TANH:
        for i in range(size):
            y[i] = tanh(v[i])
    else:
        for i in range(size):
            y[i] = max(v[i], np.float32(0)) if kind == RELU else v[i]


@compiled
def _normalise(kind: int, x: int, count: int) -> None:
    v, total = f32(x), np.float32(0)
    if kind == PLAIN:
        return
    if kind == BY_SUM:
        for i in range(count):
            total += v[i]
        factor = np.float32(1) / (total + _EPS)
    else:
        for i in range(count):
            total += v[i] * v[i]
        factor = np.float32(1) / np.sqrt(total + _EPS)
    for i in range(count):
        v[i] *= factor


@compiled
def _rewrite(memory: int, keys: int, values: int, q: int, k: int, e: int, y: int, decay: F32, beta: F32, delta: int):
    """S = decay S + beta k e^T and y = S^T q; with `delta` e is first reduced by what k retrieves."""
    query, key, new, read = f32(q), f32(k), f32(e), f32(y)
    if delta:
        for n in range(values):
            read[n] = np.float32(0)
        for m in range(keys):
            row = f32(memory + 4 * m * values)
            for n in range(values):
                read[n] += key[m] * row[n]
        for n in range(values):
            new[n] -= decay * read[n]
    for n in range(values):
        new[n] *= beta
        read[n] = np.float32(0)
    for m in range(keys):
        row = f32(memory + 4 * m * values)
        for n in range(values):
            row[n] = decay * row[n] + key[m] * new[n]
            read[n] += query[m] * row[n]


@compiled
def associate(op: Any, positions: int, batch: int, scratch: int, thread: int, threads: int) -> None:
    """Each head of each row writes its key and value into its matrix and reads it with its query."""
    heads, size, stride, norm = op.heads, op.size, op.controls_stride, op.norm
    keys, values = op.keys, size + op.ones
    q = scratch - op.scratch - 1
    k, v, y = q + 4 * keys, q + 8 * keys, q + 8 * keys + 4 * values
    first, last = share(batch * heads, thread, threads)
    for task in range(first, last):
        b, h = task // heads, task % heads
        if i64(positions)[b] < 0:
            continue
        x = op.qkv + b * op.stride + 4 * h * size
        _features(op.features, op.nu, x, size, q)
        _features(op.features, op.nu, x + 4 * heads * size, size, k)
        _features(op.squash, 0, x + 8 * heads * size, size, v)
        if op.ones:
            f32(v)[size] = np.float32(1)
        _normalise(op.key_norm, q, keys)
        _normalise(op.key_norm, k, keys)
        decay, beta = np.float32(1), np.float32(1)
        if op.strength != 0:
            beta = logistic(f32(op.strength + b * stride)[h])
        if op.decay != 0:
            z = f32(op.decay + b * stride)[h]
            decay = exp(-exp(f32(op.rates)[h]) * (max(z, np.float32(0)) + np.float32(math.log1p(exp(-abs(z))))))
        memory = op.memory + b * op.memory_stride + 4 * h * keys * values
        _rewrite(memory, keys, values, q, k, v, y, decay, beta, op.delta)
        read, out = f32(y), f32(op.out + 4 * (b * heads + h) * size)
        if op.ones:
            for n in range(size):
                read[n] /= read[size] + _EPS
        if norm >= 0:
            norm_row(norm, y, y, size, op.weight, op.bias, op.eps)
        for n in range(size):
            out[n] = read[n]
        if op.gate != 0:
            gate = f32(op.gate + b * stride + 4 * h * size)
            for n in range(size):
                out[n] *= gate[n] * logistic(gate[n])


@compiled
def link(op: Any, positions: int, batch: int, scratch: int, thread: int, threads: int) -> None:
    """y = tanh(drive + F x), then F = decay F + rate y x^T; one thread's share of the cells, the rows of F."""
    x, width, decay, rate = at(op.x, scratch), op.width, np.float32(op.decay), np.float32(op.rate)
    first, last = share_rows(op.cells, thread, threads)
    for b in range(batch):
        if i64(positions)[b] < 0:
            continue
        inputs = f32(x + b * op.x_stride)
        drive = f32(op.drive + b * op.drive_stride)
        out = f32(op.out + b * op.out_stride)
        for n in range(first, last):
            row = f32(op.links + b * op.links_stride + 4 * n * width)
            activation = tanh(
                drive[n] + dot(op.links + b * op.links_stride + 4 * n * width, x + b * op.x_stride, width)
            )
            out[n] = activation
            for i in range(width):
                row[i] = decay * row[i] + rate * activation * inputs[i]
