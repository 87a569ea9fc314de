"""StarCoder 2 (Lozhkov et al. 2024): grouped heads with rotary positions, layer norms, biases, and a plain
feed-forward.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.formats.families import llama
from headway.formats.heads import head_rules
from headway.formats.settings import Settings, published_activation
from headway.formats.tensor_rules import TensorRule, block_rules, expect, linear, linears, rule
from headway.nn.models import BlockConfig, TokenEmbedConfig, TransformerConfig
from headway.nn.parts.feedforward import GatedConfig, MLPConfig
from headway.nn.parts.norm import LayerNormConfig


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    norm, bias = LayerNormConfig(settings.get("norm_epsilon", float)), settings.get("use_bias", bool)
    config = llama.with_windows(llama.read(settings, names), llama.shared_window(settings))
    config = llama.with_mixers(config, qkv_bias=bias, out_bias=bias)
    feed = MLPConfig(
        hidden=settings.get("intermediate_size", int), activation=settings.activation("hidden_act"), bias=bias
    )
    rate = settings.get("residual_dropout", float)
    embed = replace(expect(config.embed, TokenEmbedConfig), dropout=settings.get("embedding_dropout", float))

    def layer(_: int, block: BlockConfig) -> BlockConfig:
        return replace(block, feed_forward=feed, norm=norm, dropout=rate)

    config = llama.with_blocks(config, layer)
    return replace(config, stack=replace(config.stack, norm=norm), embed=embed)


def write(config: TransformerConfig) -> dict[str, Any]:
    block = config.stack.blocks[0]
    feed = expect(block.feed_forward, MLPConfig)
    gated = replace(block, feed_forward=GatedConfig(hidden=feed.hidden))  # llama.write supports only gated ones
    stack = replace(config.stack, blocks=(gated, *config.stack.blocks[1:]))
    settings = llama.write_layer_norms("starcoder2", replace(config, stack=stack), "norm_epsilon", "Starcoder2")
    return {
        **settings,
        **llama.write_window(config),
        "hidden_act": published_activation(feed.activation),
        "use_bias": feed.bias,
        "residual_dropout": block.dropout,
        "embedding_dropout": expect(config.embed, TokenEmbedConfig).dropout,
    }


def rules(config: TransformerConfig) -> list[TensorRule]:
    def layer(block: BlockConfig) -> list[TensorRule]:
        bias = expect(block.feed_forward, MLPConfig).bias
        return [
            *linears({"mix.before": "input_layernorm", "feed.before": "post_attention_layernorm"}),
            *llama.attention_rules(llama.attention(block)),
            *linears({"feed_forward.up": "mlp.c_fc", "feed_forward.down": "mlp.c_proj"}, bias=bias),
        ]

    return [
        rule("embed.table", "model.embed_tokens.weight"),
        *block_rules(config.stack, "model.layers.{}.", layer),
        *linear("stack.norm", "model.norm"),
        *head_rules(config),
    ]


FAMILY = llama.family(
    "starcoder2",
    read,
    write,
    rules,
    hidden_act="gelu_pytorch_tanh",
    norm_epsilon=1e-5,
    tie_word_embeddings=True,
    use_bias=True,
    residual_dropout=0.0,
    embedding_dropout=0.0,
    num_key_value_heads=2,
    max_position_embeddings=4096,
)
