"""Recipes for robots, from your own demonstrations or for Meta-World tasks, and how they scale with data and time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from headway.data import SplitConfig
from headway.data.episode_files import summarize_demonstrations
from headway.domains.robotics.chunk_windows import DemonstrationExamples
from headway.domains.robotics.task import RoboticsConfig
from headway.learn import AdamWConfig, CosineConfig, MuonConfig, Recipe, Task, TrainConfig
from headway.learn.plan.scale import ACTING_SCALE, DataSettings, ScalingLaw, episode_settings
from headway.learn.recipe import generic
from headway.nn.models import RegressionConfig, act


def robotics() -> Recipe:
    """Train on any demonstrations, of states and cameras."""
    return generic(
        "robotics",
        "robotics",
        "robot demonstrations (LeRobot folders, .npz, HDF5): learn chunks of actions (ACT)",
        model=act(width=128, depth=3, posterior=1, heads=4, chunk=20, dropout=0.0, head=RegressionConfig(latent=0)),
        task=RoboticsConfig(scaling="range", noise=0.05),
        optim=MuonConfig(lr=0.02, adam_lr=2e-3),
        train=TrainConfig(steps=4000, batch_tokens=1280),
        expected="--minutes chooses size and steps for your demonstrations; else minutes on 2 cores without cameras",
    )


def metaworld() -> Recipe:
    """A small model for a few core-minutes per task. It has no latent, because a single expert always acts in the same
    way.
    """
    return Recipe(
        name="metaworld",
        domain="robotics",
        description="Meta-World tasks from demonstrations (headway data collect metaworld/...; extra robotics)",
        data=(),
        model=act(width=128, depth=3, posterior=1, heads=4, chunk=20, dropout=0.0, head=RegressionConfig(latent=0)),
        task=RoboticsConfig(scaling="range", noise=0.05, split=SplitConfig(validation=0.0, test=0.0)),
        optim=AdamWConfig(lr=1e-3, weight_decay=1e-4),
        schedule=CosineConfig(warmup=0.05, floor=0.02),
        train=TrainConfig(steps=3000, batch_size=64, clip=1.0, ema=0.998, evaluate_every=300),
        expected="success in 98 % of episodes over five tasks, with 3 core-minutes per task",
    )


RECIPES = (robotics, metaworld)


_SHAPES = (
    (64, [1, 1, 1], 2),
    (64, [2, 1, 1], 2),
    (96, [2, 1, 1], 3),
    (128, [3, 1, 1], 4),
    (192, [3, 1, 1], 6),
    (256, [4, 1, 1], 8),
    (384, [4, 1, 1], 6),
    (512, [5, 1, 1], 8),
)
_CHUNKS = (5, 50)  # actions per chunk: a fifth of a demonstration, within this range
_EPISODE_RANGE = (5, 25)  # minimum and maximum episodes per task and evaluation; twice as many at the end
_PATCH = 16  # image sizes are multiples of it
_MAX_HEIGHTS = ((3.0, 64), (120.0, 96), (math.inf, 128))  # (minutes, maximum height of images in pixels)


def _data_settings(recipe: Recipe, paths: Sequence[Path], minutes: float) -> DataSettings:
    """More minutes allow more evaluation episodes and larger images."""
    summary = summarize_demonstrations(paths)
    count, middle = len(summary.lengths), int(np.median(summary.lengths))
    low, high = _CHUNKS
    chunk = min(high, max(low, middle // 5))
    settings = {"model.chunk": chunk, **episode_settings(count, minutes, *_EPISODE_RANGE)}
    settings["task.final"] = 2 * settings["task.episodes"]
    reason = f"chunks of {chunk} actions for {count:,} demonstrations of {middle:,} steps"
    size = resized_size(summary.cameras, minutes)
    if size is not None:
        settings["task.size"] = size
        reason += f"; images of {size[0]} x {size[1]}"
    return DataSettings(settings, reason)


def _unique_targets(task: Task) -> int:
    examples = cast(DemonstrationExamples, task.examples)
    return examples.model.chunk * int(examples.data.lengths[examples.splits.rows("train")].sum())


def resized_size(cameras: Mapping[str, tuple[int, int]], minutes: float) -> list[int] | None:
    """Return the height and width to which all cameras' images are resized; None to keep their sizes."""
    if not cameras:
        return None
    high, wide = max(cameras.values())
    max_height = next(pixels for limit, pixels in _MAX_HEIGHTS if minutes < limit)
    is_divisible = all(edge % _PATCH == 0 for size in cameras.values() for edge in size)
    if is_divisible and high <= max_height:
        return None
    height = max(_PATCH, min(max_height, high // _PATCH * _PATCH))
    return [height, max(_PATCH, round(height * wide / high / _PATCH) * _PATCH)]


SCALES = {
    # Batches are counted in actions, each of which is a different target in each chunk that contains it. States get new
    # noise each time, so repeated data is worth more than for text and supports larger models.
    "robotics": replace(
        ACTING_SCALE,
        law=ScalingLaw(repeats=60.0, excess=20.0),
        shapes=_SHAPES,
        unique_targets=_unique_targets,
        data_settings=_data_settings,
    )
}
