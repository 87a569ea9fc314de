"""Copies of one environment side by side, and what their cameras see."""

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

MOST = 4096  # pixels of a side
_LEFT_OUT = ("mjRND_SHADOW", "mjRND_REFLECTION")  # on a processor they take four fifths of a picture's time


class Cameras:
    """Cameras of an environment by name. Pictures have neither shadows nor reflections.

    One drawing of a size serves all copies of the environment: each brings its own model and state.
    """

    def __init__(self, name: str, environment: Any, cameras: Sequence[str], size: tuple[int, int]) -> None:
        """Raises UserError for cameras that the environment does not have, and where nothing can be drawn."""
        simulation = environment.unwrapped
        if not (hasattr(simulation, "model") and hasattr(simulation, "data") and hasattr(simulation.model, "ncam")):
            raise UserError(f"the environment {name!r} is none of MuJoCo's and has no cameras; leave them out")
        if not all(0 < side <= MOST for side in size):
            raise UserError(f"pictures of {size[0]} x {size[1]} cannot be drawn; give sides from 1 to {MOST}")
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
        """What each camera sees of a copy now: uint8 [H, W, 3]."""
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
        most = simulation.model.vis.global_  # what the drawing has room for
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
        except Exception as error:  # each graphics library has errors of its own
            raise cannot_draw(self._name, error, "leave --cameras out") from error


def free_drawings(environment: Any) -> None:
    """Free what a MuJoCo environment has drawn with, before it is closed."""
    renderer = getattr(environment.unwrapped, "mujoco_renderer", None)
    for viewer in getattr(renderer, "_viewers", {}).values():
        _free(viewer)


def _free(viewer: Any) -> None:
    """Free a drawing's buffers while its own context is the current one: freed later, by Python's garbage collector,
    they would take those of equal number from whatever drawing is the current one then.
    """
    viewer.make_context_current()
    viewer.con.free()


def cannot_draw(name: str, error: Exception, instead: str) -> UserError:
    """Why an environment cannot be drawn, and what helps."""
    if isinstance(error, ImportError):
        return UserError(f"the environment {name!r} cannot be drawn here ({first_line(error)}); {INSTALL}")
    return UserError(
        f"the environment {name!r} cannot be drawn here ({first_line(error)}); install EGL or OSMesa and set "
        f"MUJOCO_GL=egl or MUJOCO_GL=osmesa, or {instead}"
    )


class Step(NamedTuple):
    """What an action led to. `ended` is the environment's word, `cut` a limit's; `success` says whether the task is
    done at this moment, None where the environment does not say.
    """

    state: State
    reward: float
    ended: bool
    cut: bool
    success: bool | None = None


class Copies:
    """`count` environments of a name, each with an episode of its own. `drawn` lets the first be filmed; `cameras` are
    those of the environment that `pictures` shows, in `size`, height and width.
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
        """Raises UserError for an environment that there is not, that lacks a camera, or whose actions no head says."""
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
            made.pop_all()  # they stay open but where this raises

    def __enter__(self) -> Copies:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all copies, and free what they draw with."""
        if self._cameras is not None:
            self._cameras.close()
        for environment in self._each:
            with suppress(Exception):  # a drawing that failed cannot be closed, which is no news
                free_drawings(environment)
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
        with self._told("its reset"):
            observation, _ = self._each[row].reset(seed=seed)
        return self._seen(observation)

    def step(self, row: int, action: Action) -> Step:
        """UserError for a reward or a state that is no number."""
        with self._told("its step"):
            observation, reward, ended, cut, info = self._each[row].step(self.spaces.action(action))
            known = bool(np.isfinite(reward))
        if not known:
            raise UserError(
                f"the environment {self.name!r} gave the reward {reward}, which is not a number; correct it"
            )
        said = info.get("success", info.get("is_success"))
        success = None if said is None else bool(said)
        return Step(self._seen(observation), float(reward), bool(ended), bool(cut), success)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """UserError for what the environment's own code raises."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"the environment {self.name!r} failed in {what} ({said}); correct it") from error

    def _seen(self, observation: Any) -> State:
        with self._told("what it shows"):
            state = self.spaces.state(observation)
        if state.dtype != np.uint8 and not np.isfinite(state).all():
            wrong = state[~np.isfinite(state)][0]
            raise UserError(
                f"the environment {self.name!r} shows a state that holds {wrong}, which is not a number; correct it"
            )
        return state

    def pictures(self, row: int) -> dict[str, np.ndarray]:
        """What each of `cameras` sees of a copy now, uint8 [H, W, 3]. UserError where nothing can be drawn here."""
        return {} if self._cameras is None else self._cameras.take(self._each[row])

    def frame(self) -> np.ndarray:
        """The first copy as an image, uint8 [H, W, 3]. UserError where it cannot be drawn here."""
        try:
            found = self._each[0].render()
        except Exception as error:  # each graphics library has errors of its own
            raise cannot_draw(self.name, error, "leave --render out") from error
        if not isinstance(found, np.ndarray) or found.ndim != 3 or found.shape[2] < 3:
            raise UserError(
                f"the environment {self.name!r} draws {type(found).__name__}, no image [H, W, 3]; "
                "let its render give one for render_mode rgb_array, or leave --render out"
            )
        return np.ascontiguousarray(found[..., :3]).astype(np.uint8)
