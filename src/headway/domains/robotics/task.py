"""Predict chunks of actions from observations; evaluated by playing."""

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
    """Predict the next actions of demonstrations, `model.chunk` of them, from the observation at a step.

    The first `state` values of a state are used, none for all, 0 for no state; `cameras` are the ones used, none for
    all, () for no images, resized to `size` (height, width), none to keep theirs. With `text`, the words of a task's
    name are model inputs; none uses them if there are several tasks. In training, scaled states get `noise`, a standard
    deviation: it hides the effect of the last action, so the robot learns to recover. `scaling` is by mean and
    deviation of actions, or by their range. A new chunk is predicted every `execute` actions; `ensemble` is the m of
    temporal ensembling, none uses only the newest chunk.

    If a task's environment is known (the one in the data, or else `env`), `episodes` of each task are played at each
    evaluation and `final` at the end, from separate seeds; with 0, only held-out demonstrations are evaluated. Equal
    demonstrations are always in the same `split`.
    """

    beside: ClassVar[tuple[str, ...]] = (FILE,)
    state: int | None = None  # number of state values to use; none: all
    cameras: tuple[str, ...] | None = None  # cameras to use; none: all
    size: Size | None = None  # height and width of resized images; none: original size
    text: bool | None = None  # use the name of the task; none: if there are several
    noise: float = 0.0  # standard deviation of the noise on scaled states in training
    scaling: Literal["deviation", "range"] = "deviation"  # scaling of actions: by mean and deviation, or by range
    execute: int = 1  # actions to execute before predicting a new chunk
    ensemble: float | None = 0.01  # the m of temporal ensembling; none: only the newest chunk
    env: str | None = None  # environment of tasks without one in the data
    episodes: int = 20  # episodes to play per task and evaluation
    final: int = 50  # episodes to play per task at the end
    split: SplitConfig = SplitConfig(validation=0.1, test=0.1)  # held-out demonstrations

    def __post_init__(self) -> None:
        if min(self.episodes, self.state or 0) < 0 or min(self.execute, self.final) < 1:
            raise ConfigError(
                f"task.state is {self.state}, task.episodes {self.episodes}, task.execute {self.execute} and "
                f"task.final {self.final}; choose 0 or more, and 1 or more for the last two"
            )
        if self.size is not None and min(self.size) < 1:
            raise ConfigError(f"task.size is {self.size}; choose a height and width above 0, or none")
        if not self.noise >= 0:
            raise ConfigError(f"task.noise is {self.noise}; choose 0 or more, such as 0.02")
        if self.ensemble is not None and not self.ensemble >= 0:
            raise ConfigError(f"task.ensemble is {self.ensemble}; choose 0 or more, or none")

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for unreadable data, and for missing or unsuitable environments."""
        model = check_model(recipe.model, self.execute)
        rows = recipe.train.rows(model.chunk)
        known = known_codec(workspace, read_usage(workspace))
        size, cameras = (self.size, self.cameras) if known is None else (known.size, known.camera_names)
        found = read_demonstrations(recipe.files(data), cache_root(), size, cameras)
        if not found.actions.shape[1]:
            raise UserError("the demonstrations have actions of 0 numbers, so there is nothing to learn; use others")
        splits = Splits(sides_of(found.keys(), found.named, self.split), np.arange(len(found)), "demonstrations")
        codec = self._fitted(found, splits.rows("train")) if known is None else self._kept(known, found)
        codec = self._told(codec, found)
        check_start(model, codec, recipe.start)
        objective = ActionChunks(self, model, codec)
        splits = splits._replace(play=objective.plays)
        return Task(Demonstrated(found, splits, codec, model, rows, recipe.train.seed, self.noise), objective)

    def _environments(self, data: Demonstrations) -> tuple[str, ...]:
        """Return the environment of each task; "" if none is known or allowed."""
        given = os.environ.get(VARIABLE)
        if given:
            return (given,) * len(data.names)
        other = "" if self.env is None else check_stored(self.env)
        refused = [name for name in data.environments if ":" in name]
        if refused and self.episodes and not other:
            _LOG.warning(
                "the data come from %s, whose code headway does not run: policies are evaluated on held-out "
                "demonstrations; set %s=%s to play there",
                refused[0],
                VARIABLE,
                refused[0],
            )
        return tuple(other if not name or ":" in name else name for name in data.environments)

    def _told(self, codec: RobotCodec, data: Demonstrations) -> RobotCodec:
        """Add the settings of the data and the task to the codec."""
        how = {"execute": self.execute, "ensemble": self.ensemble, "rate": data.rate}
        longest, places = int(data.lengths.max()), self._environments(data)
        return replace(codec, names=data.names, environments=places, longest=longest, **how)

    def _kept(self, codec: RobotCodec, data: Demonstrations) -> RobotCodec:
        """Return the codec of the run or the policy to fine-tune. ConfigError for conflicting settings."""
        check_known(codec, data)
        check_settings(codec, {"state": self.state, "cameras": self.cameras, "size": self.size, "text": self.text})
        if not codec.words and len(data.names) > 1:
            _LOG.warning("the policy does not take task names, so it cannot distinguish the %d tasks", len(data.names))
        if codec.scaling not in (None, self.scaling):
            _LOG.warning("task.scaling is %s, but the policy to fine-tune scales by %s", self.scaling, codec.scaling)
        for name in data.names if codec.words else ():
            codec.text(name)
        recorded = {name: frames.recorded for name, frames in data.cameras.items()}
        return replace(codec, cameras=tuple(replace(each, recorded=recorded[each.name]) for each in codec.cameras))

    def _fitted(self, data: Demonstrations, training: np.ndarray) -> RobotCodec:
        steps = steps_within(data.starts[training], data.ends[training])
        actions, offered = data.actions[steps], data.states.shape[1]
        read = offered if self.state is None else self.state
        if read > offered:
            raise ConfigError(f"task.state is {read}, but states have {offered} numbers; choose at most that, or none")
        mean, std = spread(data.states[steps, :read])
        shift, scale = spread(actions) if self.scaling == "deviation" else reach(actions)
        cameras = self._cameras(data)
        if not read and not cameras:
            raise UserError("the policy has no inputs, neither states nor cameras; set task.state or task.cameras")
        text = len(data.names) > 1 if self.text is None else self.text
        words = tuple(sorted({word for name in data.names for word in words_of(name)})) if text else ()
        if text and not all(map(words_of, data.names)):
            raise UserError("a task has no name to use as text; name it, or set task.text=false")
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
    """The loss of the model's chunk head. If tasks can be played, the goal is "score", the success rate plus a bonus
    for speed worth less than one episode; otherwise the mean absolute error of held-out actions, in scaled units.
    """

    unit = "action"

    def __init__(self, config: RoboticsConfig, model: RobotPolicyConfig, codec: RobotCodec) -> None:
        self.config, self.model, self.codec = config, model, codec
        self._judged: dict[str, dict[str, Any]] = {}  # scores of each task in the last evaluation
        self.played = self._open() if config.episodes else {}
        if self.plays:
            self.goal, self.goal_better = "score", "max"

    @property
    def measure(self) -> str:
        return "mean error per action"

    @property
    def plays(self) -> bool:
        return bool(self.played)

    def _open(self) -> dict[str, Copies]:
        """Open the environments of each task that has one, by task name."""
        places = {name: place for name, place in zip(self.codec.names, self.codec.environments) if place}
        try:
            copies = open_each(self.codec, list(places.values()), max(self.config.episodes, self.config.final))
        except UserError as error:
            raise UserError(f"{error}; or set task.episodes=0 to evaluate on held-out demonstrations only") from error
        return dict(zip(places, copies))

    def adapt(self, model: ModelConfig, examples: Demonstrated) -> ModelConfig:
        """UserError if there is neither an environment nor validation data."""
        if not self.plays:
            examples.splits.rows("validation", "an environment for evaluation (task.env)")
        return model

    def counts(self, batch: Batch) -> dict[str, int]:
        """Valid actions and, for a model with a latent, rows."""
        found = {"actions": batch.tokens}
        return found | {"kl": len(batch.targets.keep)} if self.model.head.size else found

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        seen, drawn = batch.inputs
        return cast(RobotPolicy, model).losses(seen, batch.targets, drawn)

    def judge(self, model: nn.Module, examples: Demonstrated, split: str, limit: int | None = None) -> dict[str, Any]:
        """Return the success rate of each playable task, from seeds of this split, and the mean absolute error of
        held-out actions, if there are any. `limit` is the maximum number of episodes and windows of each.
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
        """Return one number for comparison: equal success rates are ordered by speed. If no episode reports success, it
        is the return, mapped to -1 to 0, below any success.
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
        """Episodes without success play to the end; without success reports, as long as a demonstration."""
        return max(1.0, self.codec.longest / scores["length_mean"]) if "length_mean" in scores else 1.0

    def showing(self) -> float:
        """A film per task."""
        return 1.0 if self.plays else 0.0

    def pictures(self, model: nn.Module, examples: Demonstrated) -> list[Picture]:
        """Plot success rates, draw an episode of each task as a film strip, and a chunk next to the demonstration."""
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
    """ConfigError for a model that does not predict chunks, or shorter ones than are executed."""
    if not isinstance(model, RobotPolicyConfig):
        raise ConfigError(
            f"this task needs a model of action chunks (act), but this is {type(model).__name__}; use the model of the "
            "recipe"
        )
    if execute > model.chunk:
        raise ConfigError(
            f"task.execute is {execute}, but a chunk has {model.chunk} actions; execute at most that many, or raise "
            "model.chunk"
        )
    return model


def check_known(codec: RobotCodec, data: Demonstrations) -> None:
    """UserError for demonstrations of a different robot than the policy's."""
    pairs = {
        "states of {} numbers": (codec.recorded, data.states.shape[1]),
        "actions of {} numbers": (len(codec.scale), data.actions.shape[1]),
    }
    for what, (theirs, own) in pairs.items():
        if theirs != own:
            raise UserError(
                f"the policy has {what.format(theirs)}, but the data have {what.format(own)}; use demonstrations of "
                "its robot"
            )
    for camera in codec.cameras:
        if camera.name not in data.cameras:
            told = ", ".join(data.cameras) or "none"
            raise UserError(
                f"the policy has the camera {camera.name!r}, but the data have {told}; use demonstrations of its robot"
            )


def check_settings(codec: RobotCodec, settings: Mapping[str, Any]) -> None:
    """ConfigError for settings of the task (None: not set) that differ from those of the policy to fine-tune."""
    theirs = {"state": len(codec.mean), "cameras": codec.camera_names, "text": bool(codec.words)}
    if codec.cameras:
        theirs["size"] = codec.size
    for name, wanted in settings.items():
        if wanted is not None and wanted != theirs.get(name, wanted):
            raise ConfigError(
                f"task.{name} is {wanted}, but the policy to fine-tune has {theirs[name]}; leave task.{name} out"
            )


def check_start(model: RobotPolicyConfig, codec: RobotCodec, start: str | None) -> None:
    """ConfigError for a policy to fine-tune whose weights take other states, images or words than its codec."""
    if start is None:
        return
    seen = model.observation
    sizes = [tuple(camera.read) for camera in codec.cameras]
    own = (len(codec.mean), len(codec.scale), sizes, codec.symbols)
    if own != (seen.states, model.actions, [tuple(size) for size in seen.cameras], model.words):
        raise ConfigError(
            f"{start} takes other states, images or words than its codec describes, or has none; start from a run of "
            "the recipes robotics or metaworld"
        )
