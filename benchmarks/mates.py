"""Random positions of seven pieces for rewards.py: some with a mate in one, others with a random legal move.

White, to move, has the king and three more pieces; Black has the king, mostly on the edge, and two. A position is
written as its pieces and their squares, and a move as two squares: K g1 Q d4 R h7 N b3 k g8 p f7 p a6 > d4 g7. A word
is one token.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import NamedTuple

import chess

VOCABULARY = " ".join([*"PNBRQKpnbrqk>", *chess.SQUARE_NAMES])
_WHITE = ("QRB", "QRN", "QRR", "QRP", "QBN", "QBP", "QNP", "RRB", "RRN", "RRP")  # next to the king
_BLACK = ("qr", "rb", "rn", "rp", "bn", "bp", "np", "pp")
_EDGE = [square for square in chess.SQUARES if square % 8 in (0, 7) or square // 8 in (0, 7)]
_EDGE_SHARE = 0.8  # of positions have the black king on the edge
_EXAMPLES = 3  # moves of a position, at most
_REPORT = 2000  # mates between lines of progress


class Positions(NamedTuple):
    """`moves`: positions without a mate in one, each with random legal moves; `mates`: prompts with a mate in one."""

    moves: list[tuple[str, str]]
    mates: list[dict[str, str]]


def place(rng: random.Random) -> chess.Board | None:
    """A random position; None if it is not legal."""
    pieces = ["k", "K", *rng.choice(_WHITE), *rng.choice(_BLACK)]
    squares = rng.sample(chess.SQUARES, len(pieces))
    if rng.random() < _EDGE_SHARE:
        squares[0] = rng.choice(_EDGE)
    board = chess.Board(None)
    for piece, square in zip(pieces, squares):
        board.set_piece_at(square, chess.Piece.from_symbol(piece))
    promotes = board.pawns & board.occupied_co[chess.WHITE] & chess.BB_RANK_7  # a move is two squares alone
    return board if len(set(squares)) == len(pieces) and board.is_valid() and not promotes else None


def to_text(board: chess.Board) -> str:
    pieces = sorted(board.piece_map().items(), key=lambda item: ("KQRBNPkqrbnp".index(item[1].symbol()), item[0]))
    return " ".join(f"{piece.symbol()} {chess.square_name(square)}" for square, piece in pieces) + " >"


def mates_in_one(board: chess.Board) -> bool:
    for move in board.legal_moves:
        if board.gives_check(move):
            board.push(move)
            mates = board.is_checkmate()
            board.pop()
            if mates:
                return True
    return False


def positions(num_moves: int, num_mates: int, seed: int) -> Positions:
    """Sample until there are so many of both. No position occurs twice, also if left and right are exchanged."""
    rng, seen = random.Random(seed), set[str]()
    found = Positions([], [])
    while len(found.moves) < num_moves or len(found.mates) < num_mates:
        board = place(rng)
        if board is None:
            continue
        prompt = to_text(board)
        key = min(prompt, to_text(board.transform(chess.flip_horizontal)))
        if key in seen:
            continue
        seen.add(key)
        if mates_in_one(board):
            found.mates.append({"prompt": prompt, "fen": board.fen()})
            if len(found.mates) % _REPORT == 0:
                print(f"{len(found.mates):,} mates and {len(found.moves):,} moves", flush=True)
        elif len(found.moves) < num_moves and (legal := list(board.legal_moves)):
            for move in rng.sample(legal, min(_EXAMPLES, len(legal))):
                squares = chess.square_name(move.from_square), chess.square_name(move.to_square)
                found.moves.append((prompt, " ".join(squares)))
    return Positions(found.moves, found.mates[:num_mates])


def write_prompts(folder: Path, parts: dict[str, list[dict[str, str]]]) -> Path:
    """A file for each split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in parts.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return folder
