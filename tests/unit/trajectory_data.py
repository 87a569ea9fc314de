"""Small episodes, recipes and runs for tests of trajectories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from headway.app.recipes import configure_recipe
from headway.config import override
from headway.data.episode_files import write_episodes
from headway.data.episodes import Episode, Episodes, collate_episodes
from headway.domains import recipe as find_recipe
from headway.learn import Recipe
from headway.learn.recipe import open_task
from headway.nn.models.presets import decision_gym

SETTINGS: dict[str, Any] = {
    "train.steps": 6,
    "train.keep_checkpoints": 9,
    "train.batch_size": 8,
    "train.precision": "fp32",
    "task.context": 4,
    "task.episodes": 2,
}


def made(discrete: bool = True, count: int = 30, seed: int = 0, states: int = 4, image: bool = False) -> Episodes:
    """Episodes whose actions follow from states and returns; those of choices fit CartPole, others Pendulum's."""
    random = np.random.default_rng(seed)
    found = []
    for length in random.integers(1, 12, count):
        shape = (12, 8, 3) if image else (states,)
        seen = (
            random.integers(0, 256, (length, *shape)).astype(np.uint8)
            if image
            else random.normal(size=(length, states))
        )
        rewards = random.normal(size=length)
        first = seen.reshape(length, -1)[:, :1].astype(np.float32)
        actions = (first[:, 0] > first.mean()).astype(int) if discrete else np.tanh(first) * 2
        found.append(Episode(seen, actions, rewards))
    return collate_episodes(found, "made", environment="CartPole-v1" if discrete else "")


def saved(folder: Path, name: str = "a.npz", **given: Any) -> Path:
    write_episodes(folder / name, made(**given))
    return folder / name


def tiny(name: str = "trajectories", **settings: Any) -> Recipe:
    """The recipe with a model that trains in no time."""
    found = replace(find_recipe(name), model=decision_gym(width=16, depth=1, heads=2, timesteps=20, dropout=0.0))
    return override(found, {**SETTINGS, **settings})


def opened(path: Path, workspace: Path, **settings: Any) -> Any:
    return open_task(configure_recipe(tiny(**settings), str(path), {}, None), workspace)
