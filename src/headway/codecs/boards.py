"""Chess positions as records, moves as indices, and the input planes of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from headway.errors import UserError

FILES, RANKS = "abcdefgh", "12345678"
SQUARES = tuple(file + rank for rank in RANKS for file in FILES)  # a1 is 0, b1 is 1, h8 is 63
PROMOTIONS = "nbrq"
MOVERS = 1880  # moves with smaller indices are all moves of the side that plays up the board
_KNIGHT = ((1, 2), (2, 1), (2, -1), (1, -2), (-1, -2), (-2, -1), (-2, 1), (-1, 2))


class MoveParts(NamedTuple):
    """Source and target squares of moves, int64 [N], and the promotion: an index into PROMOTIONS, or -1."""

    source: np.ndarray
    target: np.ndarray
    promotion: np.ndarray


def _table() -> tuple[str, ...]:
    """Moves in UCI notation: piece moves, White's promotions, Black's promotions."""
    plain, promotions = [], ([], [])
    for source in range(64):
        for target in range(64):
            files, ranks = target % 8 - source % 8, target // 8 - source // 8
            straight = (files == 0) != (ranks == 0) or (abs(files) == abs(ranks) != 0)
            if straight or (files, ranks) in _KNIGHT:
                plain.append(SQUARES[source] + SQUARES[target])
            last = (source // 8, target // 8)
            if abs(files) <= 1 and last in ((6, 7), (1, 0)):
                promotions[last == (1, 0)].extend(SQUARES[source] + SQUARES[target] + piece for piece in PROMOTIONS)
    return (*plain, *promotions[0], *promotions[1])


MOVES = _table()
NUMBERS = {move: number for number, move in enumerate(MOVES)}


def mirrored(move: str) -> str:
    """A move from the other side's view: a2a4 becomes a7a5."""
    return move[0] + str(9 - int(move[1])) + move[2] + str(9 - int(move[3])) + move[4:]


MIRROR = np.array([NUMBERS[mirrored(move)] for move in MOVES], np.int64)
"""The index of each move from the other side's view; its own inverse."""


def flipped(move: str) -> str:
    """A move on the horizontally flipped board: a2a4 becomes h2h4."""
    turned = [FILES[7 - FILES.index(file)] for file in (move[0], move[2])]
    return turned[0] + move[1] + turned[1] + move[3:]


FLIP = np.array([NUMBERS[flipped(move)] for move in MOVES], np.int64)
"""The index of each move on the horizontally flipped board; its own inverse."""

PARTS = MoveParts(
    np.array([SQUARES.index(move[:2]) for move in MOVES], np.int64),
    np.array([SQUARES.index(move[2:4]) for move in MOVES], np.int64),
    np.array([PROMOTIONS.find(move[4]) if len(move) == 5 else -1 for move in MOVES], np.int64),
)


