"""Mistral (Jiang et al. 2023): Llama with sliding-window attention."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from headway.formats.families import llama
from headway.formats.heads import PublishedClasses
from headway.formats.settings import Settings
from headway.nn.models import TransformerConfig


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    return llama.with_windows(llama.read(settings, names), llama.shared_window(settings))


def write(config: TransformerConfig) -> dict[str, Any]:
    return {**llama.write("mistral", PublishedClasses.of("Mistral"), config), **llama.write_window(config)}


FAMILY = llama.family(
    "mistral", read, write, max_position_embeddings=131072, num_key_value_heads=8, sliding_window=4096
)
