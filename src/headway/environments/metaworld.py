"""Meta-World's 50 tasks of a robot's arm, with their scripted experts (Yu et al. 2019)."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from headway.environments.making import METAWORLD, warned_in_the_log
from headway.errors import UserError, nearest

INSTALL = "pip install 'headway[robotics]'"
_FILMED = "corner2"
_TURNED = ("corner", "corner2", "corner3", "corner4")  # cameras that Meta-World hangs upside down
_LIMIT = 500  # steps of an episode, after which Meta-World takes no more


class MetaWorld(gymnasium.Env):
    """A task of MT1: the goal is part of the state, and start and goal are drawn anew for each seed.

    The state holds 18 numbers of now (the hand, the gripper, up to two objects), the same of the step before and the
    goal. `pictures` turns what cameras in `turned` see by half a circle.
    """

    turned = _TURNED

    def __init__(self, name: str, *, drawn: bool = False) -> None:
        """Raises UserError for a task that there is not, or without the package."""
        task = _packaged("metaworld.env_dict").ALL_V3_ENVIRONMENTS[_known(name)]
        warned_in_the_log()
        self._simulation = task(render_mode="rgb_array" if drawn else None, camera_name=_FILMED)
        self._simulation._partially_observable = False
        del self._simulation.sawyer_observation_space  # is worked out once, and would have no room for the goal
        self._simulation._freeze_rand_vec, self._simulation.seeded_rand_vec = False, True
        self._simulation._set_task_called = True
        self.observation_space = self._simulation.sawyer_observation_space
        self.action_space = self._simulation.action_space
        self.metadata, self.render_mode = self._simulation.metadata, self._simulation.render_mode
        self.spec = EnvSpec(METAWORLD + name, max_episode_steps=_LIMIT)

    @property
    def unwrapped(self) -> Any:
        """Meta-World's own environment, whose `model` and `data` are MuJoCo's."""
        return self._simulation

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start and goal depend on the seed alone."""
        if seed is not None:
            self._simulation.seed(seed)  # which its `reset` would ignore
        return self._simulation.reset()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """`info["success"]` says whether the task is done at this moment."""
        seen, reward, ended, cut, info = self._simulation.step(action)
        return seen, float(reward), ended, cut, info

    def render(self) -> Any:
        """The robot from the side, the right way up."""
        found = self._simulation.render()
        return found[::-1, ::-1] if isinstance(found, np.ndarray) else found

    def close(self) -> None:
        self._simulation.close()


class Expert:
    """The scripted policy of a task: states [B, 39] to actions [B, 4]. It remembers nothing between steps."""

    def __init__(self, name: str) -> None:
        self._policy = _packaged("metaworld.policies").ENV_POLICY_MAP[_known(name)]()

    def __call__(self, states: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a move is larger than the robot's largest step, which is then taken
            found = [self._policy.get_action(state.astype(np.float64)) for state in states]
        return np.stack(found)


def task_names() -> list[str]:
    """All tasks, as environments are named."""
    return [METAWORLD + name for name in _packaged("metaworld.env_dict").ALL_V3_ENVIRONMENTS]


def _known(name: str) -> str:
    names = task_names()
    if METAWORLD + name not in names:
        raise UserError(f"there is no environment {METAWORLD + name!r}; {nearest(METAWORLD + name, names)}")
    return name


def _packaged(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"environments of Meta-World need the package metaworld ({error}); {INSTALL}") from error
