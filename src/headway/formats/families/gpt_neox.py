"""GPT-NeoX (Black et al. 2022) and Pythia: parallel attention and feed-forward, rotary positions in part of a head.

Query, key and value are interleaved per head in one tensor.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.formats.heads import PublishedClasses, head_rules, read_heads, write_heads
from headway.formats.settings import Settings, published_activation, published_context, rope_parameters
from headway.formats.tensor_rules import Family, PerHead, TensorRule, expect, layers, linear, rule
from headway.nn.mixers import AttentionConfig
from headway.nn.models import BlockConfig, StackConfig, TokenEmbedConfig, TransformerConfig, cycle
from headway.nn.parts.feedforward import MLPConfig
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import RotaryConfig


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    # The fraction is rotary_pct or in rope_parameters; other families' name for it is ignored.
    rotary = replace(settings, values={**settings.values, "partial_rotary_factor": None}).rotary(
        theta=settings.get("rotary_emb_base", float, 10000.0), fraction=settings.get("rotary_pct", float, 0.25)
    )
    settings.require("head_dim", settings.get("hidden_size", int) // settings.get("num_attention_heads", int))
    norm, dropout = LayerNormConfig(settings.get("layer_norm_eps", float)), settings.get("hidden_dropout", float)
    mixer = AttentionConfig(
        settings.get("num_attention_heads", int),
        rotary=rotary,
        qkv_bias=settings.get("attention_bias", bool),
        out_bias=settings.get("attention_bias", bool),
        dropout=settings.get("attention_dropout", float),
    )
    block = BlockConfig(
        mixer,
        None,
        MLPConfig(hidden=settings.get("intermediate_size", int), activation=settings.activation("hidden_act")),
        norm,
        "parallel" if settings.get("use_parallel_residual", bool) else "pre",
        dropout=dropout,
    )
    return TransformerConfig(
        settings.get("hidden_size", int),
        settings.get("vocab_size", int),
        settings.served_positions(rotary),
        StackConfig(cycle((block,), settings.get("num_hidden_layers", int)), norm),
        TokenEmbedConfig(dropout=dropout),
        *read_heads(settings),
    )


def write(config: TransformerConfig) -> dict[str, Any]:
    block = config.stack.blocks[0]
    mixer, feed = expect(block.mixer, AttentionConfig), expect(block.feed_forward, MLPConfig)
    rotary = expect(mixer.rotary, RotaryConfig)
    return {
        "model_type": "gpt_neox",
        **write_heads(config, PublishedClasses.of("GPTNeoX")),
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": len(config.stack.blocks),
        "num_attention_heads": mixer.heads,
        "intermediate_size": feed.hidden if feed.hidden is not None else round(feed.ratio * config.width),
        "hidden_act": published_activation(feed.activation),
        "max_position_embeddings": published_context(config.context, rotary),
        "layer_norm_eps": expect(block.norm, LayerNormConfig).eps,
        "use_parallel_residual": block.placement == "parallel",
        "attention_bias": mixer.qkv_bias,
        "attention_dropout": mixer.dropout,
        "hidden_dropout": block.dropout,
        "rope_parameters": {"partial_rotary_factor": rotary.fraction, **rope_parameters(rotary)},
    }


def rules(config: TransformerConfig) -> list[TensorRule]:
    def layer(i: int) -> list[TensorRule]:
        target, source = f"stack.blocks.{i}", f"gpt_neox.layers.{i}"
        mixer = expect(config.stack.blocks[i].mixer, AttentionConfig)
        fused, bias = f"{source}.attention.query_key_value", bool(mixer.qkv_bias)
        return [
            *linear(f"{target}.mix.before", f"{source}.input_layernorm"),
            *linear(f"{target}.mixer.qkv", fused, bias=bias, transform=PerHead(mixer.heads)),
            *linear(f"{target}.mixer.out", f"{source}.attention.dense", bias=mixer.out_bias),
            *linear(f"{target}.feed.before", f"{source}.post_attention_layernorm"),
            *linear(f"{target}.feed_forward.up", f"{source}.mlp.dense_h_to_4h"),
            *linear(f"{target}.feed_forward.down", f"{source}.mlp.dense_4h_to_h"),
        ]

    return [
        rule("embed.table", "gpt_neox.embed_in.weight"),
        *layers(len(config.stack.blocks), layer),
        *linear("stack.norm", "gpt_neox.final_layer_norm"),
        *head_rules(config, "embed_out.weight"),
    ]


FAMILY = Family(
    "gpt_neox",
    read,
    write,
    rules,
    renames=((r"^(?=(layers|embed_in|final_layer_norm)\.)", "gpt_neox."), (r"^lm_head\.", "embed_out.")),
    skipped=(r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",),
    defaults={
        "vocab_size": 50432,
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24576,
        "hidden_act": "gelu",
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "attention_bias": True,
    },
    older=("rotary_pct", "rotary_emb_base", "rope_theta", "rope_scaling", "partial_rotary_factor"),
)
