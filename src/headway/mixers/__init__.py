"""Mixers along time: one file each, registered by its config's kind."""

from headway.mixers.attention import Attention, AttentionConfig, KeyValues
from headway.mixers.base import Mixer, MixerConfig, State, select, tree_map
from headway.mixers.bidirectional import Bidirectional, BidirectionalConfig
from headway.mixers.cross import CrossAttention, CrossAttentionConfig, Memory
from headway.mixers.elman import Elman, ElmanConfig
from headway.mixers.gru import GRU, GRUConfig
from headway.mixers.lstm import LSTM, LSTMConfig
from headway.mixers.mlstm import MLSTM, MLSTMConfig
from headway.mixers.multiplicative import Multiplicative, MultiplicativeConfig
from headway.mixers.recurrence import Recurrence, RecurrenceConfig, Vectors
from headway.mixers.sigma_pi import SigmaPi, SigmaPiConfig

__all__ = [
    "GRU",
    "LSTM",
    "MLSTM",
    "Attention",
    "AttentionConfig",
    "Bidirectional",
    "BidirectionalConfig",
    "CrossAttention",
    "CrossAttentionConfig",
    "Elman",
    "ElmanConfig",
    "GRUConfig",
    "KeyValues",
    "LSTMConfig",
    "MLSTMConfig",
    "Memory",
    "Mixer",
    "MixerConfig",
    "Multiplicative",
    "MultiplicativeConfig",
    "Recurrence",
    "RecurrenceConfig",
    "SigmaPi",
    "SigmaPiConfig",
    "State",
    "Vectors",
    "select",
    "tree_map",
]
