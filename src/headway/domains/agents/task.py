"""Agents that learn online, from their own steps in an environment, and are evaluated by playing there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config_kinds import deferred_check, register
from headway.domains.agents.agent_policy import (
    AgentCodec,
    Categorical,
    Normal,
    distribution,
    layout_of,
    play,
    policy_output,
)
from headway.domains.agents.experience import Estimation, Experience, PolicySteps, value_output
from headway.environments.factory import ENV_VARIABLE, playable_environments
from headway.environments.rollouts import MAX_PARALLEL, REPORT_SEEDS, evaluation_seeds, return_scores
from headway.environments.vector_env import VectorEnv
from headway.errors import ConfigError, UserError
from headway.learn import FULL_SHARD, Recipe, Shard, Task, TaskConfig
from headway.learn.examples import Batch, Contents, OnPolicyExamples
from headway.learn.objective import Objective
from headway.learn.report import Picture, line_chart
from headway.learn.report.pictures import FilmedEpisode, FrameSampler, episode_pictures
from headway.nn.models import (
    GaussianHeadConfig,
    Loss,
    ModelConfig,
    PooledHeadConfig,
    StatesEmbedConfig,
    Transformer,
    TransformerConfig,
    policy_head,
)
from headway.nn.parts.positions import LearnedConfig

_EPS = 1e-8
_POINTS = 200  # maximum points of a curve
_ORDER = 16  # random stream, independent of others with the same seed


@register("ppo")
@deferred_check
@dataclass(frozen=True)
class PPOConfig(TaskConfig):
    """Learn in the environment `env`, or in the one set by HEADWAY_ENV, by proximal policy optimisation (Schulman et
    al. 2017).

    In each period the policy takes `steps` steps in each of `num_envs` parallel environments and learns from them for
    `epochs` epochs. A reward after t steps is weighted by `discount`^t; `trace` is the lambda of generalised advantage
    estimation. `clip` bounds how much an action's probability changes in a period, and `value_clip` how much a value
    does (none: unbounded). `value` and `entropy` are the loss weights of the value error and the entropy bonus.
    Continuous actions start with the standard deviation `std`, relative to half their range. `scale_rewards` divides
    rewards by the standard deviation of the returns.

    The policy takes the last `context` states. An episode is truncated after `horizon` steps (none: the environment's
    own limit); the value of its last state still counts. Each evaluation plays `episodes` episodes with the most
    probable actions or, with `draw`, with sampled actions as in training.
    """

    env: str | None = None  # Gymnasium id of the environment
    num_envs: int = 16  # parallel environments
    steps: int = 256  # steps per environment and period
    epochs: int = 8  # epochs over the steps of a period
    discount: float = 0.995  # discount factor per step
    trace: float = 0.95
    clip: float = 0.2
    value_clip: float | None = None  # bound on the change of a value in a period
    value: float = 0.5  # weight of the value error
    entropy: float = 0.01  # weight of the entropy bonus
    std: float = 1.0  # initial standard deviation of continuous actions
    scale_rewards: bool = True
    context: int = 1  # states that the policy takes
    horizon: int | None = None  # steps after which an episode is truncated
    episodes: int = 16  # episodes to play per evaluation
    draw: bool = False  # sample actions in evaluations

    generates_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("num_envs", "steps", "epochs", "context", "episodes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"task.{name} is {getattr(self, name)}; choose 1 or more")
        if self.horizon is not None and self.horizon < 1:
            raise ConfigError(f"task.horizon is {self.horizon}; choose 1 or more, or none")
        for name in ("discount", "trace"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"task.{name} is {getattr(self, name)}; choose a number from 0 to 1")
        if not self.clip > 0 or (self.value_clip is not None and not self.value_clip > 0):
            raise ConfigError(f"task.clip is {self.clip}, task.value_clip {self.value_clip}; choose numbers above 0")
        if not self.std > 0:
            raise ConfigError(f"task.std is {self.std}; choose a standard deviation above 0")
        if min(self.value, self.entropy) < 0:
            raise ConfigError(f"task.value is {self.value}, task.entropy {self.entropy}; choose 0 or more")

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for an unknown environment, or one in which headway's agents cannot learn."""
        if recipe.data:
            raise UserError(
                f"an agent learns only from its environment and does not take data ({recipe.data[0]}); remove --data, "
                "or use the trajectories recipe to learn from episodes"
            )
        model = recipe.model
        if not (isinstance(model, TransformerConfig) and isinstance(model.embed, StatesEmbedConfig)):
            raise ConfigError(
                f"{type(model).__name__} does not take states, so it cannot be an agent; keep the model from the "
                "recipe ppo, and set model.width, model.depth or model.mixer"
            )
        if not {"policy", "value"} <= set(model.heads):
            raise ConfigError(f"the model only has the heads {', '.join(model.heads)}; add policy and value")
        rows, total = recipe.train.rows(1), self.num_envs * self.steps
        if total % rows:
            raise ConfigError(
                f"batches of {rows} steps do not divide the {total:,} steps per period "
                f"(task.num_envs={self.num_envs} x task.steps={self.steps}); "
                f"set train.batch_size to a divisor such as {max(d for d in range(1, rows + 1) if total % d == 0)}"
            )
        (name,) = playable_environments([""], self.env, True, "episodes")
        if not name:
            raise UserError(
                "no environment is set; set task.env=CartPole-v1 or another Gymnasium id, or "
                f"{ENV_VARIABLE}=module:Name for your own"
            )
        with ExitStack() as stack:
            envs = stack.enter_context(VectorEnv(name, self.num_envs))
            codec = AgentCodec.of(envs, self.context, self.horizon, self.draw)
            evaluation_envs = stack.enter_context(VectorEnv(name, min(MAX_PARALLEL, self.episodes)))
            stack.pop_all()  # closed only if an exception is raised
        return Task(
            RolloutExamples(self, codec, envs, rows, recipe.train.seed), ClippedPolicy(self, codec, evaluation_envs)
        )


