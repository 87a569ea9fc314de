"""Batches of positions: what a model reads, and what it is to say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.codecs.boards import planes
from headway.domains.chess.positions import Positions, Targets

_DROP = 23  # the stream of random numbers that says whose past is left out


@dataclass(frozen=True)
class BoardBatch:
    """Planes of positions, the moves to learn with their shares, -1 and 0 where there are fewer, and the outcome, NaN
    where no one knows it.
    """

    inputs: Tensor
    moves: Int[Tensor, "B K"]
    shares: Float[Tensor, "B K"]
    values: Float[Tensor, "B 3"]

    @property
    def tokens(self) -> int:
        return len(self.inputs)

    @property
    def computed(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device | str) -> Self:
        if self.inputs.device == torch.device(device):
            return self
        parts = (self.inputs, self.moves, self.shares, self.values)
        return type(self)(*(part.to(device) for part in parts))


def shares_of(targets: Targets, temperature: float) -> np.ndarray:
    """How much of the policy each move is to get, float32 [B, K]: a softmax of the expected scores over the temperature
    where several are known, else all to the first.
    """
    several = (targets.moves >= 0).sum(1) > 1
    judged = several & ~np.isnan(np.where(targets.moves >= 0, targets.worths, 0)).any(1)
    logits = np.where(targets.moves >= 0, np.nan_to_num(targets.worths), -np.inf) / temperature
    best = np.maximum(logits.max(1, keepdims=True), -1e9)
    soft = np.exp(logits - best)
    soft /= np.maximum(soft.sum(1, keepdims=True), 1e-9)
    first = np.zeros_like(soft)
    first[:, 0] = targets.moves[:, 0] >= 0
    return np.where(judged[:, None], soft, first).astype(np.float32)


def board_batch(
    source: Positions, rows: np.ndarray, history: int, temperature: float, kept: np.ndarray | None = None
) -> BoardBatch:
    """The positions of these numbers, int [B]; `kept`, bool [B], says whose past is shown."""
    records, known = source.records(rows, history)
    if kept is not None:
        known = known & kept[:, None]
    targets = source.targets(rows)
    return BoardBatch(
        torch.from_numpy(planes(records, known)),
        torch.from_numpy(targets.moves),
        torch.from_numpy(shares_of(targets, temperature)),
        torch.from_numpy(targets.values),
    )


def remembered(places: np.ndarray, seed: int, share: float) -> np.ndarray:
    """Whose past is shown, bool [B]: drawn from the place in the stream of samples alone."""
    draws = np.random.Generator(np.random.Philox(key=[seed, _DROP], counter=[0, 0, 0, int(places[0])]))
    return draws.random(len(places)) >= share
