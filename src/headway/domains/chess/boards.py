"""Boards, moves, positions and evaluations: conversions between python-chess (extra `chess`), which implements the
rules, and headway's records, move ids and probabilities of win, draw and loss. Also positions with operations (EPD), as
in test suites, including older notations.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from headway.codecs.chess_boards import (
    MIRRORED_MOVES,
    MOVE_INDEX,
    MOVES,
    NO_SQUARE,
    PROMOTIONS,
    SQUARES,
    from_bitboards,
    parse_fen,
)
from headway.errors import UserError

try:
    import chess
    import chess.pgn
    import chess.svg
except ImportError:
    raise UserError("chess needs the package chess (GPL-3.0+); run pip install 'headway[chess]'") from None

notation, drawing = chess.pgn, chess.svg  # re-exported
Record = tuple[int, ...]  # eight bitboards and five states, in the order of `from_bitboards`


_RANK = "[1-8pnbrqkPNBRQK]{1,8}"
_STANDARD_FEN = re.compile(rf"(?:{_RANK}/){{7}}{_RANK} [wb] (?:-|K?Q?k?q?(?<! )) (?:-|[a-h][36]) \d+ \d+")
_COORDINATES = re.compile(r"[a-h][1-8][a-h][1-8][nbrqk]?|0000")
_MAX_FEN_CHARS = 1 << 10  # characters
_REMEDY = ("write moves as e2e4 or Nf3", "correct the move or the position")
_INDEX = [-1] * (6 << 12)
for _move, _number in MOVE_INDEX.items():
    _piece = PROMOTIONS.find(_move[4]) + 2 if len(_move) == 5 else 0
    _INDEX[SQUARES.index(_move[:2]) | SQUARES.index(_move[2:4]) << 6 | _piece << 12] = _number
_MIRROR = MIRRORED_MOVES.tolist()
_RIGHTS = ((chess.BB_H1, 2), (chess.BB_A1, 4), (chess.BB_H8, 8), (chess.BB_A8, 16))


def record(board: chess.Board, repeated: int = 0) -> Record:
    """Return a position as integers; `repeated` is how often it occurred before."""
    rights = board.clean_castling_rights()
    flags = int(not board.turn) + sum(flag for square, flag in _RIGHTS if rights & square)
    passed = board.ep_square if board.ep_square is not None and board.has_legal_en_passant() else NO_SQUARE
    return (
        board.pawns, board.knights, board.bishops, board.rooks, board.queens, board.kings,
        board.occupied_co[chess.WHITE], board.occupied_co[chess.BLACK],
        flags, passed, min(255, board.halfmove_clock), repeated, min(65535, board.fullmove_number),
    )  # fmt: skip


def repetition_key(position: Record) -> Record:
    """Return what makes two positions in a game equal: everything except the counters."""
    return position[:10]


def to_position_array(records: Sequence[Record]) -> np.ndarray:
    """Return records as POSITION [N]."""
    boards = np.array([position[:8] for position in records], np.uint64).reshape(-1, 8)
    states = np.array([position[8:] for position in records], np.int64).reshape(-1, 5)
    return from_bitboards(boards, states)


def encode_move(move: chess.Move, turn: chess.Color) -> int:
    """Return a move's id from the mover's point of view."""
    number = _INDEX[move.from_square | move.to_square << 6 | (move.promotion or 0) << 12]
    return number if turn else _MIRROR[number]


def legal_move_ids(board: chess.Board) -> list[int]:
    """Return the ids of all legal moves, from the mover's point of view."""
    return [encode_move(move, board.turn) for move in board.generate_legal_moves()]


def decode_move(number: int, turn: chess.Color) -> chess.Move:
    """Return the move with an id from the mover's point of view."""
    return chess.Move.from_uci(MOVES[number if turn else _MIRROR[number]])


