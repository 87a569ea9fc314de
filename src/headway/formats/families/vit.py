"""ViT (Dosovitskiy et al. 2021) and DeiT (Touvron et al. 2021), which adds a distillation token and a second
classifier.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from headway.errors import UserError
from headway.formats.families.bert import IS_CAUSAL, encoder_settings
from headway.formats.heads import label_settings, num_outputs
from headway.formats.settings import Settings, published_activation
from headway.formats.tensor_rules import (
    Family,
    FlattenedRows,
    SingleRow,
    TensorRule,
    VocabularyRows,
    expect,
    layers,
    linear,
    rule,
)
from headway.nn.mixers import AttentionConfig
from headway.nn.models import (
    BlockConfig,
    DistilledHeadConfig,
    HeadConfig,
    PatchEmbedConfig,
    PooledHeadConfig,
    StackConfig,
    TransformerConfig,
    cycle,
)
from headway.nn.parts.feedforward import MLPConfig
from headway.nn.parts.norm import LayerNormConfig
from headway.visibility import Full

TOKENS = {"vit": ("cls_token",), "deit": ("cls_token", "distillation_token")}
STEMS = {"vit": "ViT", "deit": "DeiT"}
DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
    "pooler_act": "tanh",
}


def read(kind: str, settings: Settings, names: Collection[str]) -> TransformerConfig:
    rate = settings.get("hidden_dropout_prob", float)
    settings.require("head_dim", settings.get("hidden_size", int) // settings.get("num_attention_heads", int))
    norm = LayerNormConfig(settings.get("layer_norm_eps", float))
    mixer = AttentionConfig(
        settings.get("num_attention_heads", int),
        pattern=Full(),
        qkv_bias=settings.get("qkv_bias", bool),
        dropout=settings.get("attention_probs_dropout_prob", float),
    )
    feed = MLPConfig(hidden=settings.get("intermediate_size", int), activation=settings.activation("hidden_act"))
    block = BlockConfig(mixer, None, feed, norm, dropout=rate)
    return TransformerConfig(
        settings.get("hidden_size", int),
        stack=StackConfig(cycle((block,), settings.get("num_hidden_layers", int)), norm),
        embed=PatchEmbedConfig(
            height_width(settings, "patch_size"),
            height_width(settings, "image_size"),
            settings.get("num_channels", int),
            tokens=len(TOKENS[kind]),
            dropout=rate,
        ),
        heads=read_heads(kind, settings, names),
        tie="none",
    )


def height_width(settings: Settings, name: str) -> tuple[int, int]:
    """Return height and width: two numbers, or one for both."""
    if isinstance(settings.values.get(name), (list, tuple)):
        size = settings.get(name, list[int])
        if len(size) != 2:
            raise UserError(f"{settings.source}: {name} is {size}; it should be one number, or height and width")
        return size[0], size[1]
    edge = settings.get(name, int)
    return edge, edge


def read_heads(kind: str, settings: Settings, names: Collection[str]) -> dict[str, HeadConfig]:
    heads: dict[str, HeadConfig] = {}
    if "cls_classifier.weight" in names:
        heads["classes"] = DistilledHeadConfig(num_outputs(settings))
    elif "classifier.weight" in names:
        heads["classes"] = PooledHeadConfig(num_outputs(settings))
    if f"{kind}.pooler.dense.weight" in names:
        settings.require("pooler_output_size", settings.get("hidden_size", int))
        heads["pooled"] = PooledHeadConfig(dense=True, activation=settings.activation("pooler_act"))
    return heads


def write(kind: str, config: TransformerConfig) -> dict[str, Any]:
    attention = expect(config.stack.blocks[0].mixer, AttentionConfig)
    embed = expect(config.embed, PatchEmbedConfig)
    pooled, classes = config.heads.get("pooled"), config.heads.get("classes")
    ending = "Model" if classes is None else "ForImageClassification"
    if isinstance(classes, DistilledHeadConfig):
        ending = "ForImageClassificationWithTeacher"
    activation = pooled.activation if isinstance(pooled, PooledHeadConfig) else None
    return {
        "model_type": kind,
        "architectures": [STEMS[kind] + ending],
        **encoder_settings(config),
        "image_size": size_setting(embed.size),
        "patch_size": size_setting(embed.patch),
        "num_channels": embed.channels,
        "qkv_bias": bool(attention.qkv_bias),
        **({} if activation is None else {"pooler_act": published_activation(activation)}),
        **label_settings(config.heads),
    }


def size_setting(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def rules(kind: str, config: TransformerConfig) -> list[TensorRule]:
    embed = expect(config.embed, PatchEmbedConfig)
    biased = bool(expect(config.stack.blocks[0].mixer, AttentionConfig).qkv_bias)

    def layer(i: int) -> list[TensorRule]:
        target, source = f"stack.blocks.{i}", f"{kind}.encoder.layer.{i}"
        qkv = [f"{source}.attention.attention.{name}" for name in ("query", "key", "value")]
        return [
            *linear(f"{target}.mix.before", f"{source}.layernorm_before"),
            *linear(f"{target}.mixer.qkv", *qkv, bias=biased),
            *linear(f"{target}.mixer.out", f"{source}.attention.output.dense"),
            *linear(f"{target}.feed.before", f"{source}.layernorm_after"),
            *linear(f"{target}.feed_forward.up", f"{source}.intermediate.dense"),
            *linear(f"{target}.feed_forward.down", f"{source}.output.dense"),
        ]

    patches, tokens = f"{kind}.embeddings.patch_embeddings.projection", TOKENS[kind]
    return [
        rule("embed.project.weight", f"{patches}.weight", transform=FlattenedRows((embed.channels, *embed.patch))),
        rule("embed.project.bias", f"{patches}.bias"),
        rule("embed.tokens.table", *(f"{kind}.embeddings.{name}" for name in tokens), transform=VocabularyRows()),
        rule("embed.positions.table", f"{kind}.embeddings.position_embeddings", transform=SingleRow()),
        *layers(len(config.stack.blocks), layer),
        *linear("stack.norm", f"{kind}.layernorm"),
        *head_rules(kind, config),
    ]


def head_rules(kind: str, config: TransformerConfig) -> list[TensorRule]:
    tensor_rules = linear("heads.pooled.dense", f"{kind}.pooler.dense") if "pooled" in config.heads else []
    head = config.heads.get("classes")
    if isinstance(head, DistilledHeadConfig):
        tensor_rules += linear("heads.classes.project", "cls_classifier")
        tensor_rules += linear("heads.classes.distilled", "distillation_classifier")
    elif head is not None:
        tensor_rules += linear("heads.classes.project", "classifier")
    return tensor_rules


def family(kind: str) -> Family:
    """Newer files of transformers have shorter names in their layers."""
    attention = rf"^({kind}\.encoder\.layer\.\d+\.)"
    return Family(
        kind,
        partial(read, kind),
        partial(write, kind),
        partial(rules, kind),
        renames=(
            (r"^(?=(embeddings|encoder|layers|layernorm|pooler)\.)", f"{kind}."),
            (rf"^{kind}\.layers\.", f"{kind}.encoder.layer."),
            (attention + r"attention\.q_proj\.", r"\1attention.attention.query."),
            (attention + r"attention\.k_proj\.", r"\1attention.attention.key."),
            (attention + r"attention\.v_proj\.", r"\1attention.attention.value."),
            (attention + r"attention\.o_proj\.", r"\1attention.output.dense."),
            (attention + r"mlp\.fc1\.", r"\1intermediate.dense."),
            (attention + r"mlp\.fc2\.", r"\1output.dense."),
        ),
        defaults=DEFAULTS,
        ignored=(IS_CAUSAL, "encoder_stride", "pooler_output_size"),  # the latter is checked if there is a pooler
    )


FAMILIES = tuple(family(kind) for kind in TOKENS)
