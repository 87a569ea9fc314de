"""Attention: one signature, a plain reference, and the fast paths of torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from headway.layout import Layout
from headway.nn.kernels.linear import ContextSetting, are_products_bf16, is_deterministic
from headway.nn.kernels.pointwise import softmax
from headway.visibility import Causal, Full, Pattern, allowed_mask, mask


def rotate(
    x: Float[Tensor, "B T H K"], cos: Float[Tensor, "#B T 1 R"], sin: Float[Tensor, "#B T 1 R"]
) -> Float[Tensor, "B T H K"]:
    """Rotate the first 2R features of `x`; the others, if any, stay unchanged (partial rotary)."""
    return _Rotate.apply(x, cos, sin)


def _apply_rotation(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    out = torch.empty_like(x)
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=out[..., half : 2 * half]).addcmul_(first, sin, value=sign)
    out[..., 2 * half :] = x[..., 2 * half :]
    return out


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the inverse rotation, so only the angles are saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _apply_rotation(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return _apply_rotation(gradient, *ctx.saved_tensors, sign=-1.0), None, None


_RECORD: ContextSetting[Callable[[Tensor], None] | None] = ContextSetting("record", None)
_BF16 = ContextSetting("bf16 attention", False)


@dataclass(frozen=True)
class View:
    """Visibility in one attention call: a pattern between the layouts of the queries and of the keys.

    With `one_document` each row is a single document whose start need not be among the queries (a state, or an
    encoder's memory), so segments are not compared.
    """

    pattern: Pattern
    query: Layout
    key: Layout
    one_document: bool = False

    @property
    def dense(self) -> bool:
        return self.query.dense and self.key.dense and self.query.group is None

    @property
    def everything(self) -> bool:
        """Whether every query sees every key, as a static promise."""
        return self.pattern == Full() and (self.key.dense if self.one_document else self.dense)

    @property
    def triangle(self) -> bool:
        """Whether this is plain causal attention of equal lengths, as a static promise."""
        reach = self.pattern.window if isinstance(self.pattern, Causal) else 0
        return self.dense and isinstance(self.pattern, Causal) and (reach is None or reach >= self.key.length)

    @property
    def mask(self) -> Bool[Tensor, "B 1 T S"]:
        """True where visible. Padding queries see everything, because a softmax over no keys would be NaN."""
        # The cache entry also holds the key layout, so that its id cannot be reused by another one.
        name = ("mask", self.pattern, id(self.key), self.one_document)

        def compute() -> tuple[Layout, Tensor]:
            if self.one_document:
                visible = allowed_mask(self.pattern, self.query, self.key) & self.key.mask[:, None, :]
            else:
                visible = mask(self.pattern, self.query, self.key)
            return self.key, (visible | ~self.query.mask[:, :, None])[:, None]

        return self.query.derived(name, compute)[1]


def attend(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B S G K"],
    v: Float[Tensor, "B S G V"],
    view: View,
    *,
    scale: float | None = None,
    bias: Float[Tensor, "#B H T S"] | None = None,
    soft_cap: float | None = None,
    sinks: Float[Tensor, "H"] | None = None,
    dropout: Callable[[Tensor], Tensor] | float = 0.0,
) -> Float[Tensor, "B T H V"]:
    """softmax(scale q k^T + bias) v over the visible keys (Vaswani et al. 2017, equation 1), `scale` 1/sqrt(K) by
    default.

    `soft_cap` c turns scores into c tanh(scores / c) (Gemma 2); `sinks` are logits, one per head, in the softmax but
    without a value; `dropout` of weights is a layer, or a rate for torch's kernels. G divides H: heads share keys.
    """
    is_rounded = q.dtype == torch.bfloat16 and not torch.is_autocast_enabled(q.device.type)
    if is_rounded and (is_deterministic() or soft_cap is not None or _RECORD.get() is not None):
        settings: Any = {"scale": scale, "bias": bias, "soft_cap": soft_cap, "sinks": sinks, "dropout": dropout}
        return attend(q.float(), k.float(), v.float(), view, **settings).bfloat16()  # torch's kernels round no scores
    if is_deterministic():
        from headway.nn.kernels.attend_rows import attend_row_by_row  # of one mode

        return attend_row_by_row(q, k, v, view.mask, view.query.mask, scale, bias, soft_cap, sinks, dropout)
    if soft_cap is not None or callable(dropout) or _RECORD.get() is not None:
        layer = dropout if callable(dropout) else torch.nn.Dropout(dropout) if dropout else None
        return attend_reference(q, k, v, view, scale=scale, bias=bias, soft_cap=soft_cap, sinks=sinks, dropout=layer)
    if sinks is not None:  # additional keys of zeros, with scores from the bias and values of zeros
        shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
        scores = torch.zeros(shape, dtype=q.dtype, device=q.device) if bias is None else bias.expand(shape)
        scores = scores.masked_fill(~view.mask, float("-inf"))
        column = sinks[None, :, None, None].expand(*shape[:3], 1).to(scores.dtype)
        k, v = F.pad(k, (0, 0, 0, 0, 0, 1)), F.pad(v, (0, 0, 0, 0, 0, 1))
        return _by_torch(q, k, v, torch.cat([scores, column], dim=-1), scale, dropout)
    if q.is_cuda and bias is None and not (dropout or view.one_document or view.triangle or view.everything):
        from headway.nn.kernels.flex import attend_flex  # loads torch's compiler

        return attend_flex(q, k, v, view.pattern, view.query, view.key, scale)
    return _attend_fused(q, k, v, view, scale, bias, dropout)


def attend_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    view: View,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    dropout: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Reference for `attend`: every score and weight is an explicit tensor."""
    groups = q.shape[2] // k.shape[2]
    keys, values = (t.repeat_interleave(groups, dim=2) for t in (k, v))
    scores = torch.einsum("bthk,bshk->bhts", q, keys) * (scale or 1 / math.sqrt(q.shape[-1]))
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~view.mask, float("-inf"))
    weights = softmax(scores, sinks)
    record = _RECORD.get()
    if record is not None:
        record(weights.detach())
    if dropout is not None:
        weights = dropout(weights)
    return torch.einsum("bhts,bshv->bthv", weights, values)


