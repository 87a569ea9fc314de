"""GLM-4 (GLM Team 2024): Llama with rotary pairs of neighbours in half of each head, biases of queries, keys and
values, and fused gates. Its models of 2025 (glm4) have norms before and after each branch. GLM-4.5 (2025, glm4_moe) has
experts chosen as in DeepSeek-V3, in one group, and one that all tokens pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from headway.formats.families import llama
from headway.formats.families.experts import expert_rules, first_experts, read_experts, stacks, write_sparse
from headway.formats.settings import Settings, rope_parameters
from headway.formats.tensor_rules import TensorRule, Unsplit, expect, linear, rule, tied_copy
from headway.nn.models import BlockConfig, TransformerConfig
from headway.nn.models.block import Placement
from headway.nn.parts.experts import ExpertsConfig
from headway.nn.parts.feedforward import GatedConfig
from headway.nn.parts.norm import RMSNormConfig

NORMS: Mapping[Placement, Mapping[str, str]] = {
    **llama.NORMS,
    "sandwich": {
        "mix.before": "input_layernorm",
        "mix.after": "post_self_attn_layernorm",
        "feed.before": "post_attention_layernorm",
        "feed.after": "post_mlp_layernorm",
    },
}


def read_glm(settings: Settings, names: Collection[str]) -> TransformerConfig:
    return llama.without_feed_biases(llama.with_mixers(llama.read_plain(settings), out_bias=False))


def read_glm4(settings: Settings, names: Collection[str]) -> TransformerConfig:
    return llama.with_blocks(read_glm(settings, names), lambda _, block: replace(block, placement="sandwich"))


def write_extras(config: TransformerConfig) -> dict[str, Any]:
    rotary = llama.first_rotary(config)
    parameters = {"partial_rotary_factor": rotary.fraction, **rope_parameters(rotary)}
    return {**llama.write_attention_bias(config), "rope_parameters": parameters}


def fused_gate(block: BlockConfig) -> list[TensorRule]:
    fused = linear("feed_forward.gate_up", "mlp.gate_up_proj", bias=False, transform=Unsplit())
    return [*fused, *linear("feed_forward.down", "mlp.down_proj", bias=False)]


def rules(config: TransformerConfig) -> list[TensorRule]:
    return llama.rules(config, lambda mixer: llama.attention_rules(mixer, interleaved=True), fused_gate, NORMS)


def read_moe(settings: Settings, names: Collection[str]) -> TransformerConfig:
    settings.require("n_group", 1)
    settings.require("topk_group", 1)
    config = read_glm(settings, names)
    if settings.get("use_qk_norm", bool):
        config = llama.with_mixers(config, qk_norm=RMSNormConfig(settings.get("rms_norm_eps", float)))
    width = settings.get("moe_intermediate_size", int) * settings.get("n_shared_experts", int)
    return read_experts(
        settings,
        config,
        "n_routed_experts",
        "moe_intermediate_size",
        range(settings.get("first_k_dense_replace", int)),
        shared=replace(llama.gated(config.stack.blocks[0]), hidden=width),
        scores="sigmoid",
        scale=settings.get("routed_scaling_factor", float),
    )


def write_moe(config: TransformerConfig) -> dict[str, Any]:
    experts, settings = first_experts(config), write_sparse("glm4_moe", "Glm4Moe", "n_routed_experts", config)
    dense = len(settings.pop("mlp_only_layers"))
    width = settings["moe_intermediate_size"]
    return {
        **settings,
        **write_extras(config),
        "first_k_dense_replace": dense,
        "n_shared_experts": (expect(experts.shared, GatedConfig).hidden or 0) // width,
        "routed_scaling_factor": experts.scale,
        "use_qk_norm": llama.attention(config.stack.blocks[0]).qk_norm is not None,
    }


def moe_rules(config: TransformerConfig) -> list[TensorRule]:
    def feed(block: BlockConfig) -> list[TensorRule]:
        correction = rule("feed_forward.correction", "mlp.gate.e_score_correction_bias")
        mixture = expert_rules(block, "mlp", shared="shared_experts")
        return [*mixture, correction] if isinstance(block.feed_forward, ExpertsConfig) else mixture

    return [*llama.rules(config, feed=feed), *_prediction_rules(config, feed)]


def _prediction_rules(config: TransformerConfig, feed: Callable[[BlockConfig], list[TensorRule]]) -> list[TensorRule]:
    """The layer after the last one, which predicts the token after the next in training, is not read."""
    last = replace(config, stack=replace(config.stack, blocks=config.stack.blocks[-1:]), heads={})
    start = f"model.layers.{len(config.stack.blocks)}."
    names = [name for part in llama.rules(last, feed=feed) for name in part.sources if ".layers.0." in name]
    more = ("eh_proj", "enorm", "hnorm", "embed_tokens", "shared_head.norm", "shared_head.head")
    names = [name.replace("model.layers.0.", start) for name in names] + [f"{start}{part}.weight" for part in more]
    return [tied_copy("", name) for name in names]


_DEFAULTS: dict[str, Any] = {
    "rms_norm_eps": 1.5625e-07,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
    "max_position_embeddings": 131072,
}
FAMILIES = (
    llama.family("glm", read_glm, llama.writer("glm", "Glm", write_extras), rules, **_DEFAULTS),
    llama.family("glm4", read_glm4, llama.writer("glm4", "Glm4", write_extras), rules, **_DEFAULTS),
    replace(
        llama.family(
            "glm4_moe",
            read_moe,
            write_moe,
            moe_rules,
            rms_norm_eps=1e-5,
            num_key_value_heads=8,
            partial_rotary_factor=0.5,
            max_position_embeddings=131072,
            moe_intermediate_size=1408,
            num_experts_per_tok=8,
            n_shared_experts=1,
            n_routed_experts=128,
            routed_scaling_factor=1.0,
            first_k_dense_replace=1,
            norm_topk_prob=True,
            use_qk_norm=False,
            router_aux_loss_coef=0.0,
            n_group=1,
            topk_group=1,
        ),
        aliases={"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
        ignored=("num_nextn_predict_layers", llama.IS_CAUSAL),
        stacked=stacks(),
    ),
)
