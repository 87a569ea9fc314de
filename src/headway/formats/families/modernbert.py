"""ModernBERT (Warner et al. 2024): rotary positions, gated GELU, and layers with local or full attention.

The first layer has no norm before its attention, because the embedding ends with one. The two kinds of layers have
separate rotary bases. Every head starts with a dense layer and a norm.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.errors import UserError, nearest
from headway.formats.families.bert import IS_CAUSAL
from headway.formats.families.llama import FULL_ATTENTION, SLIDING_ATTENTION, with_blocks
from headway.formats.heads import architecture, classifier, label_settings, num_outputs
from headway.formats.setting_table import ACTIVATION, POSITIONS, SettingTable, flag
from headway.formats.settings import Settings, published_activation, rope_parameters
from headway.formats.tensor_rules import Family, TensorRule, Unsplit, block_rules, expect, linear, rule, vocabulary
from headway.nn.mixers import AttentionConfig
from headway.nn.models import (
    BlockConfig,
    HeadConfig,
    PooledHeadConfig,
    StackConfig,
    TokenEmbedConfig,
    TransformConfig,
    TransformerConfig,
    VocabularyHeadConfig,
)
from headway.nn.parts.feedforward import GatedConfig
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import RotaryConfig
from headway.visibility import Full, Local

POOLS = {"cls": "first", "mean": "mean"}
THETAS = {FULL_ATTENTION: ("global_rope_theta", 160000.0), SLIDING_ATTENTION: ("local_rope_theta", 10000.0)}


TABLE = SettingTable(
    TransformerConfig(
        stack=StackConfig((BlockConfig(feed_forward=GatedConfig()),)), embed=TokenEmbedConfig(norm=LayerNormConfig())
    ),
    {
        "vocab_size": ("vocab_size", 50368),
        "hidden_size": ("width", 768),
        "intermediate_size": ("block.feed_forward.hidden", 1152),
        "num_hidden_layers": ("depth", 22),
        "num_attention_heads": ("block.mixer.heads", 12),
        "hidden_activation": ("block.feed_forward.activation", "gelu", ACTIVATION),
        "max_position_embeddings": ("context", 8192, POSITIONS),
        "norm_eps": ("block.norm.eps stack.norm.eps embed.norm.eps", 1e-5),
        "norm_bias": ("block.norm.bias stack.norm.bias embed.norm.bias", False),
        "attention_bias": ("block.mixer.qkv_bias block.mixer.out_bias", False),
        "attention_dropout": ("block.mixer.dropout", 0.0),
        "mlp_bias": ("block.feed_forward.bias", False),
        "mlp_dropout": ("block.feed_forward.dropout", 0.0),
        "embedding_dropout": ("embed.dropout", 0.0),
        "tie_word_embeddings": ("tie", True, flag("head", "none")),
        "pad_token_id": ("", 50283),
        "layer_types": ("", list),
        "rope_parameters": ("", dict),
        "local_attention": ("", 128),
        "classifier_activation": ("", "gelu"),
        "classifier_bias": ("", False),
        "classifier_dropout": ("", 0.0),
        "classifier_pooling": ("", "cls"),
        "decoder_bias": ("", True),
    },
)


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    norm = LayerNormConfig(settings.get("norm_eps", float), bias=settings.get("norm_bias", bool))
    depth, every = settings.get("num_hidden_layers", int), settings.get("global_attn_every_n_layers", int, 3)
    # From the list, or from the full-attention interval (the older form).
    kinds = settings.get(
        "layer_types", list[str], [SLIDING_ATTENTION if i % every else FULL_ATTENTION for i in range(depth)]
    )[:depth]
    config = TABLE.read(settings, {"depth": len(kinds), "heads": read_heads(settings, names, norm)})
    settings.require("head_dim", config.width // settings.get("num_attention_heads", int))
    # How far a sliding layer attends to each side; `sliding_window` takes precedence.
    reach = settings.get("sliding_window", int, settings.get("local_attention", int) // 2)

    def layer(i: int, block: BlockConfig) -> BlockConfig:
        kind = kinds[i]
        if kind not in THETAS:
            raise UserError(f"{settings.source}: layer_types has {kind!r}; {nearest(kind, THETAS)}")
        older, theta = THETAS[kind]
        pattern = Full() if kind == FULL_ATTENTION else Local(reach)
        rotary = settings.layer_rotary(kind, settings.get(older, float, theta))
        mixer = replace(expect(block.mixer, AttentionConfig), pattern=pattern, rotary=rotary)
        return replace(block, mixer=mixer, mixer_norm=i > 0)

    return with_blocks(config, layer)


def read_heads(settings: Settings, names: Collection[str], norm: LayerNormConfig) -> dict[str, HeadConfig]:
    activation, bias = settings.activation("classifier_activation"), settings.get("classifier_bias", bool)
    kind = classifier(settings, names, "classifier.weight")
    if kind is not None:
        settings.require("classifier_pooling", *POOLS)
        pooling = settings.get("classifier_pooling", str)
        head = PooledHeadConfig(
            num_outputs(settings),
            pool="tokens" if kind == "tags" else POOLS[pooling],  # type: ignore[arg-type]
            dense=True,
            activation=activation,
            norm=norm,
            dropout=settings.get("classifier_dropout", float),
            dense_bias=bias,
        )
        return {kind: head}
    if "head.dense.weight" not in names:
        return {}
    transform = TransformConfig(activation, norm, bias)
    return {"vocabulary": VocabularyHeadConfig(bias=settings.get("decoder_bias", bool), transform=transform)}


def write(config: TransformerConfig) -> dict[str, Any]:
    mixers = [expect(layer.mixer, AttentionConfig) for layer in config.stack.blocks]
    reaches = [layer.pattern.reach for layer in mixers if isinstance(layer.pattern, Local)]
    kinds = [SLIDING_ATTENTION if isinstance(layer.pattern, Local) else FULL_ATTENTION for layer in mixers]
    rotaries = {kind: rope_parameters(expect(layer.rotary, RotaryConfig)) for kind, layer in zip(kinds, mixers)}
    others = {"pad_token_id": None, "layer_types": kinds, "rope_parameters": rotaries}
    others |= {"local_attention": 2 * reaches[0]} if reaches else {}
    settings = TABLE.write(config, {**others, **write_heads(config)})
    return {"model_type": "modernbert", "architectures": architecture("ModernBert", config.heads), **settings}


def write_heads(config: TransformerConfig) -> dict[str, Any]:
    head = config.heads.get("classes") or config.heads.get("tags")
    if isinstance(head, PooledHeadConfig) and head.activation is not None:
        pooling = next((published for published, pool in POOLS.items() if pool == head.pool), None)
        return {
            "classifier_activation": published_activation(head.activation),
            "classifier_bias": head.dense_bias,
            "classifier_dropout": head.dropout,
            **({} if pooling is None else {"classifier_pooling": pooling}),
            **label_settings(config.heads),
        }
    head = config.heads.get("vocabulary")
    if isinstance(head, VocabularyHeadConfig) and head.transform is not None:
        return {
            "classifier_activation": published_activation(head.transform.activation),
            "classifier_bias": head.transform.bias,
            "decoder_bias": head.bias,
        }
    return {}


def rules(config: TransformerConfig) -> list[TensorRule]:
    def layer(block: BlockConfig) -> list[TensorRule]:
        mixer, feed = expect(block.mixer, AttentionConfig), expect(block.feed_forward, GatedConfig)
        return [
            *(norm("mix.before", "attn_norm") if block.mixer_norm else []),
            *linear("mixer.qkv", "attn.Wqkv", bias=bool(mixer.qkv_bias), transform=Unsplit()),
            *linear("mixer.out", "attn.Wo", bias=mixer.out_bias),
            *norm("feed.before", "mlp_norm"),
            *linear("feed_forward.gate_up", "mlp.Wi", bias=feed.bias, transform=Unsplit()),
            *linear("feed_forward.down", "mlp.Wo", bias=feed.bias),
        ]

    def norm(target: str, source: str) -> list[TensorRule]:
        return linear(target, source, bias=expect(config.stack.norm, LayerNormConfig).bias)

    tensor_rules = [
        rule("embed.table", "model.embeddings.tok_embeddings.weight"),
        *norm("embed.norm", "model.embeddings.norm"),
        *block_rules(config.stack, "model.layers.{}.", layer),
        *norm("stack.norm", "model.final_norm"),
    ]
    head = config.heads.get("vocabulary")
    if isinstance(head, VocabularyHeadConfig) and head.transform is not None:
        tensor_rules += linear("heads.vocabulary.transform.dense", "head.dense", bias=head.transform.bias)
        tensor_rules += norm("heads.vocabulary.transform.norm", "head.norm")
        tensor_rules += [vocabulary(config, "embed.table", "decoder.weight")]
        tensor_rules += [rule("heads.vocabulary.bias", "decoder.bias")] if head.bias else []
    for name in config.heads.keys() & {"classes", "tags"}:
        bias = expect(config.heads[name], PooledHeadConfig).dense_bias
        tensor_rules += linear(f"heads.{name}.dense", "head.dense", bias=bias)
        tensor_rules += norm(f"heads.{name}.norm", "head.norm")
        tensor_rules += linear(f"heads.{name}.project", "classifier")
    return tensor_rules


FAMILY = Family(
    "modernbert",
    read,
    write,
    rules,
    renames=((r"^(?=(embeddings|layers|final_norm)\.)", "model."),),
    ignored=(IS_CAUSAL, "sparse_prediction", "sparse_pred_ignore_index"),  # settings of the loss
    older=(
        "sliding_window",
        "global_attn_every_n_layers",
        "global_rope_theta",
        "local_rope_theta",
        "rope_theta",
        "rope_scaling",
    ),
    defaults={**TABLE.defaults, "eos_token_id": 50282, "bos_token_id": 50281},
)
