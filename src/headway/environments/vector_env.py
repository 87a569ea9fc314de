"""Vectorised environments: several instances of one environment, and their camera images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from headway.environments.factory import (
    INSTALL,
    METAWORLD,
    Action,
    Spaces,
    State,
    configure_offscreen,
    gymnasium,
    make_registered,
    make_user_defined,
    spaces_of,
)
from headway.errors import UserError, nearest
from headway.io.user_callables import first_line

MAX_SIDE = 4096  # maximum pixels per side
_DISABLED_FLAGS = ("mjRND_SHADOW", "mjRND_REFLECTION")  # on a CPU they take four fifths of the rendering time


class Cameras:
    """Cameras of an environment by name. Images have neither shadows nor reflections.

    One renderer serves all instances of the environment, which have their own models and states.
    """

    def __init__(self, name: str, environment: Any, cameras: Sequence[str], size: tuple[int, int]) -> None:
        """Raises UserError for cameras that the environment does not have, and if rendering fails."""
        simulation = environment.unwrapped
        if not (hasattr(simulation, "model") and hasattr(simulation, "data") and hasattr(simulation.model, "ncam")):
            raise UserError(f"the environment {name!r} does not use MuJoCo and has no cameras; remove --cameras")
        if not all(0 < length <= MAX_SIDE for length in size):
            raise UserError(
                f"images of {size[0]} x {size[1]} pixels cannot be rendered; use sides from 1 to {MAX_SIDE}"
            )
        known = {simulation.model.camera(number).name: number for number in range(simulation.model.ncam)}
        for camera in cameras:
            if camera not in known:
                raise UserError(f"the environment {name!r} has no camera {camera!r}; {nearest(camera, known)}")
        self._name = name
        self._camera_ids = {camera: known[camera] for camera in cameras}
        self._upside_down = getattr(environment, "turned", ())
        configure_offscreen()
        with self._render_errors():
            height, width = size
            visual_settings = simulation.model.vis.global_  # the size of the render buffer
            visual_settings.offheight = max(visual_settings.offheight, height)
            visual_settings.offwidth = max(visual_settings.offwidth, width)
            rendering = import_module("gymnasium.envs.mujoco.mujoco_rendering")
            self._viewer = rendering.OffScreenViewer(simulation.model, simulation.data, width, height)
            flags = import_module("mujoco").mjtRndFlag
            for flag in _DISABLED_FLAGS:
                self._viewer.scn.flags[getattr(flags, flag)] = 0

    def capture(self, environment: Any) -> dict[str, np.ndarray]:
        """The current image from each of an instance's cameras: uint8 [H, W, 3]."""
        viewer, simulation = self._viewer, environment.unwrapped
        viewer.model, viewer.data = simulation.model, simulation.data
        with self._render_errors():
            viewer.make_context_current()
            images = {camera: viewer.render("rgb_array", number) for camera, number in self._camera_ids.items()}
        return {
            camera: np.ascontiguousarray(image[::-1, ::-1] if camera in self._upside_down else image)
            for camera, image in images.items()
        }

    def close(self) -> None:
        _free_viewer(self._viewer)
        self._viewer.close()

    @contextmanager
    def _render_errors(self) -> Any:
        try:
            yield
        except Exception as error:  # each graphics library has its own exceptions
            raise render_error(self._name, error, "remove --cameras") from error


def _free_viewer(viewer: Any) -> None:
    """Free a renderer's buffers while its own context is current: if the garbage collector freed them later, it would
    free buffers with the same ids in another context.
    """
    viewer.make_context_current()
    viewer.con.free()


def render_error(name: str, error: Exception, alternative: str) -> UserError:
    """The error for an environment that cannot be rendered."""
    if isinstance(error, ImportError):
        return UserError(f"the environment {name!r} cannot be rendered ({first_line(error)}); {INSTALL}")
    return UserError(
        f"the environment {name!r} cannot be rendered ({first_line(error)}); install EGL or OSMesa and set "
        f"MUJOCO_GL=egl or MUJOCO_GL=osmesa, or {alternative}"
    )


def make_environment(name: str, *, render: bool = False) -> Any:
    """Create an environment: a Gymnasium id, metaworld/NAME-v3, or `module:Name` of your own module (a class, a
    function, or an id that the module registers). With `render` its method `render` returns images. Raises UserError
    for an unknown environment.
    """
    gymnasium()
    if render:
        configure_offscreen()
    if ":" in name:
        return make_user_defined(name, render)
    if name.startswith(METAWORLD):
        from headway.environments.metaworld import MetaWorld  # imports gymnasium

        return MetaWorld(name.removeprefix(METAWORLD), render=render)
    return make_registered(name, render)


