"""ALBERT (Lan et al. 2020): BERT whose layers share their weights, with an embedding of a width of its own."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.errors import UserError
from headway.formats.families.bert import IS_CAUSAL, TABLE, encoder, masked_rules, read_classifier, shared_settings
from headway.formats.heads import POOLER, SPAN, SPAN_TENSOR, architecture, classifier, pooler
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family, TensorRule, expect, linear, linears, prefixed, rule
from headway.nn.models import (
    HeadConfig,
    PooledHeadConfig,
    TokenEmbedConfig,
    TransformConfig,
    TransformerConfig,
    VocabularyHeadConfig,
)
from headway.nn.parts.norm import LayerNormConfig


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    settings.require("num_hidden_groups", 1)
    settings.require("inner_group_num", 1)
    width, inner = settings.get("hidden_size", int), settings.get("embedding_size", int)
    if inner == width:
        raise UserError(f"{settings.source}: embedding_size is {inner}, as hidden_size; it has to differ")
    rate = settings.get("classifier_dropout_prob", float)
    settings = replace(settings, values={**settings.values, "classifier_dropout": rate})
    heads: dict[str, HeadConfig] = {}
    if "predictions.bias" in names:
        norm = LayerNormConfig(settings.get("layer_norm_eps", float))
        transform = TransformConfig(settings.activation("hidden_act"), norm, width=inner)
        heads["vocabulary"] = VocabularyHeadConfig(bias=True, transform=transform)
    if "sop_classifier.classifier.weight" in names:  # whether the second text precedes the first
        heads["next"] = PooledHeadConfig(2, dense=True, activation="tanh", dropout=rate)
    heads |= read_classifier(settings, classifier(settings, names, "classifier.weight"))
    heads |= {"span": SPAN} if f"{SPAN_TENSOR}.weight" in names else {}
    if "albert.pooler.weight" in names and not heads.keys() & {"next", "classes"}:
        heads["pooled"] = POOLER
    config = encoder(settings, heads)
    embed = replace(expect(config.embed, TokenEmbedConfig), width=inner, projects="sum")
    return replace(config, embed=embed, stack=replace(config.stack, shared=True))


def write(config: TransformerConfig) -> dict[str, Any]:
    settings = shared_settings(config)
    rate = settings.pop("classifier_dropout")
    return {
        "model_type": "albert",
        "architectures": architecture("Albert", config.heads),
        **settings,
        "embedding_size": expect(config.embed, TokenEmbedConfig).width,
        **({} if rate is None else {"classifier_dropout_prob": rate}),
        **dict.fromkeys(("num_hidden_groups", "inner_group_num"), 1),
    }


def rules(config: TransformerConfig) -> list[TensorRule]:
    names = {
        "mixer.qkv": "attention.{query,key,value}",
        "mixer.out": "attention.dense",
        "mix.last": "attention.LayerNorm",
        "feed_forward.up": "ffn",
        "feed_forward.down": "ffn_output",
        "feed.last": "full_layer_layer_norm",
    }
    layer = "albert.encoder.albert_layer_groups.0.albert_layers.0."
    tables = {"": "word", "positions.": "position", "types.": "token_type"}
    outputs = {"next": "sop_classifier.classifier", "classes": "classifier", "tags": "classifier", "span": SPAN_TENSOR}
    return [
        *(rule(f"embed.{to}table", f"albert.embeddings.{name}_embeddings.weight") for to, name in tables.items()),
        *linear("embed.norm", "albert.embeddings.LayerNorm"),
        *linear("embed.project", "albert.encoder.embedding_hidden_mapping_in"),
        *prefixed(linears(names), "stack.blocks.0.", layer),
        *masked_rules(config, "predictions", "dense", "LayerNorm"),
        *pooler(config.heads, "albert.pooler", outputs),
    ]


FAMILY = Family(
    "albert",
    read,
    write,
    rules,
    renames=((r"^(?=(embeddings|encoder|pooler)\.)", "albert."), (r"^albert\.pooler\.dense\.", "albert.pooler.")),
    skipped=(r"\.embeddings\.position_ids$",),
    ignored=(IS_CAUSAL, "net_structure_type", "gap_size", "num_memory_blocks", "down_scale_factor"),
    defaults={
        **TABLE.defaults,
        "vocab_size": 30000,
        "embedding_size": 128,
        "hidden_size": 4096,
        "num_attention_heads": 64,
        "intermediate_size": 16384,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout_prob": 0.1,
        "num_hidden_groups": 1,
        "inner_group_num": 1,
    },
)
