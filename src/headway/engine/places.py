"""Where rows of numbers lie that a program works on."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """Rows of floats: an address (negative: in scratch) and the bytes from one row to the next."""

    address: int
    stride: int
    width: int

    def rows(self, count: int) -> Tensor:
        """The first rows, where all threads see them and nothing lies between them."""
        assert self.address > 0
        assert self.stride == 4 * self.width
        memory = (ctypes.c_float * (count * self.width)).from_address(self.address)
        return torch.from_numpy(np.ctypeslib.as_array(memory)).view(count, self.width)

    def columns(self, start: int, width: int) -> Place:
        at = self.address + 4 * start if self.address >= 0 else self.address - 4 * start
        return Place(at, self.stride, width)
