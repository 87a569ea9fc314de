"""Vectorised environments: several instances of one environment, and their camera images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from headway.environments.making import (
    INSTALL,
    Action,
    Spaces,
    State,
    first_line,
    flat,
    make_environment,
    spaces_of,
    without_screen,
)
from headway.errors import UserError, nearest

MOST = 4096  # maximum pixels per side
_LEFT_OUT = ("mjRND_SHADOW", "mjRND_REFLECTION")  # on a CPU they take four fifths of the rendering time


class Cameras:
    """Cameras of an environment by name. Images have neither shadows nor reflections.

    One renderer serves all instances of the environment, which have their own models and states.
    """

    def __init__(self, name: str, environment: Any, cameras: Sequence[str], size: tuple[int, int]) -> None:
        """Raises UserError for cameras that the environment does not have, and if rendering fails."""
        simulation = environment.unwrapped
        if not (hasattr(simulation, "model") and hasattr(simulation, "data") and hasattr(simulation.model, "ncam")):
            raise UserError(f"the environment {name!r} does not use MuJoCo and has no cameras; remove --cameras")
        if not all(0 < side <= MOST for side in size):
            raise UserError(f"images of {size[0]} x {size[1]} pixels cannot be rendered; use sides from 1 to {MOST}")
        known = {simulation.model.camera(number).name: number for number in range(simulation.model.ncam)}
        for camera in cameras:
            if camera not in known:
                raise UserError(f"the environment {name!r} has no camera {camera!r}; {nearest(camera, known)}")
        self._name = name
        self._numbers = {camera: known[camera] for camera in cameras}
        self._turned = getattr(environment, "turned", ())
        without_screen()
        with self._told():
            self._viewer = self._opened(simulation, size)

    def take(self, environment: Any) -> dict[str, np.ndarray]:
        """The current image of each camera of an instance: uint8 [H, W, 3]."""
        viewer, simulation = self._viewer, environment.unwrapped
        viewer.model, viewer.data = simulation.model, simulation.data
        with self._told():
            viewer.make_context_current()
            found = {camera: viewer.render("rgb_array", number) for camera, number in self._numbers.items()}
        turned = {camera: image[::-1, ::-1] if camera in self._turned else image for camera, image in found.items()}
        return {camera: np.ascontiguousarray(image) for camera, image in turned.items()}

    def close(self) -> None:
        _free(self._viewer)
        self._viewer.close()

    def _opened(self, simulation: Any, size: tuple[int, int]) -> Any:
        height, width = size
        most = simulation.model.vis.global_  # the size of the render buffer
        most.offheight, most.offwidth = max(most.offheight, height), max(most.offwidth, width)
        drawing = import_module("gymnasium.envs.mujoco.mujoco_rendering")
        viewer = drawing.OffScreenViewer(simulation.model, simulation.data, width, height)
        flags = import_module("mujoco").mjtRndFlag
        for flag in _LEFT_OUT:
            viewer.scn.flags[getattr(flags, flag)] = 0
        return viewer

    @contextmanager
    def _told(self) -> Any:
        try:
            yield
        except Exception as error:  # each graphics library has its own exceptions
            raise cannot_draw(self._name, error, "remove --cameras") from error


def free_drawings(environment: Any) -> None:
    """Free the renderers of a MuJoCo environment before it is closed."""
    renderer = getattr(environment.unwrapped, "mujoco_renderer", None)
    for viewer in getattr(renderer, "_viewers", {}).values():
        _free(viewer)


def _free(viewer: Any) -> None:
    """Free a renderer's buffers while its own context is current: if the garbage collector freed them later, it would
    free buffers with the same ids in another context.
    """
    viewer.make_context_current()
    viewer.con.free()


def cannot_draw(name: str, error: Exception, instead: str) -> UserError:
    """The error for an environment that cannot be rendered."""
    if isinstance(error, ImportError):
        return UserError(f"the environment {name!r} cannot be rendered ({first_line(error)}); {INSTALL}")
    return UserError(
        f"the environment {name!r} cannot be rendered ({first_line(error)}); install EGL or OSMesa and set "
        f"MUJOCO_GL=egl or MUJOCO_GL=osmesa, or {instead}"
    )


class Step(NamedTuple):
    """The result of an action. `terminated` comes from the environment, `truncated` from a limit; `success` is whether
    the task is currently solved, None if the environment does not report it.
    """

    state: State
    reward: float
    ended: bool
    cut: bool
    success: bool | None = None


class Copies:
    """`num_envs` instances of an environment, each with its own episode. `render` allows filming the first; `cameras`
    are the cameras of `images`, with `size` as height and width.
    """

    def __init__(
        self,
        name: str,
        count: int,
        *,
        drawn: bool = False,
        cameras: Sequence[str] = (),
        size: tuple[int, int] = (96, 96),
    ) -> None:
        """Raises UserError for an unknown environment, a missing camera, or an unsupported action space."""
        self.name = name
        self._each: list[Any] = []
        self._cameras: Cameras | None = None
        with ExitStack() as made:
            made.callback(self.close)
            for number in range(count):
                self._each.append(flat(make_environment(name, drawn=drawn and number == 0)))
            self.spaces: Spaces = spaces_of(self._each[0], name)
            if cameras:
                self._cameras = Cameras(name, self._each[0], cameras, size)
            made.pop_all()  # they stay open unless this raises

    def __enter__(self) -> Copies:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all instances, and free their renderers."""
        if self._cameras is not None:
            self._cameras.close()
        for environment in self._each:
            with suppress(Exception):  # a renderer that failed cannot be closed
                free_drawings(environment)
                environment.close()

    def __len__(self) -> int:
        return len(self._each)

    @property
    def frame_rate(self) -> float | None:
        """Frames per second in real time, if the environment defines it."""
        return getattr(self._each[0], "metadata", {}).get("render_fps")

    @property
    def horizon(self) -> int | None:
        """The maximum steps of an episode, if the environment defines it."""
        spec = getattr(self._each[0], "spec", None)
        return getattr(spec, "max_episode_steps", None)

    def reset(self, row: int, seed: int) -> State:
        """Start an episode whose initial state depends only on the seed."""
        with self._told("its reset"):
            observation, _ = self._each[row].reset(seed=seed)
        return self._seen(observation)

    def step(self, row: int, action: Action) -> Step:
        """Take an action. UserError for a reward or a state that is not finite."""
        with self._told("its step"):
            observation, reward, ended, cut, info = self._each[row].step(self.spaces.action(action))
            known = bool(np.isfinite(reward))
        if not known:
            raise UserError(
                f"the environment {self.name!r} returned the reward {reward}, which is not finite; correct it"
            )
        said = info.get("success", info.get("is_success"))
        success = None if said is None else bool(said)
        return Step(self._seen(observation), float(reward), bool(ended), bool(cut), success)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Convert exceptions of the environment's own code to a UserError."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"the environment {self.name!r} failed in {what} ({said}); correct it") from error

    def _seen(self, observation: Any) -> State:
        with self._told("its observation"):
            state = self.spaces.state(observation)
        if state.dtype != np.uint8 and not np.isfinite(state).all():
            wrong = state[~np.isfinite(state)][0]
            raise UserError(
                f"the environment {self.name!r} returned a state with {wrong}, which is not finite; correct it"
            )
        return state

    def pictures(self, row: int) -> dict[str, np.ndarray]:
        """The current image of each of `cameras`, uint8 [H, W, 3]. UserError if rendering fails."""
        return {} if self._cameras is None else self._cameras.take(self._each[row])

    def frame(self) -> np.ndarray:
        """The first instance as an image, uint8 [H, W, 3]. UserError if rendering fails."""
        try:
            found = self._each[0].render()
        except Exception as error:  # each graphics library has its own exceptions
            raise cannot_draw(self.name, error, "remove --render") from error
        if not isinstance(found, np.ndarray) or found.ndim != 3 or found.shape[2] < 3:
            raise UserError(
                f"the environment {self.name!r} renders {type(found).__name__}, not an image [H, W, 3]; return an "
                "image from render for render_mode rgb_array, or remove --render"
            )
        return np.ascontiguousarray(found[..., :3]).astype(np.uint8)
