"""Memory for logits, used again once nobody holds what lies in it: new memory of that size comes page by page."""

from __future__ import annotations

import sys

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_KEPT = 2  # rooms: what is read, and what comes next
_FREE = 3  # references to a room that nobody else holds: the list's, the loop's, and that of who counts them


class Results:
    def __init__(self) -> None:
        self._rooms: list[np.ndarray] = []

    def rows(self, count: int, width: int) -> Float[Tensor, "R C"]:
        """Rows with no content yet, the caller's as long as the tensor or a view of it lives."""
        size = count * width
        for room in self._rooms:
            if room.size >= size and sys.getrefcount(room) == _FREE:
                return torch.from_numpy(room[:size]).view(count, width)
        room = np.empty(size, np.float32)
        self._rooms = [*self._rooms, room][-_KEPT:]
        return torch.from_numpy(room[:]).view(count, width)
