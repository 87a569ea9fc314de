"""Positions and moves of chess as numbers, held to python-chess."""

from __future__ import annotations

import random

import numpy as np
import pytest

from headway.codecs.chess_boards import (
    ATTACK_PLANES,
    FEN_CHARACTERS,
    FEN_TOKENS,
    FLIPPED_MOVES,
    MIRRORED_MOVES,
    MOVE_INDEX,
    MOVE_PARTS,
    MOVES,
    PIECE_PLANES,
    POSITION_DTYPE,
    UPWARD_MOVES,
    attack_counts,
    board_planes,
    fen_tokens,
    from_mover,
    num_planes,
    parse_fen,
    to_fens,
)
from headway.errors import UserError

chess = pytest.importorskip("chess")


def played(games: int = 6, seed: int = 0) -> list:
    """Boards of random games, whose moves they keep."""
    draw, found = random.Random(seed), []
    for _ in range(games):
        board = chess.Board()
        while not board.is_game_over() and len(board.move_stack) < 120:
            board.push(draw.choice(list(board.legal_moves)))
            found.append(board.copy())
    return found


BOARDS = played()
POSITIONS = np.array([parse_fen(board.fen()) for board in BOARDS])


def test_the_moves_are_those_of_queens_and_knights_and_promotions() -> None:
    board, found = chess.Board.empty(), set()
    for square in chess.SQUARES:
        for kind in (chess.QUEEN, chess.KNIGHT):
            board.set_piece_map({square: chess.Piece(kind, chess.WHITE)})
            found |= {chess.Move(square, target).uci() for target in board.attacks(square)}
    for side, rank in ((1, "7"), (-1, "2")):
        for file in range(8):
            for target in range(max(0, file - 1), min(7, file + 1) + 1):
                move = "abcdefgh"[file] + rank + "abcdefgh"[target] + str(int(rank) + side)
                found |= {move + piece for piece in "nbrq"}
    assert len(MOVES) == len(set(MOVES)) == 1968
    assert set(MOVES) == found
    assert all(move[1] != "2" or len(move) == 4 for move in MOVES[:UPWARD_MOVES])
    assert all(move[1] == "2" and len(move) == 5 for move in MOVES[UPWARD_MOVES:])


def test_mirrored_moves_are_their_own_inverse_and_what_the_other_side_plays() -> None:
    assert (MIRRORED_MOVES[MIRRORED_MOVES] == np.arange(1968)).all()
    for board in BOARDS[::40]:
        legal = {MOVE_INDEX[move.uci()] for move in board.legal_moves}
        other = {MOVE_INDEX[move.uci()] for move in board.mirror().legal_moves}
        assert {int(MIRRORED_MOVES[number]) for number in legal} == other
    assert MOVE_PARTS.source[MOVE_INDEX["b7a8r"]] == chess.B7
    assert MOVE_PARTS.target[MOVE_INDEX["b7a8r"]] == chess.A8
    assert MOVE_PARTS.promotion[MOVE_INDEX["b7a8r"]] == 2


def test_flipped_moves_are_those_of_the_flipped_board() -> None:
    assert (FLIPPED_MOVES[FLIPPED_MOVES] == np.arange(1968)).all()
    assert (FLIPPED_MOVES[:UPWARD_MOVES] < UPWARD_MOVES).all()
    free = [board for board in BOARDS if not board.castling_rights]
    for board in free[::40]:
        other = board.transform(chess.flip_horizontal)
        legal = {int(FLIPPED_MOVES[MOVE_INDEX[move.uci()]]) for move in board.legal_moves}
        assert legal == {MOVE_INDEX[move.uci()] for move in other.legal_moves}


def test_a_fen_comes_back() -> None:
    assert POSITIONS.dtype == POSITION_DTYPE
    assert POSITION_DTYPE.itemsize == 38
    assert to_fens(POSITIONS) == [board.fen() for board in BOARDS]
    assert to_fens(parse_fen("8/8/8/8/8/k7/8/K1q5 w - -")[None]) == ["8/8/8/8/8/k7/8/K1q5 w - - 0 1"]


