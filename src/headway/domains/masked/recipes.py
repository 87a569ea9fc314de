"""Recipes for masked language models."""

from __future__ import annotations

from dataclasses import replace

from headway.domains.masked.task import MaskedConfig
from headway.learn import MuonConfig, Recipe, TrainConfig, WSDConfig
from headway.nn.mixers import AttentionConfig
from headway.nn.models import (
    BlockConfig,
    StackConfig,
    TokenEmbedConfig,
    TransformConfig,
    TransformerConfig,
    VocabularyHeadConfig,
    cycle,
)
from headway.nn.parts.feedforward import GatedConfig
from headway.nn.parts.init import InitConfig
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import RotaryConfig
from headway.visibility import Full


def encoder(width: int, depth: int, heads: int, symbols: int, context: int, dropout: float = 0.0) -> TransformerConfig:
    """A small ModernBERT (Warner et al. 2024) in which every layer sees all: rotary positions, gated GELU, norms first
    and without biases. Branches start at zero, from which it learns faster than a BERT of 2019 of the same size.
    """
    norm = LayerNormConfig(bias=False)
    mixer = AttentionConfig(heads, pattern=Full(), rotary=RotaryConfig(), qkv_bias=False, out_bias=False)
    block = BlockConfig(mixer, None, GatedConfig(activation="gelu"), norm, dropout=dropout)
    first = replace(block, mixer_norm=False)  # the embedding ends in a norm
    head = VocabularyHeadConfig(bias=True, transform=TransformConfig("gelu", norm, bias=False))
    return TransformerConfig(
        width,
        symbols,
        context,
        StackConfig((first, *cycle((block,), depth - 1)), norm),
        TokenEmbedConfig(norm=norm, dropout=dropout),
        {"vocabulary": head},
        init=InitConfig(matrices="fan_in", residual="zero", embedding=0.05),
    )


def masked() -> Recipe:
    """Any text of the user's."""
    return Recipe(
        name="masked",
        domain="masked",
        description="a BERT from any text: files, folders, archives or a Hugging Face dataset",
        data=(),
        model=encoder(width=256, depth=4, heads=4, symbols=8192, context=128),
        task=MaskedConfig(),
        # Without decay matrices grow to five times their size, and fine-tuning moves them too little to learn.
        optim=MuonConfig(lr=0.02, weight_decay=0.1, adam_lr=2e-3, adam_weight_decay=0.1),
        schedule=WSDConfig(warmup=0.02, decay=0.6),
        train=TrainConfig(steps=3000, batch_tokens=4096),
        expected="--minutes chooses size and steps for your data; an hour for 12 million tokens on 2 cores without",
    )


RECIPES = (masked,)
