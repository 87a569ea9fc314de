"""DistilBERT (Sanh et al. 2019): BERT with half the layers, without token types and without a pooler."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from headway.formats.families.bert import BOTH_WAYS
from headway.formats.heads import architecture, classifier, labels, outputs
from headway.formats.rules import Family, TensorRule, copy, expect, layers, linear, rule
from headway.formats.settings import Settings, published_activation
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
    cycle,
)
from headway.nn.parts.feedforward import MLPConfig, hidden_width
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import LearnedConfig
from headway.visibility import Full

NORM = LayerNormConfig(1e-12)  # not configurable in the file


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    settings.refuse("tie_word_embeddings", True)
    rate = settings.get("dropout", float)
    activation = settings.activation("activation")
    mixer = AttentionConfig(
        settings.get("n_heads", int), pattern=Full(), dropout=settings.get("attention_dropout", float)
    )
    feed = MLPConfig(hidden=settings.get("hidden_dim", int), activation=activation)
    block = BlockConfig(mixer, None, feed, NORM, placement="post", dropout=rate)
    heads: dict[str, HeadConfig] = {}
    kind = classifier(settings, names, "classifier.weight")
    if "vocab_projector.bias" in names:
        heads["vocabulary"] = VocabularyHeadConfig(bias=True, transform=TransformConfig(activation, NORM))
    if kind == "classes":
        heads["classes"] = PooledHeadConfig(
            outputs(settings), dense=True, activation="relu", dropout=settings.get("seq_classif_dropout", float)
        )
    if kind == "tags":
        heads["tags"] = PooledHeadConfig(outputs(settings), pool="tokens", dropout=rate)
    return TransformerConfig(
        settings.get("dim", int),
        settings.get("vocab_size", int),
        settings.longest("max_position_embeddings"),
        StackConfig(cycle((block,), settings.get("n_layers", int)), norm=None),
        TokenEmbedConfig(LearnedConfig(), NORM, dropout=rate),
        heads,
    )


def write(config: TransformerConfig) -> dict[str, Any]:
    block = config.stack.blocks[0]
    attention, feed = expect(block.mixer, AttentionConfig), expect(block.feed_forward, MLPConfig)
    head = config.heads.get("classes")
    return {
        "model_type": "distilbert",
        "architectures": architecture("DistilBert", config.heads),
        "vocab_size": config.symbols,
        "dim": config.width,
        "n_layers": len(config.stack.blocks),
        "n_heads": attention.heads,
        "hidden_dim": hidden_width(feed.hidden, feed.ratio, config.width),
        "activation": published_activation(feed.activation),
        "dropout": block.dropout,
        "attention_dropout": attention.dropout,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": True,
        **({"seq_classif_dropout": head.dropout} if isinstance(head, PooledHeadConfig) else {}),
        **labels(config.heads),
    }


def rules(config: TransformerConfig) -> list[TensorRule]:
    def layer(i: int) -> list[TensorRule]:
        ours, theirs = f"stack.blocks.{i}", f"distilbert.transformer.layer.{i}"
        return [
            *linear(f"{ours}.mixer.qkv", *(f"{theirs}.attention.{name}_lin" for name in "qkv")),
            *linear(f"{ours}.mixer.out", f"{theirs}.attention.out_lin"),
            *linear(f"{ours}.mix.last", f"{theirs}.sa_layer_norm"),
            *linear(f"{ours}.feed_forward.up", f"{theirs}.ffn.lin1"),
            *linear(f"{ours}.feed_forward.down", f"{theirs}.ffn.lin2"),
            *linear(f"{ours}.feed.last", f"{theirs}.output_layer_norm"),
        ]

    found = [
        rule("embed.table", "distilbert.embeddings.word_embeddings.weight"),
        rule("embed.positions.table", "distilbert.embeddings.position_embeddings.weight"),
        *linear("embed.norm", "distilbert.embeddings.LayerNorm"),
        *layers(len(config.stack.blocks), layer),
    ]
    if "vocabulary" in config.heads:
        found += linear("heads.vocabulary.transform.dense", "vocab_transform")
        found += linear("heads.vocabulary.transform.norm", "vocab_layer_norm")
        found += [rule("heads.vocabulary.bias", "vocab_projector.bias"), copy("embed.table", "vocab_projector.weight")]
    if "classes" in config.heads:
        found += linear("heads.classes.dense", "pre_classifier")
        found += linear("heads.classes.project", "classifier")
    if "tags" in config.heads:
        found += linear("heads.tags.project", "classifier")
    return found


FAMILY = Family(
    "distilbert",
    read,
    write,
    rules,
    renames=((r"^(?=(embeddings|transformer)\.)", "distilbert."),),
    skipped=(r"\.embeddings\.position_ids$",),
    aliases={"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"},
    ignored=(BOTH_WAYS, "sinusoidal_pos_embds", "tie_weights_"),  # the table of positions is in the file
    defaults={
        "vocab_size": 30522,
        "dim": 768,
        "n_layers": 6,
        "n_heads": 12,
        "hidden_dim": 3072,
        "activation": "gelu",
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "seq_classif_dropout": 0.2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
)
