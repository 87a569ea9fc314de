"""Mistral (Jiang et al. 2023): Llama with sliding-window attention; in Ministral (2024), some layers have no window.

Mixtral (Jiang et al. 2024): its feed-forward is a mixture of experts with top-k routing. The experts are separate
tensors (w1 the gate, w3 up, w2 down), or stacked in newer files. Both are read; the former is written.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.formats.families import llama
from headway.formats.families.experts import expert_rules, write_counts
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Stacked, TensorRule
from headway.nn.models import TransformerConfig
from headway.nn.parts.experts import ExpertsConfig


def read_mistral(settings: Settings, names: Collection[str]) -> TransformerConfig:
    return llama.with_windows(llama.read(settings, names), llama.shared_window(settings))


DEFAULTS: dict[str, Any] = {"max_position_embeddings": 131072, "num_key_value_heads": 8}
_MISTRAL = llama.family(
    "mistral", read_mistral, llama.writer("mistral", "Mistral", llama.write_window), **DEFAULTS, sliding_window=4096
)


def read_ministral(settings: Settings, names: Collection[str]) -> TransformerConfig:
    return llama.with_windows(llama.read(settings, names), llama.windows_by_layer(settings))


_MINISTRAL = llama.family(
    "ministral",
    read_ministral,
    llama.writer("ministral", "Ministral", llama.write_layer_types),
    **DEFAULTS,
    sliding_window=4096,
)


def read_mixtral(settings: Settings, names: Collection[str]) -> TransformerConfig:
    config = read_mistral(settings, names)
    experts = ExpertsConfig(
        settings.get("num_local_experts", int),
        settings.get("num_experts_per_tok", int),
        llama.gated(config.stack.blocks[0]),
        balance=settings.get("router_aux_loss_coef", float),
    )
    return llama.with_blocks(config, lambda i, block: replace(block, feed_forward=experts))


def rules(config: TransformerConfig) -> list[TensorRule]:
    names = {"gate_up": "w{1,3}", "down": "w2"}
    return llama.rules(config, feed=lambda block: expert_rules(block, "block_sparse_moe", names))


_PLAIN = llama.family(
    "mixtral",
    read_mixtral,
    llama.writer("mixtral", "Mixtral", llama.write_window, write_counts),
    rules,
    **DEFAULTS,
    rope_theta=1e6,
    rms_norm_eps=1e-5,
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
