"""Classifiers of sounds: by patches of the spectrogram, by its steps of time, and by Whisper's encoder."""

from __future__ import annotations

from headway.mixers import AttentionConfig
from headway.models.block import BlockConfig
from headway.models.frames import FramesEmbedConfig
from headway.models.pooled import DistilledHeadConfig, PooledHeadConfig
from headway.models.spectrogram import SpectrogramEmbedConfig
from headway.models.stack import StackConfig, cycle
from headway.models.transformer import TransformerConfig
from headway.parts.feedforward import MLPConfig
from headway.parts.init import InitConfig
from headway.parts.norm import LayerNormConfig
from headway.visibility import Full

# From weights of 0.02, as large models have them, what a small one hears is a twentieth of its positions at first.
_INIT = InitConfig(matrices="fan_in", head="zero")


def ast(
    width: int, depth: int, heads: int, classes: int = 527, frames: int = 1024, bands: int = 128
) -> TransformerConfig:
    """The audio spectrogram transformer (Gong et al. 2021): DeiT over patches of 16 x 16, one every 10 x 10."""
    norm = LayerNormConfig(1e-6)
    block = BlockConfig(AttentionConfig(heads, pattern=Full()), None, MLPConfig(activation="gelu"), norm)
    embed = SpectrogramEmbedConfig(frames, bands, (16, 16), (10, 10), tokens=2)
    stack = StackConfig(cycle((block,), depth), norm)
    return TransformerConfig(
        width, stack=stack, embed=embed, heads={"classes": DistilledHeadConfig(classes)}, tie="none", init=_INIT
    )


def kwt(
    width: int, depth: int, heads: int, classes: int = 35, frames: int = 98, bands: int = 40, dropout: float = 0.0
) -> TransformerConfig:
    """The keyword transformer (Berg et al. 2021): each frame is a token, norms after the sums. Theirs are 40 MFCC."""
    block = BlockConfig(
        AttentionConfig(heads, pattern=Full()), None, MLPConfig(activation="gelu"), placement="post", dropout=dropout
    )
    embed = SpectrogramEmbedConfig(frames, bands, (1, bands), (1, bands))
    stack = StackConfig(cycle((block,), depth), None)
    return TransformerConfig(
        width, stack=stack, embed=embed, heads={"classes": PooledHeadConfig(classes)}, tie="none", init=_INIT
    )


def listener(
    width: int, depth: int, heads: int, classes: int, context: int = 1500, bands: int = 80, dropout: float = 0.0
) -> TransformerConfig:
    """Whisper's encoder, whose convolutions suit small data, and the mean of what it says. `context` counts 20 ms."""
    block = BlockConfig(AttentionConfig(heads, pattern=Full()), None, MLPConfig(activation="gelu"), dropout=dropout)
    stack = StackConfig(cycle((block,), depth))
    return TransformerConfig(
        width,
        0,
        context,
        stack,
        FramesEmbedConfig(bands),
        {"classes": PooledHeadConfig(classes, "mean")},
        "none",
        _INIT,
    )
