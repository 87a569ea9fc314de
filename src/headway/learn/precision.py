"""The precision of matrix products: which pays on this processor, and how it is set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from headway.nn import kernels

_LEAST = 64  # rows and columns of the narrowest matrix from which on rounding costs less than the products gain


class Precision(NamedTuple):
    """`name` is fp32 or bf16; `reason` says why."""

    name: str
    reason: str


class Processor(NamedTuple):
    """What of a processor decides about bf16: its maker's name and model, and its instructions for products of it."""

    name: str
    amx: bool  # tiles
    avx512_bf16: bool  # vectors

    @property
    def reason(self) -> str:
        """Why it is worth to compute in bf16, or not."""
        if self.amx:
            return "the processor has a matrix unit for it"
        if not self.avx512_bf16:
            return "the processor has no products of bf16"
        if self.multiplies_bf16:
            return "the processor's AVX512_BF16 multiplies it twice as fast"
        return "the processor's AVX512_BF16 multiplies it no faster than fp32"

    @property
    def multiplies_bf16(self) -> bool:
        """Whether products of bf16 take less time than those of fp32.

        A matrix unit's do. An instruction of AVX512_BF16 multiplies twice as many numbers as one of fp32 vectors; AMD's
        processors begin as many of the one as of the other, Intel's a fourth (docs/decisions/0014).
        """
        return self.amx or (self.avx512_bf16 and self.name.startswith("AMD"))


def this_processor() -> Processor:
    """The processor, less what ONEDNN_MAX_CPU_ISA keeps torch's products from."""
    has, most = torch.cpu.get_capabilities(), os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    tiles = most in ("ALL", "DEFAULT") or "AMX" in most
    vectors = tiles or most in ("AVX512_CORE_BF16", "AVX512_CORE_FP16") or most.startswith("AVX10")
    name = str(has.get("cpu_name", ""))
    return Processor(name, tiles and bool(has.get("amx_bf16")), vectors and bool(has.get("avx512_bf16")))


def choose(setting: str, model: nn.Module, device: torch.device, processor: Processor | None = None) -> Precision:
    """The precision for `setting` ("auto", "fp32", "bf16"); on a CPU for `processor`, None for this one.

    "auto" is decided by what the processor is and by the shapes of the model, never by a measurement: the same machine
    always gives the same answer. On a CPU bf16 pays where its products are faster, from matrices of 64 rows and columns
    on (docs/decisions/0014).
    """
    processor = processor or this_processor()
    if setting != "auto":
        there = computed(setting, device, processor) == setting
        return Precision(setting, "as set" if there else f"as set, but computed in fp32: {processor.reason}")
    if device.type == "cuda":
        fits = torch.cuda.is_bf16_supported(including_emulation=False)
        return Precision("bf16", "the GPU has it") if fits else Precision("fp32", "the GPU has no bf16")
    if device.type != "cpu":
        return Precision("fp32", f"the only one used on {device.type}")
    narrow = min(min(shape) for shape in representative(model))
    if processor.multiplies_bf16 and narrow < _LEAST:
        return Precision("fp32", f"matrices of {narrow} rows or columns gain nothing from bf16")
    return Precision("bf16" if processor.multiplies_bf16 else "fp32", processor.reason)


def computed(precision: str, device: torch.device, processor: Processor | None = None) -> str:
    """What a learner computes in, on a CPU that is `processor`, None for this one: fp32 where bf16 takes longer, so
    that a recipe that says bf16 runs on any machine.
    """
    multiplies = device.type != "cpu" or (processor or this_processor()).multiplies_bf16
    return precision if multiplies else "fp32"


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

    On a CPU bf16 rounds the factors of products (headway.nn.kernels.products); on a GPU it is autocast, with TF32 for
    what stays fp32. fp32 means full fp32 on both.
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
