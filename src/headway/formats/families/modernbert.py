"""ModernBERT (Warner et al. 2024): rotary positions, gated GELU, and layers with local or full attention.

The first layer has no norm before its attention, because the embedding ends with one. The two kinds of layers have
separate rotary bases. Every head starts with a dense layer and a norm.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from headway.errors import UserError, nearest
from headway.formats.families.bert import IS_CAUSAL
from headway.formats.heads import architecture, classifier, label_settings, num_outputs
from headway.formats.settings import Settings, published_activation, rope_parameters
from headway.formats.tensor_rules import Family, TensorRule, Unsplit, expect, layers, linear, rule, vocabulary
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
from headway.nn.parts.feedforward import GatedConfig, hidden_width
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import RotaryConfig
from headway.visibility import Full, Local

POOLS = {"cls": "first", "mean": "mean"}
FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"
THETAS = {FULL_ATTENTION: ("global_rope_theta", 160000.0), SLIDING_ATTENTION: ("local_rope_theta", 10000.0)}


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    norm = LayerNormConfig(settings.get("norm_eps", float), bias=settings.get("norm_bias", bool))
    kinds = layer_kinds(settings)
    blocks = tuple(read_block(settings, norm, kind, first=i == 0) for i, kind in enumerate(kinds))
    return TransformerConfig(
        settings.get("hidden_size", int),
        settings.get("vocab_size", int),
        settings.max_positions("max_position_embeddings"),
        StackConfig(blocks, norm),
        TokenEmbedConfig(norm=norm, dropout=settings.get("embedding_dropout", float)),
        read_heads(settings, names, norm),
        "head" if settings.get("tie_word_embeddings", bool) else "none",
    )


def layer_kinds(settings: Settings) -> list[str]:
    """Return each layer's kind, from the list or from the full-attention interval (the older form)."""
    depth = settings.get("num_hidden_layers", int)
    every = settings.get("global_attn_every_n_layers", int, 3)
    kinds = settings.get(
        "layer_types", list[str], [SLIDING_ATTENTION if i % every else FULL_ATTENTION for i in range(depth)]
    )[:depth]
    for kind in kinds:
        if kind not in THETAS:
            raise UserError(f"{settings.source}: layer_types has {kind!r}; {nearest(kind, THETAS)}")
    return kinds


