"""SigLIP (Zhai et al. 2023): two bidirectional towers, attention pooling of images, and a learned bias."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from headway.formats.families import clip
from headway.formats.families.vit import height_width
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family, SingleRow, TensorRule, Unsplit, VocabularyRows, expect, linear, rule
from headway.nn.models import PatchEmbedConfig, PooledHeadConfig, ProbeHeadConfig, TwoTowerConfig
from headway.nn.models.two_tower import HEAD
from headway.nn.parts.feedforward import MLPConfig
from headway.nn.parts.norm import LayerNormConfig
from headway.visibility import Full

_COMMON = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "num_attention_heads": 12}
TEXT: dict[str, Any] = {
    **clip.TEXT,
    **_COMMON,
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
VISION: dict[str, Any] = {**clip.VISION, **_COMMON, "patch_size": 16}


def read(settings: Settings, names: Collection[str]) -> TwoTowerConfig:
    settings.require("architectures", ["SiglipModel"])
    text, vision = (clip.tower_settings(settings, *tower) for tower in (("text", TEXT), ("vision", VISION)))
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
        clip.read_tower(vision, embed, Full(), probe),
        clip.read_text(text, Full(), PooledHeadConfig(shared, pool="last")),
        math.log(10),
        -10.0,
        filler=text.get("pad_token_id", int),
    )


def write(config: TwoTowerConfig) -> dict[str, Any]:
    text = {**clip.write_text_tower(config.right), "projection_size": config.shared, "pad_token_id": config.filler}
    return {
        "model_type": "siglip",
        "architectures": ["SiglipModel"],
        "text_config": {"model_type": "siglip_text_model", **text},
        "vision_config": {"model_type": "siglip_vision_model", **clip.write_vision_tower(config.left)},
    }


def rules(config: TwoTowerConfig) -> list[TensorRule]:
    expect(config.left.heads[HEAD], ProbeHeadConfig)
    target, source = "left.heads.embedding", "vision_model.head"
    return [
        *clip.vision_rules(config.left),
        rule(f"{target}.probe.table", f"{source}.probe", transform=VocabularyRows()),
        rule(f"{target}.qkv.weight", f"{source}.attention.in_proj_weight", transform=Unsplit()),
        rule(f"{target}.qkv.bias", f"{source}.attention.in_proj_bias", transform=Unsplit()),
        *linear(f"{target}.out", f"{source}.attention.out_proj"),
        *linear(f"{target}.norm", f"{source}.layernorm"),
        *linear(f"{target}.feed_forward.up", f"{source}.mlp.fc1"),
        *linear(f"{target}.feed_forward.down", f"{source}.mlp.fc2"),
        *clip.text_rules(config.right),
        *linear("right.heads.embedding.project", "text_model.head"),
        rule("scale", "logit_scale", transform=SingleRow()),
        rule("bias", "logit_bias", transform=SingleRow()),
    ]


FAMILY = Family("siglip", read, write, rules, skipped=(clip.POSITION_IDS,), towers=("text_config", "vision_config"))
