"""Recipes for images: from scratch by themselves, or fine-tuned with --from."""

from __future__ import annotations

from headway.data import SplitConfig
from headway.domains.vision.augment import ImageAugmentConfig
from headway.domains.vision.task import VisionConfig
from headway.learn import CosineConfig, MuonConfig, Recipe, TrainConfig, WSDConfig
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
    """A vision transformer for little data and few cores: a convolutional stem, and the mean of the patches in place of
    a class token.
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
    """Any images with classes. What is open is chosen by `scale.py` where --minutes are given."""
    return Recipe(
        name="vision",
        domain="vision",
        description="any images with classes: a folder for each, IDX files, or a .csv of path and label",
        data=(),
        model=small_vit(width=128, depth=6, heads=4, patch=8, size=64),
        task=VisionConfig(smoothing=0.1, augment=ImageAugmentConfig(flip=0.5, crop=0.5, erase=0.25)),
        optim=MuonConfig(weight_decay=0.1, adam_lr=2e-3, adam_weight_decay=0.05),
        schedule=WSDConfig(warmup=0.02, decay=0.6),
        train=TrainConfig(steps=2000, batch_size=64),
        expected="minutes from scratch; better with --from a pre-trained ViT",
    )


def fashion_mnist() -> Recipe:
    """Xiao et al. 2017: clothes in ten kinds. A twentieth of the training part picks the best model; the test part is
    read once, at the end.
    """
    return Recipe(
        name="fashion-mnist",
        domain="vision",
        description="clothes in ten kinds, 28 x 28 pixels",
        data=("fashion-mnist",),
        model=small_vit(width=128, depth=3, heads=4, patch=4, size=28, channels=1, more=2),
        task=VisionConfig(
            split=SplitConfig(validation=0.05, test=0.0),
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
    """scikit-learn's copy of handwritten digits. A tenth is for the test, a tenth picks the best model."""
    return Recipe(
        name="digits",
        domain="vision",
        description="handwritten digits, 8 x 8 pixels (comes with scikit-learn)",
        data=("digits",),
        model=small_vit(width=64, depth=4, heads=4, patch=2, size=8, channels=1, more=1),
        task=VisionConfig(
            split=SplitConfig(validation=0.1, test=0.1),
            smoothing=0.1,
            augment=ImageAugmentConfig(crop=0.8, rotate=10.0, shift=1),
        ),
        optim=MuonConfig(weight_decay=0.1, adam_lr=2e-3, adam_weight_decay=0.05),
        schedule=CosineConfig(warmup=0.05, floor=0.01),
        train=TrainConfig(steps=1500, batch_size=128, ema=0.998),
        expected="accuracy 98.6 % by five folds, in two minutes",
    )


RECIPES = (vision, fashion_mnist, digits)
