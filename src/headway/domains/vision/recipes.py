"""Recipes for images, from scratch or fine-tuned with --from, and how the generic one chooses its settings for the
images and the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from headway.data import ClassSplitConfig
from headway.domains.vision.augment import ImageAugmentConfig
from headway.domains.vision.labelled_images import Survey, prepared_survey, read_samples, survey_images, survey_pixels
from headway.domains.vision.masked_images import MaskedImagesConfig
from headway.domains.vision.task import VisionConfig
from headway.domains.vision.unlabelled_images import read_images, read_unlabelled
from headway.learn import CosineConfig, MuonConfig, Recipe, TrainConfig, WSDConfig
from headway.learn.plan.scale import (
    DataSettings,
    Descent,
    Scale,
    ScalingLaw,
    Settings,
    contrasted_settings,
    held_out_shares,
)
from headway.learn.pretraining import Pretraining, labelled_settings
from headway.learn.recipe import batch_size_of, generic
from headway.nn.mixers import AttentionConfig
from headway.nn.models import BlockConfig, PatchEmbedConfig, PooledHeadConfig, StackConfig, TransformerConfig, cycle
from headway.nn.parts.feedforward import MLPConfig
from headway.nn.parts.init import InitConfig
from headway.visibility import Full

CLOTHING_CLASSES = (
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
    width: int, depth: int, heads: int, patch: int, size: int, channels: int = 3, extra_stem_layers: int = 0
) -> TransformerConfig:
    """A vision transformer for little data and few cores, with a convolutional stem and mean pooling instead of a class
    token.
    """
    block = BlockConfig(AttentionConfig(heads, pattern=Full()), None, MLPConfig(activation="relu_squared"))
    return TransformerConfig(
        width,
        stack=StackConfig(cycle((block,), depth)),
        embed=PatchEmbedConfig(
            (patch, patch), (size, size), channels, 0, stem="convolutional", stem_more=extra_stem_layers
        ),
        heads={"classes": PooledHeadConfig(pool="mean")},
        tie="none",
        init=InitConfig("fan_in", head="zero"),
    )


def vision() -> Recipe:
    """Any images with classes. With --minutes, its scale chooses the open settings."""
    return generic(
        "vision",
        "vision",
        "images with classes: a folder per class, IDX files, or a .csv with path and label",
        model=small_vit(width=128, depth=6, heads=4, patch=8, size=64),
        task=VisionConfig(
            smoothing=0.1,
            augment=ImageAugmentConfig(flip=0.5, crop=0.5, erase=0.25),
            split=ClassSplitConfig(stratify=True),
        ),
        optim=MuonConfig(lr=0.008, weight_decay=0.1, adam_lr=2e-3, adam_weight_decay=0.05),
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
        model=small_vit(width=128, depth=3, heads=4, patch=4, size=28, channels=1, extra_stem_layers=2),
        task=VisionConfig(
            split=ClassSplitConfig(validation=0.05, test=0.0),
            smoothing=0.1,
            augment=ImageAugmentConfig(flip=0.5, shift=2, erase=0.25),
            names=CLOTHING_CLASSES,
        ),
        optim=MuonConfig(weight_decay=0.1, adam_lr=2e-3, adam_weight_decay=0.05),
        schedule=WSDConfig(warmup=200, decay=0.7),
        train=TrainConfig(steps=9000, batch_size=128),
        expected="accuracy 93.1 % in 47 minutes on 2 cores",
    )


def digits() -> Recipe:
    """scikit-learn's copy of handwritten digits. A tenth is the test split, and a tenth picks the best model."""
    return Recipe(
        name="digits",
        domain="vision",
        description="handwritten digits, 8 x 8 pixels (comes with scikit-learn)",
        data=("digits",),
        model=small_vit(width=64, depth=4, heads=4, patch=2, size=8, channels=1, extra_stem_layers=1),
        task=VisionConfig(
            split=ClassSplitConfig(validation=0.1, test=0.1),
            smoothing=0.1,
            augment=ImageAugmentConfig(crop=0.8, rotate=10.0, shift=1),
        ),
        optim=MuonConfig(weight_decay=0.1, adam_lr=2e-3, adam_weight_decay=0.05),
        schedule=CosineConfig(warmup=0.05, floor=0.01),
        train=TrainConfig(steps=1500, batch_size=128, ema=0.998),
        expected="accuracy 98.6 % (five-fold cross-validation), in two minutes",
    )


def masked_images() -> Recipe:
    """Any images without labels."""
    return generic(
        "masked-images",
        "vision",
        "images without labels: folders, IDX files, or a .csv with path",
        model=small_vit(width=128, depth=6, heads=4, patch=8, size=64),
        task=MaskedImagesConfig(augment=ImageAugmentConfig(flip=0.5, crop=0.4, light=0.2)),
        optim=MuonConfig(weight_decay=0.1, adam_lr=2e-3, adam_weight_decay=0.05),
        train=TrainConfig(steps=2000, batch_size=128),
        expected="as the first stage of vision with --pretrain, or to start from with --from",
    )


