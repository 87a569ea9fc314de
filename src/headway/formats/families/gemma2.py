"""Gemma 2 (Gemma Team 2024): Gemma with norms before and after each branch, a window in every other layer, and soft
caps.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.formats.families import gemma, llama
from headway.formats.heads import PublishedClasses
from headway.formats.settings import Settings
from headway.formats.tensor_rules import expect
from headway.nn.models import TransformerConfig, VocabularyHeadConfig

DEFAULTS: dict[str, Any] = {
    **gemma.DEFAULTS,
    "hidden_activation": "gelu_pytorch_tanh",
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    return read_sandwich(settings, every=2)


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
    config = llama.with_windows(gemma.read_gemma(settings), llama.windows_by_layer(settings))
    config = llama.with_mixers(
        config,
        scale=settings.positive("query_pre_attn_scalar") ** -0.5,
        soft_cap=settings.cap("attn_logit_softcapping"),
    )
    config = llama.with_blocks(config, lambda i, block: replace(block, placement="sandwich"))
    return with_soft_cap(config, settings.cap("final_logit_softcapping"))


def with_soft_cap(config: TransformerConfig, soft_cap: float | None) -> TransformerConfig:
    """Return `config` with soft-capped token logits, if the model has any."""
    if "vocabulary" not in config.heads:
        return config
    return replace(config, heads={"vocabulary": VocabularyHeadConfig(soft_cap=soft_cap)})


def write(config: TransformerConfig) -> dict[str, Any]:
    return write_sandwich("gemma2", PublishedClasses.of("Gemma2"), config)


def write_sandwich(name: str, classes: PublishedClasses, config: TransformerConfig) -> dict[str, Any]:
    """The reverse of `read_sandwich`."""
    settings = llama.write(name, classes, config)
    mixer = llama.attention(config.stack.blocks[0])
    head = config.heads.get("vocabulary", VocabularyHeadConfig())
    # The number whose square root divides the scores, rounded if it is an integer up to rounding errors.
    exact = expect(mixer.scale, float) ** -2
    return {
        **settings,
        **llama.write_attention_bias(config),
        **llama.write_windows(config),
        "hidden_activation": settings["hidden_act"],
        "query_pre_attn_scalar": round(exact) if abs(exact - round(exact)) < 1e-6 * exact else exact,
        "attn_logit_softcapping": mixer.soft_cap,
        "final_logit_softcapping": expect(head, VocabularyHeadConfig).soft_cap,
    }


FAMILY = llama.family(
    "gemma2",
    read,
    write,
    **DEFAULTS,
    max_position_embeddings=8192,
    attn_logit_softcapping=50.0,
    final_logit_softcapping=30.0,
)
