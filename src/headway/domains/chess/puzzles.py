"""Test a player on puzzles (positions with one best move, or sequences of them) and on suites in EPD (positions with
best moves, bm, or moves to avoid, am).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from headway.data.input_files import expand_archives, find_files, read_lines
from headway.domains.chess.boards import board_from_fen, chess, parse_epd, parse_move, parse_moves, parse_operations
from headway.domains.chess.limits import SearchLimits
from headway.domains.chess.player import ChessPlayer
from headway.domains.chess.position_files import KINDS, MOVE_NAMES, POSITION_NAMES, find_moves, read_rows
from headway.errors import UserError
from headway.metrics import wilson_interval


def _is_alternative_mate(board: chess.Board, move: chess.Move, solutions: list[chess.Move]) -> bool:
    """Whether the move mates, as a correct one does."""

    def is_mate(choice: chess.Move) -> bool:
        after = board.copy(stack=False)
        after.push(choice)
        return after.is_checkmate()

    return is_mate(move) and any(is_mate(choice) for choice in solutions)


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
    while True:
        try:
            puzzle = next(puzzle_iter, None)
        except UserError as error:
            if not count:
                raise
            raise UserError(f"{error}; of the {count:,} puzzles before it, {solved:,} were solved") from error
        if puzzle is None:
            break
        player.new_game()
        board, all_correct = puzzle.board.copy(), True
        for number, solutions in enumerate(puzzle.solutions):
            thought = player.think(board, replace(limits, started=time.monotonic()))
            nodes += thought.nodes
            legal = board.is_legal(thought.move)
            illegal += not legal
            correct = legal and (thought.move in solutions or _is_alternative_mate(board, thought.move, solutions))
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


_KINDS = (".epd", ".zip")
_MAX_LINE_CHARS = 4096  # characters per line
_HAS_MOVES = re.compile(r"\b[ab]m\s")
_HOPELESS = 1000  # bad lines at the start of a file after which reading gives up


@dataclass(frozen=True)
class Exercise:
    """A position in a suite: the moves that solve it (empty: all except those to avoid), and those to avoid."""

    name: str
    line: int
    board: chess.Board
    best: list[chess.Move]
    avoid: list[chess.Move]

    def solved_by(self, move: chess.Move) -> bool:
        """Any mate counts as correct."""
        solved = not self.best or move in self.best or _is_alternative_mate(self.board, move, self.best)
        return solved and move not in self.avoid


@dataclass
class Suite:
    """The exercises in a file, and an error per invalid line."""

    exercises: list[Exercise] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def read_suite(path: Path, limit: int | None = None) -> Suite:
    """Return the exercises in a file, at most the first `limit`. UserError if it cannot be read or has no exercises."""
    suite = Suite()
    for file in expand_archives(find_files(path, _KINDS), _KINDS):
        for number, line in enumerate(read_lines(file), 1):
            if len(suite.exercises) == limit:
                return suite
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            try:
                if len(line) > _MAX_LINE_CHARS:
                    raise UserError(
                        f"{where} has {len(line):,} characters; write one position and its operations per line"
                    )
                if _HAS_MOVES.search(line) is None:  # before parsing the board, which takes longer
                    raise UserError(f"{where} has neither bm nor am; add the best moves, as in bm Nf3;")
                board, operation_text = parse_epd(line, where)
                known = parse_operations(operation_text, where)
                best, avoid = (parse_moves(board, known.get(name, ""), where) for name in ("bm", "am"))
                if not best and not avoid:
                    raise UserError(f"{where} names no move in bm or am; add the best moves, as in bm Nf3;")
                suite.exercises.append(Exercise(known.get("id") or f"line {number}", number, board, best, avoid))
            except UserError as error:
                suite.faults.append(str(error))
            if len(suite.faults) == _HOPELESS and not suite.exercises:
                break
    if not suite.exercises:
        first = f" ({suite.faults[0]})" if suite.faults else ""
        raise UserError(f"{path} contains no position with bm or am{first}; pass a test suite in EPD")
    return suite


def solve_suite(
    player: ChessPlayer, suite: Suite, limits: SearchLimits, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Return how many exercises in a suite the player solves within `limits` for each. Any mate counts as correct.

    The scores are `suite_accuracy` with its interval, `solved`, `samples`, `skipped` lines, and for each `missed`
    exercise its `name`, `line`, `position`, the move `played` and the moves that are `best` or to `avoid`.
    """
    missed: list[dict[str, Any]] = []
    nodes, started = 0, time.monotonic()
    for count, exercise in enumerate(suite.exercises, 1):
        player.new_game()
        thought = player.think(exercise.board.copy(), replace(limits, started=time.monotonic()))
        nodes += thought.nodes
        if not exercise.solved_by(thought.move):
            board = exercise.board
            best, avoid = (" ".join(map(board.san, moves)) for moves in (exercise.best, exercise.avoid))
            position = {"name": exercise.name, "line": exercise.line, "position": board.fen()}
            missed.append({**position, "played": board.san(thought.move), "best": best, "avoid": avoid})
        if progress is not None and count % 20 == 0:
            progress(count, count - len(missed))
    samples = len(suite.exercises)
    seconds = time.monotonic() - started
    return {
        "suite_accuracy": (samples - len(missed)) / samples,
        "suite_accuracy_interval": wilson_interval(samples - len(missed), samples),
        "solved": samples - len(missed),
        "samples": samples,
        "skipped": len(suite.faults),
        "seconds": seconds,
        "positions_per_second": nodes / max(1e-9, seconds),
        "missed": missed,
    }