def board_from_fen(fen: str, where: str = "") -> chess.Board:
    """Return the board that a FEN describes. UserError for an invalid FEN, an illegal position or Chess960."""
    prefix = f"{where}: " if where else ""
    if len(fen) > _MAX_FEN_CHARS:
        raise UserError(
            f"{prefix}FEN {fen[:40]!r}... has {len(fen):,} characters, but a FEN has at most {_MAX_FEN_CHARS}; correct "
            "it"
        )
    try:
        board = chess.Board(fen) if _STANDARD_FEN.fullmatch(fen) else None
    except ValueError:  # a rank is not 8 squares long
        board = None
    if board is None:  # its counters are missing, or something is wrong with it
        try:
            parse_fen(fen)
            board = chess.Board(" ".join([*fen.split(), "0", "1"][:6]))
        except UserError as error:
            raise UserError(f"{prefix}{error}") from None
        except ValueError as error:
            raise UserError(f"{prefix}FEN {fen.strip()!r} cannot be read ({error}); correct it") from None
    status = board.status()
    if status != chess.STATUS_VALID:
        faults = ", ".join(str(flag.name).lower().replace("_", " ") for flag in chess.Status if status & flag)
        raise UserError(f"{prefix}FEN {fen.strip()!r} is not a chess position ({faults}); correct it")
    return board


def parse_move(board: chess.Board, text: str, where: str = "") -> chess.Move:
    """Return a legal move written as e2e4 or as Nf3. UserError for an unknown or illegal one."""
    prefix = f"{where}: " if where else ""
    coordinates = _COORDINATES.fullmatch(text) is not None
    try:
        move = board.parse_uci(text) if coordinates else board.parse_san(text)  # castling written as e1h1 becomes e1g1
    except ValueError as error:
        is_illegal = coordinates or isinstance(error, (chess.IllegalMoveError, chess.AmbiguousMoveError))
        kind = "not a legal move" if is_illegal else "not a chess move"
        raise UserError(f"{prefix}{text!r} is {kind} in {board.fen()!r}; {_REMEDY[coordinates]}") from None
    if not move:
        raise UserError(f"{prefix}{text!r} is a null move, which is not a chess move; correct it")
    return move


_OPERATION = re.compile(r'[\s;]*(\w+)((?:\s+(?:"[^"]*(?:"|$)|[^\s;"]+))*)\s*(?:;|$)')
_COUNTERS = re.compile(r"^\d+\s+\d+\s*(?=$|[A-Za-z])")  # a FEN's counters, before the operations
_TAIL = re.compile(r"(?:\+|#|[!?]|ch|mate|dis|dbl|\(?e\.?p\.?\)?)+$")
_MAX_MOVE_CHARS = 20  # characters of a move
_MAX_LINE_CHARS = 1 << 16  # characters
_CASTLING = re.compile(r"[0Oo]-?[0Oo](-?[0Oo])?")
_PROMOTION = re.compile(r"(?<=[a-h][18])[=/(]?([QRBN])\)?$")


def parse_epd(line: str, where: str) -> tuple[chess.Board, str]:
    """Return the board that a line describes and the rest of the line. UserError for an invalid position."""
    if len(line) > _MAX_LINE_CHARS:
        raise UserError(f"{where} has {len(line):,} characters; write one position and its operations per line")
    parts = line.split(maxsplit=4)
    operations = parts[4].strip() if len(parts) > 4 else ""
    counters = _COUNTERS.match(operations)
    fen = " ".join([*parts[:4], *(counters.group().split() if counters else ())])
    return board_from_fen(fen, where), operations[counters.end() :] if counters else operations


def parse_operations(text: str, where: str) -> dict[str, str]:
    """Return the value of each operation, without quotes. UserError for invalid operations."""
    operations: dict[str, str] = {}
    start, end = 0, len(text.rstrip("; \t"))
    while start < end:
        match = _OPERATION.match(text, start)
        if match is None:
            raise UserError(
                f'{where}: {text[start:].strip()[:60]!r} is not an operation; write them as bm Nf3; id "one";'
            )
        operations.setdefault(match[1], match[2].strip().strip('"'))
        start = match.end()
    return operations


