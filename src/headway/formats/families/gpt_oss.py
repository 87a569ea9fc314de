"""gpt-oss (OpenAI 2025): experts with clamped gates and biases, attention with sinks, and windows in every other layer.
Its folders store the experts in MXFP4 (`formats/quantization.py`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.formats.families import llama
from headway.formats.families.experts import read_experts, write_counts
from headway.formats.settings import Settings
from headway.formats.tensor_rules import InterleavedGate, Stacked, TensorRule, Transposed, expect, linear, rule
from headway.nn.mixers import AttentionConfig
from headway.nn.models import BlockConfig, TransformerConfig
from headway.nn.parts.experts import ExpertsConfig

_ALPHA = 1.702  # of the gate's sigmoid, as in quick_gelu


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    settings.require("swiglu_alpha", _ALPHA)
    depth, limit = settings.get("num_hidden_layers", int), settings.positive("swiglu_limit")
    kinds = [llama.FULL_ATTENTION if i % 2 else llama.SLIDING_ATTENTION for i in range(depth)]
    changes = {
        "layer_types": settings.get("layer_types", list[str], kinds),
        **{"use_sliding_window": True, "norm_topk_prob": True, "hidden_act": "quick_gelu", "mlp_bias": True},
    }
    settings = replace(settings, values={**settings.values, **changes})
    config = llama.with_windows(llama.read(settings, names), llama.windows_by_layer(settings))
    config = llama.with_blocks(
        llama.with_mixers(config, sinks=True),
        lambda _, block: replace(block, feed_forward=replace(llama.gated(block), limit=limit)),
    )
    return read_experts(settings, config, "num_local_experts", "intermediate_size", router_bias=True)


def write_extras(config: TransformerConfig) -> dict[str, Any]:
    return {
        **write_counts(config),
        **llama.write_layer_types(config),
        **llama.write_attention_bias(config),
        "hidden_act": "silu",  # not used
        "swiglu_alpha": _ALPHA,
        "swiglu_limit": llama.gated(config.stack.blocks[0]).limit,
    }


def rules(config: TransformerConfig) -> list[TensorRule]:
    def attend(mixer: AttentionConfig) -> list[TensorRule]:
        return [*llama.attention_rules(mixer), rule("mixer.sinks", "self_attn.sinks")]

    def feed(block: BlockConfig) -> list[TensorRule]:
        tensor_rules = linear("feed_forward.router", "mlp.router")
        for j in range(expect(block.feed_forward, ExpertsConfig).count):
            target, source = f"feed_forward.experts.{j}", f"mlp.experts.{j}"
            tensor_rules += [
                rule(f"{target}.gate_up.weight", f"{source}.gate_up_proj", transform=InterleavedGate()),
                rule(f"{target}.gate_up.bias", f"{source}.gate_up_proj_bias", transform=InterleavedGate()),
                rule(f"{target}.down.weight", f"{source}.down_proj", transform=Transposed()),
                rule(f"{target}.down.bias", f"{source}.down_proj_bias"),
            ]
        return tensor_rules

    return llama.rules(config, attend, feed)


_STACKS = tuple(
    Stacked(rf"\.experts\.{name}$", (f".experts.{{}}.{name}",), f".experts.{name}", 2 if "bias" in name else 3)
    for name in ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
)
_PLAIN = llama.family(
    "gpt_oss",
    read,
    llama.writer("gpt_oss", "GptOss", write_extras),
    rules,
    rms_norm_eps=1e-5,
    num_key_value_heads=8,
    head_dim=64,
    attention_bias=True,
    sliding_window=128,
    max_position_embeddings=131072,
    num_local_experts=128,
    num_experts_per_tok=4,
    router_aux_loss_coef=0.001,
    swiglu_alpha=_ALPHA,
    swiglu_limit=7.0,
    rope_theta=150000.0,
    rope_parameters={
        **{"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
        "original_max_position_embeddings": 4096,
    },
)
FAMILY = replace(_PLAIN, stacked=_STACKS, aliases={"num_experts": "num_local_experts"})
