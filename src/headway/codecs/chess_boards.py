"""Chess positions as records, moves as indices, and input planes for a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from headway.errors import UserError

FILES, RANKS = "abcdefgh", "12345678"
SQUARES = tuple(file + rank for rank in RANKS for file in FILES)  # a1 is 0, b1 is 1, h8 is 63
PROMOTIONS = "nbrq"
UPWARD_MOVES = 1880  # all moves with smaller indices belong to the side that plays up the board
_KNIGHT_STEPS = ((1, 2), (2, 1), (2, -1), (1, -2), (-1, -2), (-2, -1), (-2, 1), (-1, 2))


class MoveParts(NamedTuple):
    """Source and target squares for moves, int64 [N], and the promotion: an index into PROMOTIONS, or -1."""

    source: np.ndarray
    target: np.ndarray
    promotion: np.ndarray


def _all_moves() -> tuple[str, ...]:
    """Moves in UCI notation: piece moves, White's promotions, Black's promotions."""
    piece_moves, promotions = [], ([], [])
    for source in range(64):
        for target in range(64):
            files, ranks = target % 8 - source % 8, target // 8 - source // 8
            straight = (files == 0) != (ranks == 0) or (abs(files) == abs(ranks) != 0)
            if straight or (files, ranks) in _KNIGHT_STEPS:
                piece_moves.append(SQUARES[source] + SQUARES[target])
            ranks_moved = (source // 8, target // 8)
            if abs(files) <= 1 and ranks_moved in ((6, 7), (1, 0)):
                promotions[ranks_moved == (1, 0)].extend(
                    SQUARES[source] + SQUARES[target] + piece for piece in PROMOTIONS
                )
    return (*piece_moves, *promotions[0], *promotions[1])


MOVES = _all_moves()
MOVE_INDEX = {move: number for number, move in enumerate(MOVES)}


MIRRORED_MOVES = np.array(
    [MOVE_INDEX[move[0] + str(9 - int(move[1])) + move[2] + str(9 - int(move[3])) + move[4:]] for move in MOVES],
    np.int64,
)
"""The index of each move from the other side's view (a2a4 becomes a7a5); its own inverse."""
_FLIPPED_FILES = str.maketrans(FILES, FILES[::-1])
FLIPPED_MOVES = np.array([MOVE_INDEX[move[:4].translate(_FLIPPED_FILES) + move[4:]] for move in MOVES], np.int64)
"""The index of each move on the horizontally flipped board (a2a4 becomes h2h4); its own inverse."""

MOVE_PARTS = MoveParts(
    np.array([SQUARES.index(move[:2]) for move in MOVES], np.int64),
    np.array([SQUARES.index(move[2:4]) for move in MOVES], np.int64),
    np.array([PROMOTIONS.find(move[4]) if len(move) == 5 else -1 for move in MOVES], np.int64),
)


POSITION_DTYPE = np.dtype(
    [
        ("squares", np.uint8, 32),  # two per byte, a1 first: 0 empty, 1 to 6 White's PNBRQK, 7 to 12 Black's
        ("flags", np.uint8),  # 1 Black to move; 2, 4, 8, 16 castling rights K, Q, k, q
        ("passed", np.uint8),  # en passant square; 64 for none
        ("clock", np.uint8),  # half-moves since the last pawn move or capture
        ("repeated", np.uint8),  # previous occurrences of the position
        ("number", np.uint16),  # full-move number, from 1
    ]
)
PIECES = ".PNBRQKpnbrqk"
CASTLING = "KQkq"
NO_SQUARE = 64
FEN_TOKENS = 77
# In the order used by Ruoss et al. 2024.
FEN_CHARACTERS = (*"0123456789", *"abcdefgh", *"pnrkq", *"PBNRQK", "w", ".")
_CHARACTER_INDEX = {character: number for number, character in enumerate(FEN_CHARACTERS)}
_INITIAL_FEN = "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1"


