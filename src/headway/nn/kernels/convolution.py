"""Convolutions over images with channels last, and torch's switch for matrix units."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headway.nn.kernels.linear import are_products_bf16, is_deterministic, linear


@contextmanager
def matrix_unit(settings: Any, use: bool = True) -> Iterator[None]:
    """Within this context, if `use` is true, turn on torch's switch that lets a matrix unit round fp32 factors itself.

    `settings` are torch.backends.mkldnn.matmul or .conv. It is for many small products, for which explicit rounding
    would be slow. Without a matrix unit it has no effect.
    """
    before = settings.fp32_precision
    if use:
        settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def convolve(
    x: Float[Tensor, "B H W C"],
    weight: Float[Tensor, "D K"],
    bias: Float[Tensor, "D"] | None,
    taps: int,
    stride: int,
    reach: int,
) -> Float[Tensor, "B h w D"]:
    """A convolution with kernel size `taps` x `taps`, a stride and a zero padding of `reach`.

    A row of `weight` is a kernel [taps, taps, C] flattened; h and w are (H + 2 reach - taps) / stride + 1, rounded
    down.
    """
    if is_deterministic():
        return convolve_reference(x, weight, bias, taps, stride, reach)
    # Views only: torch's convolutions do not copy a weight with channels last.
    image = x.permute(0, 3, 1, 2)
    kernel = weight.reshape(len(weight), taps, taps, x.shape[-1]).permute(0, 3, 1, 2)
    if are_products_bf16():
        return _BF16Convolution.apply(image, kernel, bias, stride, reach).permute(0, 2, 3, 1)
    return F.conv2d(image, kernel, bias, stride, reach).permute(0, 2, 3, 1)


def convolve_reference(
    x: Float[Tensor, "B H W C"],
    weight: Float[Tensor, "D K"],
    bias: Float[Tensor, "D"] | None,
    taps: int,
    stride: int,
    reach: int,
) -> Float[Tensor, "B h w D"]:
    """Reference for `convolve`, as one matrix product."""
    around = F.pad(x, (0, 0, reach, reach, reach, reach))
    height, width = ((size - taps) // stride * stride + 1 for size in around.shape[1:3])
    windows = [around[:, i : i + height : stride, j : j + width : stride] for i in range(taps) for j in range(taps)]
    return linear(torch.cat(windows, -1), weight, bias)


class _BF16Convolution(torch.autograd.Function):
    """A convolution whose three products (forward and backward) round factors to bf16 and accumulate in fp32."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, kernel: Tensor, bias: Tensor | None, stride: int, reach: int) -> Tensor:
        ctx.save_for_backward(image, kernel)
        ctx.steps = stride, reach
        with matrix_unit(torch.backends.mkldnn.conv):  # type: ignore[attr-defined]
            return F.conv2d(image, kernel, bias, stride, reach)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        image, kernel = ctx.saved_tensors
        stride, reach = ([number] * 2 for number in ctx.steps)
        mask = list(ctx.needs_input_grad[:3])
        with matrix_unit(torch.backends.mkldnn.conv):  # type: ignore[attr-defined]
            gradients = torch.ops.aten.convolution_backward(
                gradient, image, kernel, [kernel.shape[0]], stride, reach, [1, 1], False, [0, 0], 1, mask
            )
        return *(grad if wanted else None for grad, wanted in zip(gradients, mask)), None, None