POSITION = np.dtype(
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
NOWHERE = 64
TOKENS = 77
# In the order of Ruoss et al. 2024.
CHARACTERS = (*"0123456789", *"abcdefgh", *"pnrkq", *"PBNRQK", "w", ".")
_NUMBERS = {character: number for number, character in enumerate(CHARACTERS)}
_START = "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1"


def parse(fen: str) -> np.ndarray:
    """The record of a FEN, POSITION_DTYPE []. The counters may be missing. UserError if it is not a FEN.

    Whether the position is legal is not checked.
    """
    parts = fen.split()
    if not 4 <= len(parts) <= 6:
        raise _wrong(fen, f"has {len(parts)} parts, not 6")
    found = np.zeros((), POSITION)
    found["squares"] = _packed(_placed(fen, parts[0])[None])[0]
    found["flags"] = _turn(fen, parts[1]) | _rights(fen, parts[2])
    found["passed"] = _square(fen, parts[3])
    found["clock"] = min(255, _count(fen, parts[4] if len(parts) > 4 else "0", "half moves"))
    found["number"] = min(65535, max(1, _count(fen, parts[5] if len(parts) > 5 else "1", "full moves")))
    return found


def from_bitboards(boards: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Records, POSITION_DTYPE [N], from bitboards, uint64 [N, 8] (pawns, knights, bishops, rooks, queens, kings, White,
    Black), and states, int [N, 5], in the order of the record's other fields.
    """
    bits = np.unpackbits(boards.astype("<u8").view(np.uint8).reshape(-1, 8, 8), axis=2, bitorder="little")
    bits = bits.reshape(-1, 8, 64)
    kinds = (bits[:, :6] * np.arange(1, 7, dtype=np.uint8)[:, None]).sum(1, dtype=np.uint8)
    found = np.zeros(len(boards), POSITION)
    found["squares"] = _packed(kinds + 6 * bits[:, 7])
    for place, name in enumerate(("flags", "passed", "clock", "repeated", "number")):
        found[name] = np.minimum(states[:, place], np.iinfo(POSITION[name]).max)
    return found


def squares(positions: np.ndarray) -> np.ndarray:
    """The piece on each square, uint8 [N, 64]: an index into PIECES."""
    packed = positions["squares"]
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(positions), 64)


def fens(positions: np.ndarray) -> list[str]:
    """The FEN of each position."""
    return [_fen(record, board) for record, board in zip(positions, squares(positions))]


def tokens(positions: np.ndarray) -> np.ndarray:
    """The tokens of each FEN, uint8 [N, 77]: side to move, 64 squares from a8, castling, en passant and both counters,
    each of fixed length (Ruoss et al. 2024, appendix A).
    """
    found = np.empty((len(positions), TOKENS), np.uint8)
    found[:, 0] = np.where(positions["flags"] & 1, _NUMBERS["b"], _NUMBERS["w"])
    found[:, 1:65] = _PIECE_TOKENS[squares(positions).reshape(-1, 8, 8)[:, ::-1].reshape(-1, 64)]
    found[:, 65:69] = _CASTLING_TOKENS[positions["flags"] >> 1]
    found[:, 69:71] = _SQUARE_TOKENS[positions["passed"]]
    found[:, 71:74] = _COUNT_TOKENS[positions["clock"]]
    found[:, 74:] = _COUNT_TOKENS[np.minimum(positions["number"], 999)]
    return found


def _packed(board: np.ndarray) -> np.ndarray:
    return board[:, ::2] | board[:, 1::2] << 4


def _fen(record: np.ndarray, board: np.ndarray) -> str:
    ranks = []
    for rank in board.reshape(8, 8)[::-1]:
        text = "".join(PIECES[piece] for piece in rank)
        for count in range(8, 0, -1):
            text = text.replace("." * count, str(count))
        ranks.append(text)
    flags, passed = int(record["flags"]), int(record["passed"])
    rights = "".join(right for place, right in enumerate(CASTLING) if flags & 2 << place) or "-"
    target = "-" if passed == NOWHERE else SQUARES[passed]
    return f"{'/'.join(ranks)} {'b' if flags & 1 else 'w'} {rights} {target} {record['clock']} {record['number']}"


def _placed(fen: str, text: str) -> np.ndarray:
    ranks = text.split("/")
    if len(ranks) != 8:
        raise _wrong(fen, f"has {len(ranks)} ranks, not 8")
    board = np.zeros((8, 8), np.uint8)
    for row, rank in enumerate(ranks):
        whole = "".join("." * int(c) if c in "12345678" else c for c in rank)
        strange = next((c for c in whole if c not in PIECES), None)
        if strange is not None:
            raise _wrong(fen, f"has {strange!r} in rank {8 - row}, which is not a piece")
        if len(whole) != 8:
            raise _wrong(fen, f"has {len(whole)} squares in rank {8 - row}, not 8")
        board[7 - row] = [PIECES.index(c) for c in whole]
    return board.reshape(64)


def _turn(fen: str, text: str) -> int:
    if text not in ("w", "b"):
        raise _wrong(fen, f"has {text!r} as the side to move, not w or b")
    return int(text == "b")


def _rights(fen: str, text: str) -> int:
    if text != "-" and any(c not in CASTLING for c in text):
        chess960 = text.isalpha() and all(c.lower() in "abcdefgh" + "kq" for c in text)
        kind = "Chess960 castling rights, which headway does not support" if chess960 else "unknown castling rights"
        raise _wrong(fen, f"has {kind} ({text!r})")
    return sum(2 << CASTLING.index(c) for c in set(text) if c != "-")


def _square(fen: str, text: str) -> int:
    if text == "-":
        return NOWHERE
    if text not in SQUARES or text[1] not in "36":
        raise _wrong(fen, f"has the invalid en passant square {text!r}")
    return SQUARES.index(text)


def _count(fen: str, text: str, what: str) -> int:
    if not text.isdecimal():
        raise _wrong(fen, f"has {text!r} as the number of {what}")
    return int(text)


def _wrong(fen: str, fact: str) -> UserError:
    return UserError(f"FEN {fen.strip()!r} {fact}; write it as in {_START!r}")


def _padded(texts: Sequence[str], length: int) -> np.ndarray:
    return np.array([[_NUMBERS[c] for c in text.ljust(length, ".")] for text in texts], np.uint8)


_PIECE_TOKENS = _padded(PIECES, 1)[:, 0]
_CASTLING_TOKENS = _padded(["".join(c for i, c in enumerate(CASTLING) if n & 1 << i) for n in range(16)], 4)
_SQUARE_TOKENS = _padded([*SQUARES, ""], 2)
_COUNT_TOKENS = _padded([str(n) for n in range(1000)], 3)


PIECE_PLANES = 12  # my PNBRQK, then the opponent's
ATTACK_PLANES = 12  # the number of attackers of each kind
STATE_PLANES = 7  # castling (my K and Q, the opponent's), en passant, clock, repetition
CLOCK = 100.0  # half-moves after which a game can be drawn; scales the clock plane
_OUTSIDE = 64
_STEPS = (
    (0, 1),
    (0, -1),
    (1, 0),
    (-1, 0),
    (1, 1),
    (-1, 1),
    (1, -1),
    (-1, -1),
)  # files, ranks; four straight, four diagonal
_JUMPS = ((1, 2), (2, 1), (2, -1), (1, -2), (-1, -2), (-2, -1), (-2, 1), (-1, 2))


def planes_for(history: int) -> int:
    """The number of planes with `history` earlier positions."""
    return PIECE_PLANES * (1 + history) + ATTACK_PLANES + STATE_PLANES


def seen(positions: np.ndarray, black: np.ndarray | None = None) -> np.ndarray:
    """The piece on each square, uint8 [N, 64], from the view of the side to move (or of Black if `black`): 0 empty,
    1 to 6 mine, 7 to 12 the opponent's, my first rank first.
    """
    board = squares(positions)
    turned = (positions["flags"] & 1).astype(bool) if black is None else black
    return np.where(turned[:, None], _OTHER[board.reshape(-1, 8, 8)[:, ::-1].reshape(-1, 64)], board)


def attackers(board: np.ndarray) -> np.ndarray:
    """The number of pieces of each kind that attack each square, uint8 [N, 64, 12]; `board` comes from `from_mover`.

    From each square, eight lines are searched for their first piece, and eight squares for knights. Boards are the last
    axis of all intermediate arrays, so that each step works on long rows.
    """
    framed = np.zeros((65, len(board)), np.uint8)
    framed[:64] = board.T
    first = framed[_LINES[6]]
    for step in range(5, -1, -1):
        here = framed[_LINES[step]]
        np.copyto(first, here, where=here > 0)
    near, jumps = framed[_LINES[0]], framed[_KNIGHTS]
    found = np.empty((ATTACK_PLANES, 64, len(board)), np.uint8)
    for side, pawns in ((0, _BELOW), (6, _ABOVE)):
        for kind, pieces in enumerate((near[pawns], jumps, first[4:], first[:4], first, near), side):
            np.sum((pieces == kind + 1).view(np.uint8), axis=0, dtype=np.uint8, out=found[kind])
    return found.transpose(2, 1, 0)


def planes(positions: Sequence[np.ndarray], known: np.ndarray) -> np.ndarray:
    """Input planes, uint8 [N, 64, P]. `positions` are records [N], newest first; `known`, bool [N, earlier], is
    true for existing earlier positions; the others are empty boards.
    """
    newest = positions[0]
    black = (newest["flags"] & 1).astype(bool)
    board = seen(newest)
    found = np.zeros((len(newest), 64, planes_for(len(positions) - 1)), np.uint8)
    found[..., :PIECE_PLANES] = _ONE_HOT[board]
    for place, before in enumerate(positions[1:], 1):
        shown = np.where(known[:, place - 1, None], seen(before, black), 0)
        found[..., PIECE_PLANES * place : PIECE_PLANES * (place + 1)] = _ONE_HOT[shown]
    start = PIECE_PLANES * len(positions)
    found[..., start : start + ATTACK_PLANES] = attackers(board)
    found[..., start + ATTACK_PLANES :] = _state(newest, black)
    return found


def _state(positions: np.ndarray, black: np.ndarray) -> np.ndarray:
    found = np.zeros((len(positions), 64, STATE_PLANES), np.uint8)
    rights = positions["flags"][:, None] >> np.arange(1, 5) & 1
    found[..., :4] = np.where(black[:, None], rights[:, [2, 3, 0, 1]], rights)[:, None]
    passed = positions["passed"].astype(np.int64)
    rows = np.flatnonzero(passed != NOWHERE)
    found[rows, np.where(black, passed ^ 56, passed)[rows], 4] = 1
    found[..., 5] = np.minimum(positions["clock"], CLOCK)[:, None]
    found[..., 6] = positions["repeated"][:, None]
    return found


def _neighbour(square: int, files: int, ranks: int) -> int:
    file, rank = square % 8 + files, square // 8 + ranks
    return 8 * rank + file if 0 <= file < 8 and 0 <= rank < 8 else _OUTSIDE


# The square 1 to 7 steps away from each square along each line, [7, 8, 64], and those a knight's jump away, [8, 64].
_LINES = np.array(
    [[[_neighbour(s, f * step, r * step) for s in range(64)] for f, r in _STEPS] for step in range(1, 8)], np.int64
)
_KNIGHTS = np.array([[_neighbour(s, f, r) for s in range(64)] for f, r in _JUMPS], np.int64)
_BELOW, _ABOVE = [6, 7], [4, 5]  # my pawns attack a square from below, theirs from above
_OTHER = np.array([0, *range(7, 13), *range(1, 7)], np.uint8)
_ONE_HOT = np.eye(13, dtype=np.uint8)[:, 1:]
