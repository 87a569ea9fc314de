"""StableLM (Bellagente et al. 2024): Llama with layer norms, rotary positions in a quarter of each head, and, in its
parallel variant, one norm for parallel attention and feed-forward.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.formats.families import llama
from headway.formats.heads import head_rules
from headway.formats.settings import Settings
from headway.formats.tensor_rules import TensorRule, block_rules, linear, rule
from headway.nn.models import BlockConfig, TransformerConfig
from headway.nn.parts.norm import LayerNormConfig


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    settings.require("qk_layernorm", False)  # a norm with separate weights per head
    settings.require("head_dim", settings.get("hidden_size", int) // settings.get("num_attention_heads", int))
    norm, parallel = LayerNormConfig(settings.get("layer_norm_eps", float)), settings.get("use_parallel_residual", bool)
    config = llama.with_mixers(
        llama.read_plain(settings), head_size=None, qkv_bias=settings.get("use_qkv_bias", bool), out_bias=False
    )

    def layer(i: int, block: BlockConfig) -> BlockConfig:
        return replace(block, norm=norm, placement="parallel" if parallel else "pre", shared_norm=parallel)

    config = llama.with_blocks(llama.without_feed_biases(config), layer)
    return replace(config, stack=replace(config.stack, norm=norm))


def write(config: TransformerConfig) -> dict[str, Any]:
    block, fraction = config.stack.blocks[0], llama.first_rotary(config).fraction
    settings = llama.write_layer_norms("stablelm", config, "layer_norm_eps", "StableLm")
    return {
        **settings,
        "use_qkv_bias": llama.attention(block).qkv_bias,
        "use_parallel_residual": block.placement == "parallel",
        "rope_parameters": {**settings["rope_parameters"], "partial_rotary_factor": fraction},
    }


def rules(config: TransformerConfig) -> list[TensorRule]:
    return [
        rule("embed.table", "model.embed_tokens.weight"),
        *block_rules(
            config.stack,
            "model.layers.{}.",
            lambda block: [
                *linear("mix.before", "input_layernorm"),
                *([] if block.shared_norm else linear("feed.before", "post_attention_layernorm")),
                *llama.attention_rules(llama.attention(block)),
                *llama.gated_rules(block),
            ],
        ),
        *linear("stack.norm", "model.norm"),
        *head_rules(config),
    ]


FAMILY = llama.family(
    "stablelm",
    read,
    write,
    rules,
    layer_norm_eps=1e-5,
    num_key_value_heads=32,
    use_qkv_bias=False,
    use_parallel_residual=False,
    partial_rotary_factor=0.25,
    max_position_embeddings=4096,
)
