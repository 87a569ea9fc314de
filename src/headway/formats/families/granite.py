"""Granite 3 (Granite Team 2024): Llama with fixed factors on embeddings, scores, branches and logits. GraniteMoE has
experts in every layer, stacked in the file.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.formats.families import llama
from headway.formats.families.experts import expert_rules, read_experts, stacks, write_counts
from headway.formats.settings import Settings
from headway.formats.tensor_rules import TensorRule, expect
from headway.nn.models import TokenEmbedConfig, TransformerConfig, VocabularyHeadConfig


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    config = llama.with_mixers(llama.read(settings, names), scale=settings.positive("attention_multiplier"))
    factor = settings.get("residual_multiplier", float)
    config = llama.with_blocks(config, lambda _, block: replace(block, branch_scale=factor))
    heads, scale = config.heads, 1 / settings.positive("logits_scaling")
    return replace(
        config,
        embed=TokenEmbedConfig(scale=settings.get("embedding_multiplier", float)),
        heads={"vocabulary": VocabularyHeadConfig(scale=scale)} if "vocabulary" in heads else heads,
    )


def read_moe(settings: Settings, names: Collection[str]) -> TransformerConfig:
    plain = replace(settings, values={**settings.values, "mlp_bias": False, "norm_topk_prob": True})
    return read_experts(settings=plain, config=read(plain, names), count="num_local_experts", width="intermediate_size")


def write_factors(config: TransformerConfig) -> dict[str, Any]:
    head = config.heads.get("vocabulary", VocabularyHeadConfig())
    return {
        **llama.write_attention_bias(config),
        "attention_multiplier": expect(llama.attention(config.stack.blocks[0]).scale, float),
        "residual_multiplier": config.stack.blocks[0].branch_scale,
        "embedding_multiplier": expect(config.embed, TokenEmbedConfig).scale,
        "logits_scaling": round(1 / expect(head, VocabularyHeadConfig).scale, 12),  # as it was before it was inverted
    }


def rules(config: TransformerConfig) -> list[TensorRule]:
    source = "block_sparse_moe"
    return llama.rules(config, feed=lambda block: expert_rules(block, source, router="router.layer"))


DEFAULTS: dict[str, Any] = {
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
}
_MOE = llama.family(
    "granitemoe",
    read_moe,
    llama.writer("granitemoe", "GraniteMoe", write_factors, write_counts),
    rules,
    **DEFAULTS,
    num_local_experts=8,
    num_experts_per_tok=2,
    router_aux_loss_coef=0.001,
)
FAMILIES = (
    llama.family("granite", read, llama.writer("granite", "Granite", llama.write_biases, write_factors), **DEFAULTS),
    replace(
        _MOE,
        renames=(*_MOE.renames, (r"\.router\.weight$", ".router.layer.weight")),
        stacked=stacks(".input_linear.weight", ".output_linear.weight", written=True),
    ),
)
