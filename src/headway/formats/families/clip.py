"""CLIP (Radford et al. 2021): a vision transformer and a causal text tower with a shared embedding space.

SigLIP (Zhai et al. 2023): two bidirectional towers, attention pooling of images, and a learned bias.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from headway.errors import UserError
from headway.formats.families.vit import height_width, size_setting
from headway.formats.settings import Settings, published_activation
from headway.formats.tensor_rules import (
    Family,
    FlattenedRows,
    RowVector,
    SingleRow,
    TensorRule,
    Unsplit,
    VocabularyRows,
    expect,
    layers,
    linear,
    rule,
)
from headway.nn.mixers import AttentionConfig
from headway.nn.models import (
    BlockConfig,
    PatchEmbedConfig,
    PooledHeadConfig,
    ProbeHeadConfig,
    StackConfig,
    TokenEmbedConfig,
    TransformerConfig,
    TwoTowerConfig,
    cycle,
)
from headway.nn.models.two_tower import HEAD
from headway.nn.parts.feedforward import MLPConfig, hidden_width
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


def read_clip(settings: Settings, names: Collection[str]) -> TwoTowerConfig:
    settings.require("architectures", ["CLIPModel"])
    text, vision = (tower_settings(settings, *tower) for tower in (("text", CLIP_TEXT), ("vision", CLIP_VISION)))
    shared, eos, vocab = (
        settings.get("projection_dim", int),
        text.get("eos_token_id", int),
        text.get("vocab_size", int),
    )
    if eos >= vocab:
        raise UserError(f"{text.source}: eos_token_id is {eos}, but vocab_size is {vocab}; set an id in the vocabulary")
    norm = LayerNormConfig(vision.get("layer_norm_eps", float))
    embed = PatchEmbedConfig(
        height_width(vision, "patch_size"),
        height_width(vision, "image_size"),
        vision.get("num_channels", int),
        bias=False,
        norm=norm,
    )
    return TwoTowerConfig(
        read_tower(vision, embed, Full(), PooledHeadConfig(shared, bias=False)),
        read_text(text, Causal(), PooledHeadConfig(shared, pool="last", bias=False)),
        settings.get("logit_scale_init_value", float),
        end="highest" if eos == _LEGACY_EOS else eos,
    )


def tower_settings(settings: Settings, name: str, defaults: Mapping[str, Any]) -> Settings:
    """Return the settings of a tower; those of older files (`..._config_dict`) take precedence."""
    current, older = settings.part(f"{name}_config"), settings.part(f"{name}_config_dict").values
    return replace(current, values={**defaults, **current.values, **({**defaults, **older} if older else {})})


def read_tower(settings: Settings, embed: Any, pattern: Pattern, head: Any) -> TransformerConfig:
    norm = LayerNormConfig(settings.get("layer_norm_eps", float))
    rate = settings.get("attention_dropout", float)
    mixer = AttentionConfig(settings.get("num_attention_heads", int), pattern=pattern, dropout=rate)
    feed = MLPConfig(hidden=settings.get("intermediate_size", int), activation=settings.activation("hidden_act"))
    blocks = cycle((BlockConfig(mixer, None, feed, norm),), settings.get("num_hidden_layers", int))
    width = settings.get("hidden_size", int)
    return TransformerConfig(width, 0, None, StackConfig(blocks, norm), embed, {HEAD: head}, "none")


def read_text(settings: Settings, pattern: Pattern, head: Any) -> TransformerConfig:
    tower = read_tower(settings, TokenEmbedConfig(LearnedConfig()), pattern, head)
    vocab_size, context = settings.get("vocab_size", int), settings.max_positions("max_position_embeddings")
    return replace(tower, vocab_size=vocab_size, context=context)


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
            **write_text_tower(config.right),
            **shared,
            "eos_token_id": eos,
        },
        "vision_config": {"model_type": "clip_vision_model", **write_vision_tower(config.left), **shared},
    }


def write_tower(config: TransformerConfig) -> dict[str, Any]:
    block = config.stack.blocks[0]
    attention, feed = expect(block.mixer, AttentionConfig), expect(block.feed_forward, MLPConfig)
    return {
        "hidden_size": config.width,
        "intermediate_size": hidden_width(feed.hidden, feed.ratio, config.width),
        "num_hidden_layers": len(config.stack.blocks),
        "num_attention_heads": attention.heads,
        "hidden_act": published_activation(feed.activation),
        "layer_norm_eps": expect(block.norm, LayerNormConfig).eps,
        "attention_dropout": attention.dropout,
    }


def write_text_tower(config: TransformerConfig) -> dict[str, Any]:
    limits = {"vocab_size": config.vocab_size, "max_position_embeddings": config.context}
    return {**write_tower(config), **limits}


def write_vision_tower(config: TransformerConfig) -> dict[str, Any]:
    embed = expect(config.embed, PatchEmbedConfig)
    sizes = {"image_size": size_setting(embed.size), "patch_size": size_setting(embed.patch)}
    return {**write_tower(config), **sizes, "num_channels": embed.channels}


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
    def layer(i: int) -> list[TensorRule]:
        target, source = f"{tower}.stack.blocks.{i}", f"{prefix}.encoder.layers.{i}"
        return [
            *linear(f"{target}.mix.before", f"{source}.layer_norm1"),
            *linear(f"{target}.mixer.qkv", *(f"{source}.self_attn.{name}_proj" for name in "qkv")),
            *linear(f"{target}.mixer.out", f"{source}.self_attn.out_proj"),
            *linear(f"{target}.feed.before", f"{source}.layer_norm2"),
            *linear(f"{target}.feed_forward.up", f"{source}.mlp.fc1"),
            *linear(f"{target}.feed_forward.down", f"{source}.mlp.fc2"),
        ]

    return layers(len(config.stack.blocks), layer)


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


def read_siglip(settings: Settings, names: Collection[str]) -> TwoTowerConfig:
    settings.require("architectures", ["SiglipModel"])
    text, vision = (tower_settings(settings, *tower) for tower in (("text", SIGLIP_TEXT), ("vision", SIGLIP_VISION)))
    vision.require("vision_use_head", True)
    embed = PatchEmbedConfig(
        height_width(vision, "patch_size"),
        height_width(vision, "image_size"),
        vision.get("num_channels", int),
        tokens=0,
    )
    probe = ProbeHeadConfig(
        vision.get("num_attention_heads", int),
        MLPConfig(hidden=vision.get("intermediate_size", int), activation=vision.activation("hidden_act")),
        LayerNormConfig(vision.get("layer_norm_eps", float)),
    )
    shared = text.get("projection_size", int, text.get("hidden_size", int))
    return TwoTowerConfig(
        read_tower(vision, embed, Full(), probe),
        read_text(text, Full(), PooledHeadConfig(shared, pool="last")),
        math.log(10),
        -10.0,
        filler=text.get("pad_token_id", int),
    )


def write_siglip(config: TwoTowerConfig) -> dict[str, Any]:
    text = {**write_text_tower(config.right), "projection_size": config.shared, "pad_token_id": config.filler}
    return {
        "model_type": "siglip",
        "architectures": ["SiglipModel"],
        "text_config": {"model_type": "siglip_text_model", **text},
        "vision_config": {"model_type": "siglip_vision_model", **write_vision_tower(config.left)},
    }


def siglip_rules(config: TwoTowerConfig) -> list[TensorRule]:
    expect(config.left.heads[HEAD], ProbeHeadConfig)
    target, source = "left.heads.embedding", "vision_model.head"
    return [
        *vision_rules(config.left),
        rule(f"{target}.probe.table", f"{source}.probe", transform=VocabularyRows()),
        rule(f"{target}.qkv.weight", f"{source}.attention.in_proj_weight", transform=Unsplit()),
        rule(f"{target}.qkv.bias", f"{source}.attention.in_proj_bias", transform=Unsplit()),
        *linear(f"{target}.out", f"{source}.attention.out_proj"),
        *linear(f"{target}.norm", f"{source}.layernorm"),
        *linear(f"{target}.feed_forward.up", f"{source}.mlp.fc1"),
        *linear(f"{target}.feed_forward.down", f"{source}.mlp.fc2"),
        *text_rules(config.right),
        *linear("right.heads.embedding.project", "text_model.head"),
        rule("scale", "logit_scale", transform=SingleRow()),
        rule("bias", "logit_bias", transform=SingleRow()),
    ]


_SIGLIP = Family(
    "siglip", read_siglip, write_siglip, siglip_rules, skipped=(POSITION_IDS,), towers=("text_config", "vision_config")
)
FAMILIES = (_CLIP, _SIGLIP)
