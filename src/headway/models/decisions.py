"""Decision Transformers of the published sizes (Chen et al. 2021)."""

from __future__ import annotations

from headway.mixers import AttentionConfig
from headway.models.block import BlockConfig
from headway.models.observations import ConvolutionsConfig, NumbersConfig
from headway.models.stack import StackConfig, cycle
from headway.models.trajectories import StepHeadConfig, TrajectoryEmbedConfig, step_heads
from headway.models.transformer import TransformerConfig
from headway.parts.feedforward import MLPConfig
from headway.parts.norm import LayerNormConfig
from headway.parts.positions import LearnedConfig


def decision_gym(
    states: int = 1,
    actions: int = 1,
    *,
    discrete: bool = False,
    width: int = 128,
    depth: int = 3,
    heads: int = 1,
    timesteps: int = 1000,
    dropout: float = 0.1,
    extra: bool = False,
) -> TransformerConfig:
    """The one for OpenAI Gym: GPT-2's blocks with ReLU, no positions but the timesteps. `extra` adds the heads that say
    the next state and return, which the paper did not train.
    """
    mixer, feed = AttentionConfig(heads, dropout=dropout), MLPConfig(activation="relu")
    block = BlockConfig(mixer, None, feed, LayerNormConfig(), dropout=dropout)
    embed = TrajectoryEmbedConfig(NumbersConfig(states), actions, discrete, timesteps=timesteps, dropout=dropout)
    said = step_heads(embed, states=extra, returns=extra)
    return TransformerConfig(
        width, stack=StackConfig(cycle((block,), depth), LayerNormConfig()), embed=embed, heads=said, tie="none"
    )


def decision_atari(
    choices: int = 4, steps: int = 30, timesteps: int = 10_000, dropout: float = 0.1
) -> TransformerConfig:
    """The one for Atari, by default of Breakout's four actions: frames by convolutions, positions of tokens, the
    timestep of a row's first step, tanh after each map, GELU.
    """
    block = BlockConfig(
        AttentionConfig(8, dropout=dropout), None, MLPConfig(activation="gelu"), LayerNormConfig(), dropout=dropout
    )
    embed = TrajectoryEmbedConfig(
        ConvolutionsConfig(),
        choices,
        discrete=True,
        timesteps=timesteps,
        anchored=True,
        activation="tanh",
        positions=LearnedConfig(),
        norm=None,
        dropout=dropout,
    )
    return TransformerConfig(
        128,
        context=steps * embed.tokens,
        stack=StackConfig(cycle((block,), 6), LayerNormConfig()),
        embed=embed,
        heads={"actions": StepHeadConfig(choices, 1, embed.tokens, bias=False)},
        tie="none",
    )
