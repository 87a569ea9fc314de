"""Tensors whose rows are spread over processes."""

from __future__ import annotations

from typing import NamedTuple

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
