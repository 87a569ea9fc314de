"""GPT-NeoX (Black et al. 2022) and Pythia: parallel attention and feed-forward, rotary positions in part of a head.

Query, key and value are interleaved per head in one tensor.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.formats.heads import PublishedClasses, head_rules, read_heads, write_heads
from headway.formats.setting_table import ACTIVATION, SettingTable, flag
from headway.formats.settings import Settings, published_context, rope_parameters
from headway.formats.tensor_rules import Family, PerHead, TensorRule, block_rules, expect, linear, linears, rule
from headway.nn.mixers import AttentionConfig
from headway.nn.models import BlockConfig, StackConfig, TransformerConfig
from headway.nn.parts.positions import RotaryConfig

TABLE = SettingTable(
    TransformerConfig(stack=StackConfig((BlockConfig(),))),
    {
        "vocab_size": ("vocab_size", 50432),
        "hidden_size": ("width", 6144),
        "num_hidden_layers": ("depth", 44),
        "num_attention_heads": ("block.mixer.heads", 64),
        "intermediate_size": ("block.feed_forward.hidden", 24576),
        "hidden_act": ("block.feed_forward.activation", "gelu", ACTIVATION),
        "max_position_embeddings": ("context", 2048),
        "layer_norm_eps": ("block.norm.eps stack.norm.eps", 1e-5),
        "use_parallel_residual": ("block.placement", True, flag("parallel", "pre")),
        "attention_bias": ("block.mixer.qkv_bias block.mixer.out_bias", True),
        "attention_dropout": ("block.mixer.dropout", 0.0),
        "hidden_dropout": ("block.dropout embed.dropout", 0.0),
        "tie_word_embeddings": ("", False),
    },
)


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    # The fraction is rotary_pct or in rope_parameters; other families' name for it is ignored.
    rotary = replace(settings, values={**settings.values, "partial_rotary_factor": None}).rotary(
        theta=settings.get("rotary_emb_base", float, 10000.0), fraction=settings.get("rotary_pct", float, 0.25)
    )
    settings.require("head_dim", settings.get("hidden_size", int) // settings.get("num_attention_heads", int))
    fields = {"block.mixer.rotary": rotary, "context": settings.served_positions(rotary)}
    return TABLE.read(settings, {**fields, **read_heads(settings)})


def write(config: TransformerConfig) -> dict[str, Any]:
    rotary = expect(expect(config.stack.blocks[0].mixer, AttentionConfig).rotary, RotaryConfig)
    others = {
        "max_position_embeddings": published_context(config.context, rotary),
        "rope_parameters": {"partial_rotary_factor": rotary.fraction, **rope_parameters(rotary)},
    }
    heads = write_heads(config, PublishedClasses.of("GPTNeoX"))
    return {"model_type": "gpt_neox", **heads, **TABLE.write(config, others)}


def rules(config: TransformerConfig) -> list[TensorRule]:
    def layer(block: BlockConfig) -> list[TensorRule]:
        mixer = expect(block.mixer, AttentionConfig)
        fused, split = "attention.query_key_value", PerHead(mixer.heads)
        feed = {"feed_forward.up": "mlp.dense_h_to_4h", "feed_forward.down": "mlp.dense_4h_to_h"}
        return [
            *linear("mix.before", "input_layernorm"),
            *linear("mixer.qkv", fused, bias=bool(mixer.qkv_bias), transform=split),
            *linear("mixer.out", "attention.dense", bias=mixer.out_bias),
            *linears({"feed.before": "post_attention_layernorm", **feed}),
        ]

    return [
        rule("embed.table", "gpt_neox.embed_in.weight"),
        *block_rules(config.stack, "gpt_neox.layers.{}.", layer),
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
    defaults=TABLE.defaults,
    older=("rotary_pct", "rotary_emb_base", "rope_theta", "rope_scaling", "partial_rotary_factor"),
)
