"""Test suites in EPD: positions with best moves (bm) and moves to avoid (am)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headway.data.files import find_files, lines, unpacked
from headway.domains.chess.limits import SearchLimits
from headway.domains.chess.player import Player
from headway.domains.chess.puzzles import mates_as_well
from headway.domains.chess.rules import board_and_rest, chess, moves_of, operations_of
from headway.errors import UserError
from headway.metrics import wilson

_KINDS = (".epd", ".zip")
_LONGEST = 4096  # characters per line
_ASKED = re.compile(r"\b[ab]m\s")
_HOPELESS = 1000  # bad lines at the start of a file after which reading gives up


@dataclass(frozen=True)
class Exercise:
    """A position of a suite: the moves that solve it (empty: all but those to avoid), and those to avoid."""

    name: str
    line: int
    board: chess.Board
    best: list[chess.Move]
    avoid: list[chess.Move]

    def solved_by(self, move: chess.Move) -> bool:
        """Any mate counts as correct."""
        right = not self.best or move in self.best or mates_as_well(self.board, move, self.best)
        return right and move not in self.avoid


@dataclass
class Suite:
    """The exercises of a file, and an error per invalid line."""

    exercises: list[Exercise] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def read_suite(path: Path, limit: int | None = None) -> Suite:
    """Return the exercises of a file, at most the first `limit`. UserError if it cannot be read or has none."""
    found = Suite()
    for file in unpacked(find_files(path, _KINDS), _KINDS):
        for number, line in enumerate(lines(file), 1):
            if len(found.exercises) == limit:
                return found
            if not line.strip():
                continue
            try:
                found.exercises.append(_exercise(line, number, f"{file}, line {number}"))
            except UserError as error:
                found.faults.append(str(error))
            if len(found.faults) == _HOPELESS and not found.exercises:
                break
    if not found.exercises:
        first = f" ({found.faults[0]})" if found.faults else ""
        raise UserError(f"{path} contains no position with bm or am{first}; pass a test suite in EPD")
    return found


def _exercise(line: str, number: int, where: str) -> Exercise:
    if len(line) > _LONGEST:
        raise UserError(f"{where} has {len(line):,} characters; write one position and its operations per line")
    if _ASKED.search(line) is None:  # before parsing the board, which takes longer
        raise UserError(f"{where} has neither bm nor am; add the best moves, as in bm Nf3;")
    board, rest = board_and_rest(line, where)
    known = operations_of(rest, where)
    best, avoid = (moves_of(board, known.get(name, ""), where) for name in ("bm", "am"))
    if not best and not avoid:
        raise UserError(f"{where} names no move in bm or am; add the best moves, as in bm Nf3;")
    return Exercise(known.get("id") or f"line {number}", number, board, best, avoid)


def solve_suite(
    player: Player, suite: Suite, limits: SearchLimits, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Return how many exercises of a suite the player solves, within `limits` for each.

    `suite_accuracy` with its interval, `solved`, `samples`, `skipped` lines, and for each `missed` exercise its `name`,
    `line`, `position`, the move `played` and the moves that are `best` or to `avoid`.
    """
    missed: list[dict[str, Any]] = []
    nodes, started = 0, time.monotonic()
    for count, exercise in enumerate(suite.exercises, 1):
        player.new_game()
        thought = player.think(exercise.board.copy(), replace(limits, started=time.monotonic()))
        nodes += thought.nodes
        if not exercise.solved_by(thought.move):
            missed.append(_told(exercise, thought.move))
        if progress is not None and count % 20 == 0:
            progress(count, count - len(missed))
    samples = len(suite.exercises)
    seconds = time.monotonic() - started
    return {
        "suite_accuracy": (samples - len(missed)) / samples,
        "suite_accuracy_interval": wilson(samples - len(missed), samples),
        "solved": samples - len(missed),
        "samples": samples,
        "skipped": len(suite.faults),
        "seconds": seconds,
        "positions_per_second": nodes / max(1e-9, seconds),
        "missed": missed,
    }


def _told(exercise: Exercise, move: chess.Move) -> dict[str, Any]:
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