def test_tokens_are_the_77_of_the_paper() -> None:
    def slow(fen: str) -> list[int]:
        board, side, castling, passed, clock, number = fen.split()
        text = side + "".join("." * int(c) if c.isdigit() else c for c in board.replace("/", ""))
        text += castling.replace("-", "").ljust(4, ".") + passed.replace("-", "").ljust(2, ".")
        return [FEN_CHARACTERS.index(c) for c in text + clock.ljust(3, ".") + number.ljust(3, ".")]

    found = fen_tokens(POSITIONS)
    assert found.shape == (len(BOARDS), FEN_TOKENS) == (len(BOARDS), 77)
    assert found.tolist() == [slow(board.fen()) for board in BOARDS]
    assert len(FEN_CHARACTERS) == 31


def test_what_is_seen_and_who_attacks_is_what_python_chess_says() -> None:
    board = from_mover(POSITIONS)
    counts = attack_counts(board)
    for row, real in list(enumerate(BOARDS))[::23]:
        turned = real if real.turn else real.mirror()
        for square in chess.SQUARES:
            piece = turned.piece_at(square)
            assert board[row, square] == (0 if piece is None else piece.piece_type + 6 * (not piece.color))
            for side, colour in ((0, chess.WHITE), (6, chess.BLACK)):
                kinds = [turned.piece_type_at(other) for other in turned.attackers(colour, square)]
                assert counts[row, square, side : side + 6].tolist() == [kinds.count(kind) for kind in range(1, 7)]


def test_a_position_seen_from_black_is_its_mirror_seen_from_white() -> None:
    mirrored = np.array([parse_fen(board.mirror().fen()) for board in BOARDS])
    none = np.zeros((len(BOARDS), 0), bool)
    assert (board_planes([POSITIONS], none) == board_planes([mirrored], none)).all()


def test_planes_hold_castling_en_passant_the_clock_and_the_past() -> None:
    board = chess.Board("r3k3/8/8/3Pp3/8/8/8/4K2R w Kq e6 7 9")
    now = parse_fen(board.fen())[None]
    found = board_planes([now, now], np.array([[False]]))[0]
    assert found.shape == (64, num_planes(1))
    assert not found[:, PIECE_PLANES : 2 * PIECE_PLANES].any()
    state = found[:, 2 * PIECE_PLANES + ATTACK_PLANES :]
    assert state[0, :4].tolist() == [1, 0, 0, 1]
    assert np.flatnonzero(state[:, 4]).tolist() == [chess.E6]
    assert state[0, 5] == 7
    board.push_uci("d5e6")
    after = board_planes([parse_fen(board.fen())[None], now], np.array([[True]]))[0]
    assert after[chess.D5 ^ 56, PIECE_PLANES + 6] == 1  # my opponent's pawn stood there
    assert after[:, PIECE_PLANES : 2 * PIECE_PLANES].sum() == 6


@pytest.mark.parametrize(
    ("fen", "message"),
    [
        ("", "has 0 parts"),
        ("8/8/8/8/8/8/8 w - - 0 1", "7 ranks"),
        ("8/8/8/8/8/8/8/7 w - - 0 1", "7 squares in rank 1"),
        ("8/8/8/8/8/8/8/7x w - - 0 1", "'x' in rank 1"),
        ("8/8/8/8/8/8/8/8 x - - 0 1", "'x' as the side to move"),
        ("8/8/8/8/8/8/8/8 w HAha - 0 1", "Chess960"),
        ("8/8/8/8/8/8/8/8 w - e4 0 1", "invalid en passant square 'e4'"),
        ("8/8/8/8/8/8/8/8 w - - x 1", "'x' as the number of half moves"),
    ],
)
def test_what_is_no_fen_is_told(fen: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_fen(fen)
