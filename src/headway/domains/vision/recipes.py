"""Recipes for images, from scratch or fine-tuned with --from, and how the generic one chooses its settings for the kind
and number of images and the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from headway.data import ClassSplitConfig
from headway.domains.vision.augment import ImageAugmentConfig
from headway.domains.vision.samples import read_samples
from headway.domains.vision.survey import Survey, survey
from headway.domains.vision.task import VisionConfig
from headway.learn import CosineConfig, MuonConfig, Recipe, TrainConfig, WSDConfig
from headway.learn.outlook import Descent
from headway.learn.scale import Law, Scale, Settings, Settled, Shapes
from headway.nn.mixers import AttentionConfig
from headway.nn.models import (
    BlockConfig,
    PatchEmbedConfig,
    PooledHeadConfig,
    StackConfig,
    TransformerConfig,
    cycle,
)
from headway.nn.parts.feedforward import MLPConfig
from headway.nn.parts.init import InitConfig
from headway.visibility import Full

CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def small_vit(
    width: int, depth: int, heads: int, patch: int, size: int, channels: int = 3, more: int = 0
) -> TransformerConfig:
    """A vision transformer for little data and few cores: a convolutional stem, and mean pooling instead of a class
    token.
    """
    block = BlockConfig(AttentionConfig(heads, pattern=Full()), None, MLPConfig(activation="relu_squared"))
    return TransformerConfig(
        width,
        stack=StackConfig(cycle((block,), depth)),
        embed=PatchEmbedConfig((patch, patch), (size, size), channels, 0, stem="convolutional", stem_more=more),
        heads={"classes": PooledHeadConfig(pool="mean")},
        tie="none",
        init=InitConfig("fan_in", head="zero"),
    )


def vision() -> Recipe:
    """Any images with classes. With --minutes, `VisionScale` chooses the open settings."""
    return Recipe(
        name="vision",
        domain="vision",
        description="any images with classes: a folder per class, IDX files, or a .csv of path and label",
        data=(),
        model=small_vit(width=128, depth=6, heads=4, patch=8, size=64),
        task=VisionConfig(
            smoothing=0.1,
            augment=ImageAugmentConfig(flip=0.5, crop=0.5, erase=0.25),
            split=ClassSplitConfig(stratify=True),
        ),
        optim=MuonConfig(lr=0.008, weight_decay=0.1, adam_lr=2e-3, adam_weight_decay=0.05),
        schedule=WSDConfig(warmup=0.02, decay=0.6),
        train=TrainConfig(steps=2000, batch_size=64),
        expected="minutes from scratch; better with --from a pre-trained ViT",
    )


def fashion_mnist() -> Recipe:
    """Xiao et al. 2017: ten kinds of clothes. A twentieth of the training part picks the best model; the test part is
    evaluated once, at the end.
    """
    return Recipe(
        name="fashion-mnist",
        domain="vision",
        description="ten kinds of clothes, 28 x 28 pixels",
        data=("fashion-mnist",),
        model=small_vit(width=128, depth=3, heads=4, patch=4, size=28, channels=1, more=2),
        task=VisionConfig(
            split=ClassSplitConfig(validation=0.05, test=0.0),
            smoothing=0.1,
            augment=ImageAugmentConfig(flip=0.5, shift=2, erase=0.25),
            names=CLOTHES,
        ),
        optim=MuonConfig(weight_decay=0.1, adam_lr=2e-3, adam_weight_decay=0.05),
        schedule=WSDConfig(warmup=200, decay=0.7),
        train=TrainConfig(steps=9000, batch_size=128),
        expected="accuracy 93.1 % in 47 minutes on 2 cores",
    )


def digits() -> Recipe:
    """scikit-learn's copy of handwritten digits. A tenth is the test split, a tenth picks the best model."""
    return Recipe(
        name="digits",
        domain="vision",
        description="handwritten digits, 8 x 8 pixels (comes with scikit-learn)",
        data=("digits",),
        model=small_vit(width=64, depth=4, heads=4, patch=2, size=8, channels=1, more=1),
        task=VisionConfig(
            split=ClassSplitConfig(validation=0.1, test=0.1),
            smoothing=0.1,
            augment=ImageAugmentConfig(crop=0.8, rotate=10.0, shift=1),
        ),
        optim=MuonConfig(weight_decay=0.1, adam_lr=2e-3, adam_weight_decay=0.05),
        schedule=CosineConfig(warmup=0.05, floor=0.01),
        train=TrainConfig(steps=1500, batch_size=128, ema=0.998),
        expected="accuracy 98.6 % by five folds, in two minutes",
    )


RECIPES = (vision, fashion_mnist, digits)


_SHAPES = ((32, 2, 2), (48, 2, 3), (64, 2, 4), (64, 4, 4), (96, 3, 4), (128, 4, 4), (192, 4, 6), (256, 5, 8))
_SHAPES += ((384, 6, 6), (512, 8, 8), (768, 12, 12))
_SMALL = 40  # maximum side in pixels of images that keep their size
_TINY = 16  # maximum side with patches of 2 pixels
_DRAWN = ((15, 28), (120, 40), (math.inf, 56))  # (minutes, side) for enlarged drawings, with patches of 4
_PHOTOS = ((10, 48), (60, 64), (240, 96), (math.inf, 128))  # (minutes, side) for other images, with patches of 8
_THIN = 3.0  # maximum aspect ratio
_WEAK, _FULL = 3, 25  # epochs up to which augmentation is weakest, and from which it is full
_GENTLE = 0.25  # share of the full augmentation


