"""Environments by name: Gymnasium, Meta-World and user-defined ones; their observation and action spaces."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from headway.errors import UserError, logger, nearest

INSTALL = "pip install 'headway[rl]'"
METAWORLD = "metaworld/"
VARIABLE = "HEADWAY_ENV"  # a user-defined environment for training, as module:Name; files may not name one
_LOG = logger(__name__)


def gymnasium() -> Any:
    """The package gymnasium, imported only when an environment is needed; UserError if it is not installed."""
    try:
        return import_module("gymnasium")
    except ImportError as error:
        raise UserError(f"environments need the package gymnasium; {INSTALL}") from error


def check_stored(name: str) -> str:
    """Check the name of an environment from a file. UserError for a name that would run code."""
    if ":" in name:
        raise UserError(
            f"the file names the environment {name!r}, which would run its own code; allow it with --env {name}, or "
            f"with {VARIABLE}={name} in training"
        )
    return name


def only_one(env: str | Sequence[str] | None, source: str) -> str | None:
    """The named environment, or None. UserError for several."""
    names = [env] if isinstance(env, str) else list(env or ())
    if len(names) > 1:
        raise UserError(f"{source} plays in one environment, but {len(names)} are named; name one")
    return names[0] if names else None


def make_environment(name: str, *, drawn: bool = False) -> Any:
    """Create an environment: a Gymnasium id, metaworld/NAME-v3, or `module:Name` of your own module (a class, a
    function, or an id that the module registers). With `render` its method `render` returns images. Raises UserError
    for an unknown environment.
    """
    package = gymnasium()
    if drawn:
        without_screen()
    if ":" in name:
        return _own(package, name, drawn)
    if name.startswith(METAWORLD):
        from headway.environments.metaworld import MetaWorld  # imports gymnasium

        return MetaWorld(name.removeprefix(METAWORLD), drawn=drawn)
    return _known(package, name, drawn)


def without_screen() -> None:
    """Use off-screen rendering if there is no screen and no other setting."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def warned_in_the_log() -> None:
    """Send MuJoCo's warnings to Python's log; by default it writes them to a file in the current folder."""
    mujoco = sys.modules.get("mujoco")
    if mujoco is not None and mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(lambda message: _LOG.debug("MuJoCo: %s", message))


def _known(package: Any, name: str, drawn: bool) -> Any:
    errors = package.error
    drawing = {"render_mode": "rgb_array"} if drawn else {}  # not every constructor accepts render_mode
    try:
        # Import the module of a registered environment, with or without a version in its name.
        known = next((each for each in package.registry if each == name or each.startswith(f"{name}-v")), None)
        maker = None if known is None else package.registry[known].entry_point
        if isinstance(maker, str):
            import_module(maker.partition(":")[0])
        warned_in_the_log()
        return package.make(name, disable_env_checker=True, **drawing)
    except errors.DependencyNotInstalled as error:
        raise UserError(f"the environment {name!r} needs a package ({first_line(error)}); {INSTALL}") from error
    except errors.NamespaceNotFound as error:
        raise UserError(f"there is no environment {name!r} here ({first_line(error)}); install its package") from error
    except errors.UnregisteredEnv as error:
        raise UserError(f"there is no environment {name!r}; {nearest(name, package.registry)}") from error
    except (ImportError, errors.Error) as error:
        raise UserError(f"the environment {name!r} cannot be created ({first_line(error)}); choose another") from error
    except Exception as error:  # its constructor may raise anything
        raise _unmade(name, error) from error


def _own(package: Any, name: str, drawn: bool) -> Any:
    module, _, attribute = name.partition(":")
    found = own_function(name, "the environment", missing_is_none=True)
    if found is None and attribute in package.registry:
        return _known(package, attribute, drawn)
    if found is None:
        raise UserError(f"the module {module!r} has no {attribute!r}; {nearest(attribute, dir(sys.modules[module]))}")
    if drawn and not _takes_mode(found):
        raise UserError(f"the environment {name!r} has no parameter render_mode for rendering; add it")
    warned_in_the_log()
    try:
        made = found(render_mode="rgb_array") if drawn else found()
    except Exception as error:
        raise _unmade(name, error) from error
    if not isinstance(made, package.Env):
        raise UserError(f"{name!r} returns a {type(made).__name__}, not a gymnasium.Env; return a gymnasium.Env")
    return made


