"""Batches of images and captions: what the tower sees, what the decoder reads, and what it is to foretell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from headway.data import IGNORED
from headway.layout import Layout


@dataclass(frozen=True)
class CaptionBatch:
    """`ids` are begin and a caption's symbols, `labels` the same symbols and end; `tokens` counts labels, `prefix` is
    the number of tokens that an image becomes.
    """

    images: Float[Tensor, "B 3 H W"]
    ids: Int[Tensor, "B T"]
    layout: Layout
    labels: Int[Tensor, "B T"]
    tokens: int
    prefix: int

    @property
    def computed(self) -> int:
        return self.ids.numel() + self.prefix * len(self.ids)

    def to(self, device: torch.device | str) -> Self:
        if self.ids.device == torch.device(device):
            return self
        moved = (each.to(device) for each in (self.images, self.ids, self.layout, self.labels))
        return type(self)(*moved, self.tokens, self.prefix)  # type: ignore[arg-type]


def text_batch(
    rows: Sequence[Sequence[int]], begin: int, end: int
) -> tuple[Int[Tensor, "B T"], Layout, Int[Tensor, "B T"]]:
    """Inputs, their layout and labels of captions."""
    layout = Layout.padded([len(row) + 1 for row in rows])
    ids, labels = np.zeros((len(rows), layout.length), np.int64), np.full((len(rows), layout.length), IGNORED)
    ids[:, 0] = begin
    for number, row in enumerate(rows):
        ids[number, 1 : len(row) + 1] = row
        labels[number, : len(row)] = row
        labels[number, len(row)] = end
    return torch.from_numpy(ids), layout, torch.from_numpy(labels)


def shifted(
    images: UInt8[np.ndarray, "B H W 3"], most: int, seed: int, places: Int[np.ndarray, "B"]
) -> UInt8[np.ndarray, "B H W 3"]:
    """Each image moved by up to `most` pixels, its edges drawn out, by what (seed, place in the stream) draws."""
    wide = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    out = np.empty_like(images)
    high, width = images.shape[1:3]
    for number, place in enumerate(places.tolist()):
        down, right = np.random.default_rng([seed, place]).integers(0, 2 * most + 1, 2).tolist()
        out[number] = wide[number, down : down + high, right : right + width]
    return out
