"""Models of chess: the published ones without search, and a stronger one of 64 squares."""

from __future__ import annotations

from headway.codecs.fen import TOKENS
from headway.codecs.moves import MOVES
from headway.mixers import AttentionConfig
from headway.models.block import BlockConfig
from headway.models.board import BoardEmbedConfig, FromToHeadConfig, SquaresHeadConfig
from headway.models.embeds import TokenEmbedConfig
from headway.models.pooled import PooledHeadConfig
from headway.models.stack import StackConfig, cycle
from headway.models.transformer import TransformerConfig
from headway.parts.feedforward import GatedConfig, MLPConfig
from headway.parts.init import InitConfig
from headway.parts.norm import LayerNormConfig, RMSNormConfig
from headway.parts.positions import LearnedConfig
from headway.parts.smolgen import SmolgenConfig
from headway.visibility import Full

BINS = 128  # of the value of a move or a state


def searchless(width: int, depth: int, heads: int, outputs: int = BINS) -> TransformerConfig:
    """Ruoss et al. 2024, table A1: a begin symbol, the 77 tokens of a FEN and a move, in one vocabulary of 1,968; the
    last position says the move's value in bins.
    """
    mixer = AttentionConfig(heads, pattern=Full(), qkv_bias=False, out_bias=False)
    block = BlockConfig(mixer, None, GatedConfig(ratio=4.0))
    return TransformerConfig(
        width,
        len(MOVES),
        TOKENS + 2,
        StackConfig(cycle((block,), depth)),
        TokenEmbedConfig(positions=LearnedConfig(), scaled=True),
        {"value": PooledHeadConfig(outputs, pool="last")},
        tie="none",
    )


def squares(width: int, depth: int, heads: int, hidden: int | None = None, history: int = 1) -> TransformerConfig:
    """A token for each square, as in Leela Chess Zero's transformers (Monroe and Chalmers 2024): every layer sees all
    squares, with a bias that is made from the position; moves from square to square; win, draw and loss.
    """
    mixer = AttentionConfig(heads, pattern=Full(), qkv_bias=False, out_bias=False, bias="smolgen")
    feed = MLPConfig(hidden, ratio=2.0, activation="relu_squared", bias=False)
    block = BlockConfig(mixer, None, feed, RMSNormConfig(weight=False))  # weights would cost a fifth of a step
    return TransformerConfig(
        width,
        stack=StackConfig(cycle((block,), depth), LayerNormConfig(), {"smolgen": SmolgenConfig(heads)}),
        embed=BoardEmbedConfig(history),
        heads={"policy": FromToHeadConfig(), "value": SquaresHeadConfig(3)},
        tie="none",
        init=InitConfig(matrices="fan_in", residual="zero", embedding=0.1),
    )
