"""Functions of single numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from headway.kernels.linear import is_deterministic

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
