"""Test suites in EPD: positions with best moves (bm) and moves to avoid (am)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headway.data.input_files import expand_archives, find_files, read_lines
from headway.domains.chess.boards import chess, parse_epd, parse_moves, parse_operations
from headway.domains.chess.limits import SearchLimits
from headway.domains.chess.player import ChessPlayer
from headway.domains.chess.puzzles import is_alternative_mate
from headway.errors import UserError
from headway.metrics import wilson_interval

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
        solved = not self.best or move in self.best or is_alternative_mate(self.board, move, self.best)
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
            try:
                suite.exercises.append(_exercise(line, number, f"{file}, line {number}"))
            except UserError as error:
                suite.faults.append(str(error))
            if len(suite.faults) == _HOPELESS and not suite.exercises:
                break
    if not suite.exercises:
        first = f" ({suite.faults[0]})" if suite.faults else ""
        raise UserError(f"{path} contains no position with bm or am{first}; pass a test suite in EPD")
    return suite


def _exercise(line: str, number: int, where: str) -> Exercise:
    if len(line) > _MAX_LINE_CHARS:
        raise UserError(f"{where} has {len(line):,} characters; write one position and its operations per line")
    if _HAS_MOVES.search(line) is None:  # before parsing the board, which takes longer
        raise UserError(f"{where} has neither bm nor am; add the best moves, as in bm Nf3;")
    board, operation_text = parse_epd(line, where)
    known = parse_operations(operation_text, where)
    best, avoid = (parse_moves(board, known.get(name, ""), where) for name in ("bm", "am"))
    if not best and not avoid:
        raise UserError(f"{where} names no move in bm or am; add the best moves, as in bm Nf3;")
    return Exercise(known.get("id") or f"line {number}", number, board, best, avoid)


def solve_suite(
    player: ChessPlayer, suite: Suite, limits: SearchLimits, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Return how many exercises in a suite the player solves within `limits` for each.

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
            missed.append(_describe_missed(exercise, thought.move))
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


def _describe_missed(exercise: Exercise, move: chess.Move) -> dict[str, Any]:
    board = exercise.board

    def named(moves: Sequence[chess.Move]) -> str:
        return " ".join(map(board.san, moves))

    return {
        "name": exercise.name,
        "line": exercise.line,
        "position": board.fen(),
        "played": board.san(move),
        "best": named(exercise.best),
        "avoid": named(exercise.avoid),
    }
