"""What the instructions of a program do, each for the share of one thread."""

from __future__ import annotations

import math

import numpy as np

from headway.engine.dots import FP32, GROUP, INT8, dot4, dot8, dot32, four_dots32, quantise_row
from headway.engine.machine import F32, barrier, compiled, exp, f32, i8, i64, u8

LAYER, RMS = 0, 1
NONE, RELU, GELU, GELU_TANH, QUICK_GELU, RELU_SQUARED, SILU, TANH, SOFT_CAP, MAXOUT = range(10)
STORE, ADD, GATED = 0, 1, 2
BLOCK = 32  # positions of a block of keys and values


@compiled
def share(total: int, thread: int, threads: int) -> tuple[int, int]:
    return thread * total // threads, (thread + 1) * total // threads


@compiled
def at(address: int, scratch: int) -> int:
    """Where an address of an instruction is: shared from 0 on, else in the scratch of the thread."""
    return address if address >= 0 else scratch - address - 1


@compiled
def splits_of(groups: int, threads: int) -> int:
    """Into how many pieces contexts are cut, so that all threads have alike work on one row. It does not depend on the
    number of rows, so that neither does what a row gives.
    """
    if groups >= 4 * threads:
        return 1
    a, b = groups, threads
    while b:
        a, b = b, a % b
    return threads // a


@compiled
def tanh(x: F32) -> F32:
    e = exp(np.float32(-2) * abs(x))
    y = (np.float32(1) - e) / (np.float32(1) + e)
    return y if x >= 0 else -y


@compiled
def activate(code: int, x: F32, cap: F32) -> F32:
    if code == NONE:
        return x
    if code == SILU:
        return x / (np.float32(1) + exp(-x))
    if code == GELU:
        return np.float32(0.5) * x * (np.float32(1) + np.float32(math.erf(x * np.float32(0.7071067811865476))))
    if code == GELU_TANH:
        inner = np.float32(0.7978845608028654) * (x + np.float32(0.044715) * x * x * x)
        return np.float32(0.5) * x * (np.float32(1) + tanh(inner))
    if code == RELU:
        return x if x > 0 or x != x else np.float32(0)
    if code == RELU_SQUARED:
        return x * x if x > 0 or x != x else np.float32(0)
    if code == QUICK_GELU:
        return x / (np.float32(1) + exp(np.float32(-1.702) * x))
    if code == TANH:
        return tanh(x)
    return cap * tanh(x / cap)


@compiled
def norm_row(kind: int, src: int, dst: int, width: int, weight: int, bias: int, eps: F32) -> None:
    x, y, w, b = f32(src), f32(dst), f32(weight), f32(bias)
    mean = np.float32(0)
    if kind == LAYER:
        for i in range(width):
            mean += x[i]
        mean /= np.float32(width)
    square = np.float32(0)
    for i in range(width):
        square += (x[i] - mean) * (x[i] - mean)
    inverse = np.float32(1) / np.sqrt(square / np.float32(width) + np.float32(eps))
    if weight == 0:
        for i in range(width):
            y[i] = (x[i] - mean) * inverse
    else:
        for i in range(width):
            y[i] = (x[i] - mean) * inverse * w[i]
    if bias != 0:
        for i in range(width):
            y[i] += b[i]


