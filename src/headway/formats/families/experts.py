"""Decoders whose feed-forwards are mixtures of experts, each with its own gate, up and down projections, separate or
stacked in the file: Qwen3-MoE (Yang et al. 2025), with some dense layers, and OLMoE (Muennighoff et al. 2024), with
norms of queries and keys across all heads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from headway.formats.families import llama
from headway.formats.heads import PublishedClasses
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family, Stacked, TensorRule, expect, linears, prefixed, rule
from headway.nn.models import BlockConfig, TransformerConfig
from headway.nn.parts.experts import ExpertsConfig
from headway.nn.parts.norm import RMSNormConfig


def read_experts(
    settings: Settings, config: TransformerConfig, count: str, width: str, dense: Collection[int] = ()
) -> TransformerConfig:
    """Return `config` with experts in every layer but the `dense` ones. The settings named `count` and `width` have
    their number and the width of each.
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
        )
        return replace(block, feed_forward=experts)

    return llama.with_blocks(config, layer)


def write_experts(config: TransformerConfig, count: str) -> dict[str, Any]:
    feeds = [block.feed_forward for block in config.stack.blocks]
    experts = expect(next((feed for feed in feeds if isinstance(feed, ExpertsConfig)), None), ExpertsConfig)
    return {
        count: experts.count,
        "num_experts_per_tok": experts.active,
        "norm_topk_prob": experts.normalise,
        "router_aux_loss_coef": experts.balance,
    }


def expert_rules(block: BlockConfig, source: str, names: Mapping[str, str]) -> list[TensorRule]:
    """A router and experts in `source`, each with the matrices `names`; or a dense layer."""
    if not isinstance(block.feed_forward, ExpertsConfig):
        return llama.gated_rules(block)
    tensor_rules = [rule("feed_forward.router.weight", f"{source}.gate.weight")]
    for j in range(block.feed_forward.count):
        expert = linears(names, bias=False)
        tensor_rules += prefixed(expert, f"feed_forward.experts.{j}.", f"{source}.experts.{j}.")
    return tensor_rules


def rules(config: TransformerConfig) -> list[TensorRule]:
    names = {"gate_up": "{gate,up}_proj", "down": "down_proj"}
    return llama.rules(config, feed=lambda block: expert_rules(block, "mlp", names))


def read_qwen3_moe(settings: Settings, names: Collection[str]) -> TransformerConfig:
    norm = RMSNormConfig(settings.get("rms_norm_eps", float))
    config = llama.with_mixers(llama.read(settings, names), qk_norm=norm)
    if settings.get("use_sliding_window", bool):
        config = llama.with_windows(config, llama.shared_window(settings))
    step, plain = settings.get("decoder_sparse_step", int), settings.get("mlp_only_layers", list[int], [])
    dense = {i for i in range(len(config.stack.blocks)) if i in plain or (i + 1) % max(1, step)}
    return read_experts(settings, config, "num_local_experts", "moe_intermediate_size", dense)


def write_qwen3_moe(config: TransformerConfig) -> dict[str, Any]:
    experts = write_experts(config, "num_local_experts")
    blocks, window = config.stack.blocks, llama.windows_of(config)[0]
    dense = [i for i, block in enumerate(blocks) if not isinstance(block.feed_forward, ExpertsConfig)]
    sparse = next(i for i in range(len(blocks)) if i not in dense)
    settings = llama.write("qwen3_moe", PublishedClasses.of("Qwen3Moe"), config)
    hidden = llama.gated(blocks[dense[0]]).hidden if dense else settings["intermediate_size"]
    return {
        **settings,
        **experts,
        **llama.write_attention_bias(config),
        "intermediate_size": hidden,
        "moe_intermediate_size": llama.gated(blocks[sparse]).hidden,
        "mlp_only_layers": dense,
        "decoder_sparse_step": 1,
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
    family = llama.family(name, read, write, rules, num_experts_per_tok=8, norm_topk_prob=False, **defaults)
    return replace(
        family,
        aliases=aliases,
        stacked=(
            Stacked(r"\.experts\.gate_up_proj$", (".experts.{}.gate_proj.weight", ".experts.{}.up_proj.weight")),
            Stacked(r"\.experts\.down_proj$", (".experts.{}.down_proj.weight",)),
        ),
    )


FAMILIES = (
    _family(
        "qwen3_moe", read_qwen3_moe, write_qwen3_moe, {"num_experts": "num_local_experts"},
        max_position_embeddings=32768, num_key_value_heads=4, use_sliding_window=False, sliding_window=4096,
        num_local_experts=128, moe_intermediate_size=768, decoder_sparse_step=1, intermediate_size=6144,
        router_aux_loss_coef=0.001,
    ),
    _family(
        "olmoe", read_olmoe, write_olmoe, {"num_local_experts": "num_experts"}, rms_norm_eps=1e-5,
        max_position_embeddings=4096, num_experts=64, router_aux_loss_coef=0.01,
    ),
)  # fmt: skip
