"""A game of chess: its state by the rules, and a model's move in it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from headway.domains.chess.boards import board_from_fen, chess, expected_of, parse_move
from headway.domains.chess.evaluator import EXPECTED_TEMPERATURE, repetitions
from headway.domains.chess.limits import SearchLimits
from headway.domains.chess.player import ChessPlayer
from headway.errors import UserError
from headway.io.arguments import text_inputs

_MAX_MOVES = 2048  # half moves of a game
_MAX_MOVE_CHARS = 20


class ChessGame(NamedTuple):
    """The state of a game: `position` as FEN, the `turn` ("white" or "black"), whether it is `check`, the `moves`
    played in SAN, and all `legal` moves, SAN by UCI. A finished game has a `result`, such as "1-0", and an `end`:
    checkmate, stalemate, insufficient material, fifty moves or threefold repetition.
    """

    position: str
    turn: str
    check: bool
    moves: list[str]
    legal: dict[str, str]
    result: str | None
    end: str | None


class CandidateMove(NamedTuple):
    """A move that the model considers, and its probability."""

    uci: str
    san: str
    probability: float


class ChessMove(NamedTuple):
    """A move in UCI and SAN. `outcome` has the probabilities of win, draw and loss for the side that moves (None: the
    model predicts only moves), `candidates` are the most probable moves before the temperature, and `game` is the game
    after the move.
    """

    uci: str
    san: str
    outcome: tuple[float, float, float] | None
    candidates: list[CandidateMove]
    nodes: int
    game: ChessGame


def game_over(board: chess.Board) -> tuple[str, str] | None:
    """Return the result and the reason of a finished game. Both sides claim any draw that they can."""
    if not any(board.generate_legal_moves()):
        lost = "0-1" if board.turn else "1-0"
        return (lost, "checkmate") if board.is_check() else ("1/2-1/2", "stalemate")
    if board.is_insufficient_material():
        return "1/2-1/2", "insufficient material"
    if board.halfmove_clock >= 100:
        return "1/2-1/2", "fifty moves"
    return ("1/2-1/2", "threefold repetition") if repetitions(board) >= 2 else None


def play_moves(position: str, moves: str | Iterable[str]) -> chess.Board:
    """Return the board after some moves from a position as FEN ("" for the start). UserError for an invalid FEN, an
    illegal move, or too many moves.
    """
    board = board_from_fen(position) if position else chess.Board()
    words = text_inputs(moves, "move").items
    if len(words) > _MAX_MOVES:
        raise UserError(f"the game has {len(words):,} moves; pass at most {_MAX_MOVES:,} half moves")
    for number, word in enumerate(words, 1):
        if len(word) > _MAX_MOVE_CHARS:
            raise UserError(f"move {number} has {len(word):,} characters; write moves as e2e4 or Nf3")
        board.push(parse_move(board, word))
    return board


def game_state(board: chess.Board) -> ChessGame:
    """Return the state of the game that a board has."""
    over, back, played = game_over(board), board.root(), list[str]()
    for move in board.move_stack:
        played.append(back.san(move))
        back.push(move)
    legal = {} if over else {move.uci(): board.san(move) for move in board.legal_moves}
    result, end = over or (None, None)
    turn = "white" if board.turn else "black"
    return ChessGame(board.fen(), turn, board.is_check(), played, legal, result, end)


def choose_move(
    player: ChessPlayer, board: chess.Board, nodes: int, temperature: float, top: int, seed: int | None
) -> ChessMove:
    """Return the player's move, which is played on the board. The probability of a move is its share of the visits of a
    tree search (Silver et al. 2017), or that of the policy. UserError if the game is over.
    """
    if over := game_over(board):
        raise UserError(f"the game is over ({over[1]}, {over[0]}); start a new one, or take back a move")
    lines = player.think(board, SearchLimits(nodes=max(1, nodes))).lines
    weights = np.array([line.visits for line in lines], np.float64)
    if player.search == "value":  # which visits each move once
        expected = np.array([expected_of(line.outcome) for line in lines])
        weights = np.exp((expected - expected.max()) / EXPECTED_TEMPERATURE)
    index = 0
    if temperature > 0 and not lines[0].mates:
        logits = np.log(np.maximum(weights / weights.sum(), 1e-12)) / temperature
        odds = np.exp(logits - logits.max())
        index = int(np.random.default_rng(seed).choice(len(lines), p=odds / odds.sum()))
    order = np.argsort(-weights, kind="stable")[:top].tolist()
    shares = (weights / weights.sum()).tolist()
    moves = [line.moves[0] for line in lines]
    candidates = [CandidateMove(moves[n].uci(), board.san(moves[n]), shares[n]) for n in order]
    win, draw, loss = lines[index].outcome.tolist()
    outcome = (win, draw, loss) if player.evaluator.has_value else None
    played, san = moves[index], board.san(moves[index])
    board.push(played)
    return ChessMove(played.uci(), san, outcome, candidates, nodes, game_state(board))
