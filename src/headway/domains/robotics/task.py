"""Predict chunks of actions from observations; evaluated by playing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import nn

from headway.config_kinds import register
from headway.data import SplitConfig, Splits, split_by_text
from headway.data.affine_scale import AffineScale
from headway.data.array_store import cache_root
from headway.data.episode_files import read_demonstrations
from headway.data.episodes import Episodes, numbers_text, step_indices
from headway.domains.robotics.chunk_windows import DemonstrationExamples
from headway.domains.robotics.policy import PolicyRunner, combine_scores, limit_of, open_envs, play, success_scores
from headway.domains.robotics.robot_codec import Camera, RobotCodec, Size, load_codec, words_of
from headway.environments.factory import playable_environments
from headway.environments.rollouts import REPORT_SEEDS, evaluation_seeds
from headway.environments.vector_env import VectorEnv
from headway.errors import ConfigError, UserError, logger, nearest
from headway.formats.lerobot import POLICIES
from headway.formats.usage import read_usage
from headway.learn import Recipe, Task, TaskConfig
from headway.learn.examples import Batch
from headway.learn.objective import Objective, evaluation_batches
from headway.learn.report import Picture, Stroke, bar_chart, line_chart
from headway.learn.report.pictures import FilmedEpisode, FrameSampler, episode_pictures
from headway.nn.models import Loss, ModelConfig, RobotPolicy, RobotPolicyConfig

_LOG = logger(__name__)
_PLOTTED_VALUES = 3  # plotted values per action


@register("robotics")
@dataclass(frozen=True)
class RoboticsConfig(TaskConfig):
    """Predict the next `model.chunk` actions in demonstrations from the observation at a step.

    The first `state` values of a state are used (none: all; 0: no state). `cameras` are the cameras used (none: all;
    (): no images), whose images are resized to `size` (height, width; none: not resized). With `text`, the words in a
    task's name are model inputs (none: if there are several tasks). In training, scaled states get noise with the
    standard deviation `noise`: it hides the effect of the last action, so the robot learns to recover. If `starts` is
    above 0, half of the training windows start in that many first steps of a demonstration: later, the robot's state
    hints at where the expert is heading, and a policy can learn to ignore the images (causal confusion, de Haan et al.
    2019). `scaling` is by the mean and standard deviation of actions, or by their range. A new chunk is predicted every
    `execute` actions; `ensemble` is the m of temporal ensembling (none: only the newest chunk).

    If a task's environment is known (from the data or `env`), each evaluation plays `episodes` episodes per task, and
    `final` at the end, from separate seeds; with 0, only held-out demonstrations are evaluated. Equal demonstrations
    are always in the same `split`.
    """

    extra_files: ClassVar[tuple[str, ...]] = (RobotCodec.FILE,)
    state: int | None = None  # number of state values to use; none: all
    cameras: tuple[str, ...] | None = None  # cameras to use; none: all
    size: Size | None = None  # height and width of resized images; none: original size
    text: bool | None = None  # use the task's name as input; none: if there are several tasks
    noise: float = 0.0  # standard deviation of the noise on scaled states in training
    starts: int = 0  # first steps of demonstrations in which half of the training windows start; 0: any steps
    scaling: Literal["deviation", "range"] = "deviation"  # scale actions by mean and deviation, or by range
    execute: int = 1  # actions to execute before predicting a new chunk
    ensemble: float | None = 0.01  # the m of temporal ensembling; none: only the newest chunk
    env: str | None = None  # environment of tasks without one in the data
    episodes: int = 20  # episodes to play per task and evaluation
    final: int = 50  # episodes to play per task at the end
    split: SplitConfig = SplitConfig(validation=0.1, test=0.1)  # held-out demonstrations

    def __post_init__(self) -> None:
        if min(self.episodes, self.state or 0) < 0 or min(self.execute, self.final) < 1:
            raise ConfigError(
                f"task.state={self.state}, task.episodes={self.episodes}, task.execute={self.execute}, "
                f"task.final={self.final}: the first two must be at least 0, and the others at least 1"
            )
        if self.size is not None and min(self.size) < 1:
            raise ConfigError(f"task.size is {self.size}; choose a height and width above 0, or none")
        if not self.noise >= 0:
            raise ConfigError(f"task.noise is {self.noise}; choose 0 or more, such as 0.02")
        if self.starts < 0:
            raise ConfigError(f"task.starts is {self.starts}; choose 0 or more, such as 15")
        if self.ensemble is not None and not self.ensemble >= 0:
            raise ConfigError(f"task.ensemble is {self.ensemble}; choose 0 or more, or none")

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for unreadable data and for missing or unsuitable environments."""
        model = check_model(recipe.model, self.execute)
        rows = recipe.train.rows(model.chunk)
        usage = read_usage(workspace)
        has_codec = usage.family in POLICIES or (workspace / RobotCodec.FILE).is_file()
        known = load_codec(workspace, usage) if has_codec else None
        size, cameras = (self.size, self.cameras) if known is None else (known.size, known.camera_names)
        demonstrations = read_demonstrations(recipe.files(data), cache_root(), size, cameras)
        if not demonstrations.actions.shape[1]:
            raise UserError(
                "actions in the demonstrations have 0 numbers, so there is nothing to learn; use other demonstrations"
            )
        splits = Splits(
            split_by_text(demonstrations.keys(), demonstrations.named_splits, self.split),
            np.arange(len(demonstrations)),
            "demonstrations",
        )
        codec = (
            self._fit_codec(demonstrations, splits.rows("train"))
            if known is None
            else self._reuse_codec(known, demonstrations)
        )
        codec = replace(
            codec,
            names=demonstrations.task_names,
            environments=playable_environments(
                demonstrations.environments, self.env, bool(self.episodes), "demonstrations"
            ),
            longest=int(demonstrations.lengths.max()),
            execute=self.execute,
            ensemble=self.ensemble,
            rate=demonstrations.rate,
        )
        if recipe.start is not None:  # the weights of the policy to fine-tune must match
            taken = model.observation
            sizes = [tuple(camera.read) for camera in codec.cameras]
            codec_sizes = (len(codec.mean), len(codec.scale), sizes, codec.vocab_size)
            if codec_sizes != (taken.states, model.actions, [tuple(size) for size in taken.cameras], model.words):
                raise ConfigError(
                    f"the states, images or words that {recipe.start} takes do not match its codec, or it has no "
                    "codec; start from a run of the robotics or metaworld recipe"
                )
        objective = ActionChunks(self, model, codec)
        splits = splits._replace(has_rollouts=objective.can_play)
        return Task(
            DemonstrationExamples(
                demonstrations, splits, codec, model, rows, recipe.train.seed, self.noise, self.starts
            ),
            objective,
        )

    def _reuse_codec(self, codec: RobotCodec, data: Episodes) -> RobotCodec:
        """Return the codec of the run or the policy to fine-tune. ConfigError for conflicting settings."""
        codec.check_data(data)
        for name in codec.camera_names:
            if name not in data.cameras:
                raise UserError(
                    f"the policy has the camera {name!r}, but the data have {', '.join(data.cameras) or 'none'}; use "
                    "demonstrations from its robot"
                )
        settings = {"state": len(codec.mean), "cameras": codec.camera_names, "text": bool(codec.words)}
        if codec.cameras:
            settings["size"] = codec.size
        for name, value in settings.items():
            wanted = getattr(self, name)
            if wanted is not None and wanted != value:
                raise ConfigError(
                    f"task.{name} is {wanted}, but the policy to fine-tune has {value}; do not set task.{name}"
                )
        if not codec.words and len(data.task_names) > 1:
            _LOG.warning(
                "the policy does not take task names, so it cannot distinguish the %d tasks", len(data.task_names)
            )
        if codec.scaling not in (None, self.scaling):
            _LOG.warning(
                "ignoring task.scaling=%s; the policy to fine-tune was trained with task.scaling=%s",
                self.scaling,
                codec.scaling,
            )
        for name in data.task_names if codec.words else ():
            codec.word_ids(name)
        recorded = {name: frames.recorded_size for name, frames in data.cameras.items()}
        return replace(
            codec, cameras=tuple(replace(camera, recorded=recorded[camera.name]) for camera in codec.cameras)
        )

    def _fit_codec(self, data: Episodes, training: np.ndarray) -> RobotCodec:
        steps = step_indices(data.starts[training], data.ends[training])
        actions, offered = data.actions[steps], data.states.shape[1]
        read = offered if self.state is None else self.state
        if read > offered:
            raise ConfigError(
                f"task.state is {read}, but states have {numbers_text(offered)}; choose at most that, or none"
            )
        states = AffineScale.by_deviation(data.states[steps, :read])
        scale = (AffineScale.by_deviation if self.scaling == "deviation" else AffineScale.by_range)(actions)
        cameras = []
        for name in sorted(data.cameras) if self.cameras is None else self.cameras:
            if name not in data.cameras:
                known = nearest(name, data.cameras) if data.cameras else "they have no cameras"
                raise UserError(f"the demonstrations have no camera {name!r}; {known}")
            frames = data.cameras[name]
            cameras.append(Camera(name, frames.recorded_size, self.size or frames.size))
        if not read and not cameras:
            raise UserError("the policy has no inputs, neither states nor cameras; set task.state or task.cameras")
        text = len(data.task_names) > 1 if self.text is None else self.text
        words = tuple(sorted({word for name in data.task_names for word in words_of(name)})) if text else ()
        if text and not all(map(words_of, data.task_names)):
            raise UserError("a task has no name to use as text; name it, or set task.text=false")
        return RobotCodec(
            recorded=offered,
            mean=states.shift,
            std=states.scale,
            shift=scale.shift,
            scale=scale.scale,
            names=(),
            environments=(),
            words=words,
            cameras=tuple(cameras),
            execute=self.execute,
            ensemble=self.ensemble,
            longest=0,
            scaling=self.scaling,
        )


