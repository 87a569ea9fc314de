"""Recipes for masked language models."""

from __future__ import annotations

from headway.domains.masked.task import HEAD, MaskedConfig
from headway.mixers import AttentionConfig
from headway.models import BlockConfig, StackConfig, TokenEmbedConfig, TransformerConfig, cycle
from headway.parts.feedforward import MLPConfig
from headway.parts.init import InitConfig
from headway.parts.norm import LayerNormConfig
from headway.parts.positions import LearnedConfig
from headway.train import MuonConfig, Recipe, TrainConfig, WSDConfig
from headway.visibility import Full


def bert(width: int, depth: int, heads: int, symbols: int, context: int, dropout: float = 0.1) -> TransformerConfig:
    """Devlin et al. 2019: post-norm, learned positions, two types of tokens, a transform before the vocabulary."""
    norm = LayerNormConfig(1e-12)
    block = BlockConfig(
        AttentionConfig(heads, pattern=Full()),
        None,
        MLPConfig(activation="gelu"),
        norm,
        placement="post",
        dropout=dropout,
    )
    embed = TokenEmbedConfig(LearnedConfig(), norm, types=2, dropout=dropout)
    stack, init = StackConfig(cycle((block,), depth), None), InitConfig(residual="same")
    return TransformerConfig(width, symbols, context, stack, embed, {"vocabulary": HEAD}, init=init)


def masked() -> Recipe:
    """Any text of the user's."""
    return Recipe(
        name="masked",
        domain="masked",
        description="a BERT from any text: files, folders, archives or a Hugging Face dataset",
        data=(),
        model=bert(width=256, depth=4, heads=4, symbols=8192, context=128),
        task=MaskedConfig(),
        optim=MuonConfig(lr=0.02, adam_lr=2e-3),
        schedule=WSDConfig(warmup=100, decay=0.6),
        train=TrainConfig(steps=3000, batch_tokens=4096),
        expected="",
    )


RECIPES = (masked,)
