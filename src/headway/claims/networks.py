"""The small models of the experiments: one block around each mixer, so that only the mixer differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor, nn

from headway.layout import Layout
from headway.mixers import (
    AttentionConfig,
    DeltaConfig,
    ElmanConfig,
    FastWeightsConfig,
    GRUConfig,
    LinearAttentionConfig,
    LSTMConfig,
    MixerConfig,
)
from headway.models import (
    BlockConfig,
    EmbedConfig,
    PooledHeadConfig,
    StackConfig,
    TokenEmbedConfig,
    TransformerConfig,
    describe,
)
from headway.models.pooled import Pool
from headway.parts.feedforward import MLPConfig
from headway.parts.init import InitConfig
from headway.parts.norm import RMSNormConfig
from headway.parts.projection import Projection
from headway.parts.rotary import RotaryConfig
from headway.variants import nearest_width

# Gradients keep their size at the start of Elman networks whose matrices have variance 1 / in: the best start for them.
START = InitConfig(matrices="fan_in", residual="same", embedding=1.0)
# Units that remember from the start (Jozefowicz et al. 2015 give 1, and more where what is to be remembered is old).
FORGET_BIAS = 3.0

MIXERS: dict[str, MixerConfig] = {
    "elman": ElmanConfig(),
    "lstm": LSTMConfig(forget_bias=FORGET_BIAS),
    "gru": GRUConfig(),
    "attention": AttentionConfig(heads=2, rotary=RotaryConfig()),
}
LINEAR: dict[str, MixerConfig] = {
    "linear attention": LinearAttentionConfig(heads=1, features="dpfp"),
    "fast weights": FastWeightsConfig(heads=1),
    "delta": DeltaConfig(heads=1),
}


@dataclass(frozen=True)
class NumbersEmbedConfig(EmbedConfig):
    """Reads `channels` numbers a token in place of a symbol."""

    channels: int = 2

    def build(self, width: int, symbols: int, context: int | None) -> NumbersEmbed:
        return NumbersEmbed(self.channels, width)


class NumbersEmbed(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.project = Projection(channels, width)

    def whole(self, inputs: Float[Tensor, "B T N"]) -> Layout:
        return Layout.full(*inputs.shape[:2], device=inputs.device)

    def forward(self, inputs: Float[Tensor, "B T N"], layout: Layout) -> tuple[Float[Tensor, "B T D"], Layout]:
        return self.project(inputs), layout


def network(
    mixers: MixerConfig | Sequence[MixerConfig],
    *,
    width: int,
    outputs: int,
    symbols: int = 0,
    types: int = 0,
    channels: int = 0,
    pool: Pool = "last",
) -> TransformerConfig:
    """A block a mixer (norm, mixer, norm, feed-forward, both added to what they read) and a linear answer.

    Reads `symbols`, which may have `types`, or else `channels` numbers a token; answers with `outputs` numbers at the
    last token, or at all of them.
    """
    chain = (mixers,) if isinstance(mixers, MixerConfig) else tuple(mixers)
    blocks = tuple(BlockConfig(mixer, feed_forward=MLPConfig(ratio=2.0), norm=RMSNormConfig()) for mixer in chain)
    return TransformerConfig(
        width=width,
        symbols=symbols,
        stack=StackConfig(blocks, norm=RMSNormConfig()),
        embed=NumbersEmbedConfig(channels) if channels else TokenEmbedConfig(types=types),
        heads={"answer": PooledHeadConfig(outputs, pool)},
        tie="none",
        init=START,
    )


def size(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def widened(config: TransformerConfig, parameters: int) -> TransformerConfig:
    """The config at the width, a multiple of 4, that brings its size nearest to so many parameters."""

    def at(width: int) -> TransformerConfig:
        return replace(config, width=width)

    return at(nearest_width(lambda width: describe(at(width))["parameters"], parameters, step=4))
