"""Recipes for agents, from your own episodes or in three environments, and how they scale with data and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from headway.data.episode_files import all_episode_lengths
from headway.domains.trajectories.step_windows import Trajectories
from headway.domains.trajectories.task import TrajectoriesConfig
from headway.learn import AdamWConfig, CosineConfig, MuonConfig, Recipe, Task, TrainConfig
from headway.learn.plan.scale import ACTING_SCALE, DataSettings, episode_settings
from headway.learn.recipe import generic
from headway.nn.models.presets import decision_gym

_OPTIM = AdamWConfig(lr=1e-3, betas=(0.9, 0.95), weight_decay=1e-4)
_SCHEDULE = CosineConfig(warmup=0.05, floor=0.05)


def trajectories() -> Recipe:
    """Train on any episodes, with discrete or continuous actions and with vectors or images as states."""
    return generic(
        "trajectories",
        "trajectories",
        "your own episodes: .npz, HDF5 (D4RL) or Minari; evaluated in their environment if it is installed",
        model=decision_gym(width=128, depth=3, heads=4),
        task=TrajectoriesConfig(),
        optim=MuonConfig(lr=0.02, adam_lr=2e-3),
        train=TrainConfig(steps=4000, batch_tokens=1280),
        expected="--minutes chooses size and steps for your episodes; without it, a few minutes on 2 cores",
    )


def cartpole() -> Recipe:
    """Episodes by an expert and by a random policy."""
    return Recipe(
        name="cartpole",
        domain="trajectories",
        description="balance a pole on a cart, from episodes by an expert and a random policy (extra rl)",
        data=("cartpole-expert",),
        model=decision_gym(4, 2, discrete=True, width=64, depth=2, heads=2, timesteps=500, dropout=0.0),
        task=TrajectoriesConfig(env="CartPole-v1", random=300, target=500.0),
        optim=_OPTIM,
        schedule=_SCHEDULE,
        train=TrainConfig(steps=1500, batch_size=64, clip=0.25),
        expected="return 490 of 500 (three seeds: 488 to 496) after 100 seconds on one core",
    )


def pendulum() -> Recipe:
    """Episodes by an expert and by a random policy; actions are continuous."""
    return Recipe(
        name="pendulum",
        domain="trajectories",
        description="swing up a pendulum, from episodes by an expert and a random policy (extra rl)",
        data=("pendulum-expert",),
        model=decision_gym(3, 1, width=64, depth=2, heads=2, timesteps=200, dropout=0.0),
        task=TrajectoriesConfig(env="Pendulum-v1", random=60),
        optim=_OPTIM,
        schedule=_SCHEDULE,
        train=TrainConfig(steps=3000, batch_size=64, clip=0.25),
        expected="return -178 (three seeds: -186 to -174) after 160 seconds on one core",
    )


def hopper() -> Recipe:
    """The size and hyperparameters from Chen et al. 2021, table 9, on episodes that you record."""
    return Recipe(
        name="hopper",
        domain="trajectories",
        description="a hopping leg (MuJoCo), from your own episodes (headway data collect Hopper-v5; extra rl)",
        data=(),
        model=decision_gym(11, 3, extra=True),
        task=TrajectoriesConfig(env="Hopper-v5", scale=1000.0),
        optim=AdamWConfig(lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4),
        schedule=CosineConfig(warmup=0.05, floor=0.1),
        train=TrainConfig(steps=10_000, batch_size=64, clip=0.25),
        expected="47 minutes on 2 cores; an eighth of this size achieved a return of 919 from data with a mean of 249",
    )


RECIPES = (trajectories, cartpole, pendulum, hopper)


_SHAPES = (
    (32, 1, 1), (48, 2, 2), (64, 2, 2), (96, 2, 3), (128, 3, 4), (192, 3, 6), (256, 4, 8), (384, 4, 6), (512, 6, 8),
)  # fmt: skip
_CONTEXT = 20  # steps per window, fewer for shorter episodes
_EPISODE_RANGE = (4, 32)  # minimum and maximum episodes per evaluation


def _data_settings(recipe: Recipe, paths: Sequence[Path], minutes: float) -> DataSettings:
    """Windows as long as the longest episode, up to a limit."""
    lengths = all_episode_lengths(paths)
    context = max(1, min(_CONTEXT, max(lengths)))
    settings = {"task.context": context, **episode_settings(len(lengths), minutes, *_EPISODE_RANGE)}
    reason = (
        f"windows of {context} steps for {len(lengths):,} episodes of {sum(lengths):,} steps; "
        f"{settings['task.episodes']} episodes per evaluation if the environment is known"
    )
    return DataSettings(settings, reason)


def _unique_targets(task: Task) -> int:
    examples = cast(Trajectories, task.examples)
    return int(examples.episodes.lengths[examples.splits.rows("train")].sum())


SCALES = {
    "trajectories": replace(ACTING_SCALE, shapes=_SHAPES, unique_targets=_unique_targets, data_settings=_data_settings)
}
