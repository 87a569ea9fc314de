"""What cameras of a MuJoCo environment see, as images of any size, without a screen."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np

from headway.environments.making import INSTALL, first_line, without_screen
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
