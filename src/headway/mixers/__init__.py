"""Mixers along time: one file each, registered by its config's kind."""

from headway.mixers.attention import Attention, AttentionConfig, KeyValues
from headway.mixers.base import Mixer, MixerConfig, State, select, tree_map
from headway.mixers.cross import CrossAttention, CrossAttentionConfig, Memory
from headway.mixers.delta import Delta, DeltaConfig, GatedDelta, GatedDeltaConfig
from headway.mixers.dynamic_links import DynamicLinks, DynamicLinksConfig
from headway.mixers.fast_weights import FastWeightController, FastWeightsConfig
from headway.mixers.linear_attention import LinearAttention, LinearAttentionConfig

__all__ = [
    "Attention",
    "AttentionConfig",
    "CrossAttention",
    "CrossAttentionConfig",
    "Delta",
    "DeltaConfig",
    "DynamicLinks",
    "DynamicLinksConfig",
    "FastWeightController",
    "FastWeightsConfig",
    "GatedDelta",
    "GatedDeltaConfig",
    "KeyValues",
    "LinearAttention",
    "LinearAttentionConfig",
    "Memory",
    "Mixer",
    "MixerConfig",
    "State",
    "select",
    "tree_map",
]
