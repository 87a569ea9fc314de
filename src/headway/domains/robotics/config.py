"""The task as data, and what it makes of files: demonstrations, their scales, where a policy is judged."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from headway.checkpoints.usage import read_usage
from headway.config import register
from headway.data import SplitConfig, sides_of
from headway.data.demonstrations import Demonstrations, read_demonstrations
from headway.data.episodes import steps_within
from headway.data.store import cache_root
from headway.domains.robotics.checks import check_known, check_model, check_settings, check_start
from headway.domains.robotics.codec import Camera, RobotCodec, Size, reach, spread, words_of
from headway.domains.robotics.published import known_codec
from headway.domains.robotics.task import Robotics, nothing_left
from headway.environments import VARIABLE, check_stored
from headway.errors import ConfigError, UserError, nearest
from headway.train import Recipe, TaskConfig

_LOG = logging.getLogger(__name__)


@register("robotics")
@dataclass(frozen=True)
class RoboticsConfig(TaskConfig):
    """Say the next actions of demonstrations, `model.chunk` of them, from what is seen at a step.

    Of a state the first `state` numbers are read, none for all, 0 for no state; `cameras` are those that are read, none
    for all, () for no pictures, made `size` (height, width) large, none as they are. With `text` the words of a task's
    name are read; none reads them where there are several tasks. In training scaled states are moved by `noise`, a
    standard deviation: what the last step did is then no longer seen in them, and a robot that strays finds back.
    `scaling` is by mean and deviation of actions, or by
    their range. A chunk is said anew every `execute` actions; `ensemble` is the m of temporal ensembling, none lets the
    newest chunk decide alone.

    Where a task's environment is known (what the data say, or for all others `env`), `episodes` of each task are played
    at each evaluation and `final` at the end, from seeds of their own; with 0 held-out demonstrations judge alone.
    Demonstrations that are equal never stand on two sides of the `split`.
    """

    state: int | None = None  # numbers of the state that are read; none: all
    cameras: tuple[str, ...] | None = None  # those that are read; none: all
    size: Size | None = None  # height and width to which pictures are brought; none: as they are
    text: bool | None = None  # whether the name of the task is read; none: where there are several
    noise: float = 0.0  # standard deviation of what is added to scaled states in training
    scaling: Literal["deviation", "range"] = "deviation"  # of actions: by mean and deviation, or by range
    execute: int = 1  # actions that are done before a chunk is said anew
    ensemble: float | None = 0.01  # the m of temporal ensembling; none: the newest chunk alone
    env: str | None = None  # environment of tasks whose data name none
    episodes: int = 20  # played of each task at each evaluation
    final: int = 50  # played of each task at the end
    split: SplitConfig = SplitConfig(validation=0.1, test=0.1)  # what is held out

    def __post_init__(self) -> None:
        if min(self.episodes, self.state or 0) < 0 or min(self.execute, self.final) < 1:
            raise ConfigError(
                f"task.state is {self.state}, task.episodes {self.episodes}, task.execute {self.execute} and "
                f"task.final {self.final}; give nothing below 0, and to the last two 1 or more"
            )
        if self.size is not None and min(self.size) < 1:
            raise ConfigError(f"task.size is {self.size}; give height and width above 0, or none")
        if not self.noise >= 0:
            raise ConfigError(f"task.noise is {self.noise}; give 0 or more, such as 0.02")
        if self.ensemble is not None and not self.ensemble >= 0:
            raise ConfigError(f"task.ensemble is {self.ensemble}; give 0 or more, or none")

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Robotics:
        """Raises UserError for data that cannot be read, and for environments that are not there or do not fit."""
        model = check_model(recipe.model, self.execute)
        rows = recipe.train.rows(model.chunk)
        known = known_codec(workspace, read_usage(workspace))
        size, cameras = (self.size, self.cameras) if known is None else (known.size, known.camera_names)
        found = read_demonstrations(recipe.files(data), cache_root(), size, cameras)
        if not found.actions.shape[1]:
            raise UserError("the demonstrations have actions of 0 numbers, so there is nothing to learn; give others")
        sides = sides_of(found.keys(), found.named, self.split)
        if known is None and not len(sides["train"]):
            raise nothing_left(found)
        codec = self._fitted(found, sides["train"]) if known is None else self._kept(known, found)
        codec = self._told(codec, found)
        check_start(model, codec, recipe.start)
        return Robotics(self, model, found, sides, codec, rows, recipe.train.seed)

    def _environments(self, data: Demonstrations) -> tuple[str, ...]:
        """Where each task can be played; "" where nothing is known that may be asked for."""
        given = os.environ.get(VARIABLE)
        if given:
            return (given,) * len(data.names)
        other = "" if self.env is None else check_stored(self.env)
        refused = [name for name in data.environments if ":" in name]
        if refused and self.episodes and not other:
            _LOG.warning(
                "the data were recorded in %s, code that they may not ask for: policies are judged by held-out "
                "demonstrations; set %s=%s to have them play there",
                refused[0],
                VARIABLE,
                refused[0],
            )
        return tuple(other if not name or ":" in name else name for name in data.environments)

    def _told(self, codec: RobotCodec, data: Demonstrations) -> RobotCodec:
        """With what the data and this task say."""
        how = {"execute": self.execute, "ensemble": self.ensemble, "rate": data.rate}
        longest, places = int(data.lengths.max()), self._environments(data)
        return replace(codec, names=data.names, environments=places, longest=longest, **how)

    def _kept(self, codec: RobotCodec, data: Demonstrations) -> RobotCodec:
        """That of the run, or of the policy that is started from. ConfigError for settings that say otherwise."""
        check_known(codec, data)
        check_settings(codec, {"state": self.state, "cameras": self.cameras, "size": self.size, "text": self.text})
        if not codec.words and len(data.names) > 1:
            _LOG.warning("the policy reads no words, so it cannot tell the %d tasks apart", len(data.names))
        if codec.scaling not in (None, self.scaling):
            _LOG.warning("task.scaling is %s, and the policy that goes on scales by %s", self.scaling, codec.scaling)
        for name in data.names if codec.words else ():
            codec.text(name)
        recorded = {name: frames.recorded for name, frames in data.cameras.items()}
        return replace(codec, cameras=tuple(replace(each, recorded=recorded[each.name]) for each in codec.cameras))

    def _fitted(self, data: Demonstrations, training: np.ndarray) -> RobotCodec:
        steps = steps_within(data.starts[training], data.ends[training])
        actions, offered = data.actions[steps], data.states.shape[1]
        read = offered if self.state is None else self.state
        if read > offered:
            raise ConfigError(f"task.state is {read}, and states have {offered} numbers; give at most so many, or none")
        mean, std = spread(data.states[steps, :read])
        shift, scale = spread(actions) if self.scaling == "deviation" else reach(actions)
        cameras = self._cameras(data)
        if not read and not cameras:
            raise UserError("neither states nor cameras are read, so a policy sees nothing; give task.state or cameras")
        text = len(data.names) > 1 if self.text is None else self.text
        words = tuple(sorted({word for name in data.names for word in words_of(name)})) if text else ()
        if text and not all(map(words_of, data.names)):
            raise UserError("a task has no name, so there is no text to read; name it, or set task.text=false")
        how = (self.execute, self.ensemble, 0, None, self.scaling)
        return RobotCodec(offered, mean, std, shift, scale, (), (), words, cameras, *how)

    def _cameras(self, data: Demonstrations) -> tuple[Camera, ...]:
        chosen = sorted(data.cameras) if self.cameras is None else self.cameras
        for name in chosen:
            if name not in data.cameras:
                known = nearest(name, data.cameras) if data.cameras else "they have none"
                raise UserError(f"the demonstrations have no camera {name!r}; {known}")
        frames = {name: data.cameras[name] for name in chosen}
        return tuple(Camera(name, each.recorded, self.size or each.size) for name, each in frames.items())
