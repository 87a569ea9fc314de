"""A small robot for tests: a hand that moves to a goal in the plane, its demonstrations, recipes, tasks and models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from tiny_models import stirred

from headway.app.recipes import configure_recipe
from headway.config import override
from headway.data.episodes import Episodes
from headway.domains import recipe as find_recipe
from headway.domains.robotics import task as robotics_task
from headway.learn import Recipe
from headway.learn.recipe import open_task
from headway.nn.models import Act, act

REACH, LEFT = "HeadwayReach-v0", "HeadwayLeft-v0"
SETTINGS: dict[str, Any] = {
    "train.steps": 6,
    "train.keep_checkpoints": 9,
    "train.batch_size": 8,
    "train.precision": "fp32",
    "task.episodes": 3,
    "task.final": 4,
}
OFFLINE = {"task.episodes": 0, "task.split.validation": 0.2}
PATCHES = {"model.observation.images.patch": [8, 8]}


class Reach(gymnasium.Env):
    """States: where the hand and the goal are. Actions: where to move, at most 0.1 in each direction."""

    observation_space = gymnasium.spaces.Box(-2, 2, (4,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (as gymnasium has it)
    sign = 1.0

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.places = np.random.default_rng(seed).uniform(-1, 1, 4).astype(np.float32)
        return self.places.copy(), {}

    def step(self, action: np.ndarray) -> Any:
        self.places[:2] += self.sign * 0.1 * action
        near = bool(np.abs(self.places[:2] - self.places[2:]).max() < 0.12)
        return self.places.copy(), -1.0, False, False, {"success": near}

    def render(self) -> np.ndarray:
        return picture(self.places, (24, 24))


class Left(Reach):
    """The same with the actions turned round."""

    sign = -1.0


for _name, _kind in ((REACH, Reach), (LEFT, Left)):
    gymnasium.register(_name, entry_point=_kind, max_episode_steps=30)


def picture(places: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The hand in red, the goal in green."""
    found = np.zeros((*size, 3), np.uint8)
    for channel, (x, y) in enumerate((places[:2], places[2:])):
        row, column = (int(np.clip((c + 1) / 2 * (side - 1), 0, side - 1)) for c, side in zip((y, x), size))
        found[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3, channel] = 255
    return found


class Pictures:
    """Frames that are drawn from states when they are read."""

    content = "drawn"

    def __init__(self, states: np.ndarray, size: tuple[int, int], recorded_size: tuple[int, int] | None = None) -> None:
        self.states, self.size, self.recorded_size = states, size, recorded_size or size

    def __len__(self) -> int:
        return len(self.states)

    def read(self, steps: np.ndarray) -> np.ndarray:
        return np.stack([picture(self.states[step], self.size) for step in steps])


def made(
    names: Sequence[str] = ("reach",),
    count: int = 10,
    seed: int = 0,
    cameras: Sequence[str] = (),
    size: tuple[int, int] = (24, 24),
    states: bool = True,
) -> Episodes:
    """`count` demonstrations of each task by a hand that moves straight to its goal."""
    random = np.random.default_rng(seed)
    seen, done, lengths, tasks = [], [], [], []
    for number in range(count * len(names)):
        task = number % len(names)
        sign = -1.0 if "left" in names[task] else 1.0
        places = random.uniform(-1, 1, 4).astype(np.float32)
        start = len(seen)
        for _ in range(20):
            action = np.clip(5 * (places[2:] - places[:2]), -1, 1)
            seen.append(places.copy())
            done.append(sign * action)
            places[:2] += 0.1 * action
            if np.abs(places[:2] - places[2:]).max() < 0.02:
                break
        lengths.append(len(seen) - start)
        tasks.append(task)
    all_states = np.stack(seen)
    return Episodes(
        states=all_states if states else all_states[:, :0],
        actions=np.stack(done).astype(np.float32),
        rewards=np.zeros(len(seen)),
        ends=np.cumsum(lengths),
        cut=np.zeros(len(lengths), bool),
        named_splits=np.zeros(len(lengths), np.uint8),
        tasks=np.array(tasks),
        task_names=tuple(names),
        environments=tuple(LEFT if "left" in name else REACH for name in names),
        cameras={name: Pictures(all_states, size) for name in cameras},
        rate=20.0,
    )


def given(monkeypatch: pytest.MonkeyPatch, data: Episodes) -> None:
    """Whatever files are named hold these demonstrations."""
    monkeypatch.setattr(robotics_task, "read_demonstrations", lambda paths, cache, size, cameras: data)


def tiny(name: str = "metaworld", **settings: Any) -> Recipe:
    """The recipe with a model that trains in no time."""
    model = act(width=16, depth=1, decoder=1, posterior=1, heads=2, chunk=5, dropout=0.0)
    return override(replace(find_recipe(name), model=model), {**SETTINGS, "model.head.latent": 3, **settings})


def opened(workspace: Path, **settings: Any) -> Any:
    return open_task(configure_recipe(tiny(**settings), str(workspace / "any.npz"), {}, None), workspace)


def built(task: Any, **settings: Any) -> Act:
    return stirred(task, tiny(**settings), 0.1)
