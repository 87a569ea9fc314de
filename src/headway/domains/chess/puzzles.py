"""Puzzles: positions with one best move, or sequences of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from headway.data.files import find_files, unpacked
from headway.domains.chess.limits import SearchLimits
from headway.domains.chess.player import Player
from headway.domains.chess.rules import board_of, chess, move_named
from headway.domains.chess.sources import KINDS, MOVE_NAMES, POSITION_NAMES, found_moves, rows_of
from headway.errors import UserError
from headway.metrics import wilson


@dataclass(frozen=True)
class Puzzle:
    """A position and its solution: for each move of the solver the correct ones, and the opponent's answers."""

    place: str
    board: chess.Board
    right: list[list[chess.Move]]
    answers: list[chess.Move]


def puzzles(path: Path) -> Iterator[Puzzle]:
    """Yield the puzzles of a CSV: a position and its best moves, or Lichess's, whose first move is the opponent's.
    UserError for an invalid position or move.
    """
    for file in unpacked(find_files(path, KINDS), KINDS):
        if file.kind != ".csv":
            raise UserError(f"{file} contains no puzzles; pass a .csv of position and bestmove, or Lichess's")
        for where, row, (position, move) in rows_of(file, POSITION_NAMES, MOVE_NAMES):
            board, moves = board_of(row[position], where), found_moves(row[move], where)
            if move.lower() != "moves":
                yield Puzzle(where, board, [[move_named(board, text, where) for text in moves]], [])
                continue
            if len(moves) < 2:
                raise UserError(f"{where}: {row[move]!r} is one move; write the opponent's move and the answer")
            line, along = [], board.copy()
            for text in moves:
                line.append(move_named(along, text, where))
                along.push(line[-1])
            board.push(line[0])
            yield Puzzle(where, board, [[right] for right in line[1::2]], line[2::2])


def solve(
    player: Player,
    path: Path,
    limits: SearchLimits,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Return how many puzzles of a file the player solves, within `limits` per move. Any mate counts as correct.

    `puzzle_accuracy` with its interval, `samples`, `first_move_accuracy`, `illegal_moves` (anything but 0 is a bug) and
    positions evaluated per second.
    """
    solved = first = illegal = count = nodes = 0
    started = time.monotonic()
    given = islice(puzzles(path), limit)
    while (puzzle := _next(given, count, solved)) is not None:
        player.new_game()
        board, whole = puzzle.board.copy(), True
        for number, right in enumerate(puzzle.right):
            thought = player.think(board, replace(limits, started=time.monotonic()))
            nodes += thought.nodes
            legal = board.is_legal(thought.move)
            illegal += not legal
            found = legal and (thought.move in right or mates_as_well(board, thought.move, right))
            first += found and number == 0
            whole = whole and found
            if not found or number == len(puzzle.answers):
                break
            board.push(right[0])
            board.push(puzzle.answers[number])
        solved, count = solved + whole, count + 1
        if progress is not None and count % 50 == 0:
            progress(count, solved)
    if count == 0:
        raise UserError(f"{path} contains no puzzles; pass a .csv of position and bestmove")
    seconds = time.monotonic() - started
    return {
        "puzzle_accuracy": solved / count,
        "puzzle_accuracy_interval": wilson(solved, count),
        "samples": count,
        "first_move_accuracy": first / count,
        "illegal_moves": illegal,
        "seconds": seconds,
        "positions_per_second": nodes / max(1e-9, seconds),
    }


def _next(given: Iterator[Puzzle], count: int, solved: int) -> Puzzle | None:
    """Return the next puzzle; a UserError for an invalid one includes the score so far."""
    try:
        return next(given, None)
    except UserError as error:
        if not count:
            raise
        raise UserError(f"{error}; of the {count:,} puzzles before it, {solved:,} were solved") from error


def mates_as_well(board: chess.Board, move: chess.Move, right: list[chess.Move]) -> bool:
    """Whether the move mates, like the correct one."""

    def ends(choice: chess.Move) -> bool:
        after = board.copy(stack=False)
        after.push(choice)
        return after.is_checkmate()

    return ends(move) and any(ends(choice) for choice in right)
