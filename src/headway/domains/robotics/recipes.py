"""Recipes for robots: demonstrations of the user's, and Meta-World's tasks."""

from __future__ import annotations

from headway.data import SplitConfig
from headway.domains.robotics.task import RoboticsConfig
from headway.learn import AdamWConfig, CosineConfig, MuonConfig, Recipe, TrainConfig, WSDConfig
from headway.nn.models import RegressionConfig, act


def robotics() -> Recipe:
    """Any demonstrations, of states and of cameras."""
    return Recipe(
        name="robotics",
        domain="robotics",
        description="demonstrations of a robot: LeRobot's folders, .npz, HDF5; chunks of actions (ACT)",
        data=(),
        model=act(width=128, depth=3, posterior=1, heads=4, chunk=20, dropout=0.0, head=RegressionConfig(latent=0)),
        task=RoboticsConfig(scaling="range", noise=0.05),
        optim=MuonConfig(lr=0.02, adam_lr=2e-3),
        schedule=WSDConfig(warmup=0.02, decay=0.6),
        train=TrainConfig(steps=4000, batch_tokens=1280),
        expected="--minutes chooses size and steps for your demonstrations; some minutes on 2 cores without cameras",
    )


def metaworld() -> Recipe:
    """A small model for a few core-minutes a task. There is no latent, as one expert acts in one way."""
    return Recipe(
        name="metaworld",
        domain="robotics",
        description="tasks of Meta-World from demonstrations (headway data collect metaworld/...; extra robotics)",
        data=(),
        model=act(width=128, depth=3, posterior=1, heads=4, chunk=20, dropout=0.0, head=RegressionConfig(latent=0)),
        task=RoboticsConfig(scaling="range", noise=0.05, split=SplitConfig(validation=0.0, test=0.0)),
        optim=AdamWConfig(lr=1e-3, weight_decay=1e-4),
        schedule=CosineConfig(warmup=0.05, floor=0.02),
        train=TrainConfig(steps=3000, batch_size=64, clip=1.0, ema=0.998, evaluate_every=300),
        expected="success in 98 % of the episodes of five tasks, in 3 minutes of a core each",
    )


RECIPES = (robotics, metaworld)
