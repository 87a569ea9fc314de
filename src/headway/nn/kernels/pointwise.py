"""Elementwise functions, softmax and vector norms with fewer memory passes than torch's compositions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from headway.nn.kernels.linear import ContextSetting, is_deterministic

_MULTIPLE, _BLOCK = 64, 2**14


def pointwise(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply `function` to each element.

    torch computes the last elements of a tensor, too few to fill a register, with other instructions, which round
    differently in exp and similar functions. In deterministic mode tensors are padded to avoid leftovers, and blocks
    are too small to be split among threads.
    """
    if not is_deterministic():
        return function(x)
    flat = F.pad(x.reshape(-1), (0, -x.numel() % _MULTIPLE))
    return torch.cat([function(block) for block in flat.split(_BLOCK)])[: x.numel()].view(x.shape)


def relu_squared_reference(x: Tensor) -> Tensor:
    """Reference for `relu_squared`."""
    return F.relu(x).square()


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al. 2021, Primer)."""
    return _ReluSquared.apply(x)


class _ReluSquared(torch.autograd.Function):
    """The gradient is 2 max(x, 0), so only the rectified input is saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = x.clamp_min(0)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (positive,) = ctx.saved_tensors
        return torch.addcmul(gradient.new_zeros(()), gradient, positive, value=2)  # in one pass


# gelu_tanh(x) = x sigmoid(v), v = x t, t = a + b x^2
_A, _B = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715
_ELEMENTS_PER_THREAD = 1 << 16  # elements per thread: a block and its results fit a core's cache
_MANY = 1 << 18  # elements from which loading compiled code pays off
_MAX_THREADS = 3  # threads up to which compiled code on one thread is as fast
_VECTOR = 16  # elements per vector of the compiled code


class GeluPasses(NamedTuple):
    """`gelu_tanh` compiled to one memory pass forward and one backward. All tensors are contiguous with a row width
    that is a multiple of 16; biases are fp32, all others have one dtype, fp32 or bf16.
    """

    value_and_slope: Callable[[Tensor, Tensor, Tensor, Tensor], None]  # x, bias; into value, slope of x + bias
    gradients: Callable[[Tensor, Tensor, Tensor, Tensor], None]  # gradient, slope; into dx, and added to dbias


_PASSES: ContextSetting[Callable[[], GeluPasses] | None] = ContextSetting("passes", None)


@contextmanager
def gelu_passes(load: Callable[[], GeluPasses] | None) -> Iterator[None]:
    """Within this context large hidden layers are trained on a CPU with the passes from `load`, which is called on
    first use; None: with torch's operations only.
    """
    with _PASSES.use(load):
        yield


def is_gelu_compiled(x: Float[Tensor, "... D"], width: int) -> bool:
    """Whether `gelu_tanh` of a layer from `x` to `width` runs as one compiled pass in training."""
    if (
        _PASSES.get() is None
        or is_deterministic()
        or not torch.is_grad_enabled()
        or torch.get_num_threads() > _MAX_THREADS
    ):
        return False
    fits = width % _VECTOR == 0 and x.shape[:-1].numel() * width >= _MANY
    return fits and x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)


def gelu_tanh_reference(x: Tensor) -> Tensor:
    """Reference for `gelu_tanh`."""
    return F.gelu(x, approximate="tanh")


def gelu_tanh(x: Tensor) -> Tensor:
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (Hendrycks and Gimpel 2016, section 2)."""
    if x.requires_grad and x.dim() and is_gelu_compiled(x, x.shape[-1]):
        return shifted_gelu_tanh(x, x.new_zeros(x.shape[-1], dtype=torch.float32))
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64, torch.bfloat16) and x.requires_grad:
        return _GeluTanh.apply(x)
    return F.gelu(x, approximate="tanh")


def shifted_gelu_tanh(x: Float[Tensor, "... F"], bias: Float[Tensor, "F"]) -> Float[Tensor, "... F"]:
    """`gelu_tanh` of x + bias if `is_gelu_compiled`, without separate passes for the sum and the bias's gradient."""
    return _CompiledGelu.apply(x, bias.float())


