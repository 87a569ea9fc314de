"""Images changed at random for training, as a pure function of the seed and of their places in the stream of samples.

Numbers are drawn by hashing, whole batches are changed at once, and no generator has a state: a run that goes on draws
what it would have drawn. torchvision's own transforms draw from torch's global generator, image by image; of them only
RandAugment is used, under a seed for each image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from headway.data.order import mixed
from headway.errors import ConfigError, UserError

_RATIO = math.log(4 / 3)  # of a crop's sides (Szegedy et al. 2015)
_ERASED, _ERASED_RATIO = (0.02, 1 / 3), math.log(3.3)  # Zhong et al. 2020
HOW_TO_INSTALL = "RandAugment needs torchvision; pip install 'headway[vision]', or leave task.augment.randaugment out"
_FLIP, _SHIFT, _CROP, _ROTATE, _ERASE, _MIX, _RAND, _SLANT, _LIGHT, _WARP = range(0, 100, 10)  # which numbers are drawn
_KNOTS = 5  # a side, of the field by which an image is bent


@dataclass(frozen=True)
class ImageAugmentConfig:
    """What is done to training images; by default nothing.

    flip: the probability that left and right are exchanged. shift: the most pixels by which an image is moved, each
    way. crop: the least share of an image's area that is cut out of it and enlarged again (1: all). rotate, shear: the
    most degrees. zoom: height and width are made larger or smaller, each by up to this share. warp: a smooth field
    moves what is drawn by up to this share of a side (as handwriting differs; Simard et al. 2003). light: brightness
    and contrast change by up to this share. What comes in from outside is black, or repeats the edge. erase: the
    probability that a rectangle is painted over (Zhong et al. 2020). randaugment: how many of torchvision's operations
    are applied, of strength `magnitude` of 30 (Cubuk et al. 2020). mixup, cutmix: the parameter of the Beta
    distribution of shares by which two images are mixed (Zhang et al. 2018), or of areas that one takes of another (Yun
    et al. 2019); where both are set, each batch has one of them. `mixed` is the share of batches that have.
    """

    flip: float = 0.0
    shift: int = 0
    crop: float = 1.0
    rotate: float = 0.0
    zoom: float = 0.0
    shear: float = 0.0
    warp: float = 0.0
    light: float = 0.0
    outside: Literal["black", "edge"] = "black"  # what comes in from outside
    erase: float = 0.0
    randaugment: int = 0
    magnitude: int = 9  # strength of randaugment's operations, of 30
    mixup: float = 0.0
    cutmix: float = 0.0
    mixed: float = 1.0  # share of batches that mixup or cutmix mixes

    def __post_init__(self) -> None:
        for name in ("flip", "erase", "mixed"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.{name} is {getattr(self, name)}; give a probability from 0 to 1")
        for name in ("zoom", "warp", "light"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"augment.{name} is {getattr(self, name)}; give a share from 0 to below 1")
        if not 0 <= self.shear < 90:
            raise ConfigError(f"augment.shear is {self.shear}; give degrees from 0 to below 90")
        if not 0 < self.crop <= 1:
            raise ConfigError(f"augment.crop is {self.crop}; give a share of the area above 0, or 1 for none")
        if min(self.shift, self.rotate, self.randaugment, self.mixup, self.cutmix) < 0:
            raise ConfigError("a setting of augment is below 0; give 0 for none")
        if not 0 <= self.magnitude <= 30:
            raise ConfigError(f"augment.magnitude is {self.magnitude}; give 0 to 30")

    @property
    def bends(self) -> bool:
        """Whether images are more than flipped and moved by whole pixels."""
        return self.crop < 1 or max(self.rotate, self.zoom, self.shear, self.warp) > 0


class Augment:
    """`config` at work. `seed` is the run's."""

    def __init__(self, config: ImageAugmentConfig, seed: int) -> None:
        """UserError where RandAugment is asked for and torchvision is not installed."""
        self.config, self.seed = config, seed
        self._rand: Any = None
        if config.randaugment:
            try:
                from torchvision.transforms import v2
            except ImportError:
                raise UserError(HOW_TO_INSTALL) from None
            self._rand = v2.RandAugment(config.randaugment, config.magnitude, num_magnitude_bins=31)

    def pixels(self, images: UInt8[np.ndarray, "B H W C"], places: Int[np.ndarray, "B"]) -> Float[Tensor, "B C H W"]:
        """Changed images as numbers from 0 to 255."""
        config = self.config
        x = torch.from_numpy(images).permute(0, 3, 1, 2)
        if self._rand is not None:
            seeds = (self._drawn(places, _RAND, 1)[:, 0] * 2.0**53).astype(np.int64).tolist()
            with torch.random.fork_rng(devices=[]):
                changed = []
                for image, seed in zip(x, seeds):
                    torch.default_generator.manual_seed(seed)
                    changed.append(self._rand(image))
            x = torch.stack(changed)
        if config.bends:
            x = self._transformed(x.float(), places)
        elif config.flip or config.shift:
            x = self._moved(x, places).float()
        x = x.float()
        if not config.light:
            return x
        # Contrast about an image's mean, and brightness.
        drawn = torch.from_numpy(2 * self._drawn(places, _LIGHT, 2) - 1).float() * config.light
        gain, offset = 1 + drawn[:, 0].view(-1, 1, 1, 1), 255 * drawn[:, 1].view(-1, 1, 1, 1)
        mean = x.mean((1, 2, 3), keepdim=True)
        return ((x - mean) * gain + mean + offset).clamp(0, 255)

    def erase(self, x: Float[Tensor, "B C H W"], places: Int[np.ndarray, "B"]) -> Float[Tensor, "B C H W"]:
        """A rectangle of some normalised images at 0, the mean colour."""
        if not self.config.erase:
            return x
        drawn = self._drawn(places, _ERASE, 5)
        area = _ERASED[0] + (_ERASED[1] - _ERASED[0]) * drawn[:, 1]
        inside = _boxes(area, np.exp((2 * drawn[:, 2] - 1) * _ERASED_RATIO), drawn[:, 3:], x.shape[-2:])
        inside &= torch.from_numpy(drawn[:, 0] < self.config.erase)[:, None, None]
        return x.masked_fill(inside[:, None], 0.0)

    def mix(
        self, x: Float[Tensor, "B C H W"], shares: Float[Tensor, "B K"], places: Int[np.ndarray, "B"]
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"]]:
        """Each image mixed with one of its batch, and the shares of classes with it."""
        config, first = self.config, places[:1]
        which, both, down, across = self._drawn(first, _MIX, 4)[0]
        if not (config.mixup or config.cutmix) or both >= config.mixed:
            return x, shares
        cut = bool(config.cutmix) and (not config.mixup or which < 0.5)
        strength = config.cutmix if cut else config.mixup
        generator = np.random.default_rng([self.seed, int(first[0]), _MIX])
        kept = float(generator.beta(strength, strength))
        if cut:
            box = _boxes(np.array([1 - kept]), np.ones(1), np.array([[down, across]]), x.shape[-2:])
            mixed_x = torch.where(box, x.flip(0), x)
            kept = 1 - float(box.float().mean())
        else:
            mixed_x = torch.lerp(x.flip(0), x, kept)
        return mixed_x, torch.lerp(shares.flip(0), shares, kept)

    def _drawn(self, places: Int[np.ndarray, "B"], which: int, count: int) -> Float[np.ndarray, "B K"]:
        """Numbers in [0, 1) that hang on the seed, the place and what they are for."""
        salt = mixed(np.uint64(self.seed % (1 << 64)))
        each = mixed(places.astype(np.uint64) ^ salt)
        return (mixed(each[:, None] + np.arange(which, which + count, dtype=np.uint64)) >> np.uint64(11)) * 2.0**-53

    def _moved(self, x: Tensor, places: np.ndarray) -> Tensor:
        """Flipped, and moved by whole pixels."""
        high, wide = x.shape[-2:]
        reach = self.config.shift
        steps = np.floor(self._drawn(places, _SHIFT, 2) * (2 * reach + 1)).astype(np.int64) - reach
        flipped = self._drawn(places, _FLIP, 1) < self.config.flip
        columns = np.arange(wide)[None]
        columns = np.where(flipped, wide - 1 - columns, columns) + steps[:, 1:]
        rows = np.arange(high)[None] + steps[:, :1]
        if reach and self.config.outside == "black":
            x = F.pad(x, (reach, reach, reach, reach))
            rows, columns = rows + reach, columns + reach
        row, column = (
            torch.from_numpy(rows.clip(0, x.shape[-2] - 1)),
            torch.from_numpy(columns.clip(0, x.shape[-1] - 1)),
        )
        batch = torch.arange(len(x))
        return x[batch[:, None, None], :, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)

    def _transformed(self, x: Float[Tensor, "B C H W"], places: np.ndarray) -> Float[Tensor, "B C H W"]:
        """All of flip, shift, crop, rotation, zoom and shear as one affine map, and a field that bends, bilinear."""
        config, (high, wide) = self.config, x.shape[-2:]
        crop, turn, move = (self._drawn(places, which, 4) for which in (_CROP, _ROTATE, _SHIFT))
        area, ratio = config.crop + (1 - config.crop) * crop[:, 0], np.exp((2 * crop[:, 1] - 1) * _RATIO)
        if config.crop == 1:
            ratio = np.ones_like(ratio)
        tall, broad = np.minimum(np.sqrt(area / ratio), 1), np.minimum(np.sqrt(area * ratio), 1)
        angle = (2 * turn[:, 0] - 1) * math.radians(config.rotate)
        mirror = np.where(self._drawn(places, _FLIP, 1)[:, 0] < config.flip, -1.0, 1.0)
        # affine_grid's coordinates go from -1 to 1, so a turn has to mind the sides' ratio
        theta = np.zeros((len(x), 2, 3))
        theta[:, 0, 0], theta[:, 0, 1] = mirror * broad * np.cos(angle), -broad * np.sin(angle) * high / wide
        theta[:, 1, 0], theta[:, 1, 1] = mirror * tall * np.sin(angle) * wide / high, tall * np.cos(angle)
        theta[:, 0, 2] = (2 * crop[:, 2] - 1) * (1 - broad) + (2 * move[:, 0] - 1) * 2 * config.shift / wide
        theta[:, 1, 2] = (2 * crop[:, 3] - 1) * (1 - tall) + (2 * move[:, 1] - 1) * 2 * config.shift / high
        slant = 2 * self._drawn(places, _SLANT, 3) - 1
        size = (1 + config.zoom) ** slant[:, :2]
        shear = np.zeros((len(x), 2, 2))
        shear[:, 0, 0], shear[:, 1, 1] = size[:, 0], size[:, 1]
        shear[:, 0, 1] = size[:, 0] * np.tan(slant[:, 2] * math.radians(config.shear)) * (high / wide)
        theta[:, :, :2] = theta[:, :, :2] @ shear
        grid = F.affine_grid(torch.from_numpy(theta).float(), list(x.shape), align_corners=False)
        if config.warp:
            # By how much each place is moved, smooth between a few knots that are drawn.
            drawn = 2 * config.warp * (2 * self._drawn(places, _WARP, 2 * _KNOTS**2) - 1)
            knots = torch.from_numpy(drawn).float().view(-1, 2, _KNOTS, _KNOTS)
            field = F.interpolate(knots, (high, wide), mode="bicubic", align_corners=True)
            grid = grid + field.permute(0, 2, 3, 1)
        padding = "zeros" if config.outside == "black" else "border"
        return F.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def _boxes(area: np.ndarray, ratio: np.ndarray, middle: np.ndarray, size: torch.Size) -> Tensor:
    """Which pixels are in a box of a share of the `area`, height by width of `ratio`, about the `middle`: [B, H, W]."""
    masks = []
    for side, share, where in ((size[0], np.sqrt(area * ratio), 0), (size[1], np.sqrt(area / ratio), 1)):
        length, centre = share * side, middle[:, where] * side
        low = np.round(centre - length / 2)
        places = np.arange(side)[None]
        masks.append(torch.from_numpy((places >= low[:, None]) & (places < (low + np.round(length))[:, None])))
    return masks[0][:, :, None] & masks[1][:, None, :]
