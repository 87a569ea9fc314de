"""What the codecs of agents, trajectory models and robot policies share: their file, and checks of what they take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from headway.config import from_dict, to_dict
from headway.data.episodes import Episodes, actions_text, numbers_text
from headway.environments.factory import Spaces
from headway.environments.vector_env import VectorEnv
from headway.errors import UserError
from headway.io.durable import read_json, write_json


class ActingCodec:
    """Converts states and actions between an environment and a model. A subclass is a dataclass whose fields are the
    keys of `FILE`, which is stored next to the model.
    """

    FILE: ClassVar[str]
    CONTENT: ClassVar[str]  # what the file describes
    RECIPES: ClassVar[str]  # whose runs have it
    NOUN: ClassVar[str]
    TRAINING: ClassVar[str]  # how to get a model for another environment

    @property
    def action_choices(self) -> int | None:
        """The number of discrete actions; None if actions are numbers."""
        return getattr(self, "choices", None)

    @property
    def actions(self) -> int:
        """Number of choices, or values per action."""
        raise NotImplementedError

    @property
    def action_text(self) -> str:
        """The kind of actions, for messages."""
        return actions_text(self.action_choices, self.actions)

    @property
    def state_shape(self) -> tuple[int, ...]:
        """The shape of the environment's states."""
        raise NotImplementedError

    @property
    def environment_names(self) -> list[str]:
        """The environments in which the model's run evaluates it; empty if they are unknown."""
        return list(filter(None, [getattr(self, "environment", "")]))

    def accepts_states(self, spaces: Spaces) -> bool:
        return spaces.shape == self.state_shape

    def check_environment(self, envs: VectorEnv) -> None:
        """UserError for an environment whose states or actions differ from the model's."""
        spaces, differences = envs.spaces, []
        choices, size = (self.action_choices, None) if self.action_choices is not None else (None, self.actions)
        if (spaces.n_actions, spaces.action_size) != (choices, size):
            differences.append(
                f"takes actions of {spaces.action_text}, but this {self.NOUN} outputs {self.action_text}"
            )
        if not self.accepts_states(spaces):
            ours, theirs = numbers_text(*self.state_shape), numbers_text(*spaces.shape)
            differences.append(f"has states of {theirs}, but this {self.NOUN} takes {ours}")
        if differences:
            raise UserError(
                f"the environment {envs.name!r} {', and '.join(differences)}; choose a matching environment with "
                f"--env, or train {self.TRAINING}"
            )

    def check_data(self, episodes: Episodes) -> None:
        """UserError for episodes whose states or actions differ from the model's."""
        shape, choices = episodes.states.shape[1:], self.action_choices
        if shape != self.state_shape:
            raise UserError(
                f"the data have states of {numbers_text(*shape)}, but this {self.NOUN} takes "
                f"{numbers_text(*self.state_shape)}; use data from its environment"
            )
        if episodes.discrete:
            largest = int(episodes.actions.max())
            fits, actual = largest < (choices or 0), f"the choice {largest}"
        else:
            size = episodes.actions.shape[1]
            fits, actual = choices is None and size == self.actions, numbers_text(size)
        if not fits:
            expected = self.action_text if choices is None else f"{self.action_text}, starting at 0"
            raise UserError(
                f"the data have actions of {actual}, but this {self.NOUN} has {expected}; use data from its environment"
            )

    def save(self, directory: Path) -> None:
        write_json(directory / self.FILE, to_dict(self))

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read the codec of a run. UserError if the folder has none, or an invalid one."""
        path = directory / cls.FILE
        if not path.is_file():
            raise UserError(f"{directory} has no {cls.FILE}, which describes {cls.CONTENT}; use a run of {cls.RECIPES}")
        return from_dict(cls, read_json(path), str(path))


def past_steps(history: Sequence[Any]) -> list[tuple[Any, Any, float]]:
    """The earlier steps of an episode, each an observation, an action and a reward. UserError for anything else."""
    steps = list(history)
    for number, step in enumerate(steps, 1):
        if not isinstance(step, (list, tuple)) or len(step) != 3 or not isinstance(step[2], (int, float)):
            raise UserError(f"step {number} of the history is not an observation, an action and a reward; pass three")
    return [(observation, action, float(reward)) for observation, action, reward in steps]