class StepTargets(NamedTuple):
    """B steps: actions with their log probabilities, value estimates, advantages and target returns."""

    actions: Tensor
    log_probabilities: Float[Tensor, "B"]
    values: Float[Tensor, "B"]
    advantages: Float[Tensor, "B"]
    returns: Float[Tensor, "B"]


class RolloutExamples(OnPolicyExamples):
    """The steps that a learning policy takes in `envs`, in batches of `rows`. `experience` belongs to the model in
    training.
    """

    def __init__(self, config: PPOConfig, codec: AgentCodec, envs: VectorEnv, rows: int, seed: int) -> None:
        self.config, self.codec, self.envs, self.rows, self.seed = config, codec, envs, rows, seed
        self.experience: Experience | None = None

    @property
    def steps_per_period(self) -> int:
        """Environment steps per period."""
        return self.config.num_envs * self.config.steps

    @property
    def rollout_batches(self) -> int:
        return self.config.epochs * (self.steps_per_period // self.rows)

    def contents(self) -> Contents:
        return {"environments": ([self.envs.name],)}

    @property
    def final_split(self) -> str:
        return "test"

    def adapt(self, model: ModelConfig) -> TransformerConfig:
        """Return `model` with the state size, and with positions if it takes several states at once."""
        config = cast(TransformerConfig, model)
        embed, context = cast(StatesEmbedConfig, config.embed), self.config.context
        positions = embed.positions or (LearnedConfig() if context > 1 else None)
        embed = replace(embed, states=replace(embed.states, size=self.codec.states), positions=positions)
        return replace(config, embed=embed, context=context if context > 1 else config.context)

    def start_exploring(self, model: nn.Module) -> None:
        estimation = Estimation(self.config.discount, self.config.trace, self.config.scale_rewards)
        self.experience = Experience(cast(Transformer, model), self.envs, self.codec, estimation, self.seed)

    def exploration_state(self) -> dict[str, Tensor]:
        return self._experience.state()

    def load_exploration_state(self, state: Mapping[str, Tensor]) -> None:
        self._experience.restore(state)

    @property
    def _experience(self) -> Experience:
        assert self.experience is not None  # set by start_exploring
        return self.experience

    def batches(self, split: str, shard: Shard = FULL_SHARD, start: int = 0) -> Iterator[Batch]:
        """Batch k has steps from period k // `period`. Each step occurs once per epoch, in an order that depends on the
        seed and the epoch. One process has all batches. UserError for other splits, which have no batches.
        """
        if split != "train":
            raise UserError(
                f"the {split} split of an environment is evaluated by playing and has no batches; use train"
            )
        experience, batches_per_epoch = self._experience, self.steps_per_period // self.rows
        for number in count(start):
            if number % self.rollout_batches == 0:
                experience.gather(self.config.steps)
            epoch, index = divmod(number, batches_per_epoch)
            order = np.random.default_rng([_ORDER, self.seed, epoch]).permutation(self.steps_per_period)
            rows = torch.from_numpy(order[index * self.rows : (index + 1) * self.rows])
            assert experience.latest is not None  # restored from the checkpoint
            yield make_batch(experience.latest, rows)

    def close(self) -> None:
        self.envs.close()


class ClippedPolicy(Objective[RolloutExamples]):
    """Proximal policy optimisation (Schulman et al. 2017, algorithm 1), evaluated by playing in separate `envs`."""

    unit, goal = "timestep", "return_mean"
    goal_better: Literal["min", "max"] = "max"

    def __init__(self, config: PPOConfig, codec: AgentCodec, envs: VectorEnv) -> None:
        self.config, self.codec, self.envs = config, codec, envs
        self.discrete = codec.choices is not None

    @property
    def measure(self) -> str:
        return "clipped objective, value error and entropy"

    def adapt(self, model: ModelConfig, examples: RolloutExamples) -> ModelConfig:
        """Return `model` with a head for the environment's actions."""
        config = cast(TransformerConfig, model)
        policy_config = config.heads["policy"]
        if isinstance(policy_config, PooledHeadConfig if self.discrete else GaussianHeadConfig):
            policy = replace(cast(Any, policy_config), outputs=self.codec.actions)
        else:
            policy = policy_head(self.codec.actions, self.discrete, self.config.std)
        return replace(config, heads={**config.heads, "policy": policy})

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        """Schulman et al. 2017, equation 9: the clipped objective, the weighted value error and the negated weighted
        entropy.
        """
        module, config, targets = cast(Transformer, model), self.config, cast(StepTargets, batch.targets)
        encoded = module(*batch.inputs)
        policy = distribution(policy_output(module, encoded), self.discrete)
        value = value_output(module, encoded)
        policy_loss = surrogate(
            policy, targets.actions, targets.log_probabilities, targets.advantages, config.clip
        ).sum()
        extra = sum(encoded.auxiliary.values(), policy_loss.new_zeros(()))
        error = value_error(value, targets.values, targets.returns, config.value_clip).sum()
        entropy = policy.entropy().sum()
        return {
            "policy": Loss(policy_loss + extra * batch.tokens, batch.tokens),
            "value": Loss(config.value * error, batch.tokens),
            "entropy": Loss(-config.entropy * entropy, batch.tokens),
        }

    def evaluate(
        self, model: nn.Module, examples: RolloutExamples, split: str, limit: int | None = None
    ) -> dict[str, Any]:
        """Return the scores of up to `limit` episodes played from this split's seeds; during training also the
        environment steps so far.
        """
        seeds = evaluation_seeds(split, min(self.config.episodes, limit or self.config.episodes))
        scores = return_scores(play(cast(Transformer, model), self.codec, self.envs, seeds), self.envs.name)
        if split == "validation" and examples.experience is not None:
            scores["environment_steps"] = examples.experience.steps
        return scores

    def count(self, examples: RolloutExamples, split: str) -> int:
        return self.config.episodes

    def evaluation_growth(self, scores: Mapping[str, Any]) -> float:
        """A trained agent may survive until the step limit."""
        limit = self.envs.horizon if self.codec.horizon is None else self.codec.horizon
        return max(1.0, (limit or 0) / max(1.0, scores["length_mean"]))

    def report_cost(self) -> float:
        """One episode as a video."""
        return 1.0

    def samples(self, model: nn.Module, examples: RolloutExamples, count: int) -> list[dict[str, str]]:
        """Return the results from a few episodes."""
        if not count:
            return []
        played = play(cast(Transformer, model), self.codec, self.envs, range(REPORT_SEEDS, REPORT_SEEDS + count))
        return [
            {"return": f"{episode_return:.5g}", "steps": str(length)}
            for episode_return, length in zip(played.returns, played.lengths)
        ]

    def pictures(self, model: nn.Module, examples: RolloutExamples) -> list[Picture]:
        """Plot returns against environment steps, and draw an episode as a film strip if rendering works here."""

        @episode_pictures
        def film_strip() -> Iterator[FilmedEpisode]:
            reel = FrameSampler()
            with VectorEnv(self.envs.name, 1, render=True) as envs:
                played = play(cast(Transformer, model), self.codec, envs, [REPORT_SEEDS], reel)
            caption = f"return {float(played.returns[0]):.5g} in {played.lengths[0]} steps"
            yield FilmedEpisode("An episode", caption, reel)

        curve = [] if examples.experience is None else learning_curve(examples.experience.curve)
        return curve + film_strip()

    def close(self) -> None:
        self.envs.close()


def learning_curve(curve: Sequence[tuple[float, float, float]]) -> list[Picture]:
    """Plot the mean return of finished episodes against the steps in all environments. Each line of `curve` has the
    steps, the mean return and the number of episodes.
    """
    lines = np.array(curve).reshape(-1, 3)
    points = []
    for group in np.array_split(lines, min(_POINTS, max(1, len(lines)))):
        weights = group[:, 2]
        if weights.sum():
            points.append((float(group[-1, 0]), float((np.nan_to_num(group[:, 1]) * weights).sum() / weights.sum())))
    if len(points) < 2:
        return []
    chart = line_chart({"training": points}, "environment steps", "return")
    caption = f"averages over {int(lines[:, 2].sum()):,} training episodes with sampled actions"
    return [Picture("Training returns", caption, chart)]


def make_batch(steps: PolicySteps, rows: Int[Tensor, "B"]) -> Batch:
    """Return a batch of these steps, with advantages normalised to mean 0 and standard deviation 1; `computed` counts
    the states that the model takes.
    """
    chosen = PolicySteps(*(tensor[rows] for tensor in steps))
    centred = chosen.advantages - chosen.advantages.mean()
    advantages, returns = centred / (centred.square().mean().sqrt() + _EPS), chosen.advantages + chosen.values
    targets = StepTargets(chosen.actions, chosen.log_probabilities, chosen.values, advantages, returns)
    context = chosen.windows.shape[1]
    inputs = chosen.windows, layout_of(chosen.lengths.numpy(), context)
    return Batch(inputs, targets, len(rows), len(rows) * context)


def surrogate(
    policy: Categorical | Normal,
    actions: Tensor,
    before: Float[Tensor, "B"],
    advantages: Float[Tensor, "B"],
    clip: float,
) -> Float[Tensor, "B"]:
    """Schulman et al. 2017, equation 7, negated for minimisation. `before` are the log probabilities at the time the
    actions were taken.
    """
    ratio = (policy.log_probability(actions) - before).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def value_error(
    values: Float[Tensor, "B"], before: Float[Tensor, "B"], targets: Float[Tensor, "B"], clip: float | None
) -> Float[Tensor, "B"]:
    """Half the squared error; with `clip`, at least that of the value clipped to a range around the value `before`."""
    error = (values - targets).square()
    if clip is not None:
        clipped = before + (values - before).clamp(-clip, clip)
        error = torch.maximum(error, (clipped - targets).square())
    return 0.5 * error
