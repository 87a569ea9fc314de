"""Vision transformers of the published sizes."""

from __future__ import annotations

from dataclasses import replace

from headway.mixers import AttentionConfig
from headway.models.block import BlockConfig
from headway.models.patches import PatchEmbedConfig
from headway.models.pooled import DistilledHeadConfig, PooledHeadConfig
from headway.models.stack import StackConfig, cycle
from headway.models.transformer import TransformerConfig
from headway.parts.feedforward import MLPConfig
from headway.parts.init import InitConfig
from headway.parts.norm import LayerNormConfig
from headway.visibility import Full


def vit(width: int, depth: int, heads: int, patch: int, classes: int = 1000, size: int = 224) -> TransformerConfig:
    """Dosovitskiy et al. 2021, table 1, and the smaller ones of Touvron et al. 2021: pre-norm, a class token."""
    norm = LayerNormConfig(1e-6)
    block = BlockConfig(AttentionConfig(heads, pattern=Full()), None, MLPConfig(activation="gelu"), norm)
    return TransformerConfig(
        width,
        stack=StackConfig(cycle((block,), depth), norm),
        embed=PatchEmbedConfig((patch, patch), (size, size)),
        heads={"classes": PooledHeadConfig(classes)},
        tie="none",
        init=InitConfig(residual="same", head="zero"),
    )


def deit(width: int, depth: int, heads: int, patch: int, classes: int = 1000, size: int = 224) -> TransformerConfig:
    """Touvron et al. 2021, distilled: a second token learns what a teacher says."""
    embed, head = PatchEmbedConfig((patch, patch), (size, size), tokens=2), DistilledHeadConfig(classes)
    return replace(vit(width, depth, heads, patch, classes, size), embed=embed, heads={"classes": head})
