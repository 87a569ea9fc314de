"""Predict the actions of episodes from states and returns-to-go; evaluated by playing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn

from headway.config_kinds import deferred_check, register
from headway.data import SplitConfig, Splits, split_by_text
from headway.data.episode_files import read_episodes
from headway.data.episodes import actions_text, concatenate_episodes, numbers_text
from headway.domains.trajectories.online import OnlineConfig, OnlineEpisodes
from headway.domains.trajectories.step_windows import Trajectories
from headway.domains.trajectories.trajectory_player import TrajectoryCodec, play
from headway.environments.factory import ENV_VARIABLE, playable_environments
from headway.environments.recording import Mixture, Recorder
from headway.environments.rollouts import MAX_PARALLEL, REPORT_SEEDS, evaluation_seeds, return_scores
from headway.environments.vector_env import VectorEnv
from headway.errors import ConfigError, UserError
from headway.generate.prompts import device_of
from headway.learn import Recipe, Task, TaskConfig
from headway.learn.examples import Batch
from headway.learn.objective import Baseline, Objective, evaluation_batches
from headway.learn.report import Picture, line_chart
from headway.learn.report.pictures import FilmedEpisode, FrameSampler, episode_pictures
from headway.metrics import bootstrap_mean, wilson_interval
from headway.nn.kernels import true_indices
from headway.nn.models import (
    Loss,
    ModelConfig,
    ModelFeatures,
    StepHeadConfig,
    TrajectoryEmbed,
    TrajectoryEmbedConfig,
    TrajectoryInputs,
    Transformer,
    TransformerConfig,
    evaluation_mode,
    step_heads,
)

_TARGETS = 5  # default number of target returns
_EPISODES = 4  # episodes per target return
_REPORT_COST = 6.0  # cost of the report's episodes, in evaluations
_POINTS = 50  # maximum points of a curve
_IGNORES, _FOLLOWS = 0.1, 0.5  # increase in achieved return per increase in target return
_SAME = 0.01  # share of different actions, or their difference in standard deviations, that counts as none
_WINDOWS = 64


@register("trajectories")
@deferred_check
@dataclass(frozen=True)
class TrajectoriesConfig(TaskConfig):
    """Predict the actions of episodes from the states and, with `condition`, the returns-to-go.

    Windows have `context` steps. Without `condition` this is behaviour cloning; `best` is the share of training
    episodes to learn from, those with the highest returns. `states` and `returns` are loss weights for the squared
    errors of the next state and return-to-go as auxiliary targets (0: not predicted). Returns are divided by `scale`
    (none: the largest in the training data).

    If an environment is known (from `env`, the data or HEADWAY_ENV), each evaluation plays `episodes` episodes there
    with the target return `target` (none: the best in the training data); with 0, only held-out episodes are evaluated.
    `draw` samples choices, as in the paper for Atari, instead of taking the most probable one. `random` episodes of a
    random policy are recorded there and added to the data, except to its split "all". Equal episodes are always in the
    same split. With `online.episodes` the model plays during training and learns from its own episodes; if `target` is
    unset, evaluations then use the best return so far.
    """

    extra_files: ClassVar[tuple[str, ...]] = (TrajectoryCodec.FILE,)
    context: int = 20  # steps per window
    condition: bool = True  # condition on returns-to-go; false: behaviour cloning
    best: float = 1.0  # share of training episodes to learn from, the best ones
    states: float = 0.0  # weight of the loss of the next state
    returns: float = 0.0  # weight of the loss of the next return-to-go
    scale: float | None = None  # divisor of returns; none: the largest in the training data
    env: str | None = None  # environment; none: the one in the data
    episodes: int = 10  # episodes to play per evaluation; 0: none
    target: float | None = None  # target return; none: the best in the training data
    draw: bool = False  # sample choices by their probabilities
    random: int = 0  # episodes of a random policy to add to the data
    split: SplitConfig = SplitConfig(validation=0.1, test=0.1)  # held-out episodes
    online: OnlineConfig = OnlineConfig()  # training on the model's own episodes

    def __post_init__(self) -> None:
        if self.context < 1 or min(self.episodes, self.random) < 0 or min(self.states, self.returns) < 0:
            raise ConfigError(
                f"task.context={self.context}, task.episodes={self.episodes}, task.random={self.random}, "
                f"task.states={self.states}, task.returns={self.returns}: task.context must be at least 1, and the "
                "others at least 0"
            )
        if not 0 < self.best <= 1:
            raise ConfigError(f"task.best is {self.best}; choose a fraction above 0 and at most 1")
        if self.scale is not None and not self.scale > 0:
            raise ConfigError(f"task.scale is {self.scale}; choose a number above 0, or none")
        if self.returns and not self.condition:
            raise ConfigError(
                f"task.returns is {self.returns} without task.condition; set it to 0, or task.condition to true"
            )
        if self.online.episodes and not self.condition:
            raise ConfigError(
                f"task.online.episodes is {self.online.episodes} without task.condition, so the model cannot aim for a "
                "better return; set task.condition to true, or task.online.episodes to 0"
            )
        if self.online.episodes and not self.episodes:
            raise ConfigError(
                f"task.online.episodes is {self.online.episodes} but task.episodes is 0, and online training is "
                "evaluated by playing; set task.episodes to 1 or more"
            )

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for unreadable data, and for missing or unsuitable environments."""
        model = check_model(recipe.model)
        rows = recipe.train.rows(self.context)
        known = TrajectoryCodec.read(workspace) if (workspace / TrajectoryCodec.FILE).is_file() else None
        episodes = read_episodes(recipe.files(data))
        every = np.arange(len(episodes))  # the data's episodes, without the added ones
        names = ("" if self.env is not None else episodes.environment,)
        (name,) = playable_environments(names, self.env, bool(self.episodes), "episodes")
        envs = self._open_envs(name)
        if self.random:
            if envs is None:
                raise ConfigError(
                    f"task.random is {self.random}, but no environment is known; set task.env, or task.random to 0"
                )
            recorder = Recorder(envs, [Mixture(None, 1.0)], seed=0, horizon=None)
            recorder.run(self.random, num_parallel=1)
            sources = ["the data", f"the environment {envs.name!r}"]
            episodes = concatenate_episodes([episodes, recorder.episodes()], sources)
        split_rows = split_by_text(episodes.keys(), episodes.named_splits, self.split)
        splits = Splits(split_rows, every, "episodes", has_rollouts=envs is not None and self.episodes > 0)
        training = split_rows["train"] if known else splits.rows("train")
        best = training[np.argsort(-episodes.returns[training], kind="stable")]
        training = split_rows["train"] = np.sort(best[: max(1, round(self.best * len(best)))])
        if known is None:
            codec = TrajectoryCodec.fit(
                episodes,
                training,
                self.context,
                scale=self.scale,
                target=self.target,
                choices=envs.spaces.n_actions if envs is not None else None,
                environment=name,
                draw=self.draw,
            )
        else:  # the codec of the run, or of the model to fine-tune
            target = known.target if self.target is None else self.target
            codec = replace(known, target=target, context=self.context, environment=name, draw=self.draw)
        codec.check_data(episodes)
        if envs is not None:
            codec.check_environment(envs)
        _check_spaces(model, codec, recipe.start is not None)
        arguments = episodes, splits, codec, rows, recipe.train.seed
        options = {"returns": self.condition, "following": bool(self.states or self.returns)}
        if self.online.episodes:
            if envs is None:
                raise ConfigError(
                    f"task.online.episodes is {self.online.episodes}, but no environment is known; set task.env, or "
                    f"{ENV_VARIABLE}=module:Name for your own"
                )
            follow = self.target is None
            examples = OnlineEpisodes(*arguments, **options, online=self.online, envs=envs, follow=follow)
        else:
            examples = Trajectories(*arguments, **options)
        best_length = int(episodes.lengths[best[0]]) if len(best) else 0
        return Task(examples, StepActions(self, codec, envs if self.episodes else None, best_length))

    def _open_envs(self, name: str) -> VectorEnv | None:
        if not name or not (self.episodes or self.random):
            return None
        try:
            return VectorEnv(name, max(1, min(MAX_PARALLEL, max(self.episodes, self.online.episodes))))
        except UserError as error:
            raise UserError(f"{error}; or set task.episodes=0 to evaluate on held-out episodes only") from error