@dataclass(frozen=True)
class VisionScale(Scale):
    """Keeps the image detail that distinguishes the classes. Images repeat many times with new augmentation, so the law
    counts repeated images and extra parameters for more than in text; its constants are rough fits to clothes of 28 x
    28 pixels.
    """

    fitted: bool = True
    descent: Descent | None = Descent(1.3, 3.8, 11.0)
    law: Law = field(default_factory=lambda: Law(0.1, 6.3, 0.3, 10.5, 0.35, repeats=40.0, excess=20.0))
    batch: str = "train.batch_size"
    least: int = 32
    most: int = 512
    noise: float = 0.5
    unit: str = "image"
    shapes: Shapes = _SHAPES

    def settle(self, recipe: Recipe, paths: Sequence[Path], minutes: float) -> Settled:
        task = cast(VisionConfig, recipe.task)
        samples = read_samples(paths, label=task.label)
        seen = survey(samples, task.target)
        if seen is None:  # the task reports the error
            return Settled({})
        size, patch = sizes(seen, minutes)
        settings = {
            "model.embed.size": list(size),
            "model.embed.patch": [patch, patch],
            "model.embed.channels": 1 if seen.grey else 3,
            "model.embed.stem_more": 1 if patch < 8 else 0,
            **self.held_out(seen.images),
            **{f"task.augment.{name}": value for name, value in changes(seen, size).items()},
        }
        kind = "drawn" if seen.drawn else "grey" if seen.grey else "colour"
        mirror = "flips them" if seen.flips else "does not flip them, because that would change their meaning"
        counted = f" of {seen.classes:,} classes" if seen.classes else ""
        found = f"{seen.images:,} {kind} images{counted}, about {seen.size[0]} x {seen.size[1]} pixels"
        return Settled(settings, f"{found}: uses {size[0]} x {size[1]} in patches of {patch}, and {mirror}")

    def regularised(self, recipe: Recipe, epochs: float, crowd: float) -> Settings:
        """Stronger augmentation for more epochs, and stochastic depth for large models."""
        assert isinstance(recipe.task, VisionConfig)  # the recipe's own
        share = (min(epochs, _FULL) - _WEAK) / (_FULL - _WEAK)
        changed = weaker(recipe.task.augment, _GENTLE + (1 - _GENTLE) * max(0.0, share))
        layers = len(recipe.model.stack.blocks) if isinstance(recipe.model, TransformerConfig) else 0
        dropped = 0.1 if epochs > _FULL and layers > 3 else 0.0
        return {"model.drop_path": dropped, **{f"task.augment.{name}": value for name, value in changed.items()}}


def sizes(seen: Survey, minutes: float) -> tuple[tuple[int, int], int]:
    """Height and width of the model's images, and the patch size."""
    longest = max(seen.size)
    if longest <= _SMALL:
        patch = 2 if longest <= _TINY else 4
        high, wide = (max(patch, -(-side // patch) * patch) for side in seen.size)
        return (high, wide), patch
    patch, table = (4, _DRAWN) if seen.drawn else (8, _PHOTOS)
    side = next(side for most, side in table if minutes <= most)
    ratio = min(max(seen.size[0] / seen.size[1], 1 / _THIN), _THIN)
    if 0.7 < ratio < 1.5:
        return (side, side), patch
    high, wide = (max(patch, round(side * part / patch) * patch) for part in (math.sqrt(ratio), 1 / math.sqrt(ratio)))
    return (high, wide), patch


def changes(seen: Survey, size: tuple[int, int]) -> Settings:
    """Augmentation settings for a kind of images, for many epochs.

    Drawings and writing are warped and slanted, as handwriting varies, and never cropped; small images of objects are
    shifted and partly erased; photographs are cropped.
    """
    found: dict[str, object] = {"flip": 0.5 if seen.flips else 0.0, "outside": "edge", "crop": 1.0, "erase": 0.0}
    moved = max(1, round(min(size) / 14))
    if seen.drawn or (seen.grey and not seen.flips and max(seen.size) <= _SMALL):
        return {**found, "rotate": 12.0, "zoom": 0.15, "shear": 12.0, "shift": moved, "warp": 0.03}
    if max(size) <= _SMALL:
        return {**found, "shift": moved, "erase": 0.25, "light": 0.0 if seen.grey else 0.1}
    return {**found, "crop": 0.4, "rotate": 5.0, "erase": 0.25, "light": 0.2}


def weaker(augment: ImageAugmentConfig, share: float) -> Settings:
    """Augmentation with a share of the strength; flips keep their probability."""
    linear = {
        name: round(share * getattr(augment, name), 4) for name in ("rotate", "zoom", "shear", "warp", "light", "erase")
    }
    return {**linear, "crop": round(1 - share * (1 - augment.crop), 4), "shift": math.ceil(share * augment.shift)}


SCALES = {"vision": VisionScale()}