def read_block(settings: Settings, norm: LayerNormConfig, kind: str, first: bool) -> BlockConfig:
    older, theta = THETAS[kind]
    bias, heads = settings.get("attention_bias", bool), settings.get("num_attention_heads", int)
    settings.require("head_dim", settings.get("hidden_size", int) // heads)
    mixer = AttentionConfig(
        heads,
        pattern=Full() if kind == FULL_ATTENTION else Local(reach(settings)),
        rotary=settings.layer_rotary(kind, settings.get(older, float, theta)),
        qkv_bias=bias,
        out_bias=bias,
        dropout=settings.get("attention_dropout", float),
    )
    feed = GatedConfig(
        hidden=settings.get("intermediate_size", int),
        activation=settings.activation("hidden_activation"),
        bias=settings.get("mlp_bias", bool),
        dropout=settings.get("mlp_dropout", float),
    )
    return BlockConfig(mixer, None, feed, norm, mixer_norm=not first)


def reach(settings: Settings) -> int:
    """Return how far a sliding layer attends to each side; `sliding_window` takes precedence."""
    return settings.get("sliding_window", int, settings.get("local_attention", int) // 2)


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
    block = config.stack.blocks[0]
    attention, feed = expect(block.mixer, AttentionConfig), expect(block.feed_forward, GatedConfig)
    norm, embed = expect(block.norm, LayerNormConfig), expect(config.embed, TokenEmbedConfig)
    mixers = [expect(layer.mixer, AttentionConfig) for layer in config.stack.blocks]
    reaches = [layer.pattern.reach for layer in mixers if isinstance(layer.pattern, Local)]
    kinds = [SLIDING_ATTENTION if isinstance(layer.pattern, Local) else FULL_ATTENTION for layer in mixers]
    return {
        "model_type": "modernbert",
        "architectures": architecture("ModernBert", config.heads),
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": hidden_width(feed.hidden, feed.ratio, config.width),
        "num_hidden_layers": len(mixers),
        "num_attention_heads": attention.heads,
        "hidden_activation": published_activation(feed.activation),
        "max_position_embeddings": config.context,
        "norm_eps": norm.eps,
        "norm_bias": norm.bias,
        "attention_bias": attention.qkv_bias,
        "attention_dropout": attention.dropout,
        "mlp_bias": feed.bias,
        "mlp_dropout": feed.dropout,
        "embedding_dropout": embed.dropout,
        "tie_word_embeddings": config.tie == "head",
        "pad_token_id": None,
        "layer_types": kinds,
        "rope_parameters": {
            kind: rope_parameters(expect(layer.rotary, RotaryConfig)) for kind, layer in zip(kinds, mixers)
        },
        **({"local_attention": 2 * reaches[0]} if reaches else {}),
        **write_heads(config),
    }


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
    def layer(i: int) -> list[TensorRule]:
        target, source = f"stack.blocks.{i}", f"model.layers.{i}"
        block = config.stack.blocks[i]
        mixer, feed = expect(block.mixer, AttentionConfig), expect(block.feed_forward, GatedConfig)
        return [
            *(norm(f"{target}.mix.before", f"{source}.attn_norm") if block.mixer_norm else []),
            *linear(f"{target}.mixer.qkv", f"{source}.attn.Wqkv", bias=bool(mixer.qkv_bias), transform=Unsplit()),
            *linear(f"{target}.mixer.out", f"{source}.attn.Wo", bias=mixer.out_bias),
            *norm(f"{target}.feed.before", f"{source}.mlp_norm"),
            *linear(f"{target}.feed_forward.gate_up", f"{source}.mlp.Wi", bias=feed.bias, transform=Unsplit()),
            *linear(f"{target}.feed_forward.down", f"{source}.mlp.Wo", bias=feed.bias),
        ]

    def norm(target: str, source: str) -> list[TensorRule]:
        return linear(target, source, bias=expect(config.stack.norm, LayerNormConfig).bias)

    tensor_rules = [
        rule("embed.table", "model.embeddings.tok_embeddings.weight"),
        *norm("embed.norm", "model.embeddings.norm"),
        *layers(len(config.stack.blocks), layer),
        *norm("stack.norm", "model.final_norm"),
    ]
    head = config.heads.get("vocabulary")
    if isinstance(head, VocabularyHeadConfig) and head.transform is not None:
        tensor_rules += linear("heads.vocabulary.transform.dense", "head.dense", bias=head.transform.bias)
        tensor_rules += norm("heads.vocabulary.transform.norm", "head.norm")
        tensor_rules += [vocabulary(config, "embed.table", "decoder.weight")]
        tensor_rules += [rule("heads.vocabulary.bias", "decoder.bias")] if head.bias else []
    for name in config.heads.keys() & {"classes", "tags"}:
        tensor_rules += linear(
            f"heads.{name}.dense", "head.dense", bias=expect(config.heads[name], PooledHeadConfig).dense_bias
        )
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
    defaults={
        "vocab_size": 50368,
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_hidden_layers": 22,
        "num_attention_heads": 12,
        "hidden_activation": "gelu",
        "max_position_embeddings": 8192,
        "norm_eps": 1e-5,
        "norm_bias": False,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "local_attention": 128,
        "embedding_dropout": 0.0,
        "mlp_bias": False,
        "mlp_dropout": 0.0,
        "decoder_bias": True,
        "classifier_pooling": "cls",
        "classifier_dropout": 0.0,
        "classifier_bias": False,
        "classifier_activation": "gelu",
        "tie_word_embeddings": True,
        "pad_token_id": 50283,
        "eos_token_id": 50282,
        "bos_token_id": 50281,
    },
)
