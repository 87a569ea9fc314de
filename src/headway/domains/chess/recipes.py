"""Recipes for chess, and how they scale with the user's data and time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

from headway.data.input_files import read_lines
from headway.domains.chess.config import ChessConfig, GamesConfig, SearchlessConfig
from headway.errors import UserError
from headway.learn import AdamWConfig, CosineConfig, MuonConfig, Recipe, TrainConfig
from headway.learn.formatting import format_number
from headway.learn.plan.scale import DataSettings, Scale, ScalingLaw, held_out_shares
from headway.learn.recipe import generic
from headway.nn.models.presets import searchless, squares


def chess() -> Recipe:
    """Train on the user's games or labelled positions."""
    return generic(
        "chess",
        "chess",
        "chess from games or engine-labelled positions: .pgn, .epd or .csv with position and bestmove",
        model=squares(width=128, depth=5, heads=4),
        task=ChessConfig(),
        optim=MuonConfig(lr=0.02, weight_decay=0.01, adam_lr=2e-3),
        train=TrainConfig(steps=4000, batch_size=256, evaluate_limit=2048),
        expected="solves 51 % of Lichess puzzles by policy after 14 minutes of labelling and 51 of training on 2 cores",
    )


def chess_searchless() -> Recipe:
    """Train a small model on the same data, with the tokens of a FEN and without search (Ruoss et al. 2024)."""
    return Recipe(
        name="chess-searchless",
        domain="chess",
        description="value of a chess move in 128 bins, from the tokens of a FEN and the move; same data as chess",
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
_PLIES = 60  # approximate positions per game
_PROBED_SAMPLES = 200  # samples per file that are read to estimate the total time
_TIMED_POSITIONS = 64  # positions per timed step
_EVALUATED = (256, 4096)  # minimum and maximum positions per evaluation
_MAX_READING_SHARE = 0.5  # maximum share of the minutes to spend on reading


def _data_settings(recipe: Recipe, paths: Sequence[Path], minutes: float) -> DataSettings:
    """More minutes allow more positions per evaluation."""
    task = recipe.task
    assert isinstance(task, GamesConfig)
    count = _count_positions(task, paths, minutes)
    min_positions, max_positions = _EVALUATED
    evaluated = min(max_positions, max(min_positions, 2 ** round(math.log2(min_positions * minutes))))
    shares = held_out_shares(count, 2 * evaluated)
    settings = {**shares, "train.evaluate_limit": evaluated, "train.batch_size": _TIMED_POSITIONS}
    return DataSettings(settings, f"evaluates at most {evaluated:,} of about {count:,} positions at a time")


def _count_positions(task: GamesConfig, paths: Sequence[Path], minutes: float) -> int:
    """Estimate the number of positions. UserError if reading them for the first time would take too long."""
    from headway.domains.chess.position_files import ReadTally, chess_files, samples
    from headway.domains.chess.positions import cache_path

    files = chess_files(paths)
    sample_counts = []  # the games in a PGN file by their tag blocks, or the lines in other files
    for file in files:
        lines: Iterable[Any] = read_lines(file)
        if file.kind == ".pgn":
            tags = (line.startswith("[") for line in lines)
            lines = (here for before, here in pairwise(chain((False,), tags)) if here and not before)
        sample_counts.append(sum(1 for _ in lines))
    count = sum(number * (_PLIES if file.kind == ".pgn" else 1) for file, number in zip(files, sample_counts))
    if cache_path(files, task.evals, task.skip_bad).exists():
        return count
    seconds = 0.0
    for file, number in zip(files, sample_counts):
        start = time.perf_counter()
        samples_read = sum(1 for _ in islice(samples(file, task.evals, task.skip_bad, ReadTally()), _PROBED_SAMPLES))
        seconds += (time.perf_counter() - start) * max(1.0, number / max(1, samples_read))
    if seconds > _MAX_READING_SHARE * 60 * minutes:
        raise UserError(
            f"reading about {count:,} positions for the first time takes about {format_number(seconds / 60)} of the "
            f"{minutes:g} minutes; set --minutes to {format_number(seconds / 60 / _MAX_READING_SHARE)} or more, or use "
            "fewer files (the next run reads them from the cache)"
        )
    return count


SCALES = {
    # A position is one target. It has more bits than a token, takes 64 times as much work and supports a larger model.
    "chess": Scale(
        law=ScalingLaw(excess=40.0),
        batch_setting="train.batch_size",
        min_batch=32,
        max_batch=1024,
        noise_scale=1.0,
        shapes=_SHAPES,
        dropout=((4, 0.0), (12, 0.1), (math.inf, 0.2)),
        data_settings=_data_settings,
    )
}