@compiled
def row_bytes(kind: int, columns: int) -> int:
    """Of a row of weights."""
    groups = (columns + GROUP - 1) // GROUP
    return 4 * columns if kind == FP32 else groups * (GROUP if kind == INT8 else GROUP // 2)


@compiled
def product(kind: int, w: int, ws: int, row: int, columns: int, x: int, xs: int, corr: int) -> F32:
    """One row of weights with one row of numbers."""
    if kind == FP32:
        return dot32(w + row * 4 * columns, x, 0, columns)
    groups = (columns + GROUP - 1) // GROUP
    if kind == INT8:
        return dot8(w + row * groups * GROUP, ws + row * groups * 4, x, xs, corr, groups)
    return dot4(w + row * groups * (GROUP // 2), ws + row * groups * 4, x, xs, corr, groups)


@compiled
def store(mode: int, code: int, y: int, row: int, value: F32, bias: int, cap: F32) -> None:
    out = f32(y)
    if bias != 0:
        value += f32(bias)[row]
    if mode == ADD:
        out[row] += value
    else:
        out[row] = activate(code, value, cap)


@compiled
def multiply(
    kind: int,
    w: int,
    ws: int,
    bias: int,
    x: int,
    xs: int,
    corr: int,
    stride: int,
    y: int,
    y_stride: int,
    rows: int,
    columns: int,
    batch: int,
    mode: int,
    code: int,
    cap: F32,
    scale: F32,
    thread: int,
    threads: int,
) -> None:
    """y = W x, or y += W x, of `batch` rows of numbers; each weight comes from memory once. Strides are in bytes; the
    scales and corrections of quantised numbers lie a group apart.
    """
    first, last = share(rows, thread, threads)
    groups = 4 * ((columns + GROUP - 1) // GROUP)
    for r in range(first, last):
        b = 0
        if kind == FP32:
            while b + 4 <= batch:
                four = four_dots32(w + r * 4 * columns, x + b * stride, stride, columns)
                for k in range(4):
                    store(mode, code, y + (b + k) * y_stride, r, scale * four[k], bias, cap)
                b += 4
        while b < batch:
            value = product(kind, w, ws, r, columns, x + b * stride, xs + b * groups, corr + b * groups)
            store(mode, code, y + b * y_stride, r, scale * value, bias, cap)
            b += 1


@compiled
def multiply_gated(
    kind: int,
    w: int,
    ws: int,
    bias: int,
    x: int,
    xs: int,
    corr: int,
    stride: int,
    y: int,
    y_stride: int,
    rows: int,
    columns: int,
    batch: int,
    code: int,
    thread: int,
    threads: int,
) -> None:
    """y = activation(gate x) * (up x): the first `rows` rows of the weights are the gate, the next `rows` the other.
    MAXOUT: the larger of each pair of neighbours.
    """
    first, last = share(rows, thread, threads)
    groups = 4 * ((columns + GROUP - 1) // GROUP)
    for r in range(first, last):
        one, two = (2 * r, 2 * r + 1) if code == MAXOUT else (r, rows + r)
        for b in range(batch):
            numbers, scales, corrections = x + b * stride, xs + b * groups, corr + b * groups
            gate = product(kind, w, ws, one, columns, numbers, scales, corrections)
            up = product(kind, w, ws, two, columns, numbers, scales, corrections)
            if bias != 0:
                gate += f32(bias)[one]
                up += f32(bias)[two]
            value = max(gate, up) if code == MAXOUT else activate(code, gate, np.float32(0)) * up
            f32(y + b * y_stride)[r] = value


@compiled
def quantise(kind: int, x: int, stride: int, columns: int, q: int, xs: int, corr: int, batch: int) -> None:
    groups = (columns + GROUP - 1) // GROUP
    for b in range(batch):
        quantise_row(
            x + b * stride, columns, kind, q + b * groups * GROUP, xs + b * groups * 4, corr + b * groups * 4, groups
        )


@compiled
def unpack_row(kind: int, w: int, ws: int, row: int, width: int, scale: F32, out: int) -> None:
    """A row of a matrix as numbers, times `scale`."""
    y = f32(out)
    start = w + row * row_bytes(kind, width)
    if kind == FP32:
        numbers = f32(start)
        for i in range(width):
            y[i] = numbers[i] * scale
        return
    groups = (width + GROUP - 1) // GROUP
    scales = f32(ws + row * groups * 4)
    for g in range(groups):
        factor, base = scales[g] * scale, g * GROUP
        count = min(GROUP, width - base)
        if kind == INT8:
            whole = i8(start + base)
            for j in range(count):
                y[base + j] = np.float32(whole[j]) * factor
        else:
            halves = u8(start + base // 2)
            for j in range(min(count, GROUP // 2)):
                y[base + j] = np.float32(np.int32(halves[j] & np.uint8(15)) - 8) * factor
            for j in range(max(0, count - GROUP // 2)):
                y[base + GROUP // 2 + j] = np.float32(np.int32(halves[j] >> np.uint8(4)) - 8) * factor


@compiled
def unpack_rows(
    kind: int, w: int, ws: int, rows: int, count: int, width: int, out: int, thread: int, threads: int
) -> None:
    """`count` rows of a matrix, whose numbers are at `rows` (int64), as floats at `out`: one thread's share."""
    first, last = share(count, thread, threads)
    for n in range(first, last):
        unpack_row(kind, w, ws, i64(rows)[n], width, np.float32(1), out + 4 * n * width)


@compiled
def packed_product(
    kind: int, w: int, ws: int, x: int, q: int, xs: int, corr: int, y: int, rows: int, columns: int, batch: int,
    counter: int, thread: int, threads: int,
) -> None:  # fmt: skip
    """y = x W^T of few rows, with the memory for quantised numbers at `q`, `xs` and `corr`; all threads."""
    if kind != FP32 and thread == 0:
        quantise(kind, x, 4 * columns, columns, q, xs, corr, batch)
    barrier(counter, threads)
    numbers, stride = x, 4 * columns
    if kind != FP32:
        numbers, stride = q, (columns + GROUP - 1) // GROUP * GROUP
    multiply(
        kind, w, ws, 0, numbers, xs, corr, stride, y, 4 * rows, rows, columns, batch, STORE, NONE, np.float32(0),
        np.float32(1), thread, threads,
    )  # fmt: skip
