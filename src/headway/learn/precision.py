"""The precision of matrix products: which is faster on this processor, and how to set it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from headway.nn import kernels

_MIN_DIMENSION = 64  # minimum rows and columns of a matrix for which bf16 products gain more than rounding costs


class Precision(NamedTuple):
    """`name` is fp32 or bf16; `reason` explains the choice."""

    name: str
    reason: str


class Processor(NamedTuple):
    """The processor properties that matter for bf16: vendor, model name, and bf16 instructions."""

    name: str
    amx: bool  # bf16 tile instructions
    avx512_bf16: bool  # bf16 vector instructions

    @property
    def reason(self) -> str:
        """Why bf16 is faster on this processor, or not."""
        if self.amx:
            return "the processor has a bf16 matrix unit"
        if not self.avx512_bf16:
            return "the processor has no bf16 instructions"
        if self.multiplies_bf16:
            return "AVX512_BF16 is twice as fast as fp32 on this processor"
        return "AVX512_BF16 is not faster than fp32 on this processor"

    @property
    def multiplies_bf16(self) -> bool:
        """Whether bf16 products are faster than fp32 products.

        They are faster on a matrix unit. An AVX512_BF16 instruction multiplies twice as many numbers as an fp32
        instruction; AMD processors issue as many of them as fp32 instructions, Intel processors only a quarter as many
        (docs/decisions/0014).
        """
        return self.amx or (self.avx512_bf16 and self.name.startswith("AMD"))


def this_processor() -> Processor:
    """This processor, without instructions that ONEDNN_MAX_CPU_ISA disables for torch."""
    capabilities, max_isa = torch.cpu.get_capabilities(), os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    tiles = max_isa in ("ALL", "DEFAULT") or "AMX" in max_isa
    vectors = tiles or max_isa in ("AVX512_CORE_BF16", "AVX512_CORE_FP16") or max_isa.startswith("AVX10")
    name = str(capabilities.get("cpu_name", ""))
    return Processor(
        name, tiles and bool(capabilities.get("amx_bf16")), vectors and bool(capabilities.get("avx512_bf16"))
    )


def choose_precision(
    setting: str, model: nn.Module, device: torch.device, processor: Processor | None = None
) -> Precision:
    """The precision for `setting` ("auto", "fp32", "bf16"). On a CPU, `processor` decides; None means this one.

    "auto" depends on the processor and the model's shapes, not on a measurement, so the same machine always makes the
    same choice. On a CPU, bf16 is used if its products are faster and the matrices have at least 64 rows and columns
    (docs/decisions/0014).
    """
    processor = processor or this_processor()
    if setting != "auto":
        is_available = effective_precision(setting, device, processor) == setting
        return Precision(setting, "as set" if is_available else f"as set, but computed in fp32: {processor.reason}")
    if device.type == "cuda":
        is_supported = torch.cuda.is_bf16_supported(including_emulation=False)
        return (
            Precision("bf16", "the GPU supports it")
            if is_supported
            else Precision("fp32", "the GPU does not support bf16")
        )
    if device.type != "cpu":
        return Precision("fp32", f"the only precision for {device.type}")
    narrow = min(min(shape) for shape in main_matrix_shapes(model))
    if processor.multiplies_bf16 and narrow < _MIN_DIMENSION:
        return Precision("fp32", f"matrices with only {narrow} rows or columns gain nothing from bf16")
    return Precision("bf16" if processor.multiplies_bf16 else "fp32", processor.reason)


def effective_precision(precision: str, device: torch.device, processor: Processor | None = None) -> str:
    """The precision actually used on a CPU `processor` (None for this one). It is fp32 if bf16 is slower, so that a
    recipe with bf16 runs on any machine.
    """
    multiplies = device.type != "cpu" or (processor or this_processor()).multiplies_bf16
    return precision if multiplies else "fp32"


def evaluation_precision(precision: str, device: torch.device) -> str:
    """The precision of products in evaluations during training in `precision`: the same on a GPU, whose fp32 products
    do not use tensor cores; fp32 on a CPU.
    """
    return precision if device.type == "cuda" else "fp32"


def main_matrix_shapes(model: nn.Module, count: int = 3) -> list[tuple[int, int]]:
    """The shapes (out, in) of the matrices that take most of a model's compute."""
    cost: dict[tuple[int, int], int] = {}
    for parameter in model.parameters():
        if parameter.dim() == 2:
            shape = (parameter.shape[0], parameter.shape[1])
            cost[shape] = cost.get(shape, 0) + parameter.numel()
    return sorted(cost, key=lambda shape: -cost[shape])[:count]


@contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """Compute matrix products in `precision` inside the context.

    On a CPU, bf16 rounds the factors before multiplying (headway.nn.kernels.products). On a GPU, it uses autocast, with
    TF32 for the remaining fp32 products. fp32 means full fp32 on both.
    """
    if device.type == "cuda":
        backend: Any = torch.backends.cuda.matmul
        previous, backend.fp32_precision = backend.fp32_precision, "tf32" if precision == "bf16" else "ieee"
        try:
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
                yield
        finally:
            backend.fp32_precision = previous
    else:
        with kernels.products("bf16" if precision == "bf16" else "fp32"):
            yield
