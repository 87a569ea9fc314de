"""Read games from PGN, and openings for matches."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from headway.data.input_files import File, find_files, read_lines
from headway.data.registry import find_set
from headway.domains.chess.boards import (
    Record,
    board_from_fen,
    chess,
    decode_move,
    encode_move,
    notation,
    record,
    repetition_key,
)
from headway.domains.chess.win_probability import parse_result, read_score
from headway.errors import UserError

_EVAL = re.compile(r"\[%eval (#?-?[\d.]+)(?:,\d+)?\]")
_MAX_FAULT_CHARS = 300  # characters of an error about a game
_STANDARD = ("", "?", "standard", "normal", "chess", "from position")


@dataclass
class Game:
    """The position before each move, the moves from the mover's point of view, the outcome for White, float64 [3] (None
    if the game did not end), and the engine's evaluation for White after each move, if a comment has one.
    """

    location: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    moves: list[int] = field(default_factory=list)
    evaluations: list[float | None] = field(
        default_factory=list
    )  # centipawns for White after each move, None if unknown
    result: np.ndarray | None = None
    fault: str = ""
    ended: bool = False

    @property
    def variant(self) -> str | None:
        """The chess variant; None for standard chess."""
        name = self.headers.get("Variant", "")
        return None if name.lower() in _STANDARD else name

    @property
    def start(self) -> chess.Board:
        """The initial board."""
        return chess.Board(self.headers.get("FEN", chess.STARTING_FEN))

    @property
    def key(self) -> str:
        """Identical for equal games."""
        return " ".join([self.headers.get("FEN", ""), *map(str, self.moves)])


class Reader(notation.BaseVisitor[Game]):
    """Builds a Game from the events of python-chess's parser; skips variations."""

    def begin_game(self) -> None:
        self.game = Game()
        self.occurrences: dict[Record, int] = {}

    def visit_header(self, tagname: str, tagvalue: str) -> None:
        self.game.headers[tagname] = tagvalue

    def end_headers(self) -> object:
        return notation.SKIP if self.game.variant is not None else None

    def visit_board(self, board: chess.Board) -> None:
        """Check the initial position, which a header may set."""
        if self.game.moves or self.game.fault or "FEN" not in self.game.headers:
            return
        if board.chess960:
            self.game.headers["Variant"] = "Chess960"  # identified by its castling, independent of its headers
        elif not board.is_valid():
            self.game.fault = f"starts from {board.fen()!r}, which is not a chess position"

    def parse_san(self, board: chess.Board, san: str) -> chess.Move:
        move = board.parse_san(san)
        if not move:
            raise ValueError(f"{san!r} is a null move, which is not a chess move")
        return move

    def begin_variation(self) -> object:
        return notation.SKIP

    def visit_move(self, board: chess.Board, move: chess.Move) -> None:
        if self.game.fault or self.game.variant is not None:
            return
        position = record(board)
        before = self.occurrences.get(repetition_key(position), 0)
        self.occurrences[repetition_key(position)] = before + 1
        self.game.records.append((*position[:11], before, position[12]))
        self.game.moves.append(encode_move(move, board.turn))
        self.game.evaluations.append(None)

    def visit_comment(self, comment: str) -> None:
        match = _EVAL.search(comment)
        if match and self.game.evaluations:
            try:
                self.game.evaluations[-1] = read_score(match[1])
            except ValueError:
                self.game.fault = f"has the evaluation {match[1]!r}, which is not a number"

    def visit_result(self, result: str) -> None:
        self.game.ended, self.game.result = True, parse_result(result)

    def handle_error(self, error: Exception) -> None:
        self.game.fault = str(error)[:_MAX_FAULT_CHARS]

    def result(self) -> Game:
        return self.game


class _NumberedLines:
    """A file's lines as python-chess reads them, numbered. Consecutive blank lines are returned as one, because the
    parser is slow on them.
    """

    def __init__(self, file: File) -> None:
        self._lines = enumerate(read_lines(file), 1)
        self._blank = False
        self.number = 0

    def readline(self) -> str:
        for number, line in self._lines:
            if line or not self._blank:
                self.number, self._blank = number, not line
                return line + "\n"
        return ""


def games(file: File, skip_bad: bool = False) -> Iterator[Game]:
    """Yield the games in a file, including chess variants (only their headers). UserError for a game that has an
    illegal move or is incomplete, unless `skip_bad` is set: then `fault` describes the problem.
    """
    handle = _NumberedLines(file)
    started = 1
    while True:
        try:
            game = notation.read_game(handle, Visitor=Reader)  # type: ignore[arg-type]
        except ValueError as error:  # headers without a position: an illegal FEN, an unknown variant
            game = Game(fault=str(error)[:_MAX_FAULT_CHARS], ended=True)
        if game is None:
            return
        game.location = f"{file}, game starting at line {started}"
        started = handle.number + 1
        if game.variant is None and not game.fault and not game.ended:
            game.fault = "ends without a result, like a truncated file"
        if game.variant is None and game.fault and not skip_bad:
            raise UserError(f"{game.location}: {game.fault}; correct it, or skip such games: task.skip_bad=true")
        yield game


SET = "lichess-openings"
_KINDS = (".tsv", ".pgn", ".epd")
_LENGTHS = range(4, 13)  # accepted lengths of openings in a table, in half moves


def openings(paths: Sequence[Path] | None, count: int, seed: int) -> list[chess.Board]:
    """Return `count` different boards with the moves that led to them, sampled with `seed` from Lichess's named
    openings or from files (.tsv with a column pgn, .pgn, .epd). UserError if there are too few.
    """
    files = [file for path in paths or find_set(SET) for file in find_files(path, _KINDS)]
    known: dict[str, chess.Board] = {}
    for file in files:
        if file.kind == ".epd":
            numbered = ((number, line) for number, line in enumerate(read_lines(file), 1) if line.strip())
            boards = [board_from_fen(" ".join(line.split()[:4]), f"{file}, line {number}") for number, line in numbered]
        elif file.kind == ".tsv":
            boards = _read_opening_table(file)
        else:  # at most the first 12 half moves of each game, as in opening books
            boards = []
            for game in (game for game in games(file) if game.variant is None):
                board = game.start
                for number in game.moves[: _LENGTHS[-1]]:
                    board.push(decode_move(number, board.turn))
                boards.append(board)
        known.update((board.epd(), board) for board in boards if not board.is_game_over())
    unique_boards = list(known.values())
    if len(unique_boards) < count:
        raise UserError(
            f"{len(unique_boards):,} openings are too few for {2 * count:,} games with two games per opening; play "
            "fewer games"
        )
    return random.Random(seed).sample(unique_boards, count)


def _read_opening_table(file: File) -> list[chess.Board]:
    rows = (line.split("\t") for line in read_lines(file))
    header = next(rows, [])
    if "pgn" not in header:
        raise UserError(f"{file} has no column 'pgn'; use a table of openings such as Lichess's")
    boards = []
    for number, row in enumerate(rows, 2):
        game = notation.read_game(io.StringIO(row[header.index("pgn")])) if len(row) == len(header) else None
        if game is None or game.errors:
            raise UserError(f"{file}, line {number}: these are not valid opening moves; correct the line")
        board = game.end().board()
        if len(board.move_stack) in _LENGTHS:
            boards.append(board)
    return boards
