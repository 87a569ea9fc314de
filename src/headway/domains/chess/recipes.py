"""Recipes for chess, and how they scale with the user's data and time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, pairwise
from pathlib import Path

from headway.data.files import File, lines
from headway.domains.chess.config import ChessConfig, GamesConfig, SearchlessConfig
from headway.errors import UserError
from headway.learn import AdamWConfig, CosineConfig, MuonConfig, Recipe, TrainConfig, WSDConfig
from headway.learn.scale import Law, Scale, Settings, Settled, Shapes, digits
from headway.nn.models.presets import searchless, squares


def chess() -> Recipe:
    """Train on the user's games or labelled positions."""
    return Recipe(
        name="chess",
        domain="chess",
        description="chess from games or engine-labelled positions: .pgn, .epd or .csv of position and bestmove",
        data=(),
        model=squares(width=128, depth=5, heads=4),
        task=ChessConfig(),
        optim=MuonConfig(lr=0.02, weight_decay=0.01, adam_lr=2e-3),
        schedule=WSDConfig(warmup=0.02, decay=0.6),
        train=TrainConfig(steps=4000, batch_size=256, evaluate_limit=2048),
        expected="51 % of Lichess puzzles by policy after 14 minutes of labels and 51 of training on 2 cores",
    )


def chess_searchless() -> Recipe:
    """Train on the same data with the tokens of a FEN, without search (Ruoss et al. 2024), at a small size."""
    return Recipe(
        name="chess-searchless",
        domain="chess",
        description="value of a chess move in 128 bins, from the tokens of a FEN and the move, on the same data",
        data=(),
        model=searchless(width=128, depth=4, heads=4),
        task=SearchlessConfig(),
        optim=AdamWConfig(lr=1e-3, betas=(0.9, 0.98)),
        schedule=CosineConfig(warmup=0.02, floor=0.0),
        train=TrainConfig(steps=4000, batch_size=128, evaluate_limit=2048),
        expected="a baseline; the published sizes are chess-9m, chess-136m and chess-270m",
    )


RECIPES = (chess, chess_searchless)


_SHAPES = (
    (32, 2, 2), (48, 3, 2), (64, 3, 4), (96, 4, 4), (128, 5, 4), (192, 6, 6), (256, 8, 8), (384, 8, 12), (512, 10, 16),
)  # fmt: skip
_PLIES = 60  # positions per game, about
_TRIED = 200  # samples per file that are read to estimate the total time
_MEASURED = 64  # positions per timed step
_JUDGED = (256, 4096)  # minimum and maximum positions per evaluation
_READING = 0.5  # maximum share of the minutes for reading


@dataclass(frozen=True)
class BoardsScale(Scale):
    """A position is one target with more bits than a token and 64 times its work, and supports a larger model; more
    minutes allow more positions per evaluation.
    """

    law: Law = field(default_factory=lambda: Law(excess=40.0))
    batch: str = "train.batch_size"
    least: int = 32
    most: int = 1024
    noise: float = 1.0
    unit: str = "position"
    shapes: Shapes = _SHAPES

    def settle(self, recipe: Recipe, paths: Sequence[Path], minutes: float) -> Settled:
        task = recipe.task
        assert isinstance(task, GamesConfig)
        count = _counted(task, paths, minutes)
        few, many = _JUDGED
        judged = min(many, max(few, 2 ** round(math.log2(few * minutes))))
        settings = {**self.held_out(count, 2 * judged), "train.evaluate_limit": judged, self.batch: _MEASURED}
        return Settled(settings, f"of about {count:,} positions, at most {judged:,} are used per evaluation")

    def regularised(self, recipe: Recipe, epochs: float, crowd: float) -> Settings:
        return {"model.dropout": 0.0 if epochs < 4 else 0.1 if epochs < 12 else 0.2}


def _counted(task: GamesConfig, paths: Sequence[Path], minutes: float) -> int:
    """Estimate the number of positions. UserError if reading them for the first time would take too long."""
    from headway.domains.chess.positions import are_read
    from headway.domains.chess.sources import ReadTally, chess_files, samples

    files = chess_files(paths)
    numbers = [_samples(file) for file in files]
    count = sum(number * (_PLIES if file.kind == ".pgn" else 1) for file, number in zip(files, numbers))
    if are_read(files, task.evals, task.skip_bad):
        return count
    seconds = 0.0
    for file, number in zip(files, numbers):
        begun = time.perf_counter()
        tried = sum(1 for _ in islice(samples(file, task.evals, task.skip_bad, ReadTally()), _TRIED))
        seconds += (time.perf_counter() - begun) * max(1.0, number / max(1, tried))
    if seconds > _READING * 60 * minutes:
        raise UserError(
            f"reading about {count:,} positions for the first time takes about {digits(seconds / 60)} of the "
            f"{minutes:g} minutes; set --minutes to {digits(seconds / 60 / _READING)} or more, or use fewer files (the "
            "next run reads them from the cache)"
        )
    return count


def _samples(file: File) -> int:
    """Count the games of a PGN file, by their blocks of tags, or the lines of others."""
    if file.kind != ".pgn":
        return sum(1 for _ in lines(file))
    tags = (line.startswith("[") for line in lines(file))
    return sum(1 for before, here in pairwise(chain((False,), tags)) if here and not before)


SCALES = {"chess": BoardsScale()}
