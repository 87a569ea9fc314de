"""The precision of matrix products: which pays on this processor, and how it is set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from headway.nn import kernels

_TILE = 64  # rows and columns from which on a matrix unit is kept busy


class Precision(NamedTuple):
    """`name` is fp32 or bf16; `reason` says why."""

    name: str
    reason: str


def choose(setting: str, model: nn.Module, device: torch.device) -> Precision:
    """The precision for `setting` ("auto", "fp32", "bf16").

    "auto" is decided by what the processor is and by the shapes of the model, never by a measurement: the same machine
    always gives the same answer. On a CPU bf16 pays with a unit that multiplies tiles of it, from matrices of 64 rows
    and columns on (docs/decisions/0001). Instructions for bf16 vectors alone (AVX512_BF16) bring a step of ours nothing
    (docs/decisions/0014).
    """
    if setting != "auto":
        return Precision(setting, "as set")
    if device.type == "cuda":
        fits = torch.cuda.is_bf16_supported(including_emulation=False)
        return Precision("bf16", "the GPU has it") if fits else Precision("fp32", "the GPU has no bf16")
    if device.type != "cpu":
        return Precision("fp32", f"the only one used on {device.type}")
    if not torch.cpu._is_amx_tile_supported():
        return Precision("fp32", "the processor has no matrix unit for bf16")
    narrow = min(min(shape) for shape in representative(model))
    if narrow < _TILE:
        return Precision("fp32", f"matrices of {narrow} rows or columns gain nothing from bf16")
    return Precision("bf16", "the processor has a matrix unit for it")


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

    On a CPU bf16 rounds the operands of the linear layers (headway.nn.kernels.products); on a GPU it is autocast, with
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
