"""The task over an environment: what a policy does there is what it learns from, and it is judged by playing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from headway.domains.agents import pictures
from headway.domains.agents.acting import play
from headway.domains.agents.codec import AgentCodec
from headway.domains.agents.distributions import distribution
from headway.domains.agents.experience import Estimation, Experience
from headway.domains.agents.objective import ExperienceBatch, batch_of, surrogate, value_error
from headway.domains.agents.windows import policy_of, value_of
from headway.environments import PICTURED, Copies, seeds_of, worth
from headway.errors import ConfigError, UserError
from headway.models import (
    GaussianHeadConfig,
    Loss,
    ModelConfig,
    PooledHeadConfig,
    StatesEmbedConfig,
    Transformer,
    TransformerConfig,
    policy_head,
)
from headway.parts.positions import LearnedConfig
from headway.report import Picture
from headway.train import WHOLE, Shard

if TYPE_CHECKING:
    from headway.domains.agents.config import PPOConfig

_ORDER = 16  # so that the order of steps has nothing to do with other draws from the same seed


class Agents:
    """Proximal policy optimisation (Schulman et al. 2017, algorithm 1).

    `copies` are those of the environment in which the policy learns, `judged` others, in which it plays. `rows` is the
    number of steps in a batch.
    """

    unit, goal = "timestep", "return_mean"
    goal_better: Literal["min", "max"] = "max"
    measure = "clipped objective, value error and entropy"
    final_split = "test"

    def __init__(
        self, config: PPOConfig, codec: AgentCodec, copies: Copies, judged: Copies, rows: int, seed: int
    ) -> None:
        self.config, self.codec, self.copies, self.judged = config, codec, copies, judged
        self.rows, self.seed = rows, seed
        self.experience: Experience | None = None

    @property
    def gathered(self) -> int:
        """Steps of the environment that are learnt from at a time."""
        return self.config.copies * self.config.steps

    @property
    def period(self) -> int:
        return self.config.epochs * (self.gathered // self.rows)

    def adapt(self, model: ModelConfig) -> TransformerConfig:
        """`model` with the sizes of states and actions, and positions where it sees several states at once."""
        config = cast(TransformerConfig, model)
        embed, context = cast(StatesEmbedConfig, config.embed), self.config.context
        positions = embed.positions or (LearnedConfig() if context > 1 else None)
        embed = replace(embed, states=replace(embed.states, size=self.codec.states), positions=positions)
        discrete, own = self.codec.choices is not None, config.heads["policy"]
        if (discrete and isinstance(own, PooledHeadConfig)) or (not discrete and isinstance(own, GaussianHeadConfig)):
            policy = replace(own, outputs=self.codec.actions)
        else:
            policy = policy_head(self.codec.actions, discrete, self.config.std)
        heads = {**config.heads, "policy": policy}
        return replace(config, embed=embed, heads=heads, context=context if context > 1 else config.context)

    def explore(self, model: nn.Module) -> None:
        estimation = Estimation(self.config.discount, self.config.trace, self.config.scale_rewards)
        module = cast(Transformer, model)
        self.experience = Experience(module, self.copies, self.codec, estimation, self.seed)

    def explored(self) -> dict[str, Tensor]:
        return self._experience.state()

    def go_on(self, state: Mapping[str, Tensor]) -> None:
        self._experience.restore(state)

    @property
    def _experience(self) -> Experience:
        assert self.experience is not None  # which the learner begins
        return self.experience

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[ExperienceBatch]:
        """Batch k is of the steps of period k // `period`, each of which comes once in an epoch, in an order by the
        seed and the epoch. UserError for other splits, which hold nothing, and for several processes.
        """
        if split != "train":
            raise UserError(f"the {split} split of an environment is played, and holds no batches; use train")
        if shard.world > 1:
            raise UserError(f"{shard.world} processes cannot share one agent's experience; train it with one")
        experience, each = self._experience, self.gathered // self.rows
        for number in count(start):
            if number % self.period == 0:
                experience.gather(self.config.steps)
            epoch, place = divmod(number, each)
            order = np.random.default_rng([_ORDER, self.seed, epoch]).permutation(self.gathered)
            rows = torch.from_numpy(order[place * self.rows : (place + 1) * self.rows])
            assert experience.latest is not None  # which a checkpoint holds
            yield batch_of(experience.latest, rows)

    def loss(self, model: nn.Module, batch: ExperienceBatch) -> dict[str, Loss]:
        """Schulman et al. 2017, equation 9: the clipped objective, the weighted error of values and, less than 0, the
        weighted entropy.
        """
        module, config, steps = cast(Transformer, model), self.config, batch.steps
        encoded = module(steps.windows, batch.layout)
        policy = distribution(policy_of(module, encoded), self.codec.choices is not None)
        value = value_of(module, encoded)
        better = surrogate(policy, steps.actions, steps.log_probabilities, steps.advantages, config.clip).sum()
        extra = sum(encoded.auxiliary.values(), better.new_zeros(()))
        error = value_error(value, steps.values, batch.targets, config.value_clip).sum()
        entropy = policy.entropy().sum()
        return {
            "policy": Loss(better + extra * batch.tokens, batch.tokens),
            "value": Loss(config.value * error, batch.tokens),
            "entropy": Loss(-config.entropy * entropy, batch.tokens),
        }

    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, Any]:
        """What episodes are worth that are played from seeds of this split alone, at most `limit`; while it learns also
        the steps of the environment so far.
        """
        seeds = seeds_of(split, min(self.config.episodes, limit or self.config.episodes))
        scores = worth(play(cast(Transformer, model), self.codec, self.judged, seeds), self.judged.name)
        if split == "validation" and self.experience is not None:
            scores["environment_steps"] = self.experience.steps
        return scores

    def lengthening(self, scores: Mapping[str, Any]) -> float:
        """An agent that has learnt may stay in the game until the limit of steps."""
        limit = self.judged.horizon if self.codec.horizon is None else self.codec.horizon
        return max(1.0, (limit or 0) / max(1.0, scores["length_mean"]))

    def showing(self) -> float:
        """An episode on film."""
        return 1.0

    def count(self, split: str) -> int:
        return self.config.episodes

    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        """What a few episodes are worth."""
        if not count:
            return []
        found = play(cast(Transformer, model), self.codec, self.judged, range(PICTURED, PICTURED + count))
        return [{"return": f"{each:.5g}", "steps": str(length)} for each, length in zip(found.returns, found.lengths)]

    def pictures(self, model: nn.Module) -> list[Picture]:
        """Returns over the steps of the environment, and an episode as a strip of film where it can be drawn here."""
        curve = [] if self.experience is None else pictures.learning_curve(self.experience.curve)
        return curve + pictures.film_strip(cast(Transformer, model), self.codec, self.judged.name)

    def save(self, directory: Path) -> None:
        self.codec.save(directory)

    def close(self) -> None:
        self.copies.close()
        self.judged.close()


def check_model(model: ModelConfig) -> TransformerConfig:
    """ConfigError for a model that is no policy with a value."""
    if not (isinstance(model, TransformerConfig) and isinstance(model.embed, StatesEmbedConfig)):
        raise ConfigError(
            f"{type(model).__name__} reads no states, so it is no agent's; leave the model of the recipe ppo as it is, "
            "and set model.width, model.depth or model.mixer"
        )
    if not {"policy", "value"} <= set(model.heads):
        raise ConfigError(f"the model has the heads {', '.join(model.heads)}; an agent needs policy and value")
    return model
