"""Command R (Cohere 2024): Llama with one layer norm without bias for parallel attention and feed-forward, rotary pairs
of neighbours, and scaled logits. Command R7B (cohere2) has windows in three of four layers, and rotary positions only
in these.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.formats.families import llama
from headway.formats.settings import Settings
from headway.formats.tensor_rules import InterleavedWeights, TensorRule, expect, rule
from headway.nn.mixers import AttentionConfig
from headway.nn.models import BlockConfig, TransformerConfig, VocabularyHeadConfig
from headway.nn.parts.norm import LayerNormConfig


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    settings.require("head_dim", settings.get("hidden_size", int) // settings.get("num_attention_heads", int))
    config = llama.with_mixers(llama.read(settings, names), head_size=None)
    norm = LayerNormConfig(settings.get("layer_norm_eps", float), bias=False)
    if settings.get("use_qk_norm", bool, False):
        config = llama.with_mixers(config, qk_norm=norm, qk_norm_over="each")

    config, scale = llama.without_feed_biases(config), settings.get("logit_scale", float)
    config = llama.with_blocks(
        config, lambda _, block: replace(block, norm=norm, placement="parallel", shared_norm=True)
    )
    heads = {"vocabulary": VocabularyHeadConfig(scale=scale)} if "vocabulary" in config.heads else config.heads
    return replace(config, stack=replace(config.stack, norm=norm), heads=heads)


def read_cohere2(settings: Settings, names: Collection[str]) -> TransformerConfig:
    depth, every = settings.get("num_hidden_layers", int), settings.get("sliding_window_pattern", int, 4)
    kinds = [llama.SLIDING_ATTENTION if (i + 1) % every else llama.FULL_ATTENTION for i in range(depth)]
    changes = {"layer_types": settings.get("layer_types", list[str], kinds), "use_qk_norm": False}
    settings = replace(settings, values={**settings.values, **changes, "use_sliding_window": True})
    windows = llama.windows_by_layer(settings)

    def layer(i: int, block: BlockConfig) -> BlockConfig:
        return block if windows[i] else replace(block, mixer=replace(llama.attention(block), rotary=None))

    return llama.with_blocks(llama.with_windows(read(settings, names), windows), layer)


def _write(name: str, stem: str, config: TransformerConfig) -> dict[str, Any]:
    head = config.heads.get("vocabulary", VocabularyHeadConfig())
    return {
        **llama.write_layer_norms(name, config, "layer_norm_eps", stem),
        **llama.write_attention_bias(config),
        "logit_scale": expect(head, VocabularyHeadConfig).scale,
    }


def write_cohere(config: TransformerConfig) -> dict[str, Any]:
    normalised = llama.attention(config.stack.blocks[0]).qk_norm is not None
    return {**_write("cohere", "Cohere", config), "use_qk_norm": normalised}


def write_cohere2(config: TransformerConfig) -> dict[str, Any]:
    return {**_write("cohere2", "Cohere2", config), **llama.write_layer_types(config)}


def rules(config: TransformerConfig) -> list[TensorRule]:
    def attend(mixer: AttentionConfig) -> list[TensorRule]:
        norms = [
            rule(f"mixer.qk_norm.{n}", f"self_attn.{n}_norm.weight", transform=InterleavedWeights())
            for n in ("qk" if mixer.qk_norm else "")
        ]
        return [*llama.attention_rules(replace(mixer, qk_norm=None), interleaved=True), *norms]

    return llama.rules(config, attend, norms={"parallel": {"mix.before": "input_layernorm"}})


_DEFAULTS: dict[str, Any] = {
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
FAMILIES = (
    llama.family("cohere", read, write_cohere, rules, **_DEFAULTS, use_qk_norm=False, rope_theta=500000.0),
    llama.family(
        "cohere2", read_cohere2, write_cohere2, rules, ("sliding_window_pattern",), **_DEFAULTS, sliding_window=4096
    ),
)
