"""Environments by name: Gymnasium, Meta-World and user-defined ones; their observation and action spaces."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from headway.data.episodes import actions_text
from headway.errors import UserError, logger, nearest
from headway.io.user_callables import first_line, import_user_callable

INSTALL = "pip install 'headway[rl]'"
METAWORLD = "metaworld/"
ENV_VARIABLE = "HEADWAY_ENV"  # a user-defined environment for training, as module:Name; files may not name one
_LOG = logger(__name__)


def gymnasium() -> Any:
    """The package gymnasium, imported only when an environment is needed; UserError if it is not installed."""
    try:
        return import_module("gymnasium")
    except ImportError as error:
        raise UserError(f"environments need the package gymnasium; {INSTALL}") from error


def check_environment_name(name: str) -> str:
    """Check the name of an environment from a file. UserError for a name that would run code."""
    if ":" in name:
        raise UserError(
            f"the file names the environment {name!r}, which would run its own code; allow it with --env {name}, or "
            f"with {ENV_VARIABLE}={name} in training"
        )
    return name


def playable_environments(recorded: Sequence[str], default: str | None, plays: bool, noun: str) -> tuple[str, ...]:
    """The environment of each task, "" if unknown: HEADWAY_ENV or, if it is not set, the name in the data or else
    `default`. A name in the data that would run code is ignored, with a warning if `plays` and there is no default.
    `noun` is what the model is evaluated on without an environment.
    """
    override = os.environ.get(ENV_VARIABLE)
    if override:
        return (override,) * len(recorded)
    fallback = "" if default is None else check_environment_name(default)
    refused = next((name for name in recorded if ":" in name), "")
    if refused and plays and not fallback:
        _LOG.warning(
            "the data come from %s, but headway does not run its code, so models are evaluated on held-out %s; set "
            "%s=%s to evaluate them in it",
            refused,
            noun,
            ENV_VARIABLE,
            refused,
        )
    return tuple(fallback if not name or ":" in name else name for name in recorded)


def single_environment(env: str | Sequence[str] | None, source: str) -> str | None:
    """The named environment, or None. UserError for several."""
    names = [env] if isinstance(env, str) else list(env or ())
    if len(names) > 1:
        raise UserError(f"{source} uses one environment, but {len(names)} are named; choose one")
    return names[0] if names else None


def configure_offscreen() -> None:
    """Use off-screen rendering if there is no screen and no other setting."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def log_mujoco_warnings() -> None:
    """Send MuJoCo's warnings to Python's log; by default it writes them to a file in the current folder."""
    mujoco = sys.modules.get("mujoco")
    if mujoco is not None and mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(lambda message: _LOG.debug("MuJoCo: %s", message))


def make_registered(name: str, render: bool) -> Any:
    """Create an environment that is registered with Gymnasium. Raises UserError for an unknown one."""
    package = gymnasium()
    errors = package.error
    render_arguments = {"render_mode": "rgb_array"} if render else {}  # not every constructor accepts render_mode
    try:
        # Import the module of a registered environment, with or without a version in its name.
        registered_id = next(
            (registered for registered in package.registry if registered == name or registered.startswith(f"{name}-v")),
            None,
        )
        entry_point = None if registered_id is None else package.registry[registered_id].entry_point
        if isinstance(entry_point, str):
            import_module(entry_point.partition(":")[0])
        log_mujoco_warnings()
        return package.make(name, disable_env_checker=True, **render_arguments)
    except errors.DependencyNotInstalled as error:
        raise UserError(f"the environment {name!r} needs a package ({first_line(error)}); {INSTALL}") from error
    except errors.NamespaceNotFound as error:
        raise UserError(f"there is no environment {name!r} here ({first_line(error)}); install its package") from error
    except errors.UnregisteredEnv as error:
        raise UserError(f"there is no environment {name!r}; {nearest(name, package.registry)}") from error
    except (ImportError, errors.Error) as error:
        raise UserError(f"the environment {name!r} cannot be created ({first_line(error)}); choose another") from error
    except Exception as error:  # its constructor may raise anything
        raise _creation_error(name, error) from error


