"""OLMo 2 (OLMo Team 2025): Llama with norms after the branches, and norms of queries and keys across all heads. OLMo 3
(2025) adds windows to three of four layers; only the layers without a window have scaled rotary positions.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.formats.families import llama
from headway.formats.settings import Settings, rope_parameters
from headway.nn.models import BlockConfig, TransformerConfig
from headway.nn.parts.norm import RMSNormConfig
from headway.visibility import Causal


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    norm = RMSNormConfig(settings.get("rms_norm_eps", float))
    config = llama.with_mixers(llama.read(settings, names), qk_norm=norm, qk_norm_over="all")
    return llama.with_blocks(config, lambda i, block: replace(block, placement="branch"))


def read_olmo3(settings: Settings, names: Collection[str]) -> TransformerConfig:
    theta, depth = settings.get("rope_theta", float, 500000.0), settings.get("num_hidden_layers", int)
    full = settings.layer_rotary(llama.FULL_ATTENTION, theta)
    local = settings.layer_rotary(llama.SLIDING_ATTENTION, theta, scaled=False)
    kinds = [llama.SLIDING_ATTENTION if (i + 1) % 4 else llama.FULL_ATTENTION for i in range(depth)]
    changes = {"layer_types": settings.get("layer_types", list[str], kinds)}
    plain = replace(settings, values={**settings.values, **changes, "rope_parameters": None, "rope_scaling": None})

    def layer(_: int, block: BlockConfig) -> BlockConfig:
        mixer = llama.attention(block)
        return replace(block, mixer=replace(mixer, rotary=full if mixer.pattern == Causal() else local))

    config = llama.with_windows(read(plain, names), llama.windows_by_layer(plain))
    return replace(llama.with_blocks(config, layer), context=settings.served_positions(full))


def write_kinds(config: TransformerConfig) -> dict[str, Any]:
    settings, rotary = llama.write_layer_types(config), {}
    for block, kind in zip(config.stack.blocks, settings["layer_types"]):
        if (positions := llama.attention(block).rotary) is not None:
            rotary[kind] = rope_parameters(positions)
    return {**settings, **llama.write_attention_bias(config), "rope_parameters": rotary}


_WRITE_OLMO2 = llama.writer("olmo2", "Olmo2", llama.write_attention_bias)
_WRITE_OLMO3 = llama.writer("olmo3", "Olmo3", write_kinds)
FAMILIES = (
    llama.family("olmo2", read, _WRITE_OLMO2, rms_norm_eps=1e-5),
    llama.family("olmo3", read_olmo3, _WRITE_OLMO3, rms_norm_eps=1e-5, sliding_window=4096),
)
