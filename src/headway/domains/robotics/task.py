"""Chunks of actions from what is seen: what is learned of demonstrations, and judged by playing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
from torch import nn

from headway.config import register
from headway.data import SplitConfig, Splits, sides_of
from headway.data.demonstrations import Demonstrations, read_demonstrations
from headway.data.episodes import steps_within
from headway.data.store import cache_root
from headway.domains.robotics import pictures
from headway.domains.robotics.codec import FILE, Camera, RobotCodec, Size, reach, spread, words_of
from headway.domains.robotics.published import known_codec
from headway.domains.robotics.rollout import limit_of, open_each, play, together, worth
from headway.domains.robotics.windows import ChunkWindows, Demonstrated
from headway.environments import VARIABLE, Copies, check_stored, seeds_of
from headway.errors import ConfigError, UserError, logger, nearest
from headway.formats.usage import read_usage
from headway.learn import Recipe, Task, TaskConfig
from headway.learn.examples import Batch
from headway.learn.objective import Objective, judged
from headway.learn.report import Picture
from headway.nn.models import Loss, ModelConfig, RobotPolicy, RobotPolicyConfig

_LOG = logger(__name__)


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

    beside: ClassVar[tuple[str, ...]] = (FILE,)
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

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, and for environments that are not there or do not fit."""
        model = check_model(recipe.model, self.execute)
        rows = recipe.train.rows(model.chunk)
        known = known_codec(workspace, read_usage(workspace))
        size, cameras = (self.size, self.cameras) if known is None else (known.size, known.camera_names)
        found = read_demonstrations(recipe.files(data), cache_root(), size, cameras)
        if not found.actions.shape[1]:
            raise UserError("the demonstrations have actions of 0 numbers, so there is nothing to learn; give others")
        splits = Splits(sides_of(found.keys(), found.named, self.split), np.arange(len(found)), "demonstrations")
        codec = self._fitted(found, splits.rows("train")) if known is None else self._kept(known, found)
        codec = self._told(codec, found)
        check_start(model, codec, recipe.start)
        objective = ActionChunks(self, model, codec)
        splits = splits._replace(play=objective.plays)
        return Task(Demonstrated(found, splits, codec, model, rows, recipe.train.seed, self.noise), objective)

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


class ActionChunks(Objective[Demonstrated]):
    """The loss of the model's head of chunks. Where tasks can be played, the goal is "score", the success rate with
    less than an episode's worth for speed; else the mean absolute error of actions of held-out demonstrations, in the
    codec's numbers.
    """

    unit = "action"

    def __init__(self, config: RoboticsConfig, model: RobotPolicyConfig, codec: RobotCodec) -> None:
        self.config, self.model, self.codec = config, model, codec
        self._judged: dict[str, dict[str, Any]] = {}  # what each task came to at the last evaluation
        self.played = self._open() if config.episodes else {}
        if self.plays:
            self.goal, self.goal_better = "score", "max"

    @property
    def measure(self) -> str:
        return "mean error of an action"

    @property
    def plays(self) -> bool:
        return bool(self.played)

    def _open(self) -> dict[str, Copies]:
        """Copies of the environment of each task that has one, by its name."""
        places = {name: place for name, place in zip(self.codec.names, self.codec.environments) if place}
        try:
            copies = open_each(self.codec, list(places.values()), max(self.config.episodes, self.config.final))
        except UserError as error:
            raise UserError(f"{error}; or set task.episodes=0 to judge by held-out demonstrations alone") from error
        return dict(zip(places, copies))

    def adapt(self, model: ModelConfig, examples: Demonstrated) -> ModelConfig:
        """UserError where, without an environment, nothing is left to judge by."""
        if not self.plays:
            examples.splits.rows("validation", "an environment to be judged in (task.env)")
        return model

    def counts(self, batch: Batch) -> dict[str, int]:
        """Actions that there are and, where there is a latent, rows."""
        found = {"actions": batch.tokens}
        return found | {"kl": len(batch.targets.keep)} if self.model.head.size else found

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        seen, drawn = batch.inputs
        return cast(RobotPolicy, model).losses(seen, batch.targets, drawn)

    def judge(self, model: nn.Module, examples: Demonstrated, split: str, limit: int | None = None) -> dict[str, Any]:
        """How often each task succeeds that can be played, from seeds of this split alone; and the mean absolute error
        of the actions of held-out demonstrations, where there are any. `limit` is the most episodes and windows of
        each.
        """
        scores: dict[str, Any] = {}
        if self.plays:
            scores = self._playing(cast(RobotPolicy, model), split, limit)
        if not self.plays or examples.splits.holds(split):
            scores |= self._held_out(model, examples.of(split).some(limit))
        return scores

    def _playing(self, model: RobotPolicy, split: str, limit: int | None) -> dict[str, Any]:
        episodes = self.config.episodes if split == "validation" else self.config.final
        seeds = seeds_of(split, min(episodes, limit or episodes))
        played = {name: play(model, self.codec, copies, name, seeds) for name, copies in self.played.items()}
        results = {name: worth(each, limit_of(self.codec, self.played[name])) for name, each in played.items()}
        self._judged = results
        found = together(list(results.values()), list(played.values()))
        scores = {"score": self.score(found), **found}
        for name, result in results.items() if len(results) > 1 else ():
            if "success_rate" in result:
                own = "_".join(["success_rate", *words_of(name)])
                scores |= {own: result["success_rate"], f"{own}_interval": result["success_rate_interval"]}
        return scores

    def score(self, found: Mapping[str, Any]) -> float:
        """One number to judge by: of two equal success rates the one that takes fewer steps is better. Where no episode
        told whether it succeeded, it is the return as a number from -1 to 0, below that of any success.
        """
        if "success_rate" not in found:
            return (found["return_mean"] / (1 + abs(found["return_mean"])) - 1) / 2
        longest = max(limit_of(self.codec, copies) for copies in self.played.values())
        return found["success_rate"] + (1 - min(1.0, found["steps_mean"] / longest)) / (2 * found["samples"])

    def _held_out(self, model: nn.Module, windows: ChunkWindows) -> dict[str, Any]:
        total, actions = 0.0, 0
        for _, batch in judged(model, windows):
            wanted, keep = (each[:, self.model.history - 1 :] for each in batch.targets)
            error = (model(*batch.inputs) - wanted).abs().mean(-1)
            total += float(error[keep].sum())
            actions += int(keep.sum())
        scores: dict[str, Any] = {"loss": total / actions}
        return scores if self.plays else {**scores, "samples": actions}

    def count(self, examples: Demonstrated, split: str) -> int:
        return self.config.final if self.plays else examples.count(split)

    def lengthening(self, scores: Mapping[str, Any]) -> float:
        """What has not succeeded plays to the end; where no one tells, as long as was demonstrated."""
        return max(1.0, self.codec.longest / scores["length_mean"]) if "length_mean" in scores else 1.0

    def showing(self) -> float:
        """A film of each task."""
        return 1.0 if self.plays else 0.0

    def pictures(self, model: nn.Module, examples: Demonstrated) -> list[Picture]:
        """How often tasks succeed, an episode of each as a strip of film, and a chunk beside what was demonstrated."""
        act, sides = cast(RobotPolicy, model), examples.splits.sides
        episode = next(int(sides[side][0]) for side in ("test", "validation", "train") if len(sides[side]))
        return [
            *pictures.success(self._judged),
            *pictures.film_strips(act, self.codec, list(self.played)),
            *pictures.chunk_beside(act, examples, episode),
        ]

    def close(self) -> None:
        for copies in self.played.values():
            copies.close()