RECIPES = (vision, fashion_mnist, digits, masked_images)


_SHAPES = ((32, 2, 2), (48, 2, 3), (64, 2, 4), (64, 4, 4), (96, 3, 4), (128, 4, 4), (192, 4, 6), (256, 5, 8))
_SHAPES += ((384, 6, 6), (512, 8, 8), (768, 12, 12))
_SMALL_SIDE = 40  # maximum side in pixels of images that keep their size
_TINY_SIDE = 16  # maximum side with patches of 2 pixels
_DRAWING_SIDES = ((15, 28), (120, 40), (math.inf, 56))  # (minutes, side) for enlarged drawings, with patches of 4
_PHOTO_SIDES = ((10, 48), (60, 64), (240, 96), (math.inf, 128))  # (minutes, side) for other images, with patches of 8
_MAX_RATIO = 3.0  # maximum aspect ratio
_WEAK_EPOCHS, _FULL_EPOCHS = 3, 25  # epochs up to which augmentation is weakest, and from which it is full
_WEAK_SHARE = 0.25  # share of the full augmentation


def data_settings(recipe: Recipe, paths: Sequence[Path], minutes: float) -> DataSettings:
    """Settings that keep the image detail that distinguishes the classes."""
    task = cast(VisionConfig, recipe.task)
    samples = read_samples(paths, label=task.label)
    statistics = survey_images(samples, task.target) if samples.prepared is None else prepared_survey(samples.prepared)
    if statistics is None:  # the task reports the error
        return DataSettings({})
    size, patch = input_sizes(statistics, minutes, keeps_size=samples.prepared is not None)
    settings = {
        **_size_settings(statistics, size, patch),
        **held_out_shares(statistics.images),
        **{f"task.augment.{name}": setting for name, setting in augmentation(statistics, size).items()},
    }
    kind = "drawn" if statistics.is_drawing else "grey" if statistics.grey else "colour"
    flip_note = "flips them" if statistics.flips else "does not flip them, because that would change their meaning"
    class_note = f" of {statistics.classes:,} classes" if statistics.classes else ""
    summary = (
        f"{statistics.images:,} {kind} images{class_note}, about {statistics.size[0]} x {statistics.size[1]} pixels"
    )
    return DataSettings(
        settings, f"{summary}: uses {size[0]} x {size[1]} pixels in patches of {patch}, and {flip_note}"
    )


def _size_settings(statistics: Survey, size: tuple[int, int], patch: int) -> Settings:
    return {
        "model.embed.size": list(size),
        "model.embed.patch": [patch, patch],
        "model.embed.channels": 1 if statistics.grey else 3,
        "model.embed.stem_more": 1 if patch < 8 else 0,
    }


def unlabelled_settings(recipe: Recipe, paths: Sequence[Path], minutes: float) -> DataSettings:
    """Settings for images without labels. Without classes it is unknown whether mirroring keeps their meaning, so only
    colour images are flipped. Views are cropped more than in classification (Chen et al. 2020, figure 5).
    """
    images = read_images(paths)
    stated = next((prepared_survey(samples) for samples in images.prepared.values()), None)
    measured = stated or survey_pixels(images.pixels, np.arange(len(images)), images.files)
    if measured is None:  # the task reports the error
        return DataSettings({})
    flips = not measured.grey
    statistics = Survey(len(images), 0, len(images), measured.size, measured.grey, measured.is_drawing, flips)
    size, patch = input_sizes(statistics, minutes, keeps_size=stated is not None)
    augment = augmentation(statistics, size)
    if not measured.is_drawing:
        augment = {**augment, "crop": 0.4, "light": 0.2, "erase": 0.0}
    settings = {
        **_size_settings(statistics, size, patch),
        **contrasted_settings(statistics.images, batch_size_of(recipe)),
        **{f"task.augment.{name}": setting for name, setting in augment.items()},
    }
    kind = "drawn" if statistics.is_drawing else "grey" if statistics.grey else "colour"
    summary = f"{len(images):,} {kind} images, about {statistics.size[0]} x {statistics.size[1]} pixels"
    return DataSettings(settings, f"{summary}: uses {size[0]} x {size[1]} pixels in patches of {patch}")