def parse_fen(fen: str) -> np.ndarray:
    """The record for a FEN, POSITION_DTYPE []. The counters may be missing. Raises UserError if it is not a FEN.

    Whether the position is legal is not checked.
    """
    parts = fen.split()
    if not 4 <= len(parts) <= 6:
        raise _invalid_fen(fen, f"has {len(parts)} parts, not 6")
    record = np.zeros((), POSITION_DTYPE)
    ranks = parts[0].split("/")
    if len(ranks) != 8:
        raise _invalid_fen(fen, f"has {len(ranks)} ranks, not 8")
    board = np.zeros((8, 8), np.uint8)
    for row, rank in enumerate(ranks):
        expanded = "".join("." * int(c) if c in "12345678" else c for c in rank)
        invalid = next((c for c in expanded if c not in PIECES), None)
        if invalid is not None:
            raise _invalid_fen(fen, f"has {invalid!r} in rank {8 - row}, which is not a piece")
        if len(expanded) != 8:
            raise _invalid_fen(fen, f"has {len(expanded)} squares in rank {8 - row}, not 8")
        board[7 - row] = [PIECES.index(c) for c in expanded]
    record["squares"] = _pack_squares(board.reshape(64)[None])[0]
    side, castling, en_passant = parts[1:4]
    if side not in ("w", "b"):
        raise _invalid_fen(fen, f"has {side!r} as the side to move, not w or b")
    if castling != "-" and any(c not in CASTLING for c in castling):
        chess960 = castling.isalpha() and all(c.lower() in "abcdefgh" + "kq" for c in castling)
        kind = "Chess960 castling rights, which headway does not support" if chess960 else "unknown castling rights"
        raise _invalid_fen(fen, f"has {kind} ({castling!r})")
    record["flags"] = (side == "b") | sum(2 << CASTLING.index(c) for c in set(castling) if c != "-")
    if en_passant != "-" and (en_passant not in SQUARES or en_passant[1] not in "36"):
        raise _invalid_fen(fen, f"has the invalid en passant square {en_passant!r}")
    record["passed"] = NO_SQUARE if en_passant == "-" else SQUARES.index(en_passant)
    record["clock"] = min(255, _parse_count(fen, parts[4] if len(parts) > 4 else "0", "half moves"))
    record["number"] = min(65535, max(1, _parse_count(fen, parts[5] if len(parts) > 5 else "1", "full moves")))
    return record