def check_model(model: ModelConfig, execute: int) -> RobotPolicyConfig:
    """ConfigError for a model that says no chunks, or shorter ones than are executed."""
    if not isinstance(model, RobotPolicyConfig):
        raise ConfigError(
            f"this task needs a model of chunks of actions (act), and this is {type(model).__name__}; take that of the "
            "recipe"
        )
    if execute > model.chunk:
        raise ConfigError(
            f"task.execute is {execute}, and a chunk has {model.chunk} actions; execute at most so many, or raise "
            "model.chunk"
        )
    return model


def check_known(codec: RobotCodec, data: Demonstrations) -> None:
    """UserError for demonstrations of another robot than the one that a policy knows."""
    pairs = {
        "states of {} numbers": (codec.recorded, data.states.shape[1]),
        "actions of {} numbers": (len(codec.scale), data.actions.shape[1]),
    }
    for what, (theirs, own) in pairs.items():
        if theirs != own:
            raise UserError(
                f"the policy knows {what.format(theirs)}, and the data have {what.format(own)}; give demonstrations of "
                "its robot"
            )
    for camera in codec.cameras:
        if camera.name not in data.cameras:
            told = ", ".join(data.cameras) or "none"
            raise UserError(
                f"the policy has the camera {camera.name!r}, and the data have {told}; give demonstrations of its robot"
            )


def check_settings(codec: RobotCodec, settings: Mapping[str, Any]) -> None:
    """ConfigError for settings of the task (None: not set) that a policy which goes on does not have."""
    theirs = {"state": len(codec.mean), "cameras": codec.camera_names, "text": bool(codec.words)}
    if codec.cameras:
        theirs["size"] = codec.size
    for name, wanted in settings.items():
        if wanted is not None and wanted != theirs.get(name, wanted):
            raise ConfigError(
                f"task.{name} is {wanted}, and the policy that goes on has {theirs[name]}; leave task.{name} out"
            )


def check_start(model: RobotPolicyConfig, codec: RobotCodec, start: str | None) -> None:
    """ConfigError for a policy that is started from whose weights read other states, pictures or words than its codec
    says.
    """
    if start is None:
        return
    seen = model.observation
    sizes = [tuple(camera.read) for camera in codec.cameras]
    own = (len(codec.mean), len(codec.scale), sizes, codec.symbols)
    if own != (seen.states, model.actions, [tuple(size) for size in seen.cameras], model.words):
        raise ConfigError(
            f"{start} reads other states, pictures or words than lie beside it, or none lie there; start from a run of "
            "the recipes robotics or metaworld"
        )