class StepActions(Objective[Trajectories]):
    """Cross-entropy or mean squared error of each step's action, plus weighted errors of the next states and returns.
    With `envs`, the goal is the mean return achieved there; otherwise it is the loss on held-out episodes. The best
    training episode has `best_length` steps.
    """

    unit = "timestep"

    def __init__(
        self, config: TrajectoriesConfig, codec: TrajectoryCodec, envs: VectorEnv | None, best_length: int
    ) -> None:
        self.config, self.codec, self.envs, self.best_length = config, codec, envs, best_length
        self._points: list[Point] = []  # achieved returns of the last samples
        if envs is not None:
            self.goal, self.goal_better = "return_mean", "max"

    @property
    def measure(self) -> str:
        return "squared error per action" if self.codec.choices is None else "nats per choice"

    def adapt(self, model: ModelConfig, examples: Trajectories) -> ModelConfig:
        """Return `model` with timesteps for the longest playable episode, and additional heads to train. UserError if
        there is nothing to evaluate on; ConfigError for next states that are images.
        """
        weight, config = self.config.states, cast(TransformerConfig, model)
        if self.envs is None:
            examples.splits.rows("validation", "an environment for evaluation (task.env)")
        if weight and self.codec.image:
            raise ConfigError(
                f"task.states is {weight}, but the states are images, which cannot be predicted; set it to 0"
            )
        embed = cast(TrajectoryEmbedConfig, config.embed)
        limit = None if self.envs is None else self.envs.horizon
        embed = replace(embed, timesteps=max(embed.timesteps, limit or 0))
        wanted = {name: bool(getattr(self.config, name)) or name in config.heads for name in ("states", "returns")}
        heads, action_head = step_heads(embed, **wanted), config.heads.get("actions")
        if isinstance(action_head, StepHeadConfig) and (action_head.outputs, action_head.tokens) == (
            embed.actions,
            embed.tokens,
        ):
            heads["actions"] = action_head  # with its bias and activation
        return replace(config, embed=embed, heads=heads)

    def counts(self, batch: Batch) -> dict[str, int]:
        """The number of steps with a predicted action, and of those with a successor."""
        counts, (_, following) = {"actions": batch.tokens}, batch.targets
        if following is not None:
            count = int(following.mask.sum())
            counts |= {name: count for name in ("states", "returns") if getattr(self.config, name)}
        return counts

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        encoded: ModelFeatures = model(*batch.inputs)
        total = self._action_loss(*_actions(model, encoded, batch)).sum()
        extra = sum(encoded.auxiliary.values(), total.new_zeros(()))
        losses = {"actions": Loss(total + extra * batch.tokens, batch.tokens)}
        (_, after), counts = batch.targets, self.counts(batch.host)
        if after is None:
            return losses
        for name, target in (("states", after.states), ("returns", after.returns[..., None])):
            if name in counts:
                count = counts[name]
                predicted, actual = (
                    _select(x, after.mask, count) for x in (_head_output(model, name, encoded), target)
                )
                error = (predicted - actual.flatten(1)).square().mean(-1)
                losses[name] = Loss(getattr(self.config, name) * error.sum(), count)
        return losses

    def _action_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each valid step, [N]."""
        if self.codec.choices is not None:
            return F.cross_entropy(output, target, reduction="none")
        return (output - target).square().mean(-1)

    def baseline(self, examples: Trajectories, limit: int) -> Baseline | None:
        """The mean return of the training episodes. No return exceeds the highest reward of a step, in every step."""
        if self.envs is None:
            return None
        episodes = examples.episodes
        recorded = episodes.returns[examples.splits.rows("train")]
        steps, reward = self.envs.horizon, float(episodes.rewards.max())
        highest = None if steps is None else max(steps * reward if reward > 0 else reward, float(recorded.max()))
        return Baseline("the recorded episodes", "return_mean", float(recorded.mean()), highest)

    def evaluate(
        self, model: nn.Module, examples: Trajectories, split: str, limit: int | None = None
    ) -> dict[str, Any]:
        """Return the scores of episodes played from this split's seeds with the target return and, if there are
        held-out episodes, the loss on them with the accuracy of choices. `limit` is the maximum number of each kind of
        episodes. Raises UserError, before any work, for an episode that is too long for the model.
        """
        scores: dict[str, Any] = {}
        windows = None
        if self.envs is None or examples.splits.has_samples(split):
            windows = examples.of(split).limited_to(limit)
            max_length = int((windows.ends - windows.starts).max())
            max_timesteps = cast(TrajectoryEmbed, model.embed).config.timesteps
            if max_length > max_timesteps:
                raise UserError(
                    f"an episode has {max_length:,} steps, but this model has {max_timesteps:,} timesteps; remove the "
                    f"episode, or train a model with model.embed.timesteps={max_length}"
                )
        if self.envs is not None:
            seeds = evaluation_seeds(split, min(self.config.episodes, limit or self.config.episodes))
            played = play(cast(Transformer, model), self.codec, self.envs, examples.codec.target, seeds)
            scores = {"target_return": examples.codec.target, **return_scores(played, self.envs.name)}
            if split == "validation" and isinstance(examples, OnlineEpisodes):
                scores |= {"episodes_played": len(examples.curve), "environment_steps": examples.steps}
        if windows is None:
            return scores
        total, correct, steps = 0.0, 0, 0
        for _, batch in evaluation_batches(model, windows):
            output, target = _actions(model, model(*batch.inputs), batch)
            total += float(self._action_loss(output, target).sum())
            steps += batch.tokens
            if self.codec.choices is not None:
                correct += int((output.argmax(-1) == target).sum())
        scores["loss"] = total / steps
        if self.codec.choices is not None:
            scores |= {"accuracy": correct / steps, "accuracy_interval": wilson_interval(correct, steps)}
        return scores if self.envs is not None else {**scores, "samples": steps}

    def count(self, examples: Trajectories, split: str) -> int:
        return examples.count(split) if self.envs is None else self.config.episodes

    def evaluation_growth(self, scores: Mapping[str, Any]) -> float:
        """A trained model plays as long as the best episode that it learns from."""
        return max(1.0, self.best_length / scores["length_mean"]) if "length_mean" in scores else 1.0

    def report_cost(self) -> float:
        """A few episodes for each of several target returns, and two videos."""
        if self.envs is None:
            return 0.0
        return _REPORT_COST if self.config.condition else 1.0

    def samples(self, model: nn.Module, examples: Trajectories, count: int) -> list[dict[str, str]]:
        """Return the achieved returns for targets from the worst to the best in the training data."""
        if self.envs is None:
            return []
        seeds = range(REPORT_SEEDS, REPORT_SEEDS + min(_EPISODES, len(self.envs)))  # the same starts for all targets
        self._points = [
            Point(target, play(cast(Transformer, model), self.codec, self.envs, target, seeds).returns)
            for target in self._targets(examples, count)
        ]
        return [point.display() for point in self._points]

    def _targets(self, examples: Trajectories, count: int) -> list[float]:
        returns = examples.episodes.returns[examples.splits.indices["train"]]
        if not self.config.condition:
            return [examples.codec.target]
        return np.unique(np.linspace(returns.min(), returns.max(), max(2, count))).tolist()

    def remark(self, model: nn.Module, examples: Trajectories) -> str:
        """Describe the effect of the target return on episodes or, without an environment, on held-out actions."""
        if not self.config.condition:
            return ""
        target_range = self._targets(examples, 2)
        if len(target_range) < 2:
            return f"All training episodes have a return of {target_range[0]:.5g}, so the model knows no other target."
        if self.envs is None:
            return action_effect(model, examples, self.codec, examples.final_split, (target_range[0], target_range[1]))
        if not self._points:
            self.samples(model, examples, _TARGETS)
        return return_effect(self._points)

    def pictures(self, model: nn.Module, examples: Trajectories) -> list[Picture]:
        """Plot returns during online training and achieved against target returns, and draw episodes as film strips if
        rendering works here.
        """
        if self.envs is None:
            return []
        target_range, name = self._targets(examples, 2), self.envs.name
        plots = online_curve(examples.curve) if isinstance(examples, OnlineEpisodes) else []
        if len(self._points) > 1:  # with the line where both are equal
            curves = {
                "achieved": [(point.target, float(point.returns.mean())) for point in self._points],
                "target": [(point.target, point.target) for point in self._points],
            }
            caption = f"averages over {len(self._points[0].returns)} episodes per target return"
            plots.append(Picture("Returns", caption, line_chart(curves, "target return", "return", dots=True)))
        return plots + film_strips(cast(Transformer, model), self.codec, name, target_range)

    def close(self) -> None:
        if self.envs is not None:
            self.envs.close()


def _actions(model: nn.Module, encoded: ModelFeatures, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return predictions and targets for the actions of the valid steps."""
    (_, layout), (actions, _) = batch.inputs, batch.targets
    output = _head_output(model, "actions", encoded)
    return _select(output, layout.mask, batch.tokens), _select(actions, layout.mask, batch.tokens)


