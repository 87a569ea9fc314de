"""Decoders whose feed-forwards are mixtures of experts, each with its own gate, up and down projections, separate or
stacked in the file: Qwen2-MoE (Yang et al. 2024), with a shared expert and its gate, Qwen3-MoE (2025), both with some
dense layers, and OLMoE (Muennighoff et al. 2024), with norms of queries and keys across all heads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from headway.formats.families import llama
from headway.formats.heads import PublishedClasses
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family, Stacked, TensorRule, expect, linears, prefixed, rule
from headway.nn.models import BlockConfig, TransformerConfig
from headway.nn.parts.experts import ExpertsConfig
from headway.nn.parts.feedforward import GatedConfig
from headway.nn.parts.norm import RMSNormConfig


def read_experts(
    settings: Settings, config: TransformerConfig, count: str, width: str, dense: Collection[int] = (), **more: Any
) -> TransformerConfig:
    """Return `config` with experts in every layer but the `dense` ones. The settings named `count` and `width` have
    their number and the width of each; `more` are further fields.
    """

    def layer(i: int, block: BlockConfig) -> BlockConfig:
        if i in dense:
            return block
        expert = replace(llama.gated(block), hidden=settings.get(width, int))
        experts = ExpertsConfig(
            settings.get(count, int),
            settings.get("num_experts_per_tok", int),
            expert,
            normalise=settings.get("norm_topk_prob", bool),
            balance=settings.get("router_aux_loss_coef", float),
            **more,
        )
        return replace(block, feed_forward=experts)

    return llama.with_blocks(config, layer)


def first_experts(config: TransformerConfig) -> ExpertsConfig:
    feeds = [block.feed_forward for block in config.stack.blocks]
    return expect(next((feed for feed in feeds if isinstance(feed, ExpertsConfig)), None), ExpertsConfig)


def write_counts(config: TransformerConfig, count: str = "num_local_experts") -> dict[str, Any]:
    """The settings of all families with experts."""
    experts = first_experts(config)
    return {count: experts.count, "num_experts_per_tok": experts.active, "router_aux_loss_coef": experts.balance}


def write_experts(config: TransformerConfig, count: str) -> dict[str, Any]:
    return {**write_counts(config, count), "norm_topk_prob": first_experts(config).normalise}


MATRICES = {"gate_up": "{gate,up}_proj", "down": "down_proj"}


def expert_rules(
    block: BlockConfig,
    source: str,
    names: Mapping[str, str] = MATRICES,
    router: str = "gate",
    shared: str = "shared_expert",
) -> list[TensorRule]:
    """A router and experts in `source`, each with the matrices `names`, and perhaps a shared expert; or a dense
    layer.
    """
    if not isinstance(block.feed_forward, ExpertsConfig):
        return llama.gated_rules(block)
    tensor_rules = [rule("feed_forward.router.weight", f"{source}.{router}.weight")]
    matrices = linears(names, bias=False)
    for j in range(block.feed_forward.count):
        tensor_rules += prefixed(matrices, f"feed_forward.experts.{j}.", f"{source}.experts.{j}.")
    if block.feed_forward.shared is not None:
        tensor_rules += prefixed(matrices, "feed_forward.shared.", f"{source}.{shared}.")
    if block.feed_forward.shared_gate:
        tensor_rules.append(rule("feed_forward.shared_gate.weight", f"{source}.shared_expert_gate.weight"))
    return tensor_rules


def rules(config: TransformerConfig) -> list[TensorRule]:
    return llama.rules(config, feed=lambda block: expert_rules(block, "mlp"))


def dense_layers(settings: Settings) -> list[int]:
    """The layers without experts (Qwen)."""
    step, plain = settings.get("decoder_sparse_step", int), settings.get("mlp_only_layers", list[int], [])
    depth = settings.get("num_hidden_layers", int)
    return [i for i in range(depth) if i in plain or (i + 1) % max(1, step)]


def write_sparse(name: str, stem: str, count: str, config: TransformerConfig) -> dict[str, Any]:
    """The settings that Qwen's mixtures share."""
    blocks = config.stack.blocks
    dense = [i for i, block in enumerate(blocks) if not isinstance(block.feed_forward, ExpertsConfig)]
    settings = llama.write(name, PublishedClasses.of(stem), config)
    return {
        **settings,
        **write_experts(config, count),
        "intermediate_size": llama.gated(blocks[dense[0]]).hidden if dense else settings["intermediate_size"],
        "moe_intermediate_size": expect(first_experts(config).expert, GatedConfig).hidden,
        "mlp_only_layers": dense,
        "decoder_sparse_step": 1,
    }


