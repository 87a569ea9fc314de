"""Images moved a little, so that a model does not learn them by heart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headway.errors import ConfigError


@dataclass(frozen=True)
class ImageMovesConfig:
    """Each image is drawn anew at every step: shifted by up to `shift` of its sides, made larger or smaller by up to
    `zoom`, turned by up to `turn` degrees, mirrored half of the time with `flip`; brightness and contrast change by up
    to `light`. What comes in from outside repeats the edge.
    """

    shift: float = 0.0  # share of the sides by which it is moved at most
    zoom: float = 0.0  # share by which it is made larger or smaller at most
    turn: float = 0.0  # most degrees
    light: float = 0.0  # most change of brightness and contrast
    flip: bool = False  # whether half are mirrored

    def __post_init__(self) -> None:
        for name in ("shift", "zoom", "light"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"task.augment.{name} is {getattr(self, name)}; give a share from 0 to below 1")
        if not 0 <= self.turn <= 180:
            raise ConfigError(f"task.augment.turn is {self.turn}; give degrees from 0 to 180")

    def __call__(self, images: Float[Tensor, "B C H W"], seed: int) -> Float[Tensor, "B C H W"]:
        """A pure function of the images and the seed."""
        if self == ImageMovesConfig():
            return images
        generator = torch.Generator().manual_seed(seed & ((1 << 63) - 1))
        drawn = 2 * torch.rand(7, len(images), generator=generator) - 1  # from -1 to 1
        angle = drawn[2] * self.turn * torch.pi / 180
        size = 1 + drawn[3] * self.zoom
        mirror = torch.where(drawn[4] > 0, -1.0, 1.0) if self.flip else torch.ones(len(images))
        cos, sin = angle.cos() / size, angle.sin() / size
        rows = torch.stack(
            [cos * mirror, -sin, 2 * self.shift * drawn[0], sin * mirror, cos, 2 * self.shift * drawn[1]], 1
        )
        grid = F.affine_grid(rows.view(-1, 2, 3).to(images.dtype), list(images.shape), align_corners=False)
        moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        gain, offset = 1 + self.light * drawn[5], self.light * drawn[6]
        return moved * gain[:, None, None, None] + offset[:, None, None, None]
