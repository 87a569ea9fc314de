"""Positions of chess as records of 38 bytes, and as the tokens of their FEN."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headway.codecs.moves import SQUARES
from headway.errors import UserError

POSITION = np.dtype(
    [
        ("squares", np.uint8, 32),  # two a byte, a1 first: 0 empty, 1 to 6 White's PNBRQK, 7 to 12 Black's
        ("flags", np.uint8),  # 1 Black is to move; 2, 4, 8, 16 castling: K, Q, k, q
        ("passed", np.uint8),  # where a pawn can be taken en passant; 64 nowhere
        ("clock", np.uint8),  # half moves since a pawn was moved or a piece taken
        ("repeated", np.uint8),  # how often it stood on the board before
        ("number", np.uint16),  # of the move, from 1
    ]
)
PIECES = ".PNBRQKpnbrqk"
CASTLING = "KQkq"
NOWHERE = 64
TOKENS = 77
# As Ruoss et al. 2024 number them.
CHARACTERS = (*"0123456789", *"abcdefgh", *"pnrkq", *"PBNRQK", "w", ".")
_NUMBERS = {character: number for number, character in enumerate(CHARACTERS)}
_START = "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1"


def parse(fen: str) -> np.ndarray:
    """The record of a FEN, POSITION []. Its counters may be missing. UserError for what is no FEN.

    Whether the position can stand on a board is for the rules to say.
    """
    parts = fen.split()
    if not 4 <= len(parts) <= 6:
        raise _wrong(fen, f"has {len(parts)} parts, not 6")
    found = np.zeros((), POSITION)
    found["squares"] = _packed(_placed(fen, parts[0])[None])[0]
    found["flags"] = _turn(fen, parts[1]) | _rights(fen, parts[2])
    found["passed"] = _square(fen, parts[3])
    found["clock"] = min(255, _count(fen, parts[4] if len(parts) > 4 else "0", "half moves"))
    found["number"] = min(65535, max(1, _count(fen, parts[5] if len(parts) > 5 else "1", "the move")))
    return found


def from_bitboards(boards: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Records, POSITION [N], of bit boards, uint64 [N, 8] (pawns, knights, bishops, rooks, queens, kings, White,
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
    """What stands on each square, uint8 [N, 64]: a place in PIECES."""
    packed = positions["squares"]
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(positions), 64)


def fens(positions: np.ndarray) -> list[str]:
    """The FEN of each position."""
    return [_fen(record, board) for record, board in zip(positions, squares(positions))]


def tokens(positions: np.ndarray) -> np.ndarray:
    """The tokens of each FEN, uint8 [N, 77]: side, 64 squares from a8 on, castling, en passant, both counters, each of
    a fixed length (Ruoss et al. 2024, appendix A).
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
            raise _wrong(fen, f"has {strange!r} in rank {8 - row}, which is no piece")
        if len(whole) != 8:
            raise _wrong(fen, f"has {len(whole)} squares in rank {8 - row}, not 8")
        board[7 - row] = [PIECES.index(c) for c in whole]
    return board.reshape(64)


def _turn(fen: str, text: str) -> int:
    if text not in ("w", "b"):
        raise _wrong(fen, f"says that {text!r} is to move; w or b can be")
    return int(text == "b")


def _rights(fen: str, text: str) -> int:
    if text != "-" and any(c not in CASTLING for c in text):
        chess960 = text.isalpha() and all(c.lower() in "abcdefgh" + "kq" for c in text)
        kind = "castling rights of Chess960, which headway does not play" if chess960 else "unknown castling rights"
        raise _wrong(fen, f"has {kind} ({text!r})")
    return sum(2 << CASTLING.index(c) for c in set(text) if c != "-")


def _square(fen: str, text: str) -> int:
    if text == "-":
        return NOWHERE
    if text not in SQUARES or text[1] not in "36":
        raise _wrong(fen, f"has {text!r} as the square behind a pawn, which none can be")
    return SQUARES.index(text)


def _count(fen: str, text: str, what: str) -> int:
    if not text.isdecimal():
        raise _wrong(fen, f"has {text!r} for the number of {what}")
    return int(text)


def _wrong(fen: str, fact: str) -> UserError:
    return UserError(f"FEN {fen.strip()!r} {fact}; write it as in {_START!r}")


def _padded(texts: Sequence[str], length: int) -> np.ndarray:
    return np.array([[_NUMBERS[c] for c in text.ljust(length, ".")] for text in texts], np.uint8)


_PIECE_TOKENS = _padded(PIECES, 1)[:, 0]
_CASTLING_TOKENS = _padded(["".join(c for i, c in enumerate(CASTLING) if n & 1 << i) for n in range(16)], 4)
_SQUARE_TOKENS = _padded([*SQUARES, ""], 2)
_COUNT_TOKENS = _padded([str(n) for n in range(1000)], 3)
