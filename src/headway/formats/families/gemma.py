"""Gemma (Gemma Team 2024): Llama with norms that store their scale minus one, GEGLU, and embeddings times sqrt(D).

Gemma 2 (2024) has norms before and after each branch, a window in every other layer, and soft caps. Gemma 3 (2025),
text only, has query and key norms instead of soft caps, and a separate rotary base in layers with a window.
EmbeddingGemma (2025) is Gemma 3 with attention in both directions.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.formats.families import llama
from headway.formats.heads import PublishedClasses
from headway.formats.settings import Settings, published_activation, rope_parameters
from headway.formats.tensor_rules import expect
from headway.nn.models import BlockConfig, TokenEmbedConfig, TransformerConfig, VocabularyHeadConfig
from headway.nn.parts.norm import RMSNormConfig
from headway.visibility import Causal

GEMMA_DEFAULTS: dict[str, Any] = {"head_dim": 256, "tie_word_embeddings": True}


def read_first(settings: Settings, names: Collection[str]) -> TransformerConfig:
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


_GEMMA = llama.family(
    "gemma",
    read_first,
    llama.writer("gemma", "Gemma", llama.write_attention_bias),
    **GEMMA_DEFAULTS,
    hidden_act="gelu_pytorch_tanh",
    num_key_value_heads=16,
    max_position_embeddings=8192,
)


GEMMA2_DEFAULTS: dict[str, Any] = {
    **GEMMA_DEFAULTS,
    "hidden_activation": "gelu_pytorch_tanh",
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}


def read_sandwich(settings: Settings, every: int) -> TransformerConfig:
    """Read Gemma 2, and most of 3; without `layer_types`, every `every`-th layer has full attention."""
    depth = settings.get("num_hidden_layers", int)
    kinds = [llama.FULL_ATTENTION if (i + 1) % every == 0 else llama.SLIDING_ATTENTION for i in range(depth)]
    overrides = {
        "hidden_act": settings.get("hidden_activation", str),
        "layer_types": settings.get("layer_types", list[str], kinds),
        "use_sliding_window": True,  # not a setting of this family
    }
    settings = replace(settings, values={**settings.values, **overrides})
    config = llama.with_windows(read_gemma(settings), llama.windows_by_layer(settings))
    config = llama.with_mixers(
        config,
        scale=settings.positive("query_pre_attn_scalar") ** -0.5,
        soft_cap=settings.cap("attn_logit_softcapping"),
    )
    config = llama.with_blocks(config, lambda i, block: replace(block, placement="sandwich"))
    soft_cap = settings.cap("final_logit_softcapping")
    if "vocabulary" not in config.heads:
        return config
    return replace(config, heads={"vocabulary": VocabularyHeadConfig(soft_cap=soft_cap)})


def write_scores(config: TransformerConfig) -> dict[str, Any]:
    """The reverse of `read_sandwich`."""
    mixer, head = llama.attention(config.stack.blocks[0]), config.heads.get("vocabulary", VocabularyHeadConfig())
    # The number whose square root divides the scores, rounded if it is an integer up to rounding errors.
    exact = expect(mixer.scale, float) ** -2
    return {
        **llama.write_windows(config),
        "hidden_activation": published_activation(llama.gated(config.stack.blocks[0]).activation),
        "query_pre_attn_scalar": round(exact) if abs(exact - round(exact)) < 1e-6 * exact else exact,
        "attn_logit_softcapping": mixer.soft_cap,
        "final_logit_softcapping": expect(head, VocabularyHeadConfig).soft_cap,
    }


_GEMMA2 = llama.family(
    "gemma2",
    lambda settings, names: read_sandwich(settings, every=2),
    llama.writer("gemma2", "Gemma2", llama.write_attention_bias, write_scores),
    **GEMMA2_DEFAULTS,
    max_position_embeddings=8192,
    attn_logit_softcapping=50.0,
    final_logit_softcapping=30.0,
)


GEMMA3_CLASSES = PublishedClasses("Gemma3ForCausalLM", "Gemma3TextForSequenceClassification", "Gemma3TextModel")


def read_gemma3(settings: Settings, names: Collection[str]) -> TransformerConfig:
    settings.require("attn_logit_softcapping")  # transformers has this setting but ignores it
    full_rotary = settings.layer_rotary(llama.FULL_ATTENTION, settings.get("rope_theta", float, 1e6))
    local_rotary = settings.layer_rotary(
        llama.SLIDING_ATTENTION, settings.get("rope_local_base_freq", float, 1e4), scaled=False
    )
    norm = offset_norm(settings)

    def layer(i: int, block: BlockConfig) -> BlockConfig:
        mixer = llama.attention(block)
        rotary = full_rotary if mixer.pattern == Causal() else local_rotary
        return replace(block, mixer=replace(mixer, rotary=rotary, qk_norm=norm))

    plain = replace(settings, values={**settings.values, **dict.fromkeys(("rope_parameters", "rope_scaling", _BOTH))})
    config = read_sandwich(plain, every=settings.get("sliding_window_pattern", int, 6))
    config = replace(llama.with_blocks(config, layer), context=settings.served_positions(full_rotary))
    if not settings.get(_BOTH, bool, False):
        return config
    settings.require(llama.IS_CAUSAL, True)  # the other setting for both directions has other windows
    return llama.bidirectional(config, lambda window: window // 2)  # the window counts both sides


def write_rotary(config: TransformerConfig) -> dict[str, Any]:
    kinds = {llama.FULL_ATTENTION: [], llama.SLIDING_ATTENTION: []}
    for block, window in zip(config.stack.blocks, llama.windows_of(config)):
        rotary = llama.attention(block).rotary
        if rotary is not None:
            kinds[llama.FULL_ATTENTION if window is None else llama.SLIDING_ATTENTION].append(rope_parameters(rotary))
    rotary_settings = {kind: parameters[0] for kind, parameters in kinds.items() if parameters}
    return {"rope_parameters": rotary_settings}


_BOTH = "use_bidirectional_attention"  # EmbeddingGemma
_WRITE_GEMMA3 = llama.writer("gemma3_text", GEMMA3_CLASSES, llama.write_attention_bias, write_scores, write_rotary)


def write_gemma3(config: TransformerConfig) -> dict[str, Any]:
    if config.stack.causal:
        return _WRITE_GEMMA3(config)
    return {**_WRITE_GEMMA3(llama.causal(config, lambda reach: 2 * reach)), _BOTH: True, llama.IS_CAUSAL: True}


_GEMMA3 = llama.family(
    "gemma3_text",
    read_gemma3,
    write_gemma3,
    older=("rope_local_base_freq", "sliding_window_pattern", "_sliding_window_pattern"),
    **GEMMA2_DEFAULTS,
    max_position_embeddings=131072,
)
_GEMMA3 = replace(_GEMMA3, write=write_gemma3)  # with the family's own setting for both directions
FAMILIES = (_GEMMA, _GEMMA2, _GEMMA3)
