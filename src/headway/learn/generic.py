"""The recipes that train on the user's own data."""

from __future__ import annotations

from headway.learn.optim import OptimConfig
from headway.learn.recipe import Recipe, TaskConfig, TrainConfig
from headway.learn.schedule import WSDConfig
from headway.nn.models import ModelConfig


def generic(
    name: str,
    domain: str,
    description: str,
    *,
    model: ModelConfig,
    task: TaskConfig,
    optim: OptimConfig,
    train: TrainConfig,
    expected: str,
) -> Recipe:
    """A recipe without data of its own, for any number of steps: the warm-up and the decay are shares of them."""
    schedule = WSDConfig(warmup=0.02, decay=0.6)
    return Recipe(name, domain, description, (), model, task, optim, schedule, train, expected)
