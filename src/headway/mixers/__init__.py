"""Mixers along time: one file each, registered by its config's kind."""

from headway.mixers.attention import Attention, AttentionConfig, KeyValues
from headway.mixers.base import Mixer, MixerConfig, State, select, tree_map
from headway.mixers.cross import CrossAttention, CrossAttentionConfig, Memory

__all__ = [
    "Attention",
    "AttentionConfig",
    "CrossAttention",
    "CrossAttentionConfig",
    "KeyValues",
    "Memory",
    "Mixer",
    "MixerConfig",
    "State",
    "select",
    "tree_map",
]
