"""Attention of the deterministic mode."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headway.nn.kernels.pointwise import softmax


def attend_row_by_row(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B S G K"],
    v: Float[Tensor, "B S G V"],
    mask: Bool[Tensor, "#B 1 #T S"],
    is_token: Bool[Tensor, "B T"],
    scale: float | None,
    bias: Float[Tensor, "#B H T S"] | None,
    soft_cap: float | None,
    sinks: Float[Tensor, "H"] | None,
    dropout: Callable[[Tensor], Tensor] | float,
) -> Float[Tensor, "B T H V"]:
    """One query at a time over exactly its visible keys, so that other rows cannot change the result. Padding gets
    zeros.
    """
    batch, length, heads, _ = q.shape
    out = q.new_zeros(batch, length, heads, v.shape[-1])
    attn_mask = mask.expand(batch, 1, length, k.shape[1])
    groups = heads // k.shape[2]
    factors = None  # of weights, from the random numbers that `attend_reference` takes
    if callable(dropout) or dropout:
        layer = dropout if callable(dropout) else torch.nn.Dropout(dropout)
        factors = layer(q.new_ones(batch, heads, length, k.shape[1]))
    for row in range(batch):
        for t in range(length):
            if not is_token[row, t]:
                continue
            visible = attn_mask[row, 0, t]
            keys, values = (x[row][visible].repeat_interleave(groups, dim=1) for x in (k, v))
            scores = (keys * q[row, t]).sum(-1).T * (scale or 1 / math.sqrt(q.shape[-1]))
            if soft_cap is not None:
                scores = soft_cap * torch.tanh(scores / soft_cap)
            if bias is not None:
                scores = scores + bias.expand(batch, *bias.shape[1:])[row, :, t, visible]
            weights = softmax(scores[None, :, None], sinks)[0, :, 0]
            if factors is not None:
                weights = weights * factors[row, :, t, visible]
            out[row, t] = (weights.T[..., None] * values).sum(0)
    return out