class _CompiledGelu(torch.autograd.Function):
    """Like `_GeluTanh`, it computes the derivative together with the value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        load = _PASSES.get()
        assert load is not None  # guaranteed by is_gelu_compiled
        passes, x = load(), x.contiguous()
        output, slope = torch.empty_like(x), torch.empty_like(x)
        passes.value_and_slope(x, bias, output, slope)
        ctx.save_for_backward(slope)
        ctx.passes = passes
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        dx, dbias = torch.empty_like(slope), slope.new_zeros(slope.shape[-1], dtype=torch.float32)
        ctx.passes.gradients(gradient.contiguous(), slope, dx, dbias)
        return dx, dbias


class _GeluTanh(torch.autograd.Function):
    """For training on a CPU, where torch's tanh version takes four times as long as its erf version.

    The derivative is computed with the value and saved instead of the input, so the backward pass is one product. bf16
    inputs are computed in fp32, block by block.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        flat, size = x.reshape(-1), _ELEMENTS_PER_THREAD * torch.get_num_threads()
        y, slope = torch.empty_like(flat), torch.empty_like(flat)
        dtype = torch.promote_types(x.dtype, torch.float32)
        scratch = torch.empty(5, min(size, flat.numel()), dtype=dtype, device=x.device)
        for block, output, derivative in zip(flat.split(size), y.split(size), slope.split(size)):
            buffers = scratch[:, : block.numel()]
            if dtype == x.dtype:
                _gelu_tanh(block, output, derivative, buffers[0], buffers[1])
            else:
                _gelu_tanh(buffers[2].copy_(block), buffers[3], buffers[4], buffers[0], buffers[1])
                output.copy_(buffers[3])
                derivative.copy_(buffers[4])
        ctx.save_for_backward(slope.view_as(x))
        return y.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        return gradient * slope


def _gelu_tanh(x: Tensor, output: Tensor, slope: Tensor, t: Tensor, s: Tensor) -> None:
    """Write to `output` and `slope`; `t` and `s` are scratch buffers."""
    torch.mul(x, x, out=t)
    torch.add(t.new_tensor(_A), t, alpha=_B, out=t)
    torch.mul(x, t, out=s).sigmoid_()
    torch.mul(x, s, out=output)
    # v' = a + 3 b x^2 = 3 t - 2 a, and the slope is s + y (1 - s) v'
    torch.addcmul(output, output, s, value=-1, out=slope)
    torch.add(t.new_tensor(-2 * _A), t, alpha=3, out=t)
    torch.addcmul(s, slope, t, out=slope)


def rms_norm_reference(x: Tensor, eps: float) -> Tensor:
    """Reference for `rms_norm`."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def rms_norm(x: Float[Tensor, "... D"], eps: float) -> Float[Tensor, "... D"]:
    """`x` divided by the root of its mean square along the last axis."""
    if x.device.type != "cpu":
        return F.rms_norm(x, (x.shape[-1],), eps=eps)
    return _RMSNorm.apply(x, eps)


class _RMSNorm(torch.autograd.Function):
    """On a CPU torch composes this from elementwise passes; here each direction is two reductions and two passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        y, inverse = ctx.saved_tensors
        along = (gradient * y).mean(-1, keepdim=True)
        return torch.addcmul(gradient, y, along, value=-1).mul_(inverse), None


def softmax(scores: Float[Tensor, "B H T S"], sinks: Float[Tensor, "H"] | None) -> Float[Tensor, "B H T S"]:
    """Softmax over the keys; `sinks` are logits, one per head, of one more key without a value."""
    if sinks is None:
        return torch.softmax(scores, dim=-1)
    column = sinks[:, None, None].expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat([scores, column.to(scores.dtype)], dim=-1), dim=-1)[..., :-1]
