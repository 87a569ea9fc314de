"""Attention of windows and packed documents on a GPU, which skips fully masked blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from headway.layout import Layout
from headway.visibility import Pattern

_compiled: Callable = cache(torch.compile)


def attend_flex(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, query: Layout, key: Layout, scale: float | None
) -> Tensor:
    """`headway.nn.kernels.attend.attend` without a bias, for rows that may contain several documents."""

    def is_visible(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        allowed = pattern.allows(query.positions[b, t], key.positions[b, s])
        if query.group is not None and key.group is not None:
            allowed = allowed | ((query.group[b, t] == key.group[b, s]) & (query.group[b, t] > 0))
        inside = (query.segments[b, t] == key.segments[b, s]) & (key.positions[b, s] >= 0)
        return (inside & allowed) | (query.positions[b, t] < 0)

    def blocks() -> tuple[Layout, object]:
        return key, create_block_mask(is_visible, q.shape[0], None, q.shape[1], k.shape[1], device=q.device)

    # The cache entry also holds the key layout, so that its id cannot be reused by another one.
    _, block_mask = query.derived(("flex", pattern, id(key)), blocks)
    inputs = (x.transpose(1, 2) for x in (q, k, v))
    enable_gqa = q.shape[2] != k.shape[2]
    out = _compiled(flex_attention)(*inputs, block_mask=block_mask, scale=scale, enable_gqa=enable_gqa)
    return out.transpose(1, 2)
