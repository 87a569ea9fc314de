"""Batches of text for language models: rows of tokens, the next token of each, and where documents start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Self

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from headway.data import Crops, Packing, Streams, Windows
from headway.layout import Layout
from headway.train import Shard, sharding


@dataclass(frozen=True)
class TextBatch:
    """`labels` are the symbols that follow `inputs`, -100 where nothing is to be predicted; `tokens` counts them."""

    inputs: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    layout: Layout
    tokens: int

    @property
    def computed(self) -> int:
        return self.inputs.numel()

    def to(self, device: torch.device | str) -> Self:
        if self.inputs.device == torch.device(device):
            return self  # with what the layout has derived for all batches
        moved = {name: getattr(self, name).to(device) for name in ("inputs", "labels", "layout")}
        return replace(self, **moved)


@dataclass(frozen=True)
class StreamBatch(TextBatch):
    """Rows that go on where an earlier batch ended, or start an epoch (`begins`)."""

    begins: bool


class Rows:
    """Batches of rows by number. Batches of unbroken rows share one layout, and so what models derive from it."""

    def __init__(self, source: Packing | Crops) -> None:
        self.source = source
        self._unbroken: dict[int, Layout] = {}

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, rows: np.ndarray) -> TextBatch:
        """The rows of these numbers, int [B]."""
        windows = self.source.windows(rows)
        labels = torch.from_numpy(windows.labels)
        tokens = labels.numel() if self._is_unbroken(windows) else int((windows.labels >= 0).sum())
        return TextBatch(torch.from_numpy(windows.inputs), labels, self._layout(windows), tokens)

    def endless(self, size: int, seed: int, shard: Shard, start: int) -> Iterator[TextBatch]:
        """Batches of `size` rows without end: batch k holds the samples k size, ..., (k + 1) size - 1 of a shuffled
        stream of epochs, whoever reads it."""
        for _, rows in sharding.endless(len(self), size, seed, shard, start):
            yield self.batch(rows)

    def once(self, size: int, shard: Shard, limit: int | None) -> Iterator[TextBatch]:
        """All rows in order, or the first `limit`, in batches of at most `size`."""
        end = len(self) if limit is None else min(limit, len(self))
        return map(self.batch, sharding.once(end, size, shard))

    def _is_unbroken(self, windows: Windows) -> bool:
        """Whether every row is one document from its start: only then does the last place have the last position."""
        return bool((windows.positions[:, -1] == self.source.context - 1).all())

    def _layout(self, windows: Windows) -> Layout:
        if not self._is_unbroken(windows):
            return Layout(torch.from_numpy(windows.positions))
        size = len(windows.positions)
        if size not in self._unbroken:
            self._unbroken[size] = Layout.full(size, self.source.context)
        return self._unbroken[size]


class Lanes:
    """Batches of `rows` of a corpus's streams, which stand in `lanes`: batch k goes on where batch k - lanes ended."""

    def __init__(self, source: Streams, rows: int, lanes: int = 1) -> None:
        self.source, self.rows, self.lanes = source, rows, lanes

    def batch(self, number: int) -> StreamBatch:
        """Batch k, which is the same whoever reads it; an epoch follows the other."""
        place, lane = divmod(number, self.lanes)
        window = place % len(self.source)
        found = self.source.windows(slice(lane * self.rows, (lane + 1) * self.rows), window)
        inputs, labels, positions = map(torch.from_numpy, found)
        return StreamBatch(inputs, labels, Layout(positions), int((found.labels >= 0).sum()), begins=window == 0)

    def endless(self, shard: Shard, start: int) -> Iterator[StreamBatch]:
        return map(self.batch, count(start + shard.rank, shard.world))

    def once(self) -> Iterator[StreamBatch]:
        """An epoch."""
        return map(self.batch, range(len(self.source) * self.lanes))