def from_bitboards(boards: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Records, POSITION_DTYPE [N], from bitboards, uint64 [N, 8] (pawns, knights, bishops, rooks, queens, kings, White,
    Black), and states, int [N, 5], in the order of the record's other fields.
    """
    bits = np.unpackbits(boards.astype("<u8").view(np.uint8).reshape(-1, 8, 8), axis=2, bitorder="little")
    bits = bits.reshape(-1, 8, 64)
    kinds = (bits[:, :6] * np.arange(1, 7, dtype=np.uint8)[:, None]).sum(1, dtype=np.uint8)
    records = np.zeros(len(boards), POSITION_DTYPE)
    records["squares"] = _pack_squares(kinds + 6 * bits[:, 7])
    for column, name in enumerate(("flags", "passed", "clock", "repeated", "number")):
        records[name] = np.minimum(states[:, column], np.iinfo(POSITION_DTYPE[name]).max)
    return records


def piece_squares(positions: np.ndarray) -> np.ndarray:
    """The piece on each square, uint8 [N, 64]: an index into PIECES."""
    packed = positions["squares"]
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(positions), 64)


def to_fens(positions: np.ndarray) -> list[str]:
    """The FEN of each position."""
    return [_to_fen(record, board) for record, board in zip(positions, piece_squares(positions))]


def fen_tokens(positions: np.ndarray) -> np.ndarray:
    """The tokens for each FEN, uint8 [N, 77]: side to move, 64 squares from a8, castling, en passant and both counters,
    each with a fixed length (Ruoss et al. 2024, appendix A).
    """
    rows = np.empty((len(positions), FEN_TOKENS), np.uint8)
    rows[:, 0] = np.where(positions["flags"] & 1, _CHARACTER_INDEX["b"], _CHARACTER_INDEX["w"])
    rows[:, 1:65] = _PIECE_TOKENS[piece_squares(positions).reshape(-1, 8, 8)[:, ::-1].reshape(-1, 64)]
    rows[:, 65:69] = _CASTLING_TOKENS[positions["flags"] >> 1]
    rows[:, 69:71] = _SQUARE_TOKENS[positions["passed"]]
    rows[:, 71:74] = _COUNT_TOKENS[positions["clock"]]
    rows[:, 74:] = _COUNT_TOKENS[np.minimum(positions["number"], 999)]
    return rows


def _pack_squares(board: np.ndarray) -> np.ndarray:
    return board[:, ::2] | board[:, 1::2] << 4


def _to_fen(record: np.ndarray, board: np.ndarray) -> str:
    ranks = []
    for rank in board.reshape(8, 8)[::-1]:
        text = "".join(PIECES[piece] for piece in rank)
        for count in range(8, 0, -1):
            text = text.replace("." * count, str(count))
        ranks.append(text)
    flags, en_passant = int(record["flags"]), int(record["passed"])
    rights = "".join(right for bit, right in enumerate(CASTLING) if flags & 2 << bit) or "-"
    target = "-" if en_passant == NO_SQUARE else SQUARES[en_passant]
    return f"{'/'.join(ranks)} {'b' if flags & 1 else 'w'} {rights} {target} {record['clock']} {record['number']}"


def _parse_count(fen: str, text: str, noun: str) -> int:
    if not text.isdecimal():
        raise _invalid_fen(fen, f"has {text!r} as the number of {noun}")
    return int(text)


def _invalid_fen(fen: str, fact: str) -> UserError:
    return UserError(f"FEN {fen.strip()!r} {fact}; write it as in {_INITIAL_FEN!r}")


def _padded_indices(strings: Sequence[str], length: int) -> np.ndarray:
    return np.array([[_CHARACTER_INDEX[c] for c in text.ljust(length, ".")] for text in strings], np.uint8)


_PIECE_TOKENS = _padded_indices(PIECES, 1)[:, 0]
_CASTLING_TOKENS = _padded_indices(["".join(c for i, c in enumerate(CASTLING) if n & 1 << i) for n in range(16)], 4)
_SQUARE_TOKENS = _padded_indices([*SQUARES, ""], 2)
_COUNT_TOKENS = _padded_indices([str(n) for n in range(1000)], 3)


PIECE_PLANES = 12  # my PNBRQK, then the opponent's
ATTACK_PLANES = 12  # the number of attackers of each kind
STATE_PLANES = 7  # castling (my K and Q, the opponent's), en passant, clock, repetition
DRAW_HALF_MOVES = 100.0  # half-moves after which a draw can be claimed; scales the clock plane
_OUTSIDE = 64
_LINE_STEPS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))  # files, ranks; straight, diagonal


def num_planes(history: int) -> int:
    """The number of planes with `history` earlier positions."""
    return PIECE_PLANES * (1 + history) + ATTACK_PLANES + STATE_PLANES


def from_mover(positions: np.ndarray, black: np.ndarray | None = None) -> np.ndarray:
    """The piece on each square, uint8 [N, 64], as seen by the side to move (or by Black if `black`): 0 empty, 1 to 6
    mine, 7 to 12 the opponent's, my first rank first.
    """
    board = piece_squares(positions)
    is_black = (positions["flags"] & 1).astype(bool) if black is None else black
    return np.where(is_black[:, None], _OPPONENT_PIECES[board.reshape(-1, 8, 8)[:, ::-1].reshape(-1, 64)], board)


def attack_counts(board: np.ndarray) -> np.ndarray:
    """The number of pieces of each kind that attack each square, uint8 [N, 64, 12]; `board` comes from `from_mover`.

    From each square, eight lines are searched for the first piece, and eight squares for knights. Boards are the last
    axis in all intermediate arrays, so that each step works on long rows.
    """
    with_border = np.zeros((65, len(board)), np.uint8)
    with_border[:64] = board.T
    first = with_border[_LINE_SQUARES[6]]
    for step in range(5, -1, -1):
        pieces_at_step = with_border[_LINE_SQUARES[step]]
        np.copyto(first, pieces_at_step, where=pieces_at_step > 0)
    adjacent, jumps = with_border[_LINE_SQUARES[0]], with_border[_KNIGHT_SQUARES]
    counts = np.empty((ATTACK_PLANES, 64, len(board)), np.uint8)
    for offset, pawns in ((0, _LOWER_DIAGONALS), (6, _UPPER_DIAGONALS)):
        for kind, pieces in enumerate((adjacent[pawns], jumps, first[4:], first[:4], first, adjacent), offset):
            np.sum((pieces == kind + 1).view(np.uint8), axis=0, dtype=np.uint8, out=counts[kind])
    return counts.transpose(2, 1, 0)


def board_planes(positions: Sequence[np.ndarray], exists: np.ndarray) -> np.ndarray:
    """Input planes, uint8 [N, 64, P]. `positions` are records [N], newest first. `known`, bool [N, earlier], is true
    for earlier positions that exist; the others are empty boards.
    """
    newest = positions[0]
    black = (newest["flags"] & 1).astype(bool)
    board = from_mover(newest)
    output = np.zeros((len(newest), 64, num_planes(len(positions) - 1)), np.uint8)
    output[..., :PIECE_PLANES] = _ONE_HOT[board]
    for index, earlier in enumerate(positions[1:], 1):
        visible = np.where(exists[:, index - 1, None], from_mover(earlier, black), 0)
        output[..., PIECE_PLANES * index : PIECE_PLANES * (index + 1)] = _ONE_HOT[visible]
    start = PIECE_PLANES * len(positions)
    output[..., start : start + ATTACK_PLANES] = attack_counts(board)
    state = output[..., start + ATTACK_PLANES :]
    rights = newest["flags"][:, None] >> np.arange(1, 5) & 1
    state[..., :4] = np.where(black[:, None], rights[:, [2, 3, 0, 1]], rights)[:, None]
    en_passant = newest["passed"].astype(np.int64)
    rows = np.flatnonzero(en_passant != NO_SQUARE)
    state[rows, np.where(black, en_passant ^ 56, en_passant)[rows], 4] = 1
    state[..., 5] = np.minimum(newest["clock"], DRAW_HALF_MOVES)[:, None]
    state[..., 6] = newest["repeated"][:, None]
    return output


def _neighbour(square: int, files: int, ranks: int) -> int:
    file, rank = square % 8 + files, square // 8 + ranks
    return 8 * rank + file if 0 <= file < 8 and 0 <= rank < 8 else _OUTSIDE


# The square 1 to 7 steps away from each square along each line, [7, 8, 64], and those a knight's jump away, [8, 64].
_LINE_SQUARES = np.array(
    [[[_neighbour(s, f * step, r * step) for s in range(64)] for f, r in _LINE_STEPS] for step in range(1, 8)], np.int64
)
_KNIGHT_SQUARES = np.array([[_neighbour(s, f, r) for s in range(64)] for f, r in _KNIGHT_STEPS], np.int64)
_LOWER_DIAGONALS, _UPPER_DIAGONALS = [6, 7], [4, 5]  # my pawns attack a square from below, theirs from above
_OPPONENT_PIECES = np.array([0, *range(7, 13), *range(1, 7)], np.uint8)
_ONE_HOT = np.eye(13, dtype=np.uint8)[:, 1:]