def _select(x: Tensor, mask: Bool[Tensor, "B T"], count: int) -> Tensor:
    """The `count` rows of `x`, [B, T, ...], in the mask."""
    return x.flatten(0, 1).index_select(0, true_indices(mask.flatten(), count))


def _head_output(model: nn.Module, head: str, encoded: ModelFeatures) -> Tensor:
    return model.get_submodule(f"heads.{head}")(encoded.x, encoded.layout)


def check_model(model: ModelConfig) -> TransformerConfig:
    """Raises ConfigError for a model that does not take trajectories or attends to future steps."""
    if not isinstance(model, TransformerConfig) or not isinstance(model.embed, TrajectoryEmbedConfig):
        raise ConfigError(
            f"this task needs a model with model.embed=trajectories, but this {type(model).__name__} has another "
            "embed; use the recipe's model, or decision-hopper"
        )
    if not model.stack.causal:
        raise ConfigError("this model attends to future steps, which an agent cannot know; choose causal mixers")
    return model


def _check_spaces(model: TransformerConfig, codec: TrajectoryCodec, started: bool) -> None:
    """ConfigError for a model that takes vectors if the data have images, or the reverse. With `started`, also for a
    model to fine-tune whose weights do not match the data's states or actions. Other models get the data's sizes.
    """
    embed = model.embed
    assert isinstance(embed, TrajectoryEmbedConfig)
    shape, wanted = codec.input_shape, embed.states.shape
    if len(wanted) != len(shape):
        kind = '{"kind": "patches", "patch": [8, 8]}' if codec.image else "numbers"
        raise ConfigError(
            f"the model takes states as {embed.states.kind}, but the data have {numbers_text(*shape)}; "  # type: ignore[attr-defined]
            f"set model.embed.states='{kind}'"
        )
    if not started:
        return
    if wanted != shape:
        raise ConfigError(
            f"the model to fine-tune takes states of {numbers_text(*wanted)}, but the data have "
            f"{numbers_text(*shape)}; use episodes from its environment"
        )
    if (embed.actions, embed.discrete) != (codec.actions, codec.choices is not None):
        model_text = actions_text(embed.actions if embed.discrete else None, embed.actions)
        raise ConfigError(
            f"the model to fine-tune takes actions of {model_text}, but the data have {codec.action_text}; use "
            "episodes from its environment"
        )


