"""Batches of texts with partners, and the loss that tells each text's own from the others'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headway.data import epoch_seed
from headway.models import Transformer
from headway.train.rows import Inputs, Rows, output

_PADDING = 0.05  # the most of a part of a batch
_LEAST = 8  # rows of a part


class Parts(NamedTuple):
    """Texts in parts of nearly equal lengths; `order` int64 [N] is where each text is among the parts' rows."""

    parts: tuple[Inputs, ...]
    order: Int[Tensor, "N"]

    def to(self, device: torch.device | str) -> Parts:
        return Parts(tuple(part.to(device) for part in self.parts), self.order.to(device))

    def vectors(self, model: Transformer, head: str) -> Float[Tensor, "N D"]:
        return torch.cat([output(model, head, part) for part in self.parts])[self.order]


@dataclass(frozen=True)
class ContrastBatch:
    """Texts (the first half of `texts`) and their partners; `same` marks pairs that are no negatives of each other."""

    texts: Parts
    same: Bool[Tensor, "B B"]

    @property
    def tokens(self) -> int:
        return len(self.same)

    @property
    def computed(self) -> int:
        return sum(part.computed for part in self.texts.parts)

    def to(self, device: torch.device | str) -> Self:
        if self.same.device == torch.device(device):
            return self
        return type(self)(self.texts.to(device), self.same.to(device))


def in_parts(rows: Rows, numbers: np.ndarray) -> Parts:
    """The rows of these numbers sorted by length, and cut where padding would pass its share."""
    order = np.argsort(rows.lengths[numbers], kind="stable")
    lengths = rows.lengths[numbers[order]]
    edges = [0]
    for stop in range(1, len(order)):
        count = stop - edges[-1]
        padding = 1 - lengths[edges[-1] : stop + 1].sum() / ((count + 1) * lengths[stop])
        if padding > _PADDING and count >= _LEAST:
            edges.append(stop)
    parts = [rows.inputs(numbers[some]) for some in np.split(order, edges[1:])]
    return Parts(tuple(parts), torch.from_numpy(np.argsort(order)))


class Partners:
    """Draws the partner of each text, given by its place: itself, as pairs come with theirs, or, where texts have
    `labels` int64 [N], another of its label. Each label has two texts or more.
    """

    def __init__(self, labels: np.ndarray | None, seed: int) -> None:
        self.seed = seed
        self._labelled = labels is not None
        if labels is not None:
            self._order = np.argsort(labels, kind="stable")
            self._rank = np.argsort(self._order, kind="stable")
            grouped = labels[self._order]
            self._starts = np.searchsorted(grouped, labels, "left")
            self._counts = np.searchsorted(grouped, labels, "right") - self._starts

    def of(self, places: np.ndarray, epoch: int) -> np.ndarray:
        """A pure function of (seed, epoch): every text of a label is the partner of one other."""
        if not self._labelled:
            return places
        starts, counts = self._starts[places], self._counts[places]
        step = 1 + (epoch_seed(self.seed, epoch) % (1 << 32)) % (counts - 1)
        return self._order[starts + (self._rank[places] - starts + step) % counts]


def contrast(
    texts: Float[Tensor, "B D"], partners: Float[Tensor, "B D"], same: Bool[Tensor, "B B"], temperature: float
) -> Float[Tensor, ""]:
    """InfoNCE, the mean of both directions, summed over the pairs: -log softmax(texts partners^T / temperature) of each
    pair's own; pairs that are the `same` take no part in each other's sum.
    """
    own = torch.eye(len(same), dtype=torch.bool, device=same.device)
    scores = (texts @ partners.T / temperature).masked_fill(same & ~own, float("-inf"))
    wanted = torch.arange(len(same), device=same.device)
    forth, back = (F.cross_entropy(way, wanted, reduction="sum") for way in (scores, scores.T))
    return (forth + back) / 2
