"""Hebbian links between inputs and cells: step by step and chunkwise."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from headway.layout import Layout
from headway.nn.kernels.linear import is_deterministic
from headway.nn.kernels.linear_scan import chunk_size, decays, entry_state, scan_masks, to_fp32
from headway.nn.kernels.pointwise import pointwise


def links(
    drive: Float[Tensor, "B T N"],
    x: Float[Tensor, "B T D"],
    layout: Layout,
    *,
    decay: float,
    rate: float,
    state: Float[Tensor, "B N D"] | None = None,
    chunk: int = 64,
) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N D"]]:
    """y_t = tanh(drive_t + F_t x_t) and F_(t+1) = decay F_t + rate y_t x_t^T: links that decay and grow by Hebb's rule.

    F is reset to zero where a document starts and does not change at padding; `state` is F before the first token, and
    the returned state F after the last. 0 < decay <= 1. Within a chunk F is never formed: F_t x_t is a sum over the
    earlier y_j with weights x_j . x_t. Errors and behaviour without gradients are as in `linear_scan`.
    """
    size = chunk_size(chunk, x.shape[1])
    if is_deterministic():
        return links_reference(drive, x, layout, decay=decay, rate=rate, state=state)
    masks, dtype = scan_masks(layout), drive.dtype
    if x.shape[1] == 1 and state is not None and not torch.is_grad_enabled():
        if masks.fresh is not None or layout.dense:
            state.zero_() if masks.fresh is None else state.masked_fill_(masks.fresh[:, None, None], 0)
        y = torch.tanh(drive + (state @ x.mT.to(state.dtype)).mT)
        if masks.mask is None:
            state.mul_(decay)
        else:
            x = x * masks.mask[..., None]
            state.mul_(torch.where(masks.mask[..., None], decay, 1.0))
        state.baddbmm_(y.mT.to(state.dtype), x.to(state.dtype), alpha=rate)
        return y.to(dtype), state
    log_decay = x.new_full((*x.shape[:2], 1), math.log(decay), dtype=torch.promote_types(x.dtype, torch.float32))
    if masks.mask is not None:
        x, log_decay = x * masks.mask[..., None], log_decay.masked_fill(~masks.mask[..., None], 0)
    drive, x, state = to_fp32(drive, x, entry_state(state, layout))  # type: ignore[assignment]
    y, final = _Links.apply(drive, x, log_decay, state, masks.segments, decay, rate, size)
    return y.to(dtype), final


def links_reference(
    drive: Tensor, x: Tensor, layout: Layout, *, decay: float, rate: float, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Reference for `links`: one token after the other, with sums whose order does not depend on other rows."""
    chunk_size(1, x.shape[1])
    links = drive.new_zeros(drive.shape[0], drive.shape[2], x.shape[2]) if state is None else state
    outputs = []
    for t in range(x.shape[1]):
        start, mask = (flags[:, t, None, None] for flags in (layout.starts, layout.mask))
        links = links.masked_fill(start, 0)
        y = pointwise(torch.tanh, drive[:, t] + (links * x[:, t, None, :]).sum(-1))
        links = torch.where(mask, decay * links + rate * y[:, :, None] * x[:, t, None, :], links)
        outputs.append(y)
    return torch.stack(outputs, 1), links


class _Links(torch.autograd.Function):
    """The chunkwise form with a hand-written gradient; it saves the outputs and F before each chunk."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, drive, x, log_decay, state, segments, decay, rate, size
    ) -> tuple[Tensor, Tensor]:
        out = drive.new_empty(drive.shape)
        links = drive.new_zeros(drive.shape[0], drive.shape[2], x.shape[2]) if state is None else state
        saved = []
        with torch.autocast(x.device.type, enabled=False):
            for span in _spans(x.shape[1], size):
                saved.append(links)
                xs, pair_weights, enter, leave, through = _chunk(x, log_decay, segments, span, decay, rate)
                weights = (xs @ xs.mT) * pair_weights
                field = drive[:, span] + enter * (xs @ links.mT)
                y = torch.empty_like(field)
                for i in range(field.shape[1]):
                    row = torch.baddbmm(field[:, i : i + 1], weights[:, i : i + 1, :i], y[:, :i])
                    y[:, i : i + 1] = row.tanh_()
                out[:, span] = y
                links = torch.baddbmm(through * links, (leave * y).mT, xs)
        ctx.save_for_backward(x, log_decay, segments, out, *saved)
        ctx.settings = decay, rate, size
        return out, links.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, dlinks: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, log_decay, segments, out, *saved = ctx.saved_tensors
        decay, rate, size = ctx.settings
        dfield, dx = torch.empty_like(out), torch.empty_like(x)
        with torch.autocast(x.device.type, enabled=False):
            for span in reversed(_spans(x.shape[1], size)):
                links, y = saved.pop(), out[:, span]
                xs, pair_weights, enter, leave, through = _chunk(x, log_decay, segments, span, decay, rate)
                weights = (xs @ xs.mT) * pair_weights
                dy, slope = dout[:, span] + leave * (xs @ dlinks.mT), 1 - y * y
                df = torch.empty_like(dy)
                for i in reversed(range(dy.shape[1])):
                    row = torch.baddbmm(dy[:, i : i + 1], weights[:, i + 1 :, i : i + 1].mT, df[:, i + 1 :])
                    torch.mul(row, slope[:, i : i + 1], out=df[:, i : i + 1])
                dfield[:, span] = df
                pairs = (df @ y.mT) * pair_weights
                dx[:, span] = (pairs + pairs.mT) @ xs + (enter * df) @ links + (leave * y) @ dlinks
                dlinks = torch.baddbmm(through * dlinks, (enter * df).mT, xs)
        return dfield, dx, None, dlinks if ctx.needs_input_grad[3] else None, None, None, None, None


def _spans(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


class _Chunk(NamedTuple):
    """The inputs of a chunk; the weight of x_i . x_j (rate decay^(i - j - 1) for i after j); the decay of the links up
    to each token, from each token to the end of the chunk, and through the whole chunk.
    """

    x: Float[Tensor, "B C D"]
    pair_weights: Float[Tensor, "B C C"]
    enter: Float[Tensor, "B C 1"]
    leave: Float[Tensor, "B C 1"]
    through: Float[Tensor, "B 1 1"]


def _chunk(x: Tensor, log_decay: Tensor, segments: Tensor | None, span: slice, decay: float, rate: float) -> _Chunk:
    factors = decays(log_decay, segments, span, span.stop - span.start, x)
    assert factors is not None
    inner, enter, leave, through = (part[0, :, 0] for part in factors)
    return _Chunk(x[:, span], (inner * (rate / decay)).tril_(-1), enter / decay, leave * rate, through)
