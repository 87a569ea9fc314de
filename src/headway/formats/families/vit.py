"""ViT (Dosovitskiy et al. 2021) and DeiT (Touvron et al. 2021), which adds a distillation token and a second
classifier.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import partial
from typing import Any

from headway.formats.families.bert import IS_CAUSAL, encoder_rows
from headway.formats.heads import label_settings, num_outputs
from headway.formats.setting_table import SIZE, SettingKind, SettingTable
from headway.formats.settings import Settings, published_activation
from headway.formats.tensor_rules import (
    Family,
    FlattenedRows,
    SingleRow,
    TensorRule,
    VocabularyRows,
    block_rules,
    expect,
    linear,
    linears,
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
)
from headway.visibility import Full

TOKENS = {"vit": ("cls_token",), "deit": ("cls_token", "distillation_token")}
STEMS = {"vit": "ViT", "deit": "DeiT"}
_BLOCK = BlockConfig(AttentionConfig(pattern=Full()))
TABLE = SettingTable(
    TransformerConfig(stack=StackConfig((_BLOCK,)), embed=PatchEmbedConfig(), tie="none"),
    {
        **encoder_rows(0.0, "block.norm.eps stack.norm.eps"),
        "image_size": ("embed.size", 224, SIZE),
        "patch_size": ("embed.patch", 16, SIZE),
        "num_channels": ("embed.channels", 3),
        "qkv_bias": ("block.mixer.qkv_bias", True, SettingKind(lambda s, name: s.get(name, bool), bool)),
        "pooler_act": ("", "tanh"),
    },
)


def read(kind: str, settings: Settings, names: Collection[str]) -> TransformerConfig:
    settings.require("head_dim", settings.get("hidden_size", int) // settings.get("num_attention_heads", int))
    return TABLE.read(settings, {"embed.tokens": len(TOKENS[kind]), "heads": read_heads(kind, settings, names)})


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
    pooled, classes = config.heads.get("pooled"), config.heads.get("classes")
    ending = "Model" if classes is None else "ForImageClassification"
    if isinstance(classes, DistilledHeadConfig):
        ending = "ForImageClassificationWithTeacher"
    activation = pooled.activation if isinstance(pooled, PooledHeadConfig) else None
    others = {} if activation is None else {"pooler_act": published_activation(activation)}
    return {
        "model_type": kind,
        "architectures": [STEMS[kind] + ending],
        **TABLE.write(config, others),
        **label_settings(config.heads),
    }


def rules(kind: str, config: TransformerConfig) -> list[TensorRule]:
    embed = expect(config.embed, PatchEmbedConfig)
    biased = bool(expect(config.stack.blocks[0].mixer, AttentionConfig).qkv_bias)
    names = {
        "mixer.out": "attention.output.dense",
        "feed.before": "layernorm_after",
        "feed_forward.up": "intermediate.dense",
        "feed_forward.down": "output.dense",
    }

    def layer(block: BlockConfig) -> list[TensorRule]:
        return [
            *linear("mix.before", "layernorm_before"),
            *linear("mixer.qkv", "attention.attention.{query,key,value}", bias=biased),
            *linears(names),
        ]

    patches, tokens = f"{kind}.embeddings.patch_embeddings.projection", TOKENS[kind]
    return [
        rule("embed.project.weight", f"{patches}.weight", transform=FlattenedRows((embed.channels, *embed.patch))),
        rule("embed.project.bias", f"{patches}.bias"),
        rule("embed.tokens.table", *(f"{kind}.embeddings.{name}" for name in tokens), transform=VocabularyRows()),
        rule("embed.positions.table", f"{kind}.embeddings.position_embeddings", transform=SingleRow()),
        *block_rules(config.stack, f"{kind}.encoder.layer.{{}}.", layer),
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
    layer = rf"^({kind}\.encoder\.layer\.\d+\.)"
    newer_names = {
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    return Family(
        kind,
        partial(read, kind),
        partial(write, kind),
        partial(rules, kind),
        renames=(
            (r"^(?=(embeddings|encoder|layers|layernorm|pooler)\.)", f"{kind}."),
            (rf"^{kind}\.layers\.", f"{kind}.encoder.layer."),
            *((layer + re.escape(newer) + r"\.", rf"\1{name}.") for newer, name in newer_names.items()),
        ),
        defaults=TABLE.defaults,
        ignored=(IS_CAUSAL, "encoder_stride", "pooler_output_size"),  # the latter is checked if there is a pooler
    )


FAMILIES = tuple(family(kind) for kind in TOKENS)
