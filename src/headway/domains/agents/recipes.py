"""The recipe for agents that learn online."""

from __future__ import annotations

from headway.domains.agents.task import PPOConfig
from headway.learn import AdamWConfig, Recipe, TrainConfig, WSDConfig
from headway.nn.models.agents import actor_critic


def ppo() -> Recipe:
    """Any environment with vector states and discrete or continuous actions."""
    return Recipe(
        name="ppo",
        domain="agents",
        description="an agent that learns online in an environment: --set task.env=CartPole-v1 (extra rl)",
        data=(),
        model=actor_critic(),
        task=PPOConfig(),
        optim=AdamWConfig(lr=1e-3, betas=(0.9, 0.999), eps=1e-5, weight_decay=0.0),
        schedule=WSDConfig(warmup=0.0, decay=0.8),
        train=TrainConfig(steps=6400, batch_size=256, clip=0.5, precision="fp32", checkpoint_every=0),
        expected="CartPole 500, Acrobot -78, LunarLander 286 after 20, 60 and 120 seconds on one core",
    )


RECIPES = (ppo,)
