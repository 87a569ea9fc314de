"""The recipe for learning from rewards that can be checked."""

from __future__ import annotations

from headway.domains.reward.task import RewardConfig
from headway.learn import AdamWConfig, Recipe, TrainConfig
from headway.learn.recipe import generic
from headway.nn.models.presets import decoder


def reward() -> Recipe:
    """Prompts whose answers can be checked, for a model that sometimes answers correctly."""
    return generic(
        "reward",
        "reward",
        "prompts (.jsonl with prompt, or .txt) and --reward: learn from rewards of sampled answers; needs --from",
        model=decoder(width=256, depth=4, heads=4, kv_heads=4, hidden=None, vocab_size=4096, context=512),
        task=RewardConfig(),
        optim=AdamWConfig(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0),
        train=TrainConfig(steps=300, batch_size=128, precision="fp32"),
        expected="sums of a small GPT from 42 to 73 % correct in 70 core-seconds (benchmarks/rewards.py)",
    )


RECIPES = (reward,)