def recorder() -> Callable[[Tensor], None] | None:
    """The active recorder of attention weights [B, H, T, S]; None outside `recording`."""
    return _RECORD.get()


@contextmanager
def recording(record: Callable[[Tensor], None]) -> Iterator[None]:
    """Within this context every attention call passes its weights [B, H, T, S] to `record`."""
    with _RECORD.use(record):
        yield


@contextmanager
def bf16_attention(use: bool) -> Iterator[None]:
    """Within this context, if `use` is true, attention without a mask rounds queries, keys and values to bf16 and
    accumulates in fp32. For models with more coarsely quantised weights, on CPUs with bf16 units.
    """
    with _BF16.use(use):
        yield


def _attend_fused(
    q: Tensor, k: Tensor, v: Tensor, view: View, scale: float | None, bias: Tensor | None, p: float
) -> Tensor:
    heads, size = q.shape[2:]
    if not p and bias is not None and bias.requires_grad and view.everything and k.shape[2] == heads:
        # No fused kernel has a gradient for the bias, and torch's fallback checks for rows of only -inf, which cannot
        # occur here; the check takes a fifth of a small model's step.
        queries, keys, values = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        full_bias = bias.expand(q.shape[0], -1, -1, -1).flatten(0, 1)
        scores = torch.baddbmm(full_bias, queries, keys.transpose(1, 2), alpha=scale or 1 / math.sqrt(size))
        return torch.bmm(scores.softmax(-1), values).unflatten(0, (q.shape[0], heads)).transpose(1, 2)
    if bias is not None:
        attn_mask = bias if view.everything else bias.masked_fill(~view.mask, float("-inf"))
    else:
        attn_mask = None if view.everything or view.triangle else view.mask
    if attn_mask is not None:
        return _by_torch(q, k, v, attn_mask, scale, p)
    # From 256 keys of size 64, the bf16 kernel gains more than rounding costs, with and without a matrix unit.
    if are_products_bf16() and k.shape[1] >= 256 and size >= 64 and k.shape[2] == heads and v.shape[-1] == size:
        return _BF16Attention.apply(*(x.transpose(1, 2) for x in (q, k, v)), view.triangle, scale).transpose(1, 2)
    dtype = q.dtype
    if _BF16.get():
        q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    return _by_torch(q, k, v, None, scale, p, view.triangle).to(dtype)


def _by_torch(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, scale: float | None, p: float, is_causal: bool = False
) -> Tensor:
    if p and attn_mask is not None and q.shape[2] != k.shape[2]:  # a GPU's kernel for masks has no grouped heads
        k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for x in (k, v))
    inputs = (x.transpose(1, 2) for x in (q, k, v))
    enable_gqa = q.shape[2] != k.shape[2]
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.to(q.dtype)
    out = F.scaled_dot_product_attention(
        *inputs, attn_mask=attn_mask, dropout_p=p, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return out.transpose(1, 2)


class _BF16Attention(torch.autograd.Function):
    """torch's CPU attention on inputs rounded to bf16, with the gradient in fp32: torch's own gradient in bf16 is
    slower, for short rows six times.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, triangle: bool, scale: float | None) -> Tensor:
        inputs = [x.bfloat16() for x in (q, k, v)]
        out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*inputs, 0.0, triangle, scale=scale)
        ctx.save_for_backward(*inputs, out, sums)
        ctx.how = q.dtype, triangle, scale
        return out.to(q.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dtype, triangle, scale = ctx.how
        *inputs, sums = ctx.saved_tensors
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, *(x.to(dtype) for x in inputs), sums, 0.0, triangle, scale=scale
        )
        return *gradients, None, None
