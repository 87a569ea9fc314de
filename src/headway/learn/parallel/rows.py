"""Tensors whose rows are spread over processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """The rows of a tensor of shape `shape` that this process has: those from `start` on, as many as `local` has.

    A tensor is split along its first dimension; a process may have no rows. Processes with the same rows are replicas.
    """

    local: Tensor
    start: int
    shape: torch.Size

    @property
    def is_whole(self) -> bool:
        return self.local.shape == self.shape


def load(target: Tensor | Rows, name: str, saved: Mapping[str, Tensor]) -> None:
    """Copy a saved tensor, or the rows that this process has, into `target`. A mapping with a method
    `rows(name, start, count)` reads no others.
    """
    if isinstance(target, Tensor):
        target.copy_(saved[name])
        return
    source: Any = saved
    start, count = target.start, target.local.shape[0]
    has_rows = hasattr(source, "rows")
    target.local.copy_(source.rows(name, start, count) if has_rows else source[name][start : start + count])
