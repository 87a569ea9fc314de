"""Batches of texts with partners, and the loss that tells each text's own from the others'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from headway.data import epoch_seed
from headway.models import Transformer
from headway.train.rows import Parts, output


def vectors(texts: Parts, model: Transformer, head: str) -> Float[Tensor, "N D"]:
    """What a head says of texts, in their order."""
    return torch.cat([output(model, head, part) for part in texts.parts])[texts.order]


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
        return self.texts.computed

    def to(self, device: torch.device | str) -> Self:
        if self.same.device == torch.device(device):
            return self
        return type(self)(self.texts.to(device), self.same.to(device))


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
