"""Recipes for masked language models, and how the generic one scales with text and time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from headway.data import count_characters
from headway.domains.masked.task import MaskedConfig, MaskedDataset
from headway.learn import MuonConfig, Recipe, Task, TrainConfig
from headway.learn.formatting import format_number
from headway.learn.plan.scale import DataSettings, Descent, Scale, ScalingLaw, lookup
from headway.learn.recipe import generic
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


def modern_encoder(
    width: int, depth: int, heads: int, vocab_size: int, context: int, dropout: float = 0.0
) -> TransformerConfig:
    """A small ModernBERT (Warner et al. 2024) with global attention in every layer: RoPE, GeGLU, pre-norm, no biases.
    Residual branches are initialised to zero, so it learns faster than the 2019 BERT at the same size.
    """
    norm = LayerNormConfig(bias=False)
    mixer = AttentionConfig(heads, pattern=Full(), rotary=RotaryConfig(), qkv_bias=False, out_bias=False)
    block = BlockConfig(mixer, None, GatedConfig(activation="gelu"), norm, dropout=dropout)
    first = replace(block, mixer_norm=False)  # the embedding ends in a norm
    head = VocabularyHeadConfig(bias=True, transform=TransformConfig("gelu", norm, bias=False))
    return TransformerConfig(
        width,
        vocab_size,
        context,
        StackConfig((first, *cycle((block,), depth - 1)), norm),
        TokenEmbedConfig(norm=norm, dropout=dropout),
        {"vocabulary": head},
        init=InitConfig(matrices="fan_in", residual="zero", embedding=0.05),
    )


def masked() -> Recipe:
    """Your own text."""
    return generic(
        "masked",
        "masked",
        "a BERT from your own text: files, folders, archives or a Hugging Face dataset",
        model=modern_encoder(width=256, depth=4, heads=4, vocab_size=8192, context=128),
        task=MaskedConfig(),
        # Without weight decay, matrices grow to five times their size, and fine-tuning hardly changes them.
        optim=MuonConfig(lr=0.02, weight_decay=0.1, adam_lr=2e-3, adam_weight_decay=0.1),
        train=TrainConfig(steps=3000, batch_tokens=4096),
        expected="--minutes chooses size and steps for your data; without it, an hour for 12 million tokens on 2 cores",
    )


RECIPES = (masked,)


_SHAPES = ((64, 2, 2), (96, 3, 3), (128, 4, 4), (192, 5, 6), (256, 6, 4), (384, 6, 6), (512, 8, 8), (768, 12, 12))
_MAX_CHARACTERS = 1 << 24  # maximum characters counted
_VOCABULARIES = ((3e5, 1000), (2e6, 2000), (8e6, 4000), (math.inf, 8192))  # (characters, tokens)


def _data_settings(recipe: Recipe, paths: Sequence[Path], minutes: float) -> DataSettings:
    """Vocabularies grow with the text."""
    if cast(MaskedConfig, recipe.task).tokenizer is not None:
        return DataSettings({})
    num_characters = count_characters(paths, _MAX_CHARACTERS)
    vocab_size = lookup(_VOCABULARIES, num_characters)
    reason = f"a vocabulary of {vocab_size:,} for {format_number(num_characters / 1e6)} million characters"
    return DataSettings({"task.size": vocab_size, "model.vocab_size": vocab_size}, reason)


def _unique_targets(task: Task) -> int:
    dataset = cast(MaskedDataset, task.examples)
    return max(1, round(dataset.config.masking.rate * dataset.count_tokens("train")))


SCALES = {
    # A target is a masked token; each epoch masks different tokens. As for text, but with context on both sides a
    # masked token is assumed to be worth three tokens.
    "masked": Scale(
        law=ScalingLaw(2.0, 61.0, 0.34, 45.0, 0.28, 60.0, 15.0),
        min_batch=1024,
        noise_scale=4.0,
        calibrated=True,
        descent=Descent(0.58, 1.5, 3.8),
        shapes=_SHAPES,
        dropout=((20, 0.0), (math.inf, 0.1)),
        unique_targets=_unique_targets,
        data_settings=_data_settings,
    )
}
