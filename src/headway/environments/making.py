"""Environments by name: those that gymnasium knows, Meta-World's, and the user's own; what they show and take."""

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
VARIABLE = "HEADWAY_ENV"  # an environment of the user's own for training, as module:Name, which no file may ask for
_LOG = logger(__name__)


def gymnasium() -> Any:
    """The package gymnasium, which is imported only when an environment is asked for; UserError where it is not."""
    try:
        return import_module("gymnasium")
    except ImportError as error:
        raise UserError(f"environments need the package gymnasium; {INSTALL}") from error


def check_stored(name: str) -> str:
    """The name of an environment that a file states. UserError for one that would run code the user has not named."""
    if ":" in name:
        raise UserError(
            f"the environment {name!r} is code of its own, which no file may ask for; name it yourself: --env {name}, "
            f"or {VARIABLE}={name} in training"
        )
    return name


def only_one(env: str | Sequence[str] | None, source: str) -> str | None:
    """The environment that is named, None for none. UserError for several."""
    names = [env] if isinstance(env, str) else list(env or ())
    if len(names) > 1:
        raise UserError(f"{source} plays in one environment, and {len(names)} are named; name one")
    return names[0] if names else None


def make_environment(name: str, *, drawn: bool = False) -> Any:
    """An environment: gymnasium's by its id, Meta-World's as metaworld/NAME-v3, or what `module:Name` of the user's
    makes (a class, a function, or an id that the module registers). `drawn` lets `render` give images. Raises UserError
    for what there is not.
    """
    package = gymnasium()
    if drawn:
        without_screen()
    if ":" in name:
        return _own(package, name, drawn)
    if name.startswith(METAWORLD):
        from headway.environments.metaworld import MetaWorld  # which imports gymnasium

        return MetaWorld(name.removeprefix(METAWORLD), drawn=drawn)
    return _known(package, name, drawn)


def without_screen() -> None:
    """What draws without a window, where there is no screen and nothing else is asked for."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def warned_in_the_log() -> None:
    """What MuJoCo warns of goes to Python's log: left to itself it writes a file into the folder that one works in."""
    mujoco = sys.modules.get("mujoco")
    if mujoco is not None and mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(lambda message: _LOG.debug("MuJoCo: %s", message))


def _known(package: Any, name: str, drawn: bool) -> Any:
    errors = package.error
    drawing = {"render_mode": "rgb_array"} if drawn else {}  # which not every maker takes
    try:
        # Import what makes an environment that is registered, with a version in its name or without.
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
        raise UserError(f"the environment {name!r} cannot be made ({first_line(error)}); choose another") from error
    except Exception as error:  # its maker may raise anything
        raise _unmade(name, error) from error


def _own(package: Any, name: str, drawn: bool) -> Any:
    module, _, attribute = name.partition(":")
    found = own_function(name, "the environment", missing_is_none=True)
    if found is None and attribute in package.registry:
        return _known(package, attribute, drawn)
    if found is None:
        raise UserError(f"the module {module!r} has no {attribute!r}; {nearest(attribute, dir(sys.modules[module]))}")
    if drawn and not _takes_mode(found):
        raise UserError(f"the environment {name!r} takes no render_mode, so it draws nothing; let it take one")
    warned_in_the_log()
    try:
        made = found(render_mode="rgb_array") if drawn else found()
    except Exception as error:
        raise _unmade(name, error) from error
    if not isinstance(made, package.Env):
        raise UserError(f"{name!r} makes a {type(made).__name__}, no gymnasium.Env; let it make one")
    return made


def own_function(name: str, what: str, missing_is_none: bool = False) -> Callable[..., Any] | None:
    """What the user's module:name is, a module of the folder that the command runs in or one that is installed."""
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        loaded = import_module(module)
    except Exception as error:  # a module may raise anything
        raise UserError(
            f"{what} {name!r}: the module {module!r} cannot be imported ({first_line(error)}); "
            "run from the folder that holds it, or install it"
        ) from error
    found = getattr(loaded, attribute, None)
    if found is None and not missing_is_none:
        raise UserError(f"the module {module!r} has no {attribute!r}; {nearest(attribute, dir(loaded))}")
    if found is not None and not callable(found):
        raise UserError(
            f"{what} {name!r} is a {type(found).__name__}, which cannot be called; name a class or function"
        )
    return found


def _unmade(name: str, error: Exception) -> UserError:
    return UserError(
        f"the environment {name!r} cannot be made ({type(error).__name__}: {first_line(error)}); correct what makes it"
    )


def _takes_mode(maker: Callable[..., Any]) -> bool:
    try:
        takes = inspect.signature(maker).parameters.values()
    except ValueError:  # what is not written in Python may not say
        return False
    return any(each.name == "render_mode" or each.kind is each.VAR_KEYWORD for each in takes)


def first_line(error: BaseException) -> str:
    """What an error says, in a line."""
    return (str(error) or type(error).__name__).split("\n")[0].rstrip(". ")


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
