"""Histograms of edges and of colours: features of image patches that need no training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.nn.parts.projection import Projection

_DIRECTIONS = 8  # bins of an edge's direction, from 0 to 180 degrees
_LEVELS = 4  # bins per colour channel
_HALF_RANGE = 2.0  # normalised pixels from minus to plus this value share the bins evenly
_EPSILON = 1e-6


class HistogramStem(nn.Module):
    """A linear layer over three descriptions of each patch.

    The edges of each of `cells` x `cells` parts by direction, weighted by their strength (Dalal and Triggs 2005), and
    the colours of the patch, each channel in 4 bins (Swain and Ballard 1991), both as square roots, whose distance is
    Hellinger's; and the mean colour of each part. Each description has mean square 1.
    """

    def __init__(self, channels: int, width: int, patch: tuple[int, int], cells: int) -> None:
        super().__init__()
        self.patch, self.cells = patch, cells
        self.project = Projection(cells * cells * (_DIRECTIONS + channels) + _LEVELS**channels, width)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """One vector per patch, row by row."""
        means = self._by_patch(self._by_cell(images.float()), self.cells, self.cells)
        kinds = [self._edges(images).sqrt(), self._colours(images).sqrt(), means]
        scaled = [x / (x.square().mean(-1, keepdim=True) + _EPSILON).sqrt() for x in kinds]
        return self.project(torch.cat(scaled, -1).to(images.dtype))

    def _edges(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N F"]:
        grey = images.float().mean(1)
        across = F.pad(grey[:, :, 2:] - grey[:, :, :-2], (1, 1))
        down = F.pad(grey[:, 2:] - grey[:, :-2], (0, 0, 1, 1))
        direction = (torch.atan2(down, across) / torch.pi % 1 * _DIRECTIONS).long().clamp(max=_DIRECTIONS - 1)
        strength = grey.new_zeros(len(grey), _DIRECTIONS, *grey.shape[1:])
        strength.scatter_(1, direction[:, None], torch.hypot(across, down)[:, None])
        return self._by_patch(self._by_cell(strength), self.cells, self.cells)

    def _colours(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N F"]:
        levels = ((images.float() / _HALF_RANGE + 1) * (_LEVELS / 2)).long().clamp(0, _LEVELS - 1)
        place_values = _LEVELS ** torch.arange(images.shape[1], device=images.device)
        codes = self._by_patch((levels * place_values[:, None, None]).sum(1, keepdim=True), *self.patch)
        counts = torch.zeros(*codes.shape[:2], _LEVELS ** images.shape[1], device=images.device)
        return counts.scatter_add_(2, codes, torch.ones_like(codes, dtype=counts.dtype))

    def _by_cell(self, x: Float[Tensor, "B F H W"]) -> Float[Tensor, "B F R C"]:
        height, width = self.patch
        return F.avg_pool2d(x, (height // self.cells, width // self.cells))

    @staticmethod
    def _by_patch(x: Tensor, height: int, width: int) -> Tensor:
        """[B, F, rows height, columns width] to [B, rows columns, F height width]."""
        cut = x.unflatten(3, (-1, width)).unflatten(2, (-1, height))
        return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
