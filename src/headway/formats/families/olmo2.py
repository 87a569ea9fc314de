"""OLMo 2 (OLMo Team 2025): Llama with norms after the branches, and norms of queries and keys across all heads."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.formats.families import llama
from headway.formats.heads import PublishedClasses
from headway.formats.settings import Settings
from headway.nn.models import TransformerConfig
from headway.nn.parts.norm import RMSNormConfig


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    norm = RMSNormConfig(settings.get("rms_norm_eps", float))
    config = llama.with_mixers(llama.read(settings, names), qk_norm=norm, qk_norm_over="all")
    return llama.with_blocks(config, lambda i, block: replace(block, placement="branch"))


def write(config: TransformerConfig) -> dict[str, Any]:
    return {**llama.write("olmo2", PublishedClasses.of("Olmo2"), config), **llama.write_attention_bias(config)}


FAMILY = llama.family("olmo2", read, write, rms_norm_eps=1e-5)