class Step(NamedTuple):
    """The result of an action. `terminated` comes from the environment, `truncated` from a limit; `success` is whether
    the task is currently solved, None if the environment does not report it.
    """

    state: State
    reward: float
    terminated: bool
    truncated: bool
    success: bool | None = None


class VectorEnv:
    """`num_envs` instances of an environment, each with its own episode. `render` allows rendering the first; `cameras`
    are the cameras of `images`, with `size` as height and width.
    """

    def __init__(
        self,
        name: str,
        num_envs: int,
        *,
        render: bool = False,
        cameras: Sequence[str] = (),
        size: tuple[int, int] = (96, 96),
    ) -> None:
        """Raises UserError for an unknown environment, a missing camera, or an unsupported action space."""
        self.name = name
        self._environments: list[Any] = []
        self._cameras: Cameras | None = None
        with ExitStack() as exit_stack:
            exit_stack.callback(self.close)
            for number in range(num_envs):
                environment = make_environment(name, render=render and number == 0)
                if not isinstance(environment.observation_space, gymnasium().spaces.Box):  # composite or discrete
                    environment = gymnasium().wrappers.FlattenObservation(environment)
                self._environments.append(environment)
            self.spaces: Spaces = spaces_of(self._environments[0], name)
            if cameras:
                self._cameras = Cameras(name, self._environments[0], cameras, size)
            exit_stack.pop_all()  # they stay open unless this raises

    def __enter__(self) -> VectorEnv:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all instances, and free their renderers."""
        if self._cameras is not None:
            self._cameras.close()
        for environment in self._environments:
            with suppress(Exception):  # a renderer that failed cannot be closed
                renderer = getattr(environment.unwrapped, "mujoco_renderer", None)
                for viewer in getattr(renderer, "_viewers", {}).values():
                    _free_viewer(viewer)
                environment.close()

    def __len__(self) -> int:
        return len(self._environments)

    @property
    def frame_rate(self) -> float | None:
        """Frames per second in real time, if the environment defines it."""
        return getattr(self._environments[0], "metadata", {}).get("render_fps")

    @property
    def horizon(self) -> int | None:
        """The maximum steps of an episode, if the environment defines it."""
        spec = getattr(self._environments[0], "spec", None)
        return getattr(spec, "max_episode_steps", None)

    def reset(self, row: int, seed: int) -> State:
        """Start an episode whose initial state depends only on the seed."""
        with self._environment_errors("its reset"):
            observation, _ = self._environments[row].reset(seed=seed)
        return self._to_state(observation)

    def step(self, row: int, action: Action) -> Step:
        """Take an action. UserError for a reward or a state that is not finite."""
        with self._environment_errors("its step"):
            observation, reward, terminated, truncated, info = self._environments[row].step(self.spaces.action(action))
            is_finite = bool(np.isfinite(reward))
        if not is_finite:
            raise UserError(
                f"the environment {self.name!r} returned the reward {reward}, which is not finite; correct it"
            )
        reported = info.get("success", info.get("is_success"))
        success = None if reported is None else bool(reported)
        return Step(self._to_state(observation), float(reward), bool(terminated), bool(truncated), success)

    @contextmanager
    def _environment_errors(self, activity: str) -> Iterator[None]:
        """Convert exceptions of the environment's own code to a UserError."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            description = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(
                f"the environment {self.name!r} failed in {activity} ({description}); correct it"
            ) from error

    def _to_state(self, observation: Any) -> State:
        with self._environment_errors("its observation"):
            state = self.spaces.state(observation)
        if state.dtype != np.uint8 and not np.isfinite(state).all():
            invalid = state[~np.isfinite(state)][0]
            raise UserError(
                f"the environment {self.name!r} returned a state with {invalid}, which is not finite; correct it"
            )
        return state

    def images(self, row: int) -> dict[str, np.ndarray]:
        """The current image of each of `cameras`, uint8 [H, W, 3]. UserError if rendering fails."""
        return {} if self._cameras is None else self._cameras.capture(self._environments[row])

    def frame(self) -> np.ndarray:
        """The first instance as an image, uint8 [H, W, 3]. UserError if rendering fails."""
        try:
            image = self._environments[0].render()
        except Exception as error:  # each graphics library has its own exceptions
            raise render_error(self.name, error, "remove --render") from error
        if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] < 3:
            raise UserError(
                f"the environment {self.name!r} renders {type(image).__name__}, not an image [H, W, 3]; return an "
                "image from render for render_mode rgb_array, or remove --render"
            )
        return np.ascontiguousarray(image[..., :3]).astype(np.uint8)
