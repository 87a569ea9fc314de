"""Operations for a program's instructions, each for one thread's share."""

from __future__ import annotations

import math

import numpy as np

from headway.engine import codegen
from headway.engine.codegen import Float, Int32, kernel
from headway.engine.machine import F32, compiled, f32
from headway.engine.tiles import TILE

LAYER, RMS = 0, 1
NONE, RELU, GELU, GELU_TANH, QUICK_GELU, RELU_SQUARED, SILU, TANH, SOFT_CAP, MAXOUT, CLAMPED = range(11)
ALWAYS, GATED_SHARED = 1, 2  # weights of a mixture's shared layer: 1, or the sigmoid of a logit
STORE, ADD, GATED, QUANTISED = range(4)
BLOCK = 32  # positions per block of keys and values
CHUNK = 2 * BLOCK  # positions whose weights are computed at once
NEAR, FAR = 1024, 512  # segments of a context have CHUNK positions up to position NEAR, and FAR after it


@compiled
def share(total: int, thread: int, threads: int) -> tuple[int, int]:
    return thread * total // threads, (thread + 1) * total // threads


@compiled
def share_rows(rows: int, thread: int, threads: int) -> tuple[int, int]:
    """A share of a matrix's rows in full tiles, so that matrices with equally many rows go to the same threads,
    packed or not.
    """
    first, last = share((rows + TILE - 1) // TILE, thread, threads)
    return first * TILE, min(last * TILE, rows)


@compiled
def at(address: int, scratch: int) -> int:
    """Resolve an instruction's address: shared from 0 on, otherwise in the thread's scratch."""
    return address if address >= 0 else scratch - address - 1


@kernel
def _float_of(bits: Int32) -> Float:
    return bits.to(codegen.F32)


@compiled
def exp(x: F32) -> F32:
    """e^x in single precision to two units in the last place, in a form that vectorises; x is clamped to -87 ... 88."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) - n * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * _float_of((np.int32(n) + np.int32(127)) << np.int32(23))


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