def own_function(name: str, what: str, missing_is_none: bool = False) -> Callable[..., Any] | None:
    """Import the user's module:name, from the current folder or an installed module."""
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        loaded = import_module(module)
    except Exception as error:  # a module may raise anything
        raise UserError(
            f"{what} {name!r}: the module {module!r} cannot be imported ({first_line(error)}); "
            "run from the folder that contains it, or install it"
        ) from error
    found = getattr(loaded, attribute, None)
    if found is None and not missing_is_none:
        raise UserError(f"the module {module!r} has no {attribute!r}; {nearest(attribute, dir(loaded))}")
    if found is not None and not callable(found):
        raise UserError(
            f"{what} {name!r} is a {type(found).__name__}, which is not callable; name a class or a function"
        )
    return found


def _unmade(name: str, error: Exception) -> UserError:
    return UserError(
        f"the environment {name!r} cannot be created ({type(error).__name__}: {first_line(error)}); correct its code"
    )


def _takes_mode(maker: Callable[..., Any]) -> bool:
    try:
        takes = inspect.signature(maker).parameters.values()
    except ValueError:  # callables not written in Python may have no signature
        return False
    return any(each.name == "render_mode" or each.kind is each.VAR_KEYWORD for each in takes)


def first_line(error: BaseException) -> str:
    """The first line of an error."""
    return (str(error) or type(error).__name__).split("\n")[0].rstrip(". ")


State = np.ndarray
Action = np.ndarray | np.integer | int


@dataclass(frozen=True)
class Spaces:
    """States of `shape`, float32 or, for images, uint8; actions that are one of `n_actions`, or `action_size` numbers
    from `low` to `high` [A] (infinite if unbounded).
    """

    shape: tuple[int, ...]
    image: bool
    choices: int | None
    numbers: int | None
    low: np.ndarray
    high: np.ndarray
    first: int = 0  # the environment's number of action 0
    action_shape: tuple[int, ...] = ()

    @property
    def told(self) -> str:
        """The kind of actions, for people."""
        return f"{self.choices} choices" if self.choices is not None else f"{self.numbers} numbers"

    def state(self, observation: Any) -> State:
        """An observation as model input; a copy, because environments may reuse the memory."""
        if self.image:
            return np.array(observation)
        return np.array(observation, dtype=np.float32).reshape(self.shape)

    def action(self, action: Action) -> Any:
        """An action in the environment's format, clipped to its bounds."""
        if self.choices is not None:
            return self.first + int(action)
        within = np.clip(np.asarray(action, dtype=np.float32), self.low, self.high)
        return within.reshape(self.action_shape).astype(np.float32)

    def random(self, generator: np.random.Generator) -> Action:
        """Sample an action uniformly; -1 and 1 replace infinite bounds."""
        if self.choices is not None:
            return int(generator.integers(self.choices))
        low, high = (np.where(np.isfinite(edge), edge, side) for edge, side in ((self.low, -1.0), (self.high, 1.0)))
        return generator.uniform(low, high).astype(np.float32)


def flat(environment: Any) -> Any:
    """`environment` with composite or discrete observations flattened."""
    spaces = gymnasium().spaces
    if isinstance(environment.observation_space, spaces.Box):
        return environment
    return gymnasium().wrappers.FlattenObservation(environment)


def spaces_of(environment: Any, name: str) -> Spaces:
    """The spaces of a flattened environment. UserError for unsupported action spaces."""
    spaces = gymnasium().spaces
    seen, acts = environment.observation_space, environment.action_space
    if seen.shape is None:
        raise UserError(f"the environment {name!r} has observations {seen} without a fixed size; wrap them as a Box")
    image = len(seen.shape) == 3
    shape = tuple(seen.shape) if image else (int(np.prod(seen.shape)),)
    nothing = np.zeros(0, np.float32)
    if isinstance(acts, spaces.Discrete):
        return Spaces(shape, image, int(acts.n), None, nothing, nothing, int(acts.start))
    if isinstance(acts, spaces.Box) and np.issubdtype(acts.dtype, np.floating):
        low, high = (np.ravel(edge).astype(np.float32) for edge in (acts.low, acts.high))
        return Spaces(shape, image, None, len(low), low, high, action_shape=tuple(acts.shape))
    raise UserError(
        f"the environment {name!r} has the action space {acts}; use one with discrete actions (Discrete) or floats "
        "(Box), or wrap it"
    )
