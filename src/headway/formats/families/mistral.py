"""Mistral (Jiang et al. 2023): Llama with sliding-window attention; in Ministral (2024), some layers have no window.

Mixtral (Jiang et al. 2024): its feed-forward is a mixture of experts with top-k routing. The experts are separate
tensors (w1 the gate, w3 up, w2 down), or stacked in newer files. Both are read; the former is written.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.formats.families import llama
from headway.formats.heads import PublishedClasses
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Stacked, TensorRule, expect, rule
from headway.nn.models import BlockConfig, TransformerConfig
from headway.nn.parts.experts import ExpertsConfig


def read_mistral(settings: Settings, names: Collection[str]) -> TransformerConfig:
    return llama.with_windows(llama.read(settings, names), llama.shared_window(settings))


def write_mistral(config: TransformerConfig) -> dict[str, Any]:
    return {**llama.write("mistral", PublishedClasses.of("Mistral"), config), **llama.write_window(config)}


_MISTRAL = llama.family(
    "mistral", read_mistral, write_mistral, max_position_embeddings=131072, num_key_value_heads=8, sliding_window=4096
)


def read_ministral(settings: Settings, names: Collection[str]) -> TransformerConfig:
    return llama.with_windows(llama.read(settings, names), llama.windows_by_layer(settings))


def write_ministral(config: TransformerConfig) -> dict[str, Any]:
    windows = llama.write_windows(config)
    del windows["use_sliding_window"]  # a layer's kind alone decides
    return {**llama.write("ministral", PublishedClasses.of("Ministral"), config), **windows}


_MINISTRAL = llama.family(
    "ministral", read_ministral, write_ministral, max_position_embeddings=131072, num_key_value_heads=8,
    sliding_window=4096,
)  # fmt: skip


def read_mixtral(settings: Settings, names: Collection[str]) -> TransformerConfig:
    config = llama.with_windows(llama.read(settings, names), llama.shared_window(settings))
    experts = ExpertsConfig(
        settings.get("num_local_experts", int),
        settings.get("num_experts_per_tok", int),
        llama.gated(config.stack.blocks[0]),
        balance=settings.get("router_aux_loss_coef", float),
    )
    return llama.with_blocks(config, lambda i, block: replace(block, feed_forward=experts))


def write_mixtral(config: TransformerConfig) -> dict[str, Any]:
    experts = expect(config.stack.blocks[0].feed_forward, ExpertsConfig)
    return {
        **llama.write("mixtral", PublishedClasses.of("Mixtral"), config),
        **llama.write_window(config),
        "num_local_experts": experts.count,
        "num_experts_per_tok": experts.active,
        "router_aux_loss_coef": experts.balance,
    }


def rules(config: TransformerConfig) -> list[TensorRule]:
    return llama.rules(config, feed=expert_rules)


def expert_rules(target: str, source: str, block: BlockConfig) -> list[TensorRule]:
    tensor_rules = [rule(f"{target}.feed_forward.router.weight", f"{source}.block_sparse_moe.gate.weight")]
    for j in range(expect(block.feed_forward, ExpertsConfig).count):
        expert_target, expert_source = f"{target}.feed_forward.experts.{j}", f"{source}.block_sparse_moe.experts.{j}"
        tensor_rules += [
            rule(f"{expert_target}.gate_up.weight", f"{expert_source}.w1.weight", f"{expert_source}.w3.weight"),
            rule(f"{expert_target}.down.weight", f"{expert_source}.w2.weight"),
        ]
    return tensor_rules


_PLAIN = llama.family(
    "mixtral",
    read_mixtral,
    write_mixtral,
    rules,
    rope_theta=1e6,
    rms_norm_eps=1e-5,
    max_position_embeddings=131072,
    num_key_value_heads=8,
    num_local_experts=8,
    num_experts_per_tok=2,
    router_aux_loss_coef=0.001,
)
_MIXTRAL = replace(
    _PLAIN,
    aliases={"num_experts": "num_local_experts"},
    renames=(*_PLAIN.renames, (r"\.mlp\.gate\.weight$", ".block_sparse_moe.gate.weight")),
    stacked=(
        Stacked(
            r"\.mlp\.experts\.gate_up_proj$",
            (".block_sparse_moe.experts.{}.w1.weight", ".block_sparse_moe.experts.{}.w3.weight"),
        ),
        Stacked(r"\.mlp\.experts\.down_proj$", (".block_sparse_moe.experts.{}.w2.weight",)),
    ),
)
FAMILIES = (_MISTRAL, _MINISTRAL, _MIXTRAL)