class ActionChunks(Objective[DemonstrationExamples]):
    """The loss of the model's chunk head. If tasks can be played, the goal is "score": the success rate plus a speed
    bonus that is worth less than one episode. Otherwise it is the mean absolute error on held-out actions, in scaled
    units.
    """

    unit = "action"

    def __init__(self, config: RoboticsConfig, model: RobotPolicyConfig, codec: RobotCodec) -> None:
        self.config, self.model, self.codec = config, model, codec
        self._results: dict[str, dict[str, Any]] = {}  # scores of each task in the last evaluation
        self.envs: dict[str, VectorEnv] = {}  # the environment of each task that has one
        if config.episodes:
            environments = {task: name for task, name in zip(codec.names, codec.environments) if name}
            try:
                envs = open_envs(codec, list(environments.values()), max(config.episodes, config.final))
            except UserError as error:
                raise UserError(
                    f"{error}; or set task.episodes=0 to evaluate on held-out demonstrations only"
                ) from error
            self.envs = dict(zip(environments, envs))
        if self.can_play:
            self.goal, self.goal_better = "score", "max"

    @property
    def measure(self) -> str:
        return "mean error per action"

    @property
    def can_play(self) -> bool:
        return bool(self.envs)

    def adapt(self, model: ModelConfig, examples: DemonstrationExamples) -> ModelConfig:
        """UserError if there is neither an environment nor validation data."""
        if not self.can_play:
            examples.splits.rows("validation", "an environment for evaluation (task.env)")
        return model

    def counts(self, batch: Batch) -> dict[str, int]:
        """Valid actions and, for a model with a latent, rows."""
        counts = {"actions": batch.tokens}
        return counts | {"kl": len(batch.targets.mask)} if self.model.head.size else counts

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        observations, noise = batch.inputs
        return cast(RobotPolicy, model).losses(observations, batch.targets, noise)

    def evaluate(
        self, model: nn.Module, examples: DemonstrationExamples, split: str, limit: int | None = None
    ) -> dict[str, Any]:
        """Return each playable task's success rate, from this split's seeds, and the mean absolute error on held-out
        actions, if there are any. `limit` is the maximum number of episodes, and of windows, for each.
        """
        scores: dict[str, Any] = {}
        if self.can_play:
            episodes = self.config.episodes if split == "validation" else self.config.final
            seeds = evaluation_seeds(split, min(episodes, limit or episodes))
            policy = cast(RobotPolicy, model)
            played = {name: play(policy, self.codec, envs, name, seeds) for name, envs in self.envs.items()}
            results = self._results = {
                name: success_scores(episodes_played, limit_of(self.codec, self.envs[name]))
                for name, episodes_played in played.items()
            }
            totals = combine_scores(list(results.values()), list(played.values()))
            scores = {"score": self.score(totals), **totals}
            for name, result in results.items() if len(results) > 1 else ():
                if "success_rate" in result:
                    key = "_".join(["success_rate", *words_of(name)])
                    scores |= {key: result["success_rate"], f"{key}_interval": result["success_rate_interval"]}
        if self.can_play and not examples.splits.has_samples(split):
            return scores
        total, actions = 0.0, 0
        for _, batch in evaluation_batches(model, examples.of(split).limited_to(limit)):
            targets, mask = (part[:, self.model.history - 1 :] for part in batch.targets[:2])
            error = (model(*batch.inputs) - targets).abs().mean(-1)
            total += float(error[mask].sum())
            actions += int(mask.sum())
        scores["loss"] = total / actions
        return scores if self.can_play else {**scores, "samples": actions}

    def score(self, scores: Mapping[str, Any]) -> float:
        """Return one number for comparison, in which equal success rates are ordered by speed. If no episode reports
        success, it is the return, mapped to between -1 and 0, below any success.
        """
        if "success_rate" not in scores:
            return (scores["return_mean"] / (1 + abs(scores["return_mean"])) - 1) / 2
        max_steps = max(limit_of(self.codec, envs) for envs in self.envs.values())
        return scores["success_rate"] + (1 - min(1.0, scores["steps_mean"] / max_steps)) / (2 * scores["samples"])

    def count(self, examples: DemonstrationExamples, split: str) -> int:
        return self.config.final if self.can_play else examples.count(split)

    def evaluation_growth(self, scores: Mapping[str, Any]) -> float:
        """Episodes without success play to the end; without success reports, as long as a demonstration."""
        return max(1.0, self.codec.longest / scores["length_mean"]) if "length_mean" in scores else 1.0

    def report_cost(self) -> float:
        """A video per task."""
        return 1.0 if self.can_play else 0.0

    def pictures(self, model: nn.Module, examples: DemonstrationExamples) -> list[Picture]:
        """Plot success rates, draw an episode of each task as a film strip, and a chunk next to the demonstration."""
        policy = cast(RobotPolicy, model)
        data = examples.data
        codec = examples.codec
        pictures: list[Picture] = []
        reported = {name: result for name, result in self._results.items() if "success_rate" in result}
        if reported:
            rates = {name: 100 * result["success_rate"] for name, result in reported.items()}
            intervals = {name: result["success_rate_interval"] for name, result in reported.items()}
            spread = {name: tuple(100 * edge for edge in interval) for name, interval in intervals.items()}
            chart = bar_chart(rates, "success rate (%)", spread, share=True)  # type: ignore[arg-type]
            count = next(iter(reported.values()))["samples"]
            pictures.append(Picture("Success", f"{count} episodes per task, with 95 % intervals", chart))
        pictures += film_strips(policy, self.codec, list(self.envs))
        # The prediction at a step a third into a demonstration, next to the demonstrated actions.
        rows = examples.splits.indices
        episode = next(int(rows[split][0]) for split in ("test", "validation", "train") if len(rows[split]))
        step = int(data.starts[episode] + data.lengths[episode] // 3)
        predicted = PolicyRunner(policy, codec, [REPORT_SEEDS]).chunk(examples.observations(np.array([step])))[0]
        actions, mask = (part[0, examples.model.history - 1 :] for part in examples.chunks(np.array([step]))[:2])
        done = codec.decode_actions(actions[mask].numpy())
        moving = np.argsort(-np.ptp(done, 0), kind="stable")[:_PLOTTED_VALUES]
        series, strokes = {}, {}
        for colour, number in enumerate(sorted(moving.tolist())):
            for label, values in (("demonstrated", done), ("predicted", predicted[: int(torch.count_nonzero(mask))])):
                name = f"{number} {label}"
                series[name] = [(float(index), float(value)) for index, value in enumerate(values[:, number])]
                strokes[name] = Stroke(colour, dashed=label == "predicted")
        where = f"{data.task_names[data.tasks[episode]]}, step {step - data.starts[episode]} in a demonstration"
        if chart := line_chart(series, "step of the chunk", "action values", strokes=strokes):
            pictures.append(Picture("A chunk of actions", where, chart))
        return pictures

    def close(self) -> None:
        for envs in self.envs.values():
            envs.close()


@episode_pictures
def film_strips(model: RobotPolicy, codec: RobotCodec, tasks: Sequence[str]) -> Iterator[FilmedEpisode]:
    """Yield an episode of each task."""
    environments = dict(zip(codec.names, codec.environments))
    for task in tasks:
        reel = FrameSampler()
        (envs,) = open_envs(codec, [environments[task]], 1, render=True)
        with envs:
            played = play(model, codec, envs, task, [REPORT_SEEDS], reel)
        if played.succeeded is None:
            caption = f"{played.lengths[0]} steps, return {float(played.returns[0]):.5g}"
        else:
            caption = f"succeeds after {played.succeeded[0]} steps" if played.succeeded[0] else "does not succeed"
        yield FilmedEpisode(f"An episode: {task}", caption, reel)


def check_model(model: ModelConfig, execute: int) -> RobotPolicyConfig:
    """ConfigError for a model that does not predict chunks, or whose chunks are shorter than what is executed."""
    if not isinstance(model, RobotPolicyConfig):
        raise ConfigError(
            f"this task needs a model that predicts action chunks (act), but this is {type(model).__name__}; use the "
            "recipe's model"
        )
    if execute > model.chunk:
        raise ConfigError(
            f"task.execute is {execute}, but a chunk has {model.chunk} actions; lower task.execute, or raise "
            "model.chunk"
        )
    return model
