"""Recipes for chess."""

from __future__ import annotations

from headway.domains.chess.config import ChessConfig, SearchlessConfig
from headway.learn import AdamWConfig, CosineConfig, MuonConfig, Recipe, TrainConfig, WSDConfig
from headway.nn.models.presets import searchless, squares


def chess() -> Recipe:
    """Any games or labelled positions of the user's."""
    return Recipe(
        name="chess",
        domain="chess",
        description="chess from games or positions labelled by an engine: .pgn, .epd or .csv of position and bestmove",
        data=(),
        model=squares(width=128, depth=5, heads=4),
        task=ChessConfig(),
        optim=MuonConfig(lr=0.02, weight_decay=0.01, adam_lr=2e-3),
        schedule=WSDConfig(warmup=0.02, decay=0.6),
        train=TrainConfig(steps=4000, batch_size=256, evaluate_limit=2048),
        expected="51 % of Lichess puzzles by policy after 14 minutes of labels and 51 of training on 2 cores",
    )


def chess_searchless() -> Recipe:
    """The same data by the tokens of a FEN, without search (Ruoss et al. 2024), in a small size."""
    return Recipe(
        name="chess-searchless",
        domain="chess",
        description="chess from the tokens of a FEN and a move to its value in 128 bins, on the same data",
        data=(),
        model=searchless(width=128, depth=4, heads=4),
        task=SearchlessConfig(),
        optim=AdamWConfig(lr=1e-3, betas=(0.9, 0.98)),
        schedule=CosineConfig(warmup=0.02, floor=0.0),
        train=TrainConfig(steps=4000, batch_size=128, evaluate_limit=2048),
        expected="to compare with; the published sizes are chess-9m, chess-136m and chess-270m",
    )


RECIPES = (chess, chess_searchless)