class Point(NamedTuple):
    """Returns [E] of the episodes played with a target return."""

    target: float
    returns: np.ndarray

    def display(self) -> dict[str, str]:
        low, high = bootstrap_mean(self.returns)
        mean = float(self.returns.mean())
        return {"asked for": f"{self.target:.5g}", "return": f"{mean:.5g} (95 % from {low:.5g} to {high:.5g})"}


def online_curve(played: Sequence[tuple[float, float, float]]) -> list[Picture]:
    """Plot the mean return of a model's own episodes against their number, with their target returns. `played` has each
    episode's target return, return and steps.
    """
    if len(played) < 2:
        return []
    groups = np.array_split(np.array(played), min(_POINTS, len(played)))
    counts = np.cumsum([len(group) for group in groups]).tolist()
    lines = {
        name: [(float(number), float(group[:, column].mean())) for number, group in zip(counts, groups)]
        for column, name in ((1, "achieved"), (0, "target"))
    }
    caption = f"averages over {len(played):,} episodes played in training, with sampled or noisy actions"
    return [Picture("Training returns", caption, line_chart(lines, "episodes played", "return"))]


@episode_pictures
def film_strips(
    model: Transformer, codec: TrajectoryCodec, environment: str, targets: Sequence[float]
) -> Iterator[FilmedEpisode]:
    """Yield an episode per target return."""
    with VectorEnv(environment, 1, render=True) as envs:
        for target in targets:
            reel = FrameSampler()
            played = play(model, codec, envs, target, [REPORT_SEEDS], reel)
            caption = f"achieved {float(played.returns[0]):.5g} in {played.lengths[0]} steps"
            yield FilmedEpisode(f"An episode with target return {target:.5g}", caption, reel)


