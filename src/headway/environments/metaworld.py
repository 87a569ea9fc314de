"""The 50 robot arm tasks of Meta-World, with their scripted experts (Yu et al. 2019)."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from headway.environments.factory import METAWORLD, log_mujoco_warnings
from headway.errors import UserError, nearest

INSTALL = "pip install 'headway[robotics]'"
_FILM_CAMERA = "corner2"
_UPSIDE_DOWN = ("corner", "corner2", "corner3", "corner4")  # cameras that are upside down in Meta-World
_MAX_STEPS = 500  # maximum steps of an episode in Meta-World


class MetaWorld(gymnasium.Env):
    """A task of MT1: the goal is part of the state, and the seed determines start and goal.

    The state has 18 current numbers (the hand, the gripper, up to two objects), the same numbers from the previous
    step, and the goal. Images from the cameras in `turned` are rotated by 180 degrees.
    """

    turned = _UPSIDE_DOWN

    def __init__(self, name: str, *, render: bool = False) -> None:
        """Raises UserError for an unknown task, or without the package."""
        task = _import_metaworld("metaworld.env_dict").ALL_V3_ENVIRONMENTS[_check_task(name)]
        log_mujoco_warnings()
        self._simulation = task(render_mode="rgb_array" if render else None, camera_name=_FILM_CAMERA)
        self._simulation._partially_observable = False
        del self._simulation.sawyer_observation_space  # cached without the goal
        self._simulation._freeze_rand_vec, self._simulation.seeded_rand_vec = False, True
        self._simulation._set_task_called = True
        self.observation_space = self._simulation.sawyer_observation_space
        self.action_space = self._simulation.action_space
        self.metadata, self.render_mode = self._simulation.metadata, self._simulation.render_mode
        self.spec = EnvSpec(METAWORLD + name, max_episode_steps=_MAX_STEPS)

    @property
    def unwrapped(self) -> Any:
        """Meta-World's own environment, with MuJoCo's `model` and `data`."""
        return self._simulation

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start and goal depend only on the seed."""
        if seed is not None:
            self._simulation.seed(seed)  # its `reset` ignores the seed
        start = self._simulation.reset()
        # Meta-World moves the goal's marker last: without this, the first image would show the previous goal.
        import_module("mujoco").mj_kinematics(self._simulation.model, self._simulation.data)
        return start

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """`info["success"]` is true while the task is solved."""
        observation, reward, terminated, truncated, info = self._simulation.step(action)
        return observation, float(reward), terminated, truncated, info

    def render(self) -> Any:
        """The robot from the side, upright."""
        image = self._simulation.render()
        return image[::-1, ::-1] if isinstance(image, np.ndarray) else image

    def close(self) -> None:
        self._simulation.close()


class Expert:
    """The scripted policy of a task: states [B, 39] to actions [B, 4], without memory."""

    def __init__(self, name: str) -> None:
        self._policy = _import_metaworld("metaworld.policies").ENV_POLICY_MAP[_check_task(name)]()

    def __call__(self, states: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about moves beyond the robot's largest step, which are clipped
            actions = [self._policy.get_action(state.astype(np.float64)) for state in states]
        return np.stack(actions)


def task_names() -> list[str]:
    """The environment names of all tasks."""
    return [METAWORLD + name for name in _import_metaworld("metaworld.env_dict").ALL_V3_ENVIRONMENTS]


def _check_task(name: str) -> str:
    names = task_names()
    if METAWORLD + name not in names:
        raise UserError(f"there is no environment {METAWORLD + name!r}; {nearest(METAWORLD + name, names)}")
    return name


def _import_metaworld(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"Meta-World environments need the package metaworld ({error}); {INSTALL}") from error
