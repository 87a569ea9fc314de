"""An agent's states and actions in the units of its environment. Does not need torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headway.config import from_dict, to_dict
from headway.environments import Spaces, VectorEnv
from headway.errors import ConfigError, UserError
from headway.formats.durable import read_json, write_json

FILE = "agent.json"  # stored next to the model of an agent


@dataclass(frozen=True)
class AgentCodec:
    """A state has `states` numbers, and the agent sees the last `context` states. Actions are either one of `choices`,
    numbered from `first` in the environment, or vectors between `low` and `high` [A] (None: unbounded), which the
    environment takes in the shape `action_shape`.

    `environment` is the environment that it acts in, and `horizon` the maximum number of steps per episode if the
    environment has no limit. With `draw`, actions are sampled as in training; otherwise the most probable action is
    taken.
    """

    states: int
    choices: int | None
    first: int
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    action_shape: tuple[int, ...]
    context: int
    environment: str
    horizon: int | None = None
    draw: bool = False

    def __post_init__(self) -> None:
        if min(self.states, self.actions, self.context, self.horizon or 1) < 1 or len(self.low) != len(self.high):
            raise ConfigError(
                f"{FILE} is inconsistent ({self.states} states, {self.action_text}, context {self.context}, horizon "
                f"{self.horizon}, {len(self.high)} upper bounds); restore it from a copy"
            )

    @property
    def actions(self) -> int:
        """Number of choices, or values per action."""
        return len(self.low) if self.choices is None else self.choices

    @property
    def action_text(self) -> str:
        """Description of the actions, for messages."""
        return f"{self.choices} choices" if self.choices is not None else f"{len(self.low)} numbers"

    def to_environment(self, actions: np.ndarray) -> np.ndarray:
        """Convert the policy's actions, [B] or [B, A], to the environment's units, within its bounds."""
        if self.choices is not None:
            return actions
        low, high = self._edges(self.low, -np.inf), self._edges(self.high, np.inf)
        bounded = np.isfinite(low) & np.isfinite(high)
        center = np.where(bounded, (np.where(bounded, low, 0) + np.where(bounded, high, 0)) / 2, 0.0)
        reach = np.where(bounded, np.where(bounded, high, 1) - center, 1.0)
        return np.clip(center + reach * actions, low, high).astype(np.float32)

    def save(self, directory: Path) -> None:
        write_json(directory / FILE, to_dict(self))

    @staticmethod
    def _edges(bounds: tuple[float | None, ...], unbounded: float) -> np.ndarray:
        return np.array([unbounded if edge is None else edge for edge in bounds])


def make_codec(envs: VectorEnv, context: int, horizon: int | None, draw: bool) -> AgentCodec:
    """Return the codec for an environment. UserError for image states or for episodes without a step limit."""
    spaces = envs.spaces
    if spaces.image or len(spaces.shape) != 1:
        raise UserError(
            f"the environment {envs.name!r} returns images ({' x '.join(map(str, spaces.shape))}), but agents that "
            "learn online take vectors; wrap it to return vectors, or record episodes for the trajectories recipe"
        )
    if horizon is None and envs.horizon is None:
        raise UserError(
            f"the environment {envs.name!r} has no step limit, so an episode may never end; set task.horizon"
        )
    low, high = (
        tuple(float(edge) if np.isfinite(edge) else None for edge in bounds) for bounds in (spaces.low, spaces.high)
    )
    return AgentCodec(
        spaces.shape[0],
        spaces.n_actions,
        spaces.first_action,
        low,
        high,
        spaces.action_shape,
        context,
        envs.name,
        horizon,
        draw,
    )


def check_fits(codec: AgentCodec, spaces: Spaces, name: str) -> None:
    """UserError for an environment whose states or actions differ from the agent's."""
    if spaces.shape != (codec.states,):
        shape = " x ".join(map(str, spaces.shape))
        raise UserError(
            f"the environment {name!r} has states of {shape} numbers, but this agent takes {codec.states}; choose a "
            "matching environment with --env, or train in this one"
        )
    if (spaces.n_actions, len(spaces.low)) != (codec.choices, len(codec.low)):
        raise UserError(
            f"the environment {name!r} takes actions of {spaces.action_text}, but this agent outputs "
            f"{codec.action_text}; choose a matching environment with --env, or train in this one"
        )


def read_codec(directory: Path) -> AgentCodec:
    """Read a run's codec. UserError if the folder has none."""
    path = directory / FILE
    if not path.is_file():
        raise UserError(
            f"{directory} has no {FILE}, which describes the agent's states and actions; use a run of the ppo recipe"
        )
    return from_dict(AgentCodec, read_json(path), str(path))
