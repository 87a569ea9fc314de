"""Gemma (Gemma Team 2024): Llama with norms that store their scale minus one, GEGLU, and embeddings times sqrt(D)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.formats.families import llama
from headway.formats.heads import PublishedClasses
from headway.formats.settings import Settings
from headway.nn.models import TokenEmbedConfig, TransformerConfig
from headway.nn.parts.norm import RMSNormConfig

DEFAULTS: dict[str, Any] = {"head_dim": 256, "tie_word_embeddings": True}


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    if settings.get("hidden_act", str) == "gelu":  # a mistake in the first files
        settings = replace(settings, values={**settings.values, "hidden_act": "gelu_pytorch_tanh"})
    return read_gemma(settings)


def read_gemma(settings: Settings) -> TransformerConfig:
    """Read what all Gemmas share."""
    settings.require("use_bidirectional_attention", False)
    norm = offset_norm(settings)
    config = llama.with_blocks(llama.read(settings, ()), lambda i, block: replace(block, norm=norm))
    return replace(config, stack=replace(config.stack, norm=norm), embed=TokenEmbedConfig(scaled=True))


def offset_norm(settings: Settings) -> RMSNormConfig:
    return RMSNormConfig(settings.get("rms_norm_eps", float), unit_offset=True)


def write(config: TransformerConfig) -> dict[str, Any]:
    return {**llama.write("gemma", PublishedClasses.of("Gemma"), config), **llama.write_attention_bias(config)}


FAMILY = llama.family(
    "gemma",
    read,
    write,
    **DEFAULTS,
    hidden_act="gelu_pytorch_tanh",
    num_key_value_heads=16,
    max_position_embeddings=8192,
)
