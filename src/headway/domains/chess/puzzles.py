"""Puzzles: positions with one best move, or sequences of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from headway.data.input_files import expand_archives, find_files
from headway.domains.chess.boards import board_from_fen, chess, parse_move
from headway.domains.chess.limits import SearchLimits
from headway.domains.chess.player import ChessPlayer
from headway.domains.chess.position_files import KINDS, MOVE_NAMES, POSITION_NAMES, find_moves, read_rows
from headway.errors import UserError
from headway.metrics import wilson_interval


@dataclass(frozen=True)
class Puzzle:
    """A position and its solution: the correct moves at each of the solver's turns, and the opponent's replies."""

    location: str
    board: chess.Board
    solutions: list[list[chess.Move]]
    answers: list[chess.Move]


def puzzles(path: Path) -> Iterator[Puzzle]:
    """Yield the puzzles in a CSV file: a position and its best moves, or Lichess's puzzles, whose first move is the
    opponent's. UserError for an invalid position or move.
    """
    for file in expand_archives(find_files(path, KINDS), KINDS):
        if file.kind != ".csv":
            raise UserError(f"{file} contains no puzzles; pass a .csv with position and bestmove, or Lichess's puzzles")
        for where, row, (position, move) in read_rows(file, POSITION_NAMES, MOVE_NAMES):
            board, moves = board_from_fen(row[position], where), find_moves(row[move], where)
            if move.lower() != "moves":
                yield Puzzle(where, board, [[parse_move(board, text, where) for text in moves]], [])
                continue
            if len(moves) < 2:
                raise UserError(f"{where}: {row[move]!r} is one move; write the opponent's move and the answer")
            line, walk = [], board.copy()
            for text in moves:
                line.append(parse_move(walk, text, where))
                walk.push(line[-1])
            board.push(line[0])
            yield Puzzle(where, board, [[solution] for solution in line[1::2]], line[2::2])


def solve(
    player: ChessPlayer,
    path: Path,
    limits: SearchLimits,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Return how many puzzles in a file the player solves within `limits` per move. Any mate counts as correct.

    `puzzle_accuracy` with its interval, `samples`, `first_move_accuracy`, `illegal_moves` (anything but 0 is a bug) and
    positions evaluated per second.
    """
    solved = first = illegal = count = nodes = 0
    started = time.monotonic()
    puzzle_iter = islice(puzzles(path), limit)
    while (puzzle := _next(puzzle_iter, count, solved)) is not None:
        player.new_game()
        board, all_correct = puzzle.board.copy(), True
        for number, solutions in enumerate(puzzle.solutions):
            thought = player.think(board, replace(limits, started=time.monotonic()))
            nodes += thought.nodes
            legal = board.is_legal(thought.move)
            illegal += not legal
            correct = legal and (thought.move in solutions or is_alternative_mate(board, thought.move, solutions))
            first += correct and number == 0
            all_correct = all_correct and correct
            if not correct or number == len(puzzle.answers):
                break
            board.push(solutions[0])
            board.push(puzzle.answers[number])
        solved, count = solved + all_correct, count + 1
        if progress is not None and count % 50 == 0:
            progress(count, solved)
    if count == 0:
        raise UserError(f"{path} contains no puzzles; pass a .csv with position and bestmove")
    seconds = time.monotonic() - started
    return {
        "puzzle_accuracy": solved / count,
        "puzzle_accuracy_interval": wilson_interval(solved, count),
        "samples": count,
        "first_move_accuracy": first / count,
        "illegal_moves": illegal,
        "seconds": seconds,
        "positions_per_second": nodes / max(1e-9, seconds),
    }


def _next(puzzle_iter: Iterator[Puzzle], count: int, solved: int) -> Puzzle | None:
    """Return the next puzzle; a UserError for an invalid one includes the score so far."""
    try:
        return next(puzzle_iter, None)
    except UserError as error:
        if not count:
            raise
        raise UserError(f"{error}; of the {count:,} puzzles before it, {solved:,} were solved") from error


def is_alternative_mate(board: chess.Board, move: chess.Move, solutions: list[chess.Move]) -> bool:
    """Whether the move mates, like the correct one."""

    def is_mate(choice: chess.Move) -> bool:
        after = board.copy(stack=False)
        after.push(choice)
        return after.is_checkmate()

    return is_mate(move) and any(is_mate(choice) for choice in solutions)
