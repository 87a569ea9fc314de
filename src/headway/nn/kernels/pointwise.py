"""Functions of single numbers and of one vector, with fewer passes than torch composes them of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from headway.nn.kernels.linear import is_deterministic

_MULTIPLE, _BLOCK = 64, 2**14


def pointwise(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function` of each element.

    torch computes the last elements of a tensor, too few to fill a register, by other instructions than the rest, which
    round differently in exp and its kin. In deterministic mode none is left over, and no block is so large that threads
    would share it.
    """
    if not is_deterministic():
        return function(x)
    flat = F.pad(x.reshape(-1), (0, -x.numel() % _MULTIPLE))
    return torch.cat([function(block) for block in flat.split(_BLOCK)])[: x.numel()].view(x.shape)


def relu_squared_reference(x: Tensor) -> Tensor:
    """The plain form of `relu_squared`."""
    return F.relu(x).square()


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al. 2021, Primer)."""
    return _ReluSquared.apply(x)


class _ReluSquared(torch.autograd.Function):
    """The gradient is 2 max(x, 0), so the rectified input is all that is saved."""

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
_AT_ONCE = 1 << 16  # elements a thread: a block and what is made of it stay in a core's cache
_MANY = 1 << 18  # elements from which on it pays to load compiled code
_FEW = 3  # threads that are no faster together than compiled code is on one
_VECTOR = 16  # numbers that compiled code computes at once


class GeluPasses(NamedTuple):
    """`gelu_tanh` in one pass over memory each way, compiled. All tensors are contiguous, rows a multiple of 16 wide;
    biases are fp32, all others of one type, fp32 or bf16.
    """

    value_and_slope: Callable[[Tensor, Tensor, Tensor, Tensor], None]  # x, bias; into value, slope of x + bias
    gradients: Callable[[Tensor, Tensor, Tensor, Tensor], None]  # gradient, slope; into dx, and added to dbias


_PASSES: ContextVar[Callable[[], GeluPasses] | None] = ContextVar("passes", default=None)


@contextmanager
def gelu_passes(load: Callable[[], GeluPasses] | None) -> Iterator[None]:
    """Within this context large hidden layers are trained on a CPU with what `load` gives, which is not called before
    there is one; None: with torch's operations alone.
    """
    token = _PASSES.set(load)
    try:
        yield
    finally:
        _PASSES.reset(token)


def is_gelu_compiled(x: Float[Tensor, "... D"], width: int) -> bool:
    """Whether `gelu_tanh` of a layer from `x` to `width`, which is being trained, is one compiled pass."""
    if _PASSES.get() is None or is_deterministic() or not torch.is_grad_enabled() or torch.get_num_threads() > _FEW:
        return False
    fits = width % _VECTOR == 0 and x.shape[:-1].numel() * width >= _MANY
    return fits and x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)


def gelu_tanh_reference(x: Tensor) -> Tensor:
    """The plain form of `gelu_tanh`."""
    return F.gelu(x, approximate="tanh")


def gelu_tanh(x: Tensor) -> Tensor:
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (Hendrycks and Gimpel 2016, section 2)."""
    if x.requires_grad and x.dim() and is_gelu_compiled(x, x.shape[-1]):
        return shifted_gelu_tanh(x, x.new_zeros(x.shape[-1], dtype=torch.float32))
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64, torch.bfloat16) and x.requires_grad:
        return _GeluTanh.apply(x)
    return F.gelu(x, approximate="tanh")


def shifted_gelu_tanh(x: Float[Tensor, "... F"], bias: Float[Tensor, "F"]) -> Float[Tensor, "... F"]:
    """`gelu_tanh` of x + bias where it `is_gelu_compiled`, without passes of their own for the sum and the bias's
    gradient.
    """
    return _CompiledGelu.apply(x, bias.float())


class _CompiledGelu(torch.autograd.Function):
    """As `_GeluTanh` it makes the derivative with the value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        load = _PASSES.get()
        assert load is not None  # as is_gelu_compiled has said
        passes, x = load(), x.contiguous()
        value, slope = torch.empty_like(x), torch.empty_like(x)
        passes.value_and_slope(x, bias, value, slope)
        ctx.save_for_backward(slope)
        ctx.passes = passes
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        dx, dbias = torch.empty_like(slope), slope.new_zeros(slope.shape[-1], dtype=torch.float32)
        ctx.passes.gradients(gradient.contiguous(), slope, dx, dbias)
        return dx, dbias


class _GeluTanh(torch.autograd.Function):
    """For training on a CPU, where torch's own takes four times as long as its erf form.

    The derivative is made with the value and saved in place of the input, so the way back is one product. What comes in
    bf16 is computed in fp32, block by block.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        flat, size = x.reshape(-1), _AT_ONCE * torch.get_num_threads()
        y, slope = torch.empty_like(flat), torch.empty_like(flat)
        kind = torch.promote_types(x.dtype, torch.float32)
        room = torch.empty(5, min(size, flat.numel()), dtype=kind, device=x.device)
        for block, value, derivative in zip(flat.split(size), y.split(size), slope.split(size)):
            wide = room[:, : block.numel()]
            if kind == x.dtype:
                _gelu_tanh(block, value, derivative, wide[0], wide[1])
            else:
                _gelu_tanh(wide[2].copy_(block), wide[3], wide[4], wide[0], wide[1])
                value.copy_(wide[3])
                derivative.copy_(wide[4])
        ctx.save_for_backward(slope.view_as(x))
        return y.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        return gradient * slope


def _gelu_tanh(x: Tensor, value: Tensor, slope: Tensor, t: Tensor, s: Tensor) -> None:
    """Into `value` and `slope`; `t` and `s` are room."""
    torch.mul(x, x, out=t)
    torch.add(t.new_tensor(_A), t, alpha=_B, out=t)
    torch.mul(x, t, out=s).sigmoid_()
    torch.mul(x, s, out=value)
    # v' = a + 3 b x^2 = 3 t - 2 a, and the slope is s + y (1 - s) v'
    torch.addcmul(value, value, s, value=-1, out=slope)
    torch.add(t.new_tensor(-2 * _A), t, alpha=3, out=t)
    torch.addcmul(s, slope, t, out=slope)


def rms_norm_reference(x: Tensor, eps: float) -> Tensor:
    """The plain form of `rms_norm`."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def rms_norm(x: Float[Tensor, "... D"], eps: float) -> Float[Tensor, "... D"]:
    """`x` divided by the root of its mean square along the last axis."""
    if x.device.type != "cpu":
        return F.rms_norm(x, (x.shape[-1],), eps=eps)
    return _RMSNorm.apply(x, eps)


class _RMSNorm(torch.autograd.Function):
    """On a CPU torch composes this of elementwise passes; here each direction is two reductions and two passes."""

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
