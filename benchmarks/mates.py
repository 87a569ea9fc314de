"""Positions from random games for rewards.py: any, each with a random legal move, and those with a mate in one.

A position is written from the side of the player to move, whose pieces are upper case: 64 squares from a8 to h1.
"""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import NamedTuple

import chess

ALPHABET = ".PNBRQKpnbrqk" + "acdefgh" + "12345678"  # b is a file and a bishop
_MAX_PLIES = 300


class RandomGames(NamedTuple):
    """`moves`: positions as text, each with a random legal move; `mates`: rows of prompts with a mate in one."""

    moves: list[tuple[str, str]]
    mates: list[dict[str, str]]


def to_text(board: chess.Board) -> str:
    return "".join(str(board.piece_at(square ^ 56) or ".") for square in chess.SQUARES)


def mates_in_one(board: chess.Board) -> bool:
    for move in board.legal_moves:
        if board.gives_check(move):
            board.push(move)
            mates = board.is_checkmate()
            board.pop()
            if mates:
                return True
    return False


def row(board: chess.Board) -> dict[str, str]:
    """A line of prompts: the text for the model and the FEN for the reward, both with White to move."""
    white = board if board.turn == chess.WHITE else board.mirror()
    return {"prompt": to_text(white), "fen": white.fen()}


def random_games(num_moves: int, num_mates: int, seed: int) -> RandomGames:
    """Play until there are so many of both. No position occurs twice, and none is in both lists."""
    rng, seen = random.Random(seed), set[str]()
    moves: list[tuple[str, str]] = []
    mates: list[dict[str, str]] = []
    while len(moves) < num_moves or len(mates) < num_mates:
        board = chess.Board()
        while not board.is_game_over() and board.ply() < _MAX_PLIES:
            move = rng.choice(list(board.legal_moves))
            found = row(board)
            if found["prompt"] not in seen:
                seen.add(found["prompt"])
                if mates_in_one(board):
                    mates.append(found)
                elif len(moves) < num_moves:
                    shown = move if board.turn == chess.WHITE else chess.Move(
                        move.from_square ^ 56, move.to_square ^ 56, move.promotion
                    )  # fmt: skip
                    moves.append((found["prompt"], shown.uci()))
            board.push(move)
    return RandomGames(moves, mates[:num_mates])


def puzzles(path: Path) -> list[dict[str, str]]:
    """The rows of Lichess's puzzles that have a mate in one."""
    with path.open(newline="", encoding="utf-8") as file:
        boards = [chess.Board(line["position"]) for line in csv.DictReader(file)]
    return [row(board) for board in boards if mates_in_one(board)]


def write_prompts(folder: Path, parts: dict[str, list[dict[str, str]]]) -> Path:
    """A file for each split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in parts.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return folder
