"""Copies of one environment side by side."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from headway.environments.making import make_environment
from headway.environments.spaces import Action, Spaces, State, flat, spaces_of
from headway.errors import UserError


class Step(NamedTuple):
    """What an action led to. `ended` is the environment's word, `cut` a limit's."""

    state: State
    reward: float
    ended: bool
    cut: bool


class Copies:
    """`count` environments of a name, each with an episode of its own. `drawn` lets them be filmed."""

    def __init__(self, name: str, count: int, *, drawn: bool = False) -> None:
        """Raises UserError for an environment that there is not, or whose actions cannot be said."""
        self.name = name
        self._each: list[Any] = []
        for number in range(count):
            self._each.append(flat(make_environment(name, drawn=drawn and number == 0)))
        self.spaces: Spaces = spaces_of(self._each[0], name)

    def __enter__(self) -> Copies:
        return self

    def __exit__(self, *error: object) -> None:
        for environment in self._each:
            with suppress(Exception):  # a drawing that failed cannot be closed, which is no news
                environment.close()

    def __len__(self) -> int:
        return len(self._each)

    @property
    def frame_rate(self) -> float | None:
        """Frames a second in real time, where the environment says so."""
        return getattr(self._each[0], "metadata", {}).get("render_fps")

    @property
    def horizon(self) -> int | None:
        """The most steps of an episode, where the environment says so."""
        spec = getattr(self._each[0], "spec", None)
        return getattr(spec, "max_episode_steps", None)

    def reset(self, row: int, seed: int) -> State:
        """Begin an episode, whose start depends on the seed alone."""
        observation, _ = self._each[row].reset(seed=seed)
        return self.spaces.state(observation)

    def step(self, row: int, action: Action) -> Step:
        """UserError for a reward that is no number."""
        observation, reward, ended, cut, _ = self._each[row].step(self.spaces.action(action))
        if not np.isfinite(reward):
            raise UserError(f"the environment {self.name!r} gave the reward {reward}, which is no number; correct it")
        return Step(self.spaces.state(observation), float(reward), bool(ended), bool(cut))

    def frame(self) -> np.ndarray:
        """The first copy as an image, uint8 [H, W, 3]. UserError where it cannot be drawn here."""
        try:
            found = self._each[0].render()
        except Exception as error:  # each graphics library has errors of its own
            reason = (str(error) or type(error).__name__).split("\n")[0]
            raise UserError(
                f"the environment {self.name!r} cannot be drawn here ({reason}); install EGL or OSMesa and set "
                "MUJOCO_GL=egl or MUJOCO_GL=osmesa, or leave --render out"
            ) from error
        if not isinstance(found, np.ndarray) or found.ndim != 3 or found.shape[2] < 3:
            raise UserError(
                f"the environment {self.name!r} draws {type(found).__name__}, no image [H, W, 3]; "
                "let its render give one for render_mode rgb_array, or leave --render out"
            )
        return np.ascontiguousarray(found[..., :3]).astype(np.uint8)
