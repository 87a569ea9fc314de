"""Batches of positions: what a model reads, and what it is to say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.codecs.boards import planes
from headway.codecs.moves import FLIP
from headway.domains.chess.positions import Positions, Targets

FORGET, TURN = 23, 24  # streams of random numbers


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
        return self.inputs.shape[0] * self.inputs.shape[1]

    def to(self, device: torch.device | str) -> Self:
        if self.inputs.device == torch.device(device):
            return self
        parts = (self.inputs, self.moves, self.shares, self.values)
        return type(self)(*(part.to(device) for part in parts))


def shares_of(targets: Targets, temperature: float) -> np.ndarray:
    """How much of the policy each move is to get, float32 [B, K]: a softmax of their worths over the temperature
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
    source: Positions,
    rows: np.ndarray,
    history: int,
    temperature: float,
    kept: np.ndarray | None = None,
    turned: np.ndarray | None = None,
) -> BoardBatch:
    """The positions of these numbers, int [B]; `kept`, bool [B], says whose past is shown, and `turned` whose left and
    right are exchanged, where no one may castle any more: the rules then are the same.
    """
    records, known = source.records(rows, history)
    if kept is not None:
        known = known & kept[:, None]
    targets, inputs = source.targets(rows), planes(records, known)
    moves = targets.moves
    if turned is not None:
        turned = turned & (records[0]["flags"] < 2)
        inputs[turned] = inputs[turned][:, np.arange(64) ^ 7]
        moves = np.where(turned[:, None] & (moves >= 0), FLIP[moves], moves)
    return BoardBatch(
        torch.from_numpy(inputs),
        torch.from_numpy(moves),
        torch.from_numpy(shares_of(targets, temperature)),
        torch.from_numpy(targets.values),
    )


def drawn(places: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """Numbers from 0 to 1, [B], that depend on the batch's place in the stream of samples and the seed alone."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, int(places[0])])).random(
        len(places)
    )