def read_qwen2_moe(settings: Settings, names: Collection[str]) -> TransformerConfig:
    last, depth = settings.get("max_window_layers", int), settings.get("num_hidden_layers", int)
    if "layer_types" not in settings and settings.get("use_sliding_window", bool):
        kinds = [llama.FULL_ATTENTION if i % 2 or i >= last else llama.SLIDING_ATTENTION for i in range(depth)]
        settings = replace(settings, values={**settings.values, "layer_types": kinds})
    config = llama.with_windows(llama.read(settings, names), llama.windows_by_layer(settings))
    config = llama.with_mixers(config, qkv_bias=settings.get("qkv_bias", bool), out_bias=False)
    config = llama.without_feed_biases(config)
    width = settings.get("shared_expert_intermediate_size", int)
    shared = replace(llama.gated(config.stack.blocks[0]), hidden=width)
    return read_experts(
        settings,
        config,
        "num_experts",
        "moe_intermediate_size",
        dense_layers(settings),
        shared=shared,
        shared_gate=True,
    )


def write_qwen2_moe(config: TransformerConfig) -> dict[str, Any]:
    return {
        **write_sparse("qwen2_moe", "Qwen2Moe", "num_experts", config),
        **llama.write_windows(config),
        "qkv_bias": llama.attention(config.stack.blocks[0]).qkv_bias,
        "shared_expert_intermediate_size": expect(first_experts(config).shared, GatedConfig).hidden,
    }


def read_qwen3_moe(settings: Settings, names: Collection[str]) -> TransformerConfig:
    norm = RMSNormConfig(settings.get("rms_norm_eps", float))
    config = llama.with_mixers(llama.read(settings, names), qk_norm=norm)
    if settings.get("use_sliding_window", bool):
        config = llama.with_windows(config, llama.shared_window(settings))
    return read_experts(settings, config, "num_local_experts", "moe_intermediate_size", dense_layers(settings))


def write_qwen3_moe(config: TransformerConfig) -> dict[str, Any]:
    window = llama.windows_of(config)[0]
    return {
        **write_sparse("qwen3_moe", "Qwen3Moe", "num_local_experts", config),
        **llama.write_attention_bias(config),
        "use_sliding_window": window is not None,
        "sliding_window": window,
    }


def read_olmoe(settings: Settings, names: Collection[str]) -> TransformerConfig:
    settings.require("clip_qkv")
    norm = RMSNormConfig(settings.get("rms_norm_eps", float))
    config = llama.with_windows(llama.read(settings, names), llama.shared_window(settings))
    config = llama.with_mixers(config, qk_norm=norm, qk_norm_over="all")
    return read_experts(settings, config, "num_experts", "intermediate_size")


def write_olmoe(config: TransformerConfig) -> dict[str, Any]:
    settings = llama.write("olmoe", PublishedClasses.of("Olmoe"), config)
    del settings["head_dim"]
    more = {**write_experts(config, "num_experts"), **llama.write_attention_bias(config)}
    return {**settings, **more, **llama.write_window(config)}


def _family(
    name: str,
    read: Callable[[Settings, Collection[str]], TransformerConfig],
    write: Callable[[TransformerConfig], dict[str, Any]],
    aliases: Mapping[str, str],
    **defaults: Any,
) -> Family:
    defaults = {"num_experts_per_tok": 8, "norm_topk_prob": False, **defaults}
    return replace(llama.family(name, read, write, rules, **defaults), aliases=aliases, stacked=stacks())


def stacks(
    gate_up: str = ".experts.gate_up_proj", down: str = ".experts.down_proj", written: bool = False
) -> tuple[Stacked, Stacked]:
    """The stacks of a layer's experts, by the ends of their names; exports may write them."""
    gates = (".experts.{}.gate_proj.weight", ".experts.{}.up_proj.weight")
    return (
        Stacked(re.escape(gate_up) + "$", gates, gate_up * written),
        Stacked(re.escape(down) + "$", (".experts.{}.down_proj.weight",), down * written),
    )


FAMILIES = (
    _family(
        "qwen2_moe",
        read_qwen2_moe,
        write_qwen2_moe,
        {},
        max_position_embeddings=32768,
        num_key_value_heads=16,
        use_sliding_window=False,
        sliding_window=4096,
        max_window_layers=28,
        num_experts=60,
        num_experts_per_tok=4,
        moe_intermediate_size=1408,
        shared_expert_intermediate_size=5632,
        decoder_sparse_step=1,
        intermediate_size=5632,
        qkv_bias=True,
        router_aux_loss_coef=0.001,
    ),
    _family(
        "qwen3_moe",
        read_qwen3_moe,
        write_qwen3_moe,
        {"num_experts": "num_local_experts"},
        max_position_embeddings=32768,
        num_key_value_heads=4,
        use_sliding_window=False,
        sliding_window=4096,
        num_local_experts=128,
        moe_intermediate_size=768,
        decoder_sparse_step=1,
        intermediate_size=6144,
        router_aux_loss_coef=0.001,
    ),
    _family(
        "olmoe",
        read_olmoe,
        write_olmoe,
        {"num_local_experts": "num_experts"},
        rms_norm_eps=1e-5,
        max_position_embeddings=4096,
        num_experts=64,
        router_aux_loss_coef=0.01,
    ),
)
