"""DistilBERT (Sanh et al. 2019): BERT with half the layers, without token types and without a pooler."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from headway.formats.families.bert import IS_CAUSAL
from headway.formats.heads import architecture, classifier, label_settings, num_outputs
from headway.formats.settings import Settings, published_activation
from headway.formats.tensor_rules import Family, TensorRule, expect, layers, linear, rule, tied_copy
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
    settings.require("tie_word_embeddings", True)
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
            num_outputs(settings), dense=True, activation="relu", dropout=settings.get("seq_classif_dropout", float)
        )
    if kind == "tags":
        heads["tags"] = PooledHeadConfig(num_outputs(settings), pool="tokens", dropout=rate)
    return TransformerConfig(
        settings.get("dim", int),
        settings.get("vocab_size", int),
        settings.max_positions("max_position_embeddings"),
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
        "vocab_size": config.vocab_size,
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
        **label_settings(config.heads),
    }


def rules(config: TransformerConfig) -> list[TensorRule]:
    def layer(i: int) -> list[TensorRule]:
        target, source = f"stack.blocks.{i}", f"distilbert.transformer.layer.{i}"
        return [
            *linear(f"{target}.mixer.qkv", *(f"{source}.attention.{name}_lin" for name in "qkv")),
            *linear(f"{target}.mixer.out", f"{source}.attention.out_lin"),
            *linear(f"{target}.mix.last", f"{source}.sa_layer_norm"),
            *linear(f"{target}.feed_forward.up", f"{source}.ffn.lin1"),
            *linear(f"{target}.feed_forward.down", f"{source}.ffn.lin2"),
            *linear(f"{target}.feed.last", f"{source}.output_layer_norm"),
        ]

    tensor_rules = [
        rule("embed.table", "distilbert.embeddings.word_embeddings.weight"),
        rule("embed.positions.table", "distilbert.embeddings.position_embeddings.weight"),
        *linear("embed.norm", "distilbert.embeddings.LayerNorm"),
        *layers(len(config.stack.blocks), layer),
    ]
    if "vocabulary" in config.heads:
        tensor_rules += linear("heads.vocabulary.transform.dense", "vocab_transform")
        tensor_rules += linear("heads.vocabulary.transform.norm", "vocab_layer_norm")
        tensor_rules += [
            rule("heads.vocabulary.bias", "vocab_projector.bias"),
            tied_copy("embed.table", "vocab_projector.weight"),
        ]
    if "classes" in config.heads:
        tensor_rules += linear("heads.classes.dense", "pre_classifier")
        tensor_rules += linear("heads.classes.project", "classifier")
    if "tags" in config.heads:
        tensor_rules += linear("heads.tags.project", "classifier")
    return tensor_rules


FAMILY = Family(
    "distilbert",
    read,
    write,
    rules,
    renames=((r"^(?=(embeddings|transformer)\.)", "distilbert."),),
    skipped=(r"\.embeddings\.position_ids$",),
    aliases={"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"},
    ignored=(IS_CAUSAL, "sinusoidal_pos_embds", "tie_weights_"),  # the table of positions is in the file
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
