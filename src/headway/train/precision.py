"""The precision of matrix products: what it costs on this machine, and how it is set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from headway import kernels

_GAIN = 1.2  # bf16 must be so much faster to be worth its rounding
_FLOP = 4e8  # the most that one measured product costs: a few milliseconds on any processor
_REPEATS = 3


class Precision(NamedTuple):
    """`name` is fp32 or bf16; `reason` says why."""

    name: str
    reason: str


def choose(setting: str, model: nn.Module, tokens: int, device: torch.device) -> Precision:
    """The precision for `setting` ("auto", "fp32", "bf16"); "auto" measures products of `tokens` rows on a CPU."""
    if setting != "auto":
        return Precision(setting, "as set")
    if device.type == "cuda":
        fits = torch.cuda.is_bf16_supported(including_emulation=False)
        return Precision("bf16", "the GPU has it") if fits else Precision("fp32", "the GPU has no bf16")
    if device.type != "cpu":
        return Precision("fp32", f"the only one used on {device.type}")
    shapes = representative(model)
    rates = {name: _rate(name, shapes, tokens) for name in ("fp32", "bf16")}
    name = "bf16" if rates["bf16"] > _GAIN * rates["fp32"] else "fp32"
    figures = ", ".join(f"{key} {rate / 1e9:.0f}" for key, rate in rates.items())
    return Precision(name, f"measured GFLOP/s: {figures}")


def representative(model: nn.Module, count: int = 3) -> list[tuple[int, int]]:
    """The shapes (out, in) of the matrices on which a model spends most of its products."""
    cost: dict[tuple[int, int], int] = {}
    for parameter in model.parameters():
        if parameter.dim() == 2:
            shape = (parameter.shape[0], parameter.shape[1])
            cost[shape] = cost.get(shape, 0) + parameter.numel()
    return sorted(cost, key=lambda shape: -cost[shape])[:count]


@contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """Matrix products in `precision` inside, as they were before afterwards.

    On a CPU bf16 rounds the operands of the linear layers (headway.kernels.products); on a GPU it is autocast, with
    TF32 for what stays fp32. fp32 means full fp32 on both.
    """
    if device.type == "cuda":
        backend, value = torch.backends.cuda.matmul, "tf32" if precision == "bf16" else "ieee"
        with _setting(backend, value), torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            yield
    else:
        with kernels.products("bf16" if precision == "bf16" else "fp32"):
            yield


@contextmanager
def _setting(backend: Any, value: str) -> Iterator[None]:
    before = backend.fp32_precision
    backend.fp32_precision = value
    try:
        yield
    finally:
        backend.fp32_precision = before


def _rate(name: str, shapes: list[tuple[int, int]], tokens: int) -> float:
    """flop/s over products of the shapes, each the best of a few repeats."""
    flop = seconds = 0.0
    with products(name, torch.device("cpu")), torch.no_grad():
        for out, width in shapes:
            rows = int(min(max(tokens, 64), 2048, max(16, _FLOP / (2 * out * width))))
            x, weight = torch.ones(rows, width), torch.ones(out, width)
            seconds += _fastest(lambda x=x, weight=weight: kernels.linear(x, weight))
            flop += 2.0 * rows * out * width
    return flop / seconds


def _fastest(product: Callable[[], Tensor]) -> float:
    times = []
    for _ in range(_REPEATS + 1):  # the first prepares the kernel
        start = time.perf_counter()
        product()
        times.append(time.perf_counter() - start)
    return min(times[1:])