def make_user_defined(name: str, render: bool) -> Any:
    """Create an environment of the user's module. Raises UserError if there is none."""
    package = gymnasium()
    module, _, attribute = name.partition(":")
    maker = import_user_callable(name, "the environment", missing_is_none=True)
    if maker is None and attribute in package.registry:
        return make_registered(attribute, render)
    if maker is None:
        raise UserError(f"the module {module!r} has no {attribute!r}; {nearest(attribute, dir(sys.modules[module]))}")
    if render:
        try:
            parameters = inspect.signature(maker).parameters.values()
        except ValueError:  # callables not written in Python may have no signature
            parameters = ()
        if not any(each.name == "render_mode" or each.kind is each.VAR_KEYWORD for each in parameters):
            raise UserError(f"the environment {name!r} has no parameter render_mode for rendering; add it")
    log_mujoco_warnings()
    try:
        environment = maker(render_mode="rgb_array") if render else maker()
    except Exception as error:
        raise _creation_error(name, error) from error
    if not isinstance(environment, package.Env):
        raise UserError(f"{name!r} returns a {type(environment).__name__}, not a gymnasium.Env; return a gymnasium.Env")
    return environment


def _creation_error(name: str, error: Exception) -> UserError:
    return UserError(
        f"the environment {name!r} cannot be created ({type(error).__name__}: {first_line(error)}); correct its code"
    )


State = np.ndarray
Action = np.ndarray | np.integer | int


@dataclass(frozen=True)
class Spaces:
    """States have `shape` and are float32 or, for images, uint8. An action is one of `n_actions` choices, or
    `action_size` numbers from `low` to `high` [A] (infinite if unbounded).
    """

    shape: tuple[int, ...]
    image: bool
    n_actions: int | None
    action_size: int | None
    low: np.ndarray
    high: np.ndarray
    first_action: int = 0  # number of the environment's first action
    action_shape: tuple[int, ...] = ()

    @property
    def action_text(self) -> str:
        """The kind of actions, for messages."""
        return actions_text(self.n_actions, self.action_size)

    def state(self, observation: Any) -> State:
        """An observation as model input; a copy, because environments may reuse the memory."""
        if self.image:
            return np.array(observation)
        return np.array(observation, dtype=np.float32).reshape(self.shape)

    def action(self, action: Action) -> Any:
        """An action in the environment's format, clipped to its bounds."""
        if self.n_actions is not None:
            return self.first_action + int(action)
        clipped = np.clip(np.asarray(action, dtype=np.float32), self.low, self.high)
        return clipped.reshape(self.action_shape).astype(np.float32)

    def random(self, generator: np.random.Generator) -> Action:
        """Sample an action uniformly; -1 and 1 replace infinite bounds."""
        if self.n_actions is not None:
            return int(generator.integers(self.n_actions))
        low, high = (
            np.where(np.isfinite(edge), edge, default) for edge, default in ((self.low, -1.0), (self.high, 1.0))
        )
        return generator.uniform(low, high).astype(np.float32)


def spaces_of(environment: Any, name: str) -> Spaces:
    """The spaces of a flattened environment. UserError for unsupported action spaces."""
    spaces = gymnasium().spaces
    observation_space, action_space = environment.observation_space, environment.action_space
    if observation_space.shape is None:
        raise UserError(
            f"the environment {name!r} has observations {observation_space} without a fixed size; wrap them as a Box"
        )
    image = len(observation_space.shape) == 3
    shape = tuple(observation_space.shape) if image else (int(np.prod(observation_space.shape)),)
    no_bounds = np.zeros(0, np.float32)
    if isinstance(action_space, spaces.Discrete):
        return Spaces(shape, image, int(action_space.n), None, no_bounds, no_bounds, int(action_space.start))
    if isinstance(action_space, spaces.Box) and np.issubdtype(action_space.dtype, np.floating):
        low, high = (np.ravel(edge).astype(np.float32) for edge in (action_space.low, action_space.high))
        return Spaces(shape, image, None, len(low), low, high, action_shape=tuple(action_space.shape))
    raise UserError(
        f"the environment {name!r} has the action space {action_space}; use one with discrete actions (Discrete) or "
        "floats (Box), or wrap it"
    )
