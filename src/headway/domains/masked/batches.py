"""Batches of masked rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from headway.data import IGNORED
from headway.domains.masked.masking import Masking
from headway.domains.masked.rows import Sequences, Source
from headway.layout import Layout
from headway.models import TokenInputs
from headway.train import Shard, sharding

_FIXED = 0  # the seed of masks in evaluation, the same for every run


@dataclass(frozen=True)
class MaskedBatch:
    """`labels` are the hidden symbols, -100 where nothing is to be foretold; `tokens` counts them. `unrelated` is 0
    where the second segment of a row follows the first and 1 where it does not, None where rows are no pairs.
    """

    inputs: TokenInputs
    labels: Int[Tensor, "B T"]
    layout: Layout
    unrelated: Int[Tensor, "B"] | None
    tokens: int

    @property
    def computed(self) -> int:
        return self.inputs.ids.numel()

    def to(self, device: torch.device | str) -> Self:
        if self.labels.device == torch.device(device):
            return self  # with what the layout has derived for all batches
        types, unrelated = (None if t is None else t.to(device) for t in (self.inputs.types, self.unrelated))
        inputs = TokenInputs(self.inputs.ids.to(device), types)
        return type(self)(inputs, self.labels.to(device), self.layout.to(device), unrelated, self.tokens)


class MaskedBatches:
    """Rows by number, masked by the number of the sample that they are."""

    def __init__(self, source: Source, masking: Masking) -> None:
        self.source = source
        self.masking = masking
        self._full: dict[tuple[int, int], Layout] = {}

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, rows: np.ndarray, numbers: np.ndarray, seed: int) -> MaskedBatch:
        """Rows int [B]; the numbers, int [B], and the seed decide what they draw."""
        read = self.source.rows(rows, numbers, seed)
        masked = self.masking(read.ids, read.positions, numbers, seed)
        types = None if read.types is None else torch.from_numpy(read.types)
        unrelated = None if read.unrelated is None else torch.from_numpy(read.unrelated)
        inputs, labels = TokenInputs(torch.from_numpy(masked.inputs), types), torch.from_numpy(masked.labels)
        return MaskedBatch(inputs, labels, self._layout(read), unrelated, int((masked.labels != IGNORED).sum()))

    def endless(self, size: int, seed: int, shard: Shard, start: int) -> Iterator[MaskedBatch]:
        """Batches of `size` rows without end: batch k holds the samples k size, ..., (k + 1) size - 1 of a shuffled
        stream of epochs, whoever reads it. A row has other masks in every epoch.
        """
        for places, rows in sharding.endless(len(self), size, seed, shard, start):
            yield self.batch(rows, places, seed)

    def once(self, size: int, shard: Shard, limit: int | None) -> Iterator[MaskedBatch]:
        """All rows in order, or the first `limit`, in batches of at most `size`; masks depend on the row alone."""
        end = len(self) if limit is None else min(limit, len(self))
        for rows in sharding.once(end, size, shard):
            yield self.batch(rows, rows, _FIXED)

    def _layout(self, read: Sequences) -> Layout:
        """Rows that are one document each share one layout, and so what models derive from it."""
        shape = read.positions.shape
        if not (read.positions[:, -1] == shape[1] - 1).all():
            return Layout(torch.from_numpy(read.positions))
        if shape not in self._full:
            self._full[shape] = Layout.full(*shape)
        return self._full[shape]
