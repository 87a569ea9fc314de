"""CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023): an image tower and a text tower of the published sizes."""

from __future__ import annotations

import math

from headway.mixers import AttentionConfig
from headway.models.block import BlockConfig
from headway.models.embeds import TokenEmbedConfig
from headway.models.heads import HeadConfig
from headway.models.patches import PatchEmbedConfig
from headway.models.pooled import PooledHeadConfig
from headway.models.probe import ProbeHeadConfig
from headway.models.stack import StackConfig, cycle
from headway.models.transformer import TransformerConfig
from headway.models.two_tower import HEAD, TwoTowerConfig
from headway.parts.feedforward import MLPConfig
from headway.parts.norm import LayerNormConfig, NormConfig
from headway.parts.positions import LearnedConfig
from headway.visibility import Causal, Full, Pattern

Sizes = tuple[int, int, int]  # width, depth, heads


def clip(
    images: Sizes,
    texts: Sizes,
    shared: int,
    patch: int,
    size: int = 224,
    symbols: int = 49408,
    context: int = 77,
    dropout: float = 0.0,
) -> TwoTowerConfig:
    """Radford et al. 2021, section 2.4: a vision transformer with a norm before its stack, and a causal text tower
    that is read at the end of a text, the last of its symbols.
    """
    norm = LayerNormConfig(1e-5)
    embed = PatchEmbedConfig((patch, patch), (size, size), bias=False, norm=norm, dropout=dropout)
    left = PooledHeadConfig(shared, bias=False)
    right = PooledHeadConfig(shared, pool="last", bias=False)
    return TwoTowerConfig(
        TransformerConfig(
            images[0], 0, None, _stack(images, Full(), "quick_gelu", norm, dropout), embed, _head(left), "none"
        ),
        TransformerConfig(
            texts[0],
            symbols,
            context,
            _stack(texts, Causal(), "quick_gelu", norm, dropout),
            TokenEmbedConfig(LearnedConfig(), dropout=dropout),
            _head(right),
            "none",
        ),
        end=symbols - 1,
    )


def siglip(sizes: Sizes, patch: int = 16, size: int = 224, symbols: int = 32000, context: int = 64) -> TwoTowerConfig:
    """Zhai et al. 2023: both towers see both ways, the image's is pooled by a probe, the text's by its last symbol,
    which is mostly filling.
    """
    norm, activation = LayerNormConfig(1e-6), "gelu_tanh"
    embed = PatchEmbedConfig((patch, patch), (size, size), tokens=0)
    probe = ProbeHeadConfig(sizes[2], MLPConfig(activation=activation), norm)
    stack, last = _stack(sizes, Full(), activation, norm), PooledHeadConfig(sizes[0], pool="last")
    return TwoTowerConfig(
        TransformerConfig(sizes[0], 0, None, stack, embed, _head(probe), "none"),
        TransformerConfig(sizes[0], symbols, context, stack, TokenEmbedConfig(LearnedConfig()), _head(last), "none"),
        scale=math.log(10),
        bias=-10.0,
        filler=1,
    )


def _stack(sizes: Sizes, pattern: Pattern, activation: str, norm: NormConfig, dropout: float = 0.0) -> StackConfig:
    _, depth, heads = sizes
    feed = MLPConfig(activation=activation)  # type: ignore[arg-type]
    block = BlockConfig(AttentionConfig(heads, pattern=pattern), None, feed, norm, dropout=dropout)
    return StackConfig(cycle((block,), depth), norm)


def _head(head: HeadConfig) -> dict[str, HeadConfig]:
    return {HEAD: head}
