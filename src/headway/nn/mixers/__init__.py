"""Mixers along time: one file each, registered by the kind of its config."""

from headway.nn.mixers.attention import AttentionConfig, KeyValues, SelfAttention
from headway.nn.mixers.base import Memory, Mixer, MixerConfig, State, select, tree_map
from headway.nn.mixers.bidirectional import Bidirectional, BidirectionalConfig
from headway.nn.mixers.conditional_gru import ConditionalGRU, ConditionalGRUConfig
from headway.nn.mixers.cross import CrossAttention, CrossAttentionConfig
from headway.nn.mixers.delta import Delta, DeltaConfig, GatedDelta, GatedDeltaConfig
from headway.nn.mixers.dynamic_links import DynamicLinks, DynamicLinksConfig
from headway.nn.mixers.fast_weights import FastWeightController, FastWeightsConfig
from headway.nn.mixers.gated import GRU, LSTM, Elman, ElmanConfig, GRUConfig, LSTMConfig
from headway.nn.mixers.linear_attention import LinearAttention, LinearAttentionConfig
from headway.nn.mixers.multiplicative import (
    MLSTM,
    MLSTMConfig,
    Multiplicative,
    MultiplicativeConfig,
    SigmaPi,
    SigmaPiConfig,
)
from headway.nn.mixers.pointwise import Pointwise, PointwiseConfig
from headway.nn.mixers.recurrence import Recurrence, RecurrenceConfig, Vectors

__all__ = [
    "GRU",
    "LSTM",
    "MLSTM",
    "AttentionConfig",
    "Bidirectional",
    "BidirectionalConfig",
    "ConditionalGRU",
    "ConditionalGRUConfig",
    "CrossAttention",
    "CrossAttentionConfig",
    "Delta",
    "DeltaConfig",
    "DynamicLinks",
    "DynamicLinksConfig",
    "Elman",
    "ElmanConfig",
    "FastWeightController",
    "FastWeightsConfig",
    "GRUConfig",
    "GatedDelta",
    "GatedDeltaConfig",
    "KeyValues",
    "LSTMConfig",
    "LinearAttention",
    "LinearAttentionConfig",
    "MLSTMConfig",
    "Memory",
    "Mixer",
    "MixerConfig",
    "Multiplicative",
    "MultiplicativeConfig",
    "Pointwise",
    "PointwiseConfig",
    "Recurrence",
    "RecurrenceConfig",
    "SelfAttention",
    "SigmaPi",
    "SigmaPiConfig",
    "State",
    "Vectors",
    "select",
    "tree_map",
]
