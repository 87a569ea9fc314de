"""CLIP (Radford et al. 2021): a vision transformer and a causal text tower with a shared embedding space.

SigLIP (Zhai et al. 2023): two bidirectional towers, attention pooling of images, and a learned bias.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from headway.errors import UserError
from headway.formats.setting_table import ACTIVATION, POSITIONS, SIZE, SettingTable
from headway.formats.settings import Settings
from headway.formats.tensor_rules import (
    Family,
    FlattenedRows,
    RowVector,
    SingleRow,
    TensorRule,
    Unsplit,
    VocabularyRows,
    block_rules,
    expect,
    linear,
    linears,
    prefixed,
    rule,
)
from headway.nn.mixers import AttentionConfig
from headway.nn.models import (
    BlockConfig,
    EmbedConfig,
    PatchEmbedConfig,
    PooledHeadConfig,
    ProbeHeadConfig,
    StackConfig,
    TokenEmbedConfig,
    TransformerConfig,
    TwoTowerConfig,
)
from headway.nn.models.two_tower import HEAD
from headway.nn.parts.feedforward import MLPConfig
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import LearnedConfig
from headway.visibility import Causal, Full, Pattern

_LEGACY_EOS = 2  # eos_token_id of older files, which means that a text ends at its highest id
CLIP_TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
    "eos_token_id": 49407,
}
CLIP_VISION: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
}


_TOWER: dict[str, tuple[Any, ...]] = {
    "hidden_size": ("width", int),
    "intermediate_size": ("block.feed_forward.hidden", int),
    "num_hidden_layers": ("depth", int),
    "num_attention_heads": ("block.mixer.heads", int),
    "hidden_act": ("block.feed_forward.activation", str, ACTIVATION),
    "layer_norm_eps": ("block.norm.eps stack.norm.eps", float),
    "attention_dropout": ("block.mixer.dropout", float),
}
_TEXT = {**_TOWER, "vocab_size": ("vocab_size", int), "max_position_embeddings": ("context", int, POSITIONS)}
_VISION = {
    **_TOWER,
    "image_size": ("embed.size", int, SIZE),
    "patch_size": ("embed.patch", int, SIZE),
    "num_channels": ("embed.channels", int),
}


def _table(embed: EmbedConfig, rows: Mapping[str, tuple[Any, ...]], pattern: Pattern) -> SettingTable:
    block = BlockConfig(AttentionConfig(pattern=pattern))
    return SettingTable(TransformerConfig(stack=StackConfig((block,)), embed=embed, tie="none"), rows)


CLIP_IMAGES = _table(PatchEmbedConfig(bias=False, norm=LayerNormConfig()), _VISION, Full())
CLIP_TEXTS = _table(TokenEmbedConfig(LearnedConfig()), _TEXT, Causal())


def read_clip(settings: Settings, names: Collection[str]) -> TwoTowerConfig:
    settings.require("architectures", ["CLIPModel"])
    text, vision = (tower_settings(settings, *tower) for tower in (("text", CLIP_TEXT), ("vision", CLIP_VISION)))
    shared, eos = settings.get("projection_dim", int), text.get("eos_token_id", int)
    vocab_size = text.get("vocab_size", int)
    if eos >= vocab_size:
        raise UserError(
            f"{text.source}: eos_token_id is {eos}, but vocab_size is {vocab_size}; set an id in the vocabulary"
        )
    image_head = {HEAD: PooledHeadConfig(shared, bias=False)}
    text_head = {HEAD: PooledHeadConfig(shared, pool="last", bias=False)}
    return TwoTowerConfig(
        CLIP_IMAGES.read(vision, {"heads": image_head, "embed.norm.eps": vision.get("layer_norm_eps", float)}),
        CLIP_TEXTS.read(text, {"heads": text_head}),
        settings.get("logit_scale_init_value", float),
        end="highest" if eos == _LEGACY_EOS else eos,
    )


def tower_settings(settings: Settings, name: str, defaults: Mapping[str, Any]) -> Settings:
    """Return the settings of a tower; those of older files (`..._config_dict`) take precedence."""
    current, older = settings.part(f"{name}_config"), settings.part(f"{name}_config_dict").values
    return replace(current, values={**defaults, **current.values, **({**defaults, **older} if older else {})})


def write_clip(config: TwoTowerConfig) -> dict[str, Any]:
    if config.end == _LEGACY_EOS:
        raise UserError(f"the EOS id is {_LEGACY_EOS}, which this family reserves for another rule; use another id")
    eos = _LEGACY_EOS if config.end == "highest" else config.end
    shared = {"projection_dim": config.shared}
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": config.shared,
        "logit_scale_init_value": config.scale,
        "text_config": {
            "model_type": "clip_text_model",
            **CLIP_TEXTS.write(config.right),
            **shared,
            "eos_token_id": eos,
        },
        "vision_config": {"model_type": "clip_vision_model", **CLIP_IMAGES.write(config.left), **shared},
    }


def clip_rules(config: TwoTowerConfig) -> list[TensorRule]:
    images = "vision_model.embeddings"
    return [
        *vision_rules(config.left),
        rule("left.embed.tokens.table", f"{images}.class_embedding", transform=RowVector()),
        *linear("left.embed.norm", "vision_model.pre_layrnorm"),
        rule("left.heads.embedding.project.weight", "visual_projection.weight"),
        *text_rules(config.right),
        rule("right.heads.embedding.project.weight", "text_projection.weight"),
        rule("scale", "logit_scale", transform=Unsplit()),
    ]


def vision_rules(config: TransformerConfig) -> list[TensorRule]:
    embed = expect(config.embed, PatchEmbedConfig)
    patches = "vision_model.embeddings.patch_embedding"
    return [
        rule("left.embed.project.weight", f"{patches}.weight", transform=FlattenedRows((embed.channels, *embed.patch))),
        *([rule("left.embed.project.bias", f"{patches}.bias")] if embed.bias else []),
        rule("left.embed.positions.table", "vision_model.embeddings.position_embedding.weight"),
        *stack_rules(config, "left", "vision_model"),
        *linear("left.stack.norm", "vision_model.post_layernorm"),
    ]


def text_rules(config: TransformerConfig) -> list[TensorRule]:
    return [
        rule("right.embed.table", "text_model.embeddings.token_embedding.weight"),
        rule("right.embed.positions.table", "text_model.embeddings.position_embedding.weight"),
        *stack_rules(config, "right", "text_model"),
        *linear("right.stack.norm", "text_model.final_layer_norm"),
    ]


def stack_rules(config: TransformerConfig, tower: str, prefix: str) -> list[TensorRule]:
    names = {
        "mix.before": "layer_norm1",
        "mixer.qkv": "self_attn.{q,k,v}_proj",
        "mixer.out": "self_attn.out_proj",
        "feed.before": "layer_norm2",
        "feed_forward.up": "mlp.fc1",
        "feed_forward.down": "mlp.fc2",
    }
    return block_rules(config.stack, f"{prefix}.encoder.layers.{{}}.", lambda block: linears(names), f"{tower}.stack")


POSITION_IDS = r"\.embeddings\.position_ids$"  # stored in older files
_CLIP = Family(
    "clip",
    read_clip,
    write_clip,
    clip_rules,
    skipped=(POSITION_IDS,),
    defaults={"projection_dim": 512, "logit_scale_init_value": 2.6592},
    older=("text_config_dict", "vision_config_dict"),
    towers=("text_config", "vision_config"),
    ignored=("projection_dim",),
)


_COMMON = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "num_attention_heads": 12}
SIGLIP_TEXT: dict[str, Any] = {
    **CLIP_TEXT,
    **_COMMON,
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
SIGLIP_VISION: dict[str, Any] = {**CLIP_VISION, **_COMMON, "patch_size": 16}


SIGLIP_IMAGES = _table(PatchEmbedConfig(tokens=0), _VISION, Full())
SIGLIP_TEXTS = _table(TokenEmbedConfig(LearnedConfig()), _TEXT, Full())


def read_siglip(settings: Settings, names: Collection[str]) -> TwoTowerConfig:
    settings.require("architectures", ["SiglipModel"])
    text, vision = (tower_settings(settings, *tower) for tower in (("text", SIGLIP_TEXT), ("vision", SIGLIP_VISION)))
    vision.require("vision_use_head", True)
    probe = ProbeHeadConfig(
        vision.get("num_attention_heads", int),
        MLPConfig(hidden=vision.get("intermediate_size", int), activation=vision.activation("hidden_act")),
        LayerNormConfig(vision.get("layer_norm_eps", float)),
    )
    shared = text.get("projection_size", int, text.get("hidden_size", int))
    return TwoTowerConfig(
        SIGLIP_IMAGES.read(vision, {"heads": {HEAD: probe}}),
        SIGLIP_TEXTS.read(text, {"heads": {HEAD: PooledHeadConfig(shared, pool="last")}}),
        math.log(10),
        -10.0,
        filler=text.get("pad_token_id", int),
    )


def write_siglip(config: TwoTowerConfig) -> dict[str, Any]:
    text = {**SIGLIP_TEXTS.write(config.right), "projection_size": config.shared, "pad_token_id": config.filler}
    return {
        "model_type": "siglip",
        "architectures": ["SiglipModel"],
        "text_config": {"model_type": "siglip_text_model", **text},
        "vision_config": {"model_type": "siglip_vision_model", **SIGLIP_IMAGES.write(config.left)},
    }


def siglip_rules(config: TwoTowerConfig) -> list[TensorRule]:
    expect(config.left.heads[HEAD], ProbeHeadConfig)
    target, source = "left.heads.embedding", "vision_model.head"
    names = {"out": "attention.out_proj", "norm": "layernorm", "feed_forward.up": "mlp.fc1"}
    names |= {"feed_forward.down": "mlp.fc2"}
    return [
        *vision_rules(config.left),
        rule(f"{target}.probe.table", f"{source}.probe", transform=VocabularyRows()),
        rule(f"{target}.qkv.weight", f"{source}.attention.in_proj_weight", transform=Unsplit()),
        rule(f"{target}.qkv.bias", f"{source}.attention.in_proj_bias", transform=Unsplit()),
        *prefixed(linears(names), f"{target}.", f"{source}."),
        *text_rules(config.right),
        *linear("right.heads.embedding.project", "text_model.head"),
        rule("scale", "logit_scale", transform=SingleRow()),
        rule("bias", "logit_bias", transform=SingleRow()),
    ]


_SIGLIP = Family(
    "siglip", read_siglip, write_siglip, siglip_rules, skipped=(POSITION_IDS,), towers=("text_config", "vision_config")
)
FAMILIES = (_CLIP, _SIGLIP)
