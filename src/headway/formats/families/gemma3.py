"""Gemma 3, text only (Gemma Team 2025): Gemma 2 with query and key norms instead of soft caps.

Layers with a window have a separate rotary base.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.formats.families import gemma, gemma2, llama
from headway.formats.heads import PublishedClasses
from headway.formats.settings import Settings, rope_parameters
from headway.nn.models import BlockConfig, TransformerConfig
from headway.visibility import Causal

CLASSES = PublishedClasses("Gemma3ForCausalLM", "Gemma3TextForSequenceClassification", "Gemma3TextModel")


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    settings.require("attn_logit_softcapping")  # transformers has this setting but ignores it
    full_rotary = settings.layer_rotary(llama.FULL_ATTENTION, settings.get("rope_theta", float, 1e6))
    local_rotary = settings.layer_rotary(
        llama.SLIDING_ATTENTION, settings.get("rope_local_base_freq", float, 1e4), scaled=False
    )
    norm = gemma.offset_norm(settings)

    def layer(i: int, block: BlockConfig) -> BlockConfig:
        mixer = llama.attention(block)
        rotary = full_rotary if mixer.pattern == Causal() else local_rotary
        return replace(block, mixer=replace(mixer, rotary=rotary, qk_norm=norm))

    plain = replace(settings, values={**settings.values, "rope_parameters": None, "rope_scaling": None})
    config = gemma2.read_sandwich(plain, every=settings.get("sliding_window_pattern", int, 6))
    return replace(llama.with_blocks(config, layer), context=settings.served_positions(full_rotary))


def write(config: TransformerConfig) -> dict[str, Any]:
    kinds = {llama.FULL_ATTENTION: [], llama.SLIDING_ATTENTION: []}
    for block, window in zip(config.stack.blocks, llama.windows_of(config)):
        rotary = llama.attention(block).rotary
        if rotary is not None:
            kinds[llama.FULL_ATTENTION if window is None else llama.SLIDING_ATTENTION].append(rope_parameters(rotary))
    rotary_settings = {kind: parameters[0] for kind, parameters in kinds.items() if parameters}
    return {**gemma2.write_sandwich("gemma3_text", CLASSES, config), "rope_parameters": rotary_settings}


FAMILY = llama.family(
    "gemma3_text",
    read,
    write,
    older=("rope_local_base_freq", "sliding_window_pattern"),
    **gemma2.DEFAULTS,
    max_position_embeddings=131072,
)
