"""Recipes for language models, and how the generic one scales with text and time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from headway.data import SplitConfig, count_characters
from headway.data.prepared.shard_reader import PreparedData, is_prepared
from headway.domains.text.task import LanguageConfig, TextExamples
from headway.learn import MuonConfig, Recipe, TrainConfig, WSDConfig
from headway.learn.formatting import format_number
from headway.learn.plan.scale import DataSettings, Descent, Scale, ScalingLaw, lookup
from headway.learn.recipe import generic
from headway.nn.mixers import AttentionConfig
from headway.nn.models import BlockConfig, StackConfig, TokenEmbedConfig, TransformerConfig, cycle
from headway.nn.parts.feedforward import GatedConfig, MLPConfig
from headway.nn.parts.init import InitConfig
from headway.nn.parts.norm import RMSNormConfig
from headway.nn.parts.positions import RotaryConfig
from headway.visibility import Causal

_CONTEXT = 1 << 15  # published formats must state a context, although windowed attention has no limit


def modern_decoder(
    width: int, depth: int, heads: int, window: int, vocab_size: int, dropout: float = 0.0
) -> TransformerConfig:
    """A small decoder that learns fast: RMSNorm without weights, RoPE, QK-norm, squared ReLU and no biases; residual
    branches and head are initialised to zero.

    `window` is the length of a training row. No layer sees farther back, so the model can generate without end.
    """
    norm = RMSNormConfig(weight=False)
    block = BlockConfig(
        _attention(heads, window, norm), None, MLPConfig(activation="relu_squared", bias=False), norm, dropout=dropout
    )
    return TransformerConfig(
        width,
        vocab_size,
        stack=StackConfig(cycle((block,), depth), norm),
        embed=TokenEmbedConfig(norm=norm, dropout=dropout),
        tie="none",
        init=InitConfig(matrices="fan_in", residual="zero", embedding=1.0, head="zero"),
    )


def published_decoder(
    width: int, depth: int, heads: int, window: int, vocab_size: int, dropout: float = 0.0
) -> TransformerConfig:
    """A small decoder with Qwen3's architecture, so that other programs can run it: RMSNorm, QK-norm, RoPE, SwiGLU and
    no biases; residual branches and head are initialised to zero.

    The inner width is three times the model width, a multiple of the quantisation block size. `window`: see
    `modern_decoder`.
    """
    norm = RMSNormConfig()
    block = BlockConfig(_attention(heads, window, norm), None, GatedConfig(ratio=3.0), norm, dropout=dropout)
    return TransformerConfig(
        width,
        vocab_size,
        _CONTEXT,
        stack=StackConfig(cycle((block,), depth), norm),
        embed=TokenEmbedConfig(dropout=dropout),
        tie="none",
        init=InitConfig(matrices="fan_in", residual="zero", embedding=1.0, head="zero"),
    )


def _attention(heads: int, window: int, norm: RMSNormConfig) -> AttentionConfig:
    """Attention with QK-norm and RoPE, whose slowest frequency still rotates within rows of a few hundred tokens."""
    return AttentionConfig(
        heads, pattern=Causal(window), rotary=RotaryConfig(theta=1000.0), qk_norm=norm, qkv_bias=False, out_bias=False
    )


def shakespeare() -> Recipe:
    """nanoGPT's model size for CPUs and its split: the last tenth of the text is held out."""
    return Recipe(
        name="shakespeare",
        domain="text",
        description="Shakespeare's plays, character by character",
        data=("tinyshakespeare",),
        model=modern_decoder(width=128, depth=4, heads=4, window=64, vocab_size=67),
        task=LanguageConfig(
            codec="char", size=None, context=64, packing="windows", split=SplitConfig(validation=0.1, test=0.0)
        ),
        optim=MuonConfig(lr=0.02, adam_lr=4e-3),
        schedule=WSDConfig(warmup=50, decay=0.6),
        train=TrainConfig(steps=1350, batch_tokens=1024),
        expected="loss 1.58 in a minute on 2 cores",
    )


def text() -> Recipe:
    """Your own text."""
    return generic(
        "text",
        "text",
        "your own text: files, folders, archives or a Hugging Face dataset",
        model=published_decoder(width=256, depth=4, heads=4, window=256, vocab_size=4096, dropout=0.1),
        task=LanguageConfig(codec="bpe", size=4096, context=256),
        optim=MuonConfig(lr=0.012, adam_lr=3e-3),
        train=TrainConfig(steps=2000, batch_tokens=4096),
        expected="half an hour for 8 million tokens on 2 cores",
    )


RECIPES = (shakespeare, text)


_SHAPES = ((64, 2, 2), (96, 3, 3), (128, 4, 4), (192, 5, 6), (256, 6, 8), (384, 6, 6), (512, 8, 8), (768, 12, 12))
_MAX_CHARACTERS = 300_000_000  # more make no difference to the vocabulary
_VOCABULARIES = ((3e5, 512), (1.5e6, 1024), (8e6, 2048), (4e7, 4096), (2e8, 8192), (math.inf, 16384))


def _data_settings(recipe: Recipe, paths: Sequence[Path], minutes: float) -> DataSettings:
    if is_prepared(paths[0]):
        vocab_size = int(PreparedData(paths[0]).index.details["vocab_size"])
        return DataSettings({"task.size": vocab_size}, f"the vocabulary of {vocab_size:,} tokens of the prepared data")
    characters_read = count_characters(paths, _MAX_CHARACTERS)
    vocab_size = lookup(_VOCABULARIES, characters_read)
    reason = f"a vocabulary of {vocab_size:,} for {format_number(characters_read / 1e6)} million characters"
    return DataSettings({"task.size": vocab_size}, reason)


SCALES = {
    # Rows of 256 tokens and a vocabulary that grows with the text, so that each token occurs often. The law is fitted
    # to 40 runs of half a minute to ten on five texts (benchmarks/laws.py).
    "text": Scale(
        law=ScalingLaw(size=51.5, data=33.0),
        calibrated=True,
        descent=Descent(0.23, 0.59, 1.5),
        shapes=_SHAPES,
        dropout=((4, 0.0), (12, 0.1), (40, 0.2), (math.inf, 0.3)),
        forgets=True,
        unique_targets=lambda task: cast(TextExamples, task.examples).count_targets("train"),
        data_settings=_data_settings,
    )
}
