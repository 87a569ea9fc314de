"""SmolLM3 (Bakouch et al. 2025): Llama with layers without positions, by default every fourth."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.errors import UserError
from headway.formats.families import llama
from headway.formats.settings import Settings
from headway.nn.models import BlockConfig, TransformerConfig


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    depth = settings.get("num_hidden_layers", int)
    if "no_rope_layers" in settings:
        flags = settings.get("no_rope_layers", list[int])[:depth]
        if len(flags) < depth:
            raise UserError(f"{settings.source}: no_rope_layers names {len(flags)} of {depth} layers; name all of them")
    else:
        every = settings.get("no_rope_layer_interval", int)
        flags = [(i + 1) % every for i in range(depth)]
    has_rotary = [flag != 0 for flag in flags]
    windowed = settings.get("use_sliding_window", bool) and "sliding_window" in settings
    if windowed and "layer_types" not in settings:  # windows apply to the layers without positions
        kinds = [llama.FULL_ATTENTION if rotary else llama.SLIDING_ATTENTION for rotary in has_rotary]
        settings = replace(settings, values={**settings.values, "layer_types": kinds})

    def layer(i: int, block: BlockConfig) -> BlockConfig:
        return block if has_rotary[i] else replace(block, mixer=replace(llama.attention(block), rotary=None))

    config = llama.with_blocks(llama.read(settings, names), layer)
    return llama.with_windows(config, llama.windows_by_layer(settings))


def write_rotary_layers(config: TransformerConfig) -> dict[str, Any]:
    has_rotary = [llama.attention(block).rotary is not None for block in config.stack.blocks]
    return {"no_rope_layers": [int(flag) for flag in has_rotary]}  # 1 is a layer with positions


FAMILY = llama.family(
    "smollm3",
    read,
    llama.writer("smollm3", "SmolLM3", llama.write_biases, llama.write_windows, write_rotary_layers),
    tie_word_embeddings=True,
    rope_theta=2e6,
    max_position_embeddings=32768,
    num_key_value_heads=4,
    use_sliding_window=False,
    no_rope_layer_interval=4,
)
