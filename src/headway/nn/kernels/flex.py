"""Attention of windows and packed documents on a GPU, which skips fully masked blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from headway.layout import Layout
from headway.visibility import Pattern

_compiled: Callable = cache(torch.compile)


def attend_flex(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, query: Layout, key: Layout, scale: float | None
) -> Tensor:
    """`headway.nn.kernels.attend.attend` without a bias, for rows that may contain several documents."""

    def blocks() -> tuple[Layout, BlockMask]:
        return key, block_mask(pattern, query, key)

    # The cache entry also holds the key layout, so that its id cannot be reused by another one.
    _, visible_blocks = query.derived(("flex", pattern, id(key)), blocks)
    inputs = (x.transpose(1, 2) for x in (q, k, v))
    enable_gqa = q.shape[2] != k.shape[2]
    out = _compiled(flex_attention)(*inputs, block_mask=visible_blocks, scale=scale, enable_gqa=enable_gqa)
    return out.transpose(1, 2)


def block_mask(pattern: Pattern, query: Layout, key: Layout) -> BlockMask:
    """The blocks of `headway.visibility.mask` with a visible key; queries of padding see all keys.

    It is compiled, because torch would otherwise store the mask of all queries and keys to find its blocks.
    """
    positions, segments, groups = zip(*((x.positions, x.segments, x.group) for x in (query, key)))

    def is_visible(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        allowed = pattern.allows(positions[0][b, t], positions[1][b, s])
        if groups[0] is not None and groups[1] is not None:
            allowed = allowed | ((groups[0][b, t] == groups[1][b, s]) & (groups[0][b, t] > 0))
        inside = (segments[0][b, t] == segments[1][b, s]) & (positions[1][b, s] >= 0)
        return (inside & allowed) | (positions[0][b, t] < 0)

    sizes = query.batch, None, query.length, key.length
    return _compiled(create_block_mask)(is_visible, *sizes, device=query.positions.device)
