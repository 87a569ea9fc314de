"""Copies of one environment side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np

from headway.environments.cameras import Cameras, cannot_draw, free_drawings
from headway.environments.making import first_line, make_environment
from headway.environments.spaces import Action, Spaces, State, flat, spaces_of
from headway.errors import UserError


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
