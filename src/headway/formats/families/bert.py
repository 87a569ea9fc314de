"""BERT (Devlin et al. 2019): an encoder with post-norm layers, token types, and a head per task. Sentence encoders
(MiniLM and others) belong to this family as well.

DistilBERT (Sanh et al. 2019): half the layers, without token types and without a pooler. RoBERTa (Liu et al. 2019) and
XLM-R (Conneau et al. 2020): positions start after the padding id.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from headway.errors import UserError
from headway.formats.heads import (
    POOLER,
    SPAN,
    SPAN_TENSOR,
    architecture,
    classifier,
    label_settings,
    num_outputs,
    pooler,
)
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

DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "tie_word_embeddings": True,
}

IS_CAUSAL = "is_causal"  # not used by any encoder
OLDER = ("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers")
OLDER += ("pooler_size_per_head", "pooler_type")  # not used by any class


def read_bert(settings: Settings, names: Collection[str]) -> TransformerConfig:
    heads: dict[str, HeadConfig] = {}
    kind = classifier(settings, names, "classifier.weight")
    if "cls.predictions.bias" in names:
        norm = LayerNormConfig(settings.get("layer_norm_eps", float))
        transform = TransformConfig(settings.activation("hidden_act"), norm)
        heads["vocabulary"] = VocabularyHeadConfig(bias=True, transform=transform)
    if "cls.seq_relationship.weight" in names:
        heads["next"] = PooledHeadConfig(2, dense=True, activation="tanh")
    if kind == "classes":
        rate = classifier_dropout(settings)
        heads["classes"] = PooledHeadConfig(num_outputs(settings), dense=True, activation="tanh", dropout=rate)
    if kind == "tags":
        heads["tags"] = tagger(settings)
    if f"{SPAN_TENSOR}.weight" in names:
        heads["span"] = SPAN
    if "bert.pooler.dense.weight" in names and not heads.keys() & {"next", "classes"}:
        heads["pooled"] = POOLER
    return encoder(settings, heads)


def encoder(settings: Settings, heads: dict[str, HeadConfig], offset: int = 0) -> TransformerConfig:
    """`offset` is the position of the first token."""
    settings.require("position_embedding_type", "absolute")
    settings.require("is_decoder", False)
    settings.require("add_cross_attention", False)
    settings.require("tie_word_embeddings", True)
    types = settings.get("type_vocab_size", int)
    if types < 1:
        raise UserError(f"{settings.source}: type_vocab_size is {types}; it should be at least 1")
    norm = LayerNormConfig(settings.get("layer_norm_eps", float))
    rate = settings.get("hidden_dropout_prob", float)
    block = BlockConfig(
        AttentionConfig(
            settings.get("num_attention_heads", int),
            pattern=Full(),
            dropout=settings.get("attention_probs_dropout_prob", float),
        ),
        None,
        MLPConfig(hidden=settings.get("intermediate_size", int), activation=settings.activation("hidden_act")),
        norm,
        placement="post",
        dropout=rate,
    )
    return TransformerConfig(
        settings.get("hidden_size", int),
        settings.get("vocab_size", int),
        settings.max_positions("max_position_embeddings") - offset,
        StackConfig(cycle((block,), settings.get("num_hidden_layers", int)), norm=None),
        TokenEmbedConfig(LearnedConfig(offset), norm, types=types, dropout=rate),
        heads,
    )


def tagger(settings: Settings) -> PooledHeadConfig:
    return PooledHeadConfig(num_outputs(settings), pool="tokens", dropout=classifier_dropout(settings))


def classifier_dropout(settings: Settings) -> float:
    return settings.get("classifier_dropout", float, settings.get("hidden_dropout_prob", float))


def write_bert(config: TransformerConfig) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "architectures": architecture("Bert", config.heads),
        **shared_settings(config),
        "position_embedding_type": "absolute",
    }


def encoder_settings(config: TransformerConfig) -> dict[str, Any]:
    """The settings that BERT shares with RoBERTa and vision transformers."""
    block = config.stack.blocks[0]
    attention, feed = expect(block.mixer, AttentionConfig), expect(block.feed_forward, MLPConfig)
    return {
        "hidden_size": config.width,
        "num_hidden_layers": len(config.stack.blocks),
        "num_attention_heads": attention.heads,
        "intermediate_size": hidden_width(feed.hidden, feed.ratio, config.width),
        "hidden_act": published_activation(feed.activation),
        "hidden_dropout_prob": block.dropout,
        "attention_probs_dropout_prob": attention.dropout,
        "layer_norm_eps": expect(block.norm, LayerNormConfig).eps,
    }


def shared_settings(config: TransformerConfig) -> dict[str, Any]:
    """The settings that BERT shares with RoBERTa."""
    embed = expect(config.embed, TokenEmbedConfig)
    head = config.heads.get("classes") or config.heads.get("tags")
    return {
        "vocab_size": config.vocab_size,
        **encoder_settings(config),
        "max_position_embeddings": (config.context or 0) + expect(embed.positions, LearnedConfig).offset,
        "type_vocab_size": embed.types,
        "classifier_dropout": head.dropout if isinstance(head, PooledHeadConfig) else None,
        "tie_word_embeddings": True,
        **label_settings(config.heads),
    }


def bert_rules(config: TransformerConfig) -> list[TensorRule]:
    return [
        *encoder_rules(config, "bert"),
        *pooler(config.heads, "bert.pooler.dense", {"next": "cls.seq_relationship", "classes": "classifier"}),
        *(masked_rules() if "vocabulary" in config.heads else []),
        *(linear("heads.tags.project", "classifier") if "tags" in config.heads else []),
        *(linear("heads.span.project", SPAN_TENSOR) if "span" in config.heads else []),
    ]


def encoder_rules(config: TransformerConfig, prefix: str) -> list[TensorRule]:
    def layer(i: int) -> list[TensorRule]:
        target, source = f"stack.blocks.{i}", f"{prefix}.encoder.layer.{i}"
        qkv = [f"{source}.attention.self.{name}" for name in ("query", "key", "value")]
        return [
            *linear(f"{target}.mixer.qkv", *qkv),
            *linear(f"{target}.mixer.out", f"{source}.attention.output.dense"),
            *linear(f"{target}.mix.last", f"{source}.attention.output.LayerNorm"),
            *linear(f"{target}.feed_forward.up", f"{source}.intermediate.dense"),
            *linear(f"{target}.feed_forward.down", f"{source}.output.dense"),
            *linear(f"{target}.feed.last", f"{source}.output.LayerNorm"),
        ]

    return [
        rule("embed.table", f"{prefix}.embeddings.word_embeddings.weight"),
        rule("embed.positions.table", f"{prefix}.embeddings.position_embeddings.weight"),
        rule("embed.types.table", f"{prefix}.embeddings.token_type_embeddings.weight"),
        *linear("embed.norm", f"{prefix}.embeddings.LayerNorm"),
        *layers(len(config.stack.blocks), layer),
    ]


def masked_rules() -> list[TensorRule]:
    return [
        *linear("heads.vocabulary.transform.dense", "cls.predictions.transform.dense"),
        *linear("heads.vocabulary.transform.norm", "cls.predictions.transform.LayerNorm"),
        rule("heads.vocabulary.bias", "cls.predictions.bias"),
        tied_copy("embed.table", "cls.predictions.decoder.weight"),
        tied_copy("heads.vocabulary.bias", "cls.predictions.decoder.bias"),
    ]


_BERT = Family(
    "bert",
    read_bert,
    write_bert,
    bert_rules,
    renames=(
        (r"^(?=(embeddings|encoder|pooler)\.)", "bert."),
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
    ),
    skipped=(r"\.embeddings\.position_ids$",),
    ignored=(*OLDER, IS_CAUSAL),
    defaults=DEFAULTS,
)


NORM = LayerNormConfig(1e-12)  # not configurable in the file


def read_distilbert(settings: Settings, names: Collection[str]) -> TransformerConfig:
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
    if f"{SPAN_TENSOR}.weight" in names:
        heads["span"] = SPAN
    return TransformerConfig(
        settings.get("dim", int),
        settings.get("vocab_size", int),
        settings.max_positions("max_position_embeddings"),
        StackConfig(cycle((block,), settings.get("n_layers", int)), norm=None),
        TokenEmbedConfig(LearnedConfig(), NORM, dropout=rate),
        heads,
    )


def write_distilbert(config: TransformerConfig) -> dict[str, Any]:
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


def distilbert_rules(config: TransformerConfig) -> list[TensorRule]:
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
    if "span" in config.heads:
        tensor_rules += linear("heads.span.project", SPAN_TENSOR)
    return tensor_rules


_DISTILBERT = Family(
    "distilbert",
    read_distilbert,
    write_distilbert,
    distilbert_rules,
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


def roberta_heads(settings: Settings, names: Collection[str], prefix: str) -> dict[str, HeadConfig]:
    heads: dict[str, HeadConfig] = {}
    is_text_classifier = settings.architecture.endswith("ForSequenceClassification")
    kind = classifier(settings, names, "classifier.out_proj.weight" if is_text_classifier else "classifier.weight")
    if "lm_head.bias" in names:
        norm = LayerNormConfig(settings.get("layer_norm_eps", float))
        heads["vocabulary"] = VocabularyHeadConfig(bias=True, transform=TransformConfig("gelu", norm))
    if kind == "classes":
        rate = classifier_dropout(settings)
        heads["classes"] = PooledHeadConfig(num_outputs(settings), dense=True, activation="tanh", dropout=rate)
    if kind == "tags":
        heads["tags"] = tagger(settings)
    if f"{SPAN_TENSOR}.weight" in names:
        heads["span"] = SPAN
    if f"{prefix}.pooler.dense.weight" in names:
        heads["pooled"] = POOLER
    return heads


def read_roberta(settings: Settings, names: Collection[str]) -> TransformerConfig:
    heads = roberta_heads(settings, names, "roberta")
    pad = settings.get("pad_token_id", int)
    if pad < 0:
        raise UserError(f"{settings.source}: pad_token_id is {pad}; positions start after it, so set it to 0 or more")
    return encoder(settings, heads, offset=pad + 1)


def write_roberta(name: str, stem: str, config: TransformerConfig) -> dict[str, Any]:
    embed = expect(config.embed, TokenEmbedConfig)
    return {
        "model_type": name,
        "architectures": architecture(stem, config.heads),
        **shared_settings(config),
        "pad_token_id": expect(embed.positions, LearnedConfig).offset - 1,
    }


def roberta_rules(config: TransformerConfig) -> list[TensorRule]:
    return [*encoder_rules(config, "roberta"), *roberta_head_rules(config, "roberta")]


def roberta_head_rules(config: TransformerConfig, prefix: str) -> list[TensorRule]:
    rules_by_head = {
        "pooled": linear("heads.pooled.dense", f"{prefix}.pooler.dense"),
        "vocabulary": [
            *linear("heads.vocabulary.transform.dense", "lm_head.dense"),
            *linear("heads.vocabulary.transform.norm", "lm_head.layer_norm"),
            rule("heads.vocabulary.bias", "lm_head.bias"),
            tied_copy("embed.table", "lm_head.decoder.weight"),
            tied_copy("heads.vocabulary.bias", "lm_head.decoder.bias"),
        ],
        "classes": [
            *linear("heads.classes.dense", "classifier.dense"),
            *linear("heads.classes.project", "classifier.out_proj"),
        ],
        "tags": linear("heads.tags.project", "classifier"),
        "span": linear("heads.span.project", SPAN_TENSOR),
    }
    return [each for name, head_rules in rules_by_head.items() if name in config.heads for each in head_rules]


def _roberta(name: str, stem: str, **defaults: Any) -> Family:
    return Family(
        name,
        read_roberta,
        partial(write_roberta, name, stem),
        roberta_rules,
        renames=((r"^(?=(embeddings|encoder|pooler)\.)", "roberta."),),
        skipped=(r"\.embeddings\.position_ids$",),
        ignored=(IS_CAUSAL,),
        defaults={**DEFAULTS, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, **defaults},
    )


FAMILIES = (_BERT, _DISTILBERT, _roberta("roberta", "Roberta", vocab_size=50265), _roberta("xlm-roberta", "XLMRoberta"))
