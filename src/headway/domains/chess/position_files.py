"""Read games, openings for matches, and positions with their targets from PGN, EPD, puzzles and CSV labels."""

from __future__ import annotations

import csv
import io
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from headway.codecs.chess_boards import MIRRORED_MOVES, MOVE_INDEX
from headway.data.input_files import File, expand_archives, find_files, read_lines, resolve_named_splits
from headway.data.registry import find_set
from headway.data.splits import text_key
from headway.data.table_files import check_column_names
from headway.domains.chess.boards import (
    Record,
    board_from_fen,
    chess,
    decode_move,
    encode_move,
    expected,
    legal_move_ids,
    notation,
    outcome,
    parse_epd,
    parse_move,
    parse_moves,
    parse_operations,
    read_score,
    record,
    repetition_key,
    worth,
)
from headway.errors import UserError, logger, nearest
from headway.io.files import user_path

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
    evaluations: list[float | None] = field(default_factory=list)  # centipawns for White, None if unknown
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
        outcomes = {"1-0": (1.0, 0.0, 0.0), "1/2-1/2": (0.0, 1.0, 0.0), "0-1": (0.0, 0.0, 1.0)}
        self.game.ended = True
        self.game.result = np.array(outcomes[result]) if result in outcomes else None  # None if the game did not end

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
            boards = list(_epd_boards(file))
        elif file.kind == ".tsv":
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


def _epd_boards(file: File) -> Iterator[chess.Board]:
    """Yield the positions in an .epd file, without their operations."""
    for number, line in enumerate(read_lines(file), 1):
        if line.strip():
            yield board_from_fen(" ".join(line.split()[:4]), f"{file}, line {number}")


_LOG = logger(__name__)
KINDS = (".pgn", ".epd", ".csv", ".zip")
POSITION_NAMES, MOVE_NAMES = ("position", "fen"), ("bestmove", "moves")  # column names, case-insensitive
_MOVE = re.compile(r"[a-h][1-8][a-h][1-8][nbrq]?")


@dataclass
class PositionRun:
    """Consecutive positions from a game, or a single one.

    For each position: the moves to learn, from the mover's point of view, with the best or played move first; the worth
    of each move (`worth`), NaN if unknown; and (win, draw, loss) for the mover, NaN if unknown. Equal
    sequences have the same `key`.
    """

    key: str
    records: list[Record] = field(default_factory=list)
    moves: list[list[int]] = field(default_factory=list)
    worths: list[list[float]] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)


@dataclass
class ReadTally:
    """Counts of read and skipped items, for messages."""

    games: int = 0
    variants: int = 0
    bad: int = 0
    unlabelled: int = 0


_MIRROR = MIRRORED_MOVES.tolist()
UNKNOWN = np.full(3, math.nan)


def chess_files(paths: Sequence[Path | str]) -> list[File]:
    """Return the chess files at `paths`. UserError if there are none, or if one cannot be read."""
    if not paths:
        raise UserError("there are no chess files; pass at least one .pgn, .epd or .csv")
    files = expand_archives((f for path in paths for f in find_files(user_path(path), KINDS)), KINDS)
    return resolve_named_splits(files)


def samples(file: File, evals: float, skip_bad: bool, tally: ReadTally) -> Iterator[PositionRun]:
    """Yield the samples in a file. `evals` is the weight of an engine's evaluation in comments relative to the game's
    result.
    """
    if file.kind == ".pgn":
        for game in games(file, skip_bad):
            tally.games += 1
            tally.variants += game.variant is not None
            tally.bad += bool(game.fault)
            if game.variant is None and game.moves:
                # The move played at each position. Its worth is the evaluation after it, and the value is a mean of
                # evaluation and result.
                run = PositionRun(game.key, game.records, [[move] for move in game.moves])
                before: np.ndarray | None = None
                for position, after in zip(game.records, game.evaluations):
                    black = bool(position[8] & 1)
                    best = before if before is not None else game.result
                    value = UNKNOWN if best is None else best
                    if before is not None and game.result is not None:
                        value = evals * before + (1 - evals) * game.result
                    run.values.append(value[::-1] if black else value)
                    played = math.nan  # the move's worth from the evaluation after it, otherwise from the game's result
                    if after is not None:
                        played = float(worth(-after if black else after))
                    elif game.result is not None:
                        played = float(expected(game.result[::-1] if black else game.result))
                    run.worths.append([played])
                    before = None if after is None else outcome(after)
                yield run
        return
    for run in _read_epd(file) if file.kind == ".epd" else _read_csv(file):
        if run.moves[0] or not np.isnan(run.values[0]).any():
            yield run
        else:
            tally.unlabelled += 1


