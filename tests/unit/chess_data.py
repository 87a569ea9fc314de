"""Small games, positions and models of chess for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import headway as hw
from headway.domains import recipe as find
from headway.learn import Recipe, Run
from headway.nn.models.presets import squares

GAME = """[Event "A game"]
[Result "{result}"]

1. e4 {{ [%eval 0.30] }} 1... e5 {{ [%eval 0.25] }} 2. Qh5 $2 (2. Nf3 Nc6) 2... Nc6 {{ [%eval 0.1] }}
3. Bc4 Nf6?? {{ [%eval #1] }} 4. Qxf7# {result}

"""
MATE = "6k1/5ppp/8/8/8/8/5PPP/R5K1 w - - 0 1"  # a8


def game(result: str = "1-0") -> str:
    return GAME.format(result=result)


def games_file(folder: Path, count: int = 40) -> Path:
    """Games that differ in their first moves, so that they fall on both sides of a split."""
    path, texts = folder / "games.pgn", []
    for number in range(count):
        first, second = "abcdefgh"[number % 8], "abcdefgh"[number // 8 % 8]
        texts.append(f'[Result "1-0"]\n\n1. {first}4 {second}5 2. Nc3 Nf6 3. Nf3 {{ [%eval 0.5] }} 3... Nc6 1-0\n')
    path.write_text("\n".join(texts))
    return path


def recipe() -> Recipe:
    return replace(find("chess"), model=squares(16, 1, 2))


def train(run: Path, data: Path, **settings: Any) -> Run:
    given = {
        "train.steps": 3, "train.evaluate_every": 3, "train.batch_size": 16, "train.precision": "fp32",
        "task.split.validation": 0.2, "task.split.test": 0.2, **settings,
    }  # fmt: skip
    return hw.train(recipe(), data=[data], set=given, run=run, progress=False, samples=3)
