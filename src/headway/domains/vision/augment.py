"""Random image augmentation, as a pure function of the seed and the images' positions in the sample stream.

Random numbers are hashes, whole batches are transformed at once, and there is no generator state, so a resumed run
samples the same augmentation as without the interruption. torchvision's transforms use torch's global generator, image
by image, so only RandAugment is used, with a seed per image.
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

from headway.data.shuffling import splitmix64
from headway.errors import ConfigError, UserError

_RATIO = math.log(4 / 3)  # log aspect ratio of a crop (Szegedy et al. 2015)
_ERASED_AREA, _ERASED_RATIO = (0.02, 1 / 3), math.log(3.3)  # Zhong et al. 2020
INSTALL_HINT = (
    "RandAugment needs torchvision; run pip install 'headway[vision]', or do not set task.augment.randaugment"
)
(
    _FLIP_STREAM,
    _SHIFT_STREAM,
    _CROP_STREAM,
    _ROTATE_STREAM,
    _ERASE_STREAM,
    _MIX_STREAM,
    _RANDAUGMENT_STREAM,
    _SHEAR_STREAM,
    _LIGHT_STREAM,
    _WARP_STREAM,
) = range(0, 100, 10)  # random streams
_WARP_KNOTS = 5  # knots per side in the field that warps an image


@dataclass(frozen=True)
class ImageAugmentConfig:
    """Augmentation of training images; off by default.

    flip: probability of a horizontal flip. shift: maximum shift in pixels, each way. crop: minimum share of an image's
    area to crop and enlarge (1: no crop). rotate, shear: maximum degrees. zoom: maximum change of height and of width,
    as a share. warp: maximum displacement by a smooth random field, as a share of the image size (imitates differences
    in handwriting; Simard et al. 2003). light: maximum change of brightness and contrast, as a share. outside: padding,
    either black or the repeated edge. erase: probability of erasing a rectangle (Zhong et al. 2020). randaugment:
    number of torchvision operations per image, with strength `magnitude` of 30 (Cubuk et al. 2020). mixup, cutmix:
    parameter of the Beta distribution that samples the share for mixing two images (Zhang et al. 2018), or the area
    copied from another image (Yun et al. 2019); if both are set, each batch uses one. mixed: share of batches that are
    mixed.
    """

    flip: float = 0.0
    shift: int = 0
    crop: float = 1.0
    rotate: float = 0.0
    zoom: float = 0.0
    shear: float = 0.0
    warp: float = 0.0
    light: float = 0.0
    outside: Literal["black", "edge"] = "black"  # padding for pixels outside the image
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
                raise ConfigError(
                    f"augment.{name} is {getattr(self, name)}; choose a fraction of at least 0 and below 1"
                )
        if not 0 <= self.shear < 90:
            raise ConfigError(f"augment.shear is {self.shear}; choose degrees from 0 to below 90")
        if not 0 < self.crop <= 1:
            raise ConfigError(f"augment.crop is {self.crop}; choose a share of the area above 0, or 1 for no crop")
        if min(self.shift, self.rotate, self.randaugment, self.mixup, self.cutmix) < 0:
            raise ConfigError("augment has a setting below 0; use 0 to turn it off")
        if not 0 <= self.magnitude <= 30:
            raise ConfigError(f"augment.magnitude is {self.magnitude}; choose 0 to 30")

    @property
    def resamples(self) -> bool:
        """Whether images need resampling: more than flips and shifts by whole pixels."""
        return self.crop < 1 or max(self.rotate, self.zoom, self.shear, self.warp) > 0


class Augment:
    """Applies `config` to batches. `seed` is the run's."""

    def __init__(self, config: ImageAugmentConfig, seed: int) -> None:
        """Raises UserError if RandAugment is configured but torchvision is not installed."""
        self.config, self.seed = config, seed
        self._randaugment: Any = None
        if config.randaugment:
            try:
                from torchvision.transforms import v2
            except ImportError:
                raise UserError(INSTALL_HINT) from None
            self._randaugment = v2.RandAugment(config.randaugment, config.magnitude, num_magnitude_bins=31)

    def augment_pixels(
        self, images: UInt8[np.ndarray, "B H W C"], positions: Int[np.ndarray, "B"]
    ) -> Float[Tensor, "B C H W"]:
        """Augmented images with values from 0 to 255."""
        config = self.config
        x = torch.from_numpy(images).permute(0, 3, 1, 2)
        if self._randaugment is not None:
            seeds = (self._uniform(positions, _RANDAUGMENT_STREAM, 1)[:, 0] * 2.0**53).astype(np.int64).tolist()
            with torch.random.fork_rng(devices=[]):
                changed = []
                for image, seed in zip(x, seeds):
                    torch.default_generator.manual_seed(seed)
                    changed.append(self._randaugment(image))
            x = torch.stack(changed)
        if config.resamples:
            x = self._affine(x.float(), positions)
        elif config.flip or config.shift:
            # Flip, and shift by whole pixels.
            height, width, reach = *x.shape[-2:], config.shift
            shifts = np.floor(self._uniform(positions, _SHIFT_STREAM, 2) * (2 * reach + 1)).astype(np.int64) - reach
            flipped = self._uniform(positions, _FLIP_STREAM, 1) < config.flip
            columns = np.arange(width)[None]
            columns = np.where(flipped, width - 1 - columns, columns) + shifts[:, 1:]
            rows = np.arange(height)[None] + shifts[:, :1]
            if reach and config.outside == "black":
                x = F.pad(x, (reach, reach, reach, reach))
                rows, columns = rows + reach, columns + reach
            row = torch.from_numpy(rows.clip(0, x.shape[-2] - 1))
            column = torch.from_numpy(columns.clip(0, x.shape[-1] - 1))
            x = x[torch.arange(len(x))[:, None, None], :, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)
        x = x.float()
        if not config.light:
            return x
        # Change the contrast around an image's mean, and the brightness.
        light = torch.from_numpy(2 * self._uniform(positions, _LIGHT_STREAM, 2) - 1).float() * config.light
        gain, offset = 1 + light[:, 0].view(-1, 1, 1, 1), 255 * light[:, 1].view(-1, 1, 1, 1)
        mean = x.mean((1, 2, 3), keepdim=True)
        return ((x - mean) * gain + mean + offset).clamp(0, 255)

    def erase(self, x: Float[Tensor, "B C H W"], positions: Int[np.ndarray, "B"]) -> Float[Tensor, "B C H W"]:
        """Erase a rectangle of some normalised images to 0, the mean colour."""
        if not self.config.erase:
            return x
        uniform = self._uniform(positions, _ERASE_STREAM, 5)
        area = _ERASED_AREA[0] + (_ERASED_AREA[1] - _ERASED_AREA[0]) * uniform[:, 1]
        mask = _boxes(area, np.exp((2 * uniform[:, 2] - 1) * _ERASED_RATIO), uniform[:, 3:], x.shape[-2:])
        mask &= torch.from_numpy(uniform[:, 0] < self.config.erase)[:, None, None]
        return x.masked_fill(mask[:, None], 0.0)

    def mix(
        self, x: Float[Tensor, "B C H W"], targets: Float[Tensor, "B K"], positions: Int[np.ndarray, "B"]
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"]]:
        """Each image mixed with another one from its batch, and the mixed class probabilities."""
        config, first_position = self.config, positions[:1]
        choice, mix_draw, row, column = self._uniform(first_position, _MIX_STREAM, 4)[0]
        if not (config.mixup or config.cutmix) or mix_draw >= config.mixed:
            return x, targets
        cut = bool(config.cutmix) and (not config.mixup or choice < 0.5)
        strength = config.cutmix if cut else config.mixup
        generator = np.random.default_rng([self.seed, int(first_position[0]), _MIX_STREAM])
        share = float(generator.beta(strength, strength))
        if cut:
            box = _boxes(np.array([1 - share]), np.ones(1), np.array([[row, column]]), x.shape[-2:])
            mixed_x = torch.where(box, x.flip(0), x)
            share = 1 - float(box.float().mean())
        else:
            mixed_x = torch.lerp(x.flip(0), x, share)
        return mixed_x, torch.lerp(targets.flip(0), targets, share)

    def _uniform(self, positions: Int[np.ndarray, "B"], stream: int, count: int) -> Float[np.ndarray, "B K"]:
        """Random numbers in [0, 1), a function of the seed, the position and the stream."""
        salt = splitmix64(np.uint64(self.seed % (1 << 64)))
        keys = splitmix64(positions.astype(np.uint64) ^ salt)
        return (
            splitmix64(keys[:, None] + np.arange(stream, stream + count, dtype=np.uint64)) >> np.uint64(11)
        ) * 2.0**-53

    def _affine(self, x: Float[Tensor, "B C H W"], positions: np.ndarray) -> Float[Tensor, "B C H W"]:
        """Flip, shift, crop, rotate, zoom and shear as one affine map, plus a warp field, with bilinear
        interpolation.
        """
        config, (height, width) = self.config, x.shape[-2:]
        crop, rotate, shift = (
            self._uniform(positions, stream, 4) for stream in (_CROP_STREAM, _ROTATE_STREAM, _SHIFT_STREAM)
        )
        area, ratio = config.crop + (1 - config.crop) * crop[:, 0], np.exp((2 * crop[:, 1] - 1) * _RATIO)
        if config.crop == 1:
            ratio = np.ones_like(ratio)
        crop_height, crop_width = np.minimum(np.sqrt(area / ratio), 1), np.minimum(np.sqrt(area * ratio), 1)
        angle = (2 * rotate[:, 0] - 1) * math.radians(config.rotate)
        mirror = np.where(self._uniform(positions, _FLIP_STREAM, 1)[:, 0] < config.flip, -1.0, 1.0)
        # affine_grid's coordinates are from -1 to 1, so a rotation must include the aspect ratio
        theta = np.zeros((len(x), 2, 3))
        theta[:, 0, 0] = mirror * crop_width * np.cos(angle)
        theta[:, 0, 1] = -crop_width * np.sin(angle) * height / width
        theta[:, 1, 0] = mirror * crop_height * np.sin(angle) * width / height
        theta[:, 1, 1] = crop_height * np.cos(angle)
        theta[:, 0, 2] = (2 * crop[:, 2] - 1) * (1 - crop_width) + (2 * shift[:, 0] - 1) * 2 * config.shift / width
        theta[:, 1, 2] = (2 * crop[:, 3] - 1) * (1 - crop_height) + (2 * shift[:, 1] - 1) * 2 * config.shift / height
        shear_draw = 2 * self._uniform(positions, _SHEAR_STREAM, 3) - 1
        zoom = (1 + config.zoom) ** shear_draw[:, :2]
        shear = np.zeros((len(x), 2, 2))
        shear[:, 0, 0], shear[:, 1, 1] = zoom[:, 0], zoom[:, 1]
        shear[:, 0, 1] = zoom[:, 0] * np.tan(shear_draw[:, 2] * math.radians(config.shear)) * (height / width)
        theta[:, :, :2] = theta[:, :, :2] @ shear
        grid = F.affine_grid(torch.from_numpy(theta).float(), list(x.shape), align_corners=False)
        if config.warp:
            # The displacement of each pixel, interpolated between a few random knots.
            displacements = 2 * config.warp * (2 * self._uniform(positions, _WARP_STREAM, 2 * _WARP_KNOTS**2) - 1)
            knots = torch.from_numpy(displacements).float().view(-1, 2, _WARP_KNOTS, _WARP_KNOTS)
            warp_field = F.interpolate(knots, (height, width), mode="bicubic", align_corners=True)
            grid = grid + warp_field.permute(0, 2, 3, 1)
        padding = "zeros" if config.outside == "black" else "border"
        return F.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def _boxes(area: np.ndarray, ratio: np.ndarray, center: np.ndarray, size: torch.Size) -> Tensor:
    """The pixels in a box with a share of the `area`, aspect `ratio` (height by width) and centre `middle`: [B, H,
    W].
    """
    masks = []
    for length, share, axis in ((size[0], np.sqrt(area * ratio), 0), (size[1], np.sqrt(area / ratio), 1)):
        box_length, centre = share * length, center[:, axis] * length
        low = np.round(centre - box_length / 2)
        coordinates = np.arange(length)[None]
        masks.append(
            torch.from_numpy((coordinates >= low[:, None]) & (coordinates < (low + np.round(box_length))[:, None]))
        )
    return masks[0][:, :, None] & masks[1][:, None, :]
