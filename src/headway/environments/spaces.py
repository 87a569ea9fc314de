"""What an environment shows an agent and what it takes from it, as arrays of fixed shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from headway.environments.making import gymnasium
from headway.errors import UserError

State = np.ndarray
Action = np.ndarray | np.integer | int


@dataclass(frozen=True)
class Spaces:
    """States of `shape`, float32 or, of images, uint8; actions that are one of `choices`, or `numbers` from `low` to
    `high` [A] (infinite where there is no bound).
    """

    shape: tuple[int, ...]
    image: bool
    choices: int | None
    numbers: int | None
    low: np.ndarray
    high: np.ndarray
    first: int = 0  # what the environment calls choice 0
    action_shape: tuple[int, ...] = ()

    @property
    def told(self) -> str:
        """The actions, for people."""
        return f"{self.choices} choices" if self.choices is not None else f"{self.numbers} numbers"

    def state(self, observation: Any) -> State:
        """An observation as a model reads it; a copy, as environments may write the next one into the same memory."""
        if self.image:
            return np.array(observation)
        return np.array(observation, dtype=np.float32).reshape(self.shape)

    def action(self, action: Action) -> Any:
        """An action as the environment takes it, within its bounds."""
        if self.choices is not None:
            return self.first + int(action)
        within = np.clip(np.asarray(action, dtype=np.float32), self.low, self.high)
        return within.reshape(self.action_shape).astype(np.float32)

    def random(self, generator: np.random.Generator) -> Action:
        """An action drawn evenly; a side without a bound is drawn from -1 to 1."""
        if self.choices is not None:
            return int(generator.integers(self.choices))
        low, high = (np.where(np.isfinite(edge), edge, side) for edge, side in ((self.low, -1.0), (self.high, 1.0)))
        return generator.uniform(low, high).astype(np.float32)


def flat(environment: Any) -> Any:
    """`environment`, with observations of several parts, or that are choices, laid flat."""
    spaces = gymnasium().spaces
    if isinstance(environment.observation_space, spaces.Box):
        return environment
    return gymnasium().wrappers.FlattenObservation(environment)


def spaces_of(environment: Any, name: str) -> Spaces:
    """The spaces of an environment that is `flat`. UserError for actions that no head of ours says."""
    spaces = gymnasium().spaces
    seen, acts = environment.observation_space, environment.action_space
    if seen.shape is None:
        raise UserError(f"the environment {name!r} shows {seen}, of no fixed size; wrap it so that it shows a Box")
    image = len(seen.shape) == 3
    shape = tuple(seen.shape) if image else (int(np.prod(seen.shape)),)
    nothing = np.zeros(0, np.float32)
    if isinstance(acts, spaces.Discrete):
        return Spaces(shape, image, int(acts.n), None, nothing, nothing, int(acts.start))
    if isinstance(acts, spaces.Box) and np.issubdtype(acts.dtype, np.floating):
        low, high = (np.ravel(edge).astype(np.float32) for edge in (acts.low, acts.high))
        return Spaces(shape, image, None, len(low), low, high, action_shape=tuple(acts.shape))
    raise UserError(
        f"the environment {name!r} takes actions of {acts}; give one whose actions are one choice (Discrete) or "
        "decimal numbers (Box), or wrap it so"
    )
