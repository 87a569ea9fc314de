"""The last states of episodes side by side: what an agent sees at once."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.layout import Layout
from headway.models import Encoded, Transformer


class LastStates:
    """The last K states of each of N rows: `seen` [N, K, S], of which the first `lengths` [N] are some."""

    def __init__(self, rows: int, context: int, states: int) -> None:
        self.seen = np.zeros((rows, context, states), np.float32)
        self.lengths = np.zeros(rows, np.int64)

    def begin(self, row: int, state: np.ndarray) -> None:
        """The first state of an episode."""
        self.lengths[row] = 0
        self.add(row, state)

    def add(self, row: int, state: np.ndarray) -> None:
        """A further state; beyond K of them the first one goes."""
        length = self.lengths[row]
        if length == self.seen.shape[1]:
            self.seen[row, :-1] = self.seen[row, 1:]
            length -= 1
        self.seen[row, length] = state
        self.lengths[row] = length + 1

    def select(self, rows: np.ndarray) -> None:
        """Go on with some of the rows."""
        self.seen, self.lengths = self.seen[rows], self.lengths[rows]


def layout_of(lengths: Int[np.ndarray, "B"], context: int, device: torch.device | str = "cpu") -> Layout:
    """Where the last states of rows sit: from 0 on, and padding after them."""
    if context == 1:
        return Layout.full(len(lengths), 1, device=device)
    return Layout.padded(torch.from_numpy(lengths), context).to(device)


def policy_of(model: Transformer, encoded: Encoded) -> Float[Tensor, "B E"]:
    """What the policy says of the last state of each row: logits, or means and logarithms of standard deviations."""
    return model.heads["policy"](encoded.x, encoded.layout)


def value_of(model: Transformer, encoded: Encoded) -> Float[Tensor, "B"]:
    """The return, in scaled rewards, that is expected from the last state of each row on."""
    return cast(Tensor, model.heads["value"](encoded.x, encoded.layout))[:, 0]