def parse_moves(board: chess.Board, text: str, where: str) -> list[chess.Move]:
    """Return the moves in an operation: Nf3, e2e4 and, as in older suites, Rd8+, Ng1-f3, 0-0, N:e4, e8(Q), Qh7mate.
    UserError for an illegal move.
    """
    moves = []
    for word in text.replace(",", " ").split():
        if _TAIL.fullmatch(word):
            continue
        if len(word) > _MAX_MOVE_CHARS:
            raise UserError(f"{where}: {word[:_MAX_MOVE_CHARS]!r}... is not a chess move; write moves as e2e4 or Nf3")
        bare = _PROMOTION.sub(r"=\1", _TAIL.sub("", word).replace(":", "x"))
        if castling := _CASTLING.fullmatch(bare):
            bare = "O-O-O" if castling[1] else "O-O"
        try:
            moves.append(parse_move(board, bare, where))
        except UserError as error:
            raise UserError(str(error).replace(repr(bare), repr(word))) from None
    return moves


_EVEN = 100.0  # centipawns at which a win has a probability of 50 %, as in Stockfish
_SLOPE = 75.0  # centipawns that change the odds by a factor of e
_MATE = 10_000.0  # centipawns for a mate, minus 1 per move
_MAX_MATE_MOVES = 1000  # maximum moves to a mate
_DIGITS = 20  # maximum characters of a mate score such as #-3
_WIN_SLOPE = 0.00368208  # slope of the win probability per centipawn


def outcome(centipawns: np.ndarray | float) -> np.ndarray:
    """Return (win, draw, loss), float64 [..., 3], for the evaluated side: logistic curves on both sides of a draw."""
    score = np.clip(np.asarray(centipawns, np.float64), -_MATE, _MATE)
    win, loss = (1 / (1 + np.exp((_EVEN - signed) / _SLOPE)) for signed in (score, -score))
    return np.stack([win, 1 - win - loss, loss], axis=-1)


def worth(centipawns: np.ndarray | float) -> np.ndarray:
    """Return a move's worth compared with others in its position, float64 of any shape: the win probability from Ruoss
    et al. 2024, section 2, which still distinguishes clearly won from barely won positions, where `outcome` is 1 for
    both. A mate in n moves is 1 + 0.1 / n, and being mated in n is -0.1 / n.
    """
    score = np.clip(np.asarray(centipawns, np.float64), -_MATE, _MATE)
    mate_distance = np.maximum(1.0, _MATE - np.abs(score))  # moves to the mate, if it is one
    return np.where(
        mate_distance <= _MAX_MATE_MOVES,
        0.5 + np.sign(score) * (0.5 + 0.1 / mate_distance),
        1 / (1 + np.exp(-_WIN_SLOPE * score)),
    )


def expected(outcomes: np.ndarray) -> np.ndarray:
    """Return the expected score, [...] of [..., 3]: a win is 1, a draw a half."""
    return outcomes[..., 0] + outcomes[..., 1] / 2


def expected_of(outcome: np.ndarray) -> float:
    """The expected score for one outcome, [3]."""
    return float(outcome[0] + outcome[1] / 2)


def read_score(text: str) -> float:
    """Parse an evaluation into centipawns: "0.34" (pawns) or "#-3" (mated in three), as in %eval. Raises
    ValueError for other text.
    """
    if not text.startswith("#"):
        return 100 * float(text)
    if len(text) > _DIGITS:
        raise ValueError("a mate cannot take so many moves")
    return mate(int(text[1:]))


def mate(moves: int) -> float:
    """Return the centipawns for a mate in `moves` moves, negative if mated."""
    return np.copysign(_MATE - abs(moves), moves if moves else -1)


def centipawns(value: float) -> int:
    """The evaluation in centipawns for an expected score between 0 and 1: the inverse of `expected(outcome(...))`, for
    display.
    """
    low, high = -_MATE, _MATE
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if float(expected(outcome(middle))) < value else (low, middle)
    return round(low)