def regularisation(recipe: Recipe, epochs: float) -> Settings:
    """Stronger augmentation for more epochs, and stochastic depth for large models."""
    assert isinstance(recipe.task, VisionConfig)  # the recipe's own
    share = (min(epochs, _FULL_EPOCHS) - _WEAK_EPOCHS) / (_FULL_EPOCHS - _WEAK_EPOCHS)
    share, full = _WEAK_SHARE + (1 - _WEAK_SHARE) * max(0.0, share), recipe.task.augment
    names = ("rotate", "zoom", "shear", "warp", "light", "erase")  # flips keep their probability
    augment: dict[str, Any] = {name: round(share * getattr(full, name), 4) for name in names}
    augment |= {"crop": round(1 - share * (1 - full.crop), 4), "shift": math.ceil(share * full.shift)}
    layers = len(recipe.model.stack.blocks) if isinstance(recipe.model, TransformerConfig) else 0
    drop_path = 0.1 if epochs > _FULL_EPOCHS and layers > 3 else 0.0
    return {"model.drop_path": drop_path, **{f"task.augment.{name}": setting for name, setting in augment.items()}}


def input_sizes(statistics: Survey, minutes: float, keeps_size: bool = False) -> tuple[tuple[int, int], int]:
    """Height and width of the model's images, which prepared ones keep, and the patch size."""
    if keeps_size:
        (height, width), (_, patch) = statistics.size, input_sizes(statistics, minutes)
        return (height, width), next(side for side in range(patch, 0, -1) if not height % side and not width % side)
    max_side = max(statistics.size)
    if max_side <= _SMALL_SIDE:
        patch = 2 if max_side <= _TINY_SIDE else 4
        height, width = (max(patch, -(-length // patch) * patch) for length in statistics.size)
        return (height, width), patch
    patch, sides_by_minutes = (4, _DRAWING_SIDES) if statistics.is_drawing else (8, _PHOTO_SIDES)
    length = next(length for max_minutes, length in sides_by_minutes if minutes <= max_minutes)
    ratio = min(max(statistics.size[0] / statistics.size[1], 1 / _MAX_RATIO), _MAX_RATIO)
    if 0.7 < ratio < 1.5:
        return (length, length), patch
    height, width = (
        max(patch, round(length * factor / patch) * patch) for factor in (math.sqrt(ratio), 1 / math.sqrt(ratio))
    )
    return (height, width), patch


def augmentation(statistics: Survey, size: tuple[int, int]) -> Settings:
    """Augmentation settings for a kind of image, for many epochs.

    Drawings and writing are warped and slanted, as handwriting varies, and never cropped. Small images of objects are
    shifted and partly erased. Photographs are cropped.
    """
    base: dict[str, object] = {"flip": 0.5 if statistics.flips else 0.0, "outside": "edge", "crop": 1.0, "erase": 0.0}
    shift = max(1, round(min(size) / 14))
    if statistics.is_drawing or (statistics.grey and not statistics.flips and max(statistics.size) <= _SMALL_SIDE):
        return {**base, "rotate": 12.0, "zoom": 0.15, "shear": 12.0, "shift": shift, "warp": 0.03}
    if max(size) <= _SMALL_SIDE:
        return {**base, "shift": shift, "erase": 0.25, "light": 0.0 if statistics.grey else 0.1}
    return {**base, "crop": 0.4, "rotate": 5.0, "erase": 0.25, "light": 0.2}


_IMAGES = Scale(
    # Images repeat many times with new augmentation, so the scaling law values repeated images and extra parameters
    # more than for text. benchmarks/laws.py fits it to clothes, digits and drawn characters.
    law=ScalingLaw(0.1, 3.6, 0.3, 7.7, 0.35, repeats=40.0, excess=20.0),
    batch_setting="train.batch_size",
    min_batch=32,
    max_batch=512,
    noise_scale=0.5,
    calibrated=True,
    descent=Descent(1.3, 3.8, 11.0),
    shapes=_SHAPES,
    data_settings=data_settings,
    regularisation=regularisation,
)
SCALES = {
    "vision": _IMAGES,
    # Other images in the batch are the negatives of the contrast, so it is not made smaller than necessary.
    "masked-images": replace(
        _IMAGES,
        calibrated=False,
        descent=None,
        min_batch=64,
        max_batch=256,
        noise_scale=2.0,
        data_settings=unlabelled_settings,
        regularisation=lambda recipe, epochs: {},
    ),
}


_tuning = partial(labelled_settings, scales=SCALES)


def _first_stage_settings(recipe: Recipe) -> Settings:
    """Damaged images among many unlabelled ones are skipped, and views are flipped if labelled images are."""
    return {"task.skip_bad": True, "task.augment.flip": cast(VisionConfig, recipe.task).augment.flip}


PRETRAINING = dict.fromkeys(
    ("vision", "fashion-mnist", "digits"),
    Pretraining(lambda recipe: "masked-images", _first_stage_settings, _tuning, read_unlabelled),
)
