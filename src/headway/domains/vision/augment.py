"""Random image augmentation, as a pure function of the seed and of the images' positions in the sample stream.

Random numbers are hashes, batches are transformed as one, and there is no generator state, so a resumed run repeats
what it would have drawn. torchvision's transforms use torch's global generator, image by image; of them only
RandAugment is used, with a seed per image.
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

_RATIO = math.log(4 / 3)  # log aspect ratio of a crop (Szegedy et al. 2015)
_ERASED, _ERASED_RATIO = (0.02, 1 / 3), math.log(3.3)  # Zhong et al. 2020
HOW_TO_INSTALL = "RandAugment needs torchvision; pip install 'headway[vision]', or leave task.augment.randaugment out"
_FLIP, _SHIFT, _CROP, _ROTATE, _ERASE, _MIX, _RAND, _SLANT, _LIGHT, _WARP = range(0, 100, 10)  # random streams
_KNOTS = 5  # per side, of the field that warps an image


@dataclass(frozen=True)
class ImageAugmentConfig:
    """Augmentation of training images; off by default.

    flip: probability of a horizontal flip. shift: maximum shift in pixels, each way. crop: minimum share of an image's
    area to crop and enlarge (1: no crop). rotate, shear: maximum degrees. zoom: maximum change of height and of width,
    as a share. warp: maximum displacement by a smooth random field, as a share of the image size (as handwriting
    differs; Simard et al. 2003). light: maximum change of brightness and contrast, as a share. outside: padding, black
    or the repeated edge. erase: probability of erasing a rectangle (Zhong et al. 2020). randaugment: number of
    torchvision operations per image, with strength `magnitude` of 30 (Cubuk et al. 2020). mixup, cutmix: parameter of
    the Beta distribution of shares for mixing two images (Zhang et al. 2018), or of areas copied from another (Yun et
    al. 2019); if both are set, each batch uses one. mixed: share of batches that are mixed.
    """

    flip: float = 0.0
    shift: int = 0
    crop: float = 1.0
    rotate: float = 0.0
    zoom: float = 0.0
    shear: float = 0.0
    warp: float = 0.0
    light: float = 0.0
    outside: Literal["black", "edge"] = "black"  # padding for pixels from outside the image
    erase: float = 0.0
    randaugment: int = 0
    magnitude: int = 9  # strength of randaugment's operations, at most 30
    mixup: float = 0.0
    cutmix: float = 0.0
    mixed: float = 1.0  # share of batches that mixup or cutmix mixes

    def __post_init__(self) -> None:
        for name in ("flip", "erase", "mixed"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.{name} is {getattr(self, name)}; choose a probability from 0 to 1")
        for name in ("zoom", "warp", "light"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"augment.{name} is {getattr(self, name)}; choose a share of at least 0 and below 1")
        if not 0 <= self.shear < 90:
            raise ConfigError(f"augment.shear is {self.shear}; choose degrees of at least 0 and below 90")
        if not 0 < self.crop <= 1:
            raise ConfigError(f"augment.crop is {self.crop}; choose a share of the area above 0, or 1 for no crop")
        if min(self.shift, self.rotate, self.randaugment, self.mixup, self.cutmix) < 0:
            raise ConfigError("augment has a setting below 0; use 0 to turn it off")
        if not 0 <= self.magnitude <= 30:
            raise ConfigError(f"augment.magnitude is {self.magnitude}; choose 0 to 30")

    @property
    def bends(self) -> bool:
        """Whether images need resampling: more than flips and shifts by whole pixels."""
        return self.crop < 1 or max(self.rotate, self.zoom, self.shear, self.warp) > 0


class Augment:
    """Applies `config` to batches. `seed` is the run's."""

    def __init__(self, config: ImageAugmentConfig, seed: int) -> None:
        """Raises UserError if RandAugment is configured but torchvision is not installed."""
        self.config, self.seed = config, seed
        self._rand: Any = None
        if config.randaugment:
            try:
                from torchvision.transforms import v2
            except ImportError:
                raise UserError(HOW_TO_INSTALL) from None
            self._rand = v2.RandAugment(config.randaugment, config.magnitude, num_magnitude_bins=31)

    def pixels(self, images: UInt8[np.ndarray, "B H W C"], places: Int[np.ndarray, "B"]) -> Float[Tensor, "B C H W"]:
        """Augmented images with values from 0 to 255."""
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
        # Contrast around an image's mean, and brightness.
        drawn = torch.from_numpy(2 * self._drawn(places, _LIGHT, 2) - 1).float() * config.light
        gain, offset = 1 + drawn[:, 0].view(-1, 1, 1, 1), 255 * drawn[:, 1].view(-1, 1, 1, 1)
        mean = x.mean((1, 2, 3), keepdim=True)
        return ((x - mean) * gain + mean + offset).clamp(0, 255)

    def erase(self, x: Float[Tensor, "B C H W"], places: Int[np.ndarray, "B"]) -> Float[Tensor, "B C H W"]:
        """Erase a rectangle of some normalised images to 0, the mean colour."""
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
        """Each image mixed with another one of its batch, and the mixed class probabilities."""
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
        """Random numbers in [0, 1), a function of the seed, the position and the stream."""
        salt = mixed(np.uint64(self.seed % (1 << 64)))
        each = mixed(places.astype(np.uint64) ^ salt)
        return (mixed(each[:, None] + np.arange(which, which + count, dtype=np.uint64)) >> np.uint64(11)) * 2.0**-53

    def _moved(self, x: Tensor, places: np.ndarray) -> Tensor:
        """Flip, and shift by whole pixels."""
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
        """Flip, shift, crop, rotate, zoom and shear as one affine map, plus a warp field, with bilinear
        interpolation.
        """
        config, (high, wide) = self.config, x.shape[-2:]
        crop, turn, move = (self._drawn(places, which, 4) for which in (_CROP, _ROTATE, _SHIFT))
        area, ratio = config.crop + (1 - config.crop) * crop[:, 0], np.exp((2 * crop[:, 1] - 1) * _RATIO)
        if config.crop == 1:
            ratio = np.ones_like(ratio)
        tall, broad = np.minimum(np.sqrt(area / ratio), 1), np.minimum(np.sqrt(area * ratio), 1)
        angle = (2 * turn[:, 0] - 1) * math.radians(config.rotate)
        mirror = np.where(self._drawn(places, _FLIP, 1)[:, 0] < config.flip, -1.0, 1.0)
        # affine_grid's coordinates are from -1 to 1, so a rotation must include the aspect ratio
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
            # The displacement of each pixel, interpolated between a few random knots.
            drawn = 2 * config.warp * (2 * self._drawn(places, _WARP, 2 * _KNOTS**2) - 1)
            knots = torch.from_numpy(drawn).float().view(-1, 2, _KNOTS, _KNOTS)
            field = F.interpolate(knots, (high, wide), mode="bicubic", align_corners=True)
            grid = grid + field.permute(0, 2, 3, 1)
        padding = "zeros" if config.outside == "black" else "border"
        return F.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def _boxes(area: np.ndarray, ratio: np.ndarray, middle: np.ndarray, size: torch.Size) -> Tensor:
    """The pixels in a box with a share of the `area`, aspect `ratio` (height by width) and centre `middle`: [B, H,
    W].
    """
    masks = []
    for side, share, where in ((size[0], np.sqrt(area * ratio), 0), (size[1], np.sqrt(area / ratio), 1)):
        length, centre = share * side, middle[:, where] * side
        low = np.round(centre - length / 2)
        places = np.arange(side)[None]
        masks.append(torch.from_numpy((places >= low[:, None]) & (places < (low + np.round(length))[:, None])))
    return masks[0][:, :, None] & masks[1][:, None, :]
