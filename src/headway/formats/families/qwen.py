"""Qwen2 (Yang et al. 2024): Llama with query, key and value biases, and optional windows in its later layers.

Qwen3 (2025) has no biases; it normalises the queries and keys of each head, whose size is a separate setting.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from headway.formats.families import llama
from headway.formats.settings import Settings
from headway.nn.models import TransformerConfig
from headway.nn.parts.norm import RMSNormConfig


def read_windowed(settings: Settings, names: Collection[str]) -> TransformerConfig:
    return llama.with_windows(llama.read(settings, names), llama.windows_by_layer(settings))


def read_qwen2(settings: Settings, names: Collection[str]) -> TransformerConfig:
    return llama.with_mixers(read_windowed(settings, names), qkv_bias=True, out_bias=False)


def read_qwen3(settings: Settings, names: Collection[str]) -> TransformerConfig:
    norm = RMSNormConfig(settings.get("rms_norm_eps", float))
    return llama.with_mixers(read_windowed(settings, names), qk_norm=norm)


DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_WRITE_QWEN2 = llama.writer("qwen2", "Qwen2", llama.write_windows)
_WRITE_QWEN3 = llama.writer("qwen3", "Qwen3", llama.write_windows, llama.write_attention_bias)
FAMILIES = (
    llama.family("qwen2", read_qwen2, _WRITE_QWEN2, **DEFAULTS),
    llama.family("qwen3", read_qwen3, _WRITE_QWEN3, **DEFAULTS, head_dim=128),
)