def unlabelled_positions(file: File) -> Iterator[tuple[chess.Board, str]]:
    """Yield the positions in a file without targets: those before each move of a game, or those in a list, each with
    the game's id ("" if it has none). Damaged games yield the part before the damage, with a warning.
    """
    if file.kind == ".pgn":
        damaged = 0
        for game in games(file, True):
            damaged += bool(game.fault) and game.variant is None
            if game.variant is None and game.moves:
                board, name = game.start, f"{text_key(game.key):016x}"
                for number in game.moves:
                    yield board.copy(stack=False), name
                    board.push(decode_move(number, board.turn))
        if damaged:
            _LOG.warning("%s: %d damaged games; using the part before the damage", file, damaged)
        return
    if file.kind == ".epd":
        yield from ((board, "") for board in _epd_boards(file))
        return
    for where, row, (position,) in read_rows(file, POSITION_NAMES):
        yield board_from_fen(row[position], where), row.get("game", "")


def _single_run(
    board: chess.Board, moves: Sequence[chess.Move], worths: Sequence[float], value: np.ndarray, key: str = ""
) -> PositionRun:
    move_ids = [encode_move(move, board.turn) for move in moves]
    return PositionRun(key or board.epd(), [record(board)], [move_ids], [list(worths)], [value])


def _read_epd(file: File) -> Iterator[PositionRun]:
    """Yield best moves (bm) and evaluations in centipawns (ce) from the mover's point of view."""
    for number, line in enumerate(read_lines(file), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        board, operation_text = parse_epd(line, where)
        known = parse_operations(operation_text, where)
        moves = parse_moves(board, known.get("bm", ""), where)
        score = _number(known["ce"], where) if "ce" in known else math.nan
        value, worths = outcome(score), [float(worth(score))] * len(moves)
        yield _single_run(board, moves, worths, value)


def _read_csv(file: File) -> Iterator[PositionRun]:
    """Yield an engine's labels (position, bestmove, scores, wdl), positions with best moves, and Lichess's puzzles,
    whose first move is the opponent's.
    """
    for where, row, (position, move) in read_rows(file, POSITION_NAMES, MOVE_NAMES):
        board = board_from_fen(row[position], where)
        moves = find_moves(row[move], where)
        if move.lower() == "moves":
            key = board.epd()  # shared by all its positions, so that they are in the same split
            for index, text in enumerate(moves):
                played = parse_move(board, text, where)
                if index % 2:
                    yield _single_run(board, [played], [math.nan], UNKNOWN, key)
                board.push(played)
        elif row.get("scores"):
            legal, move_ids, scores = set(legal_move_ids(board)), [], []
            for item in row["scores"].split():
                text, _, score = item.partition(":")
                number = MOVE_INDEX.get(text, -1)
                number = number if board.turn or number < 0 else _MIRROR[number]
                if number not in legal:
                    number = encode_move(parse_move(board, text, where), board.turn)
                move_ids.append(number)
                scores.append(_number(score, where))
            if row.get("wdl"):
                parts = [_number(part, where) for part in row["wdl"].split()]
                if len(parts) != 3 or not 999 <= sum(parts) <= 1001:
                    raise UserError(f"{where}: {row['wdl']!r} is not a win, draw and loss that sum to 1000; correct it")
                value = np.array(parts) / sum(parts)
            else:
                value = outcome(scores[0])
            worths = worth(np.array(scores)).tolist()
            yield PositionRun(row.get("game") or board.epd(), [record(board)], [move_ids], [worths], [value])
        else:
            yield _single_run(board, [parse_move(board, m, where) for m in moves], [math.nan] * len(moves), UNKNOWN)


def find_moves(text: str, where: str) -> list[str]:
    """Return the moves in a cell. UserError if there are none."""
    moves = _MOVE.findall(text)
    if not moves:
        raise UserError(f"{where}: {text[:60]!r} contains no move; write moves as e2e4")
    return moves


def _number(text: str, where: str) -> float:
    """Parse centipawns: a number, or a mate as #3 and #-3."""
    try:
        return read_score(text) if text.startswith("#") else float(text)
    except ValueError:
        raise UserError(f"{where}: {text[:60]!r} is not an evaluation; write centipawns as 34, a mate as #3") from None


def read_rows(file: File, *wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, str], list[str]]]:
    """Yield a row's location, its values by name, and for each of `wanted` the name of the matching column."""
    reader = csv.reader((line + "\n" for line in read_lines(file)), strict=True)
    try:
        header = next(reader, [])
        check_column_names(str(file), header)
        names = []
        for candidates in wanted:
            matches = [name for name in header if name.strip().lower() in candidates]
            if not matches:
                known = nearest(candidates[0], header) if header else "it is empty"
                raise UserError(
                    f"{file} has no column {' or '.join(map(repr, candidates))} ({known}); add a header such as "
                    "position,bestmove"
                )
            names.append(matches[0])
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if len(row) != len(header):
                raise UserError(f"{where} has {len(row)} columns, but the header has {len(header)}; correct it")
            yield where, dict(zip(header, row)), names
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num} cannot be read ({error}); check its quotes") from error
