"""Openings from which games of a match begin."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from pathlib import Path

from headway.data.files import File, find_files, lines
from headway.data.registry import find_set
from headway.domains.chess.pgn import games
from headway.domains.chess.rules import board_of, chess, move_of, notation
from headway.errors import UserError

SET = "lichess-openings"
_KINDS = (".tsv", ".pgn", ".epd")
_LENGTHS = range(4, 13)  # half moves of openings that are taken from a table


def openings(paths: Sequence[Path] | None, count: int, seed: int) -> list[chess.Board]:
    """`count` different boards with the moves that led to them, drawn by `seed`: from Lichess's named openings, or from
    files (.tsv with a column pgn, .pgn, .epd). UserError for too few.
    """
    files = [file for path in paths or find_set(SET) for file in find_files(path, _KINDS)]
    every = (board for file in files for board in _boards(file))
    found = list({board.epd(): board for board in every if not board.is_game_over()}.values())
    if len(found) < count:
        raise UserError(f"{len(found):,} openings are too few for {2 * count:,} games, two each; play fewer games")
    return random.Random(seed).sample(found, count)


def _boards(file: File) -> list[chess.Board]:
    if file.kind == ".epd":
        numbered = ((number, line) for number, line in enumerate(lines(file), 1) if line.strip())
        return [board_of(" ".join(line.split()[:4]), f"{file}, line {number}") for number, line in numbered]
    return _of_table(file) if file.kind == ".tsv" else _of_games(file)


def _of_table(file: File) -> list[chess.Board]:
    rows = (line.split("\t") for line in lines(file))
    header = next(rows, [])
    if "pgn" not in header:
        raise UserError(f"{file} has no column 'pgn'; give a table of openings such as Lichess's")
    found = []
    for number, row in enumerate(rows, 2):
        game = notation.read_game(io.StringIO(row[header.index("pgn")])) if len(row) == len(header) else None
        if game is None or game.errors:
            raise UserError(f"{file}, line {number}: these are no moves of an opening; correct the line")
        board = game.end().board()
        if len(board.move_stack) in _LENGTHS:
            found.append(board)
    return found


def _of_games(file: File) -> list[chess.Board]:
    """The moves of each game, as opening books in PGN have them; of longer ones the first 12 half moves."""
    found = []
    for game in games(file):
        if game.variant is None:
            board = game.start
            for number in game.moves[: _LENGTHS[-1]]:
                board.push(move_of(number, board.turn))
            found.append(board)
    return found