def return_effect(points: Sequence[Point]) -> str:
    """Describe how the achieved return depends on the target return; "" for fewer than two different targets."""
    targets = np.array([point.target for point in points])
    if len(points) < 2 or np.ptp(targets) == 0:
        return ""
    means = np.array([point.returns.mean() for point in points])
    share = float(np.polyfit(targets, means, 1)[0])
    targets_text = f"For target returns from {targets.min():.5g} to {targets.max():.5g}"
    reached_text = f"{means.min():.5g}" if np.ptp(means) == 0 else f"from {means.min():.5g} to {means.max():.5g}"
    sentence = f"{targets_text}, the model achieved {reached_text} on average"
    if share < _IGNORES:
        return f"{sentence}: the achieved return does not depend on the target."
    if share < _FOLLOWS:
        return f"{sentence}: it partly follows the target."
    return f"{sentence}: it follows the target."


@torch.no_grad()
def action_effect(
    model: nn.Module, examples: Trajectories, codec: TrajectoryCodec, split: str, targets: tuple[float, float]
) -> str:
    """Describe at how many steps in a split the action depends on the target return; "" without held-out episodes."""
    low, high = targets
    if not examples.splits.has_samples(split) or low == high:
        return ""
    windows = examples.of(split)
    indices = np.arange(min(_WINDOWS, len(windows)))
    batch = windows.take(indices).to(device_of(model))
    (inputs, layout), (actions, _) = batch.inputs, batch.targets
    episode_returns = examples.episodes.returns[windows.episodes[windows.evaluation_windows[2][indices]]]
    outputs = []
    with evaluation_mode(model):
        for target in targets:
            offset = torch.from_numpy(codec.returns(target - episode_returns)).to(inputs.returns.device)[:, None]
            encoded = model(TrajectoryInputs(inputs.returns + offset, *inputs[1:]), layout)
            head = model.get_submodule("heads.actions")
            outputs.append(head(encoded.x, encoded.layout)[layout.mask])
    question = f"With target returns of {low:.5g} and {high:.5g}, the model"
    if codec.choices is not None:
        share = float((outputs[0].argmax(-1) != outputs[1].argmax(-1)).float().mean())
        sentence = f"{question} takes different actions in {100 * share:.1f} % of held-out steps"
    else:
        spread = cast(Tensor, actions)[layout.mask].std(0).mean()
        share = float((outputs[0] - outputs[1]).abs().mean() / spread)
        sentence = f"{question} takes actions that differ by {share:.2g} of their standard deviation on held-out steps"
    return f"{sentence}: the target makes no difference." if share < _SAME else f"{sentence}."
