"""Inference with chess models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from headway.errors import UserError
from headway.io.arguments import check_types
from headway.predict.model_handle import ModelHandle

if TYPE_CHECKING:
    from headway.domains.chess.games import ChessMove
    from headway.domains.chess.player import ChessPlayer


@check_types
def player(model: ModelHandle, search: str | None = None) -> ChessPlayer:
    """A chess player that chooses moves by the model's "policy", by the "value" of the position after each move, or
    by a tree search ("puct"). None chooses the strongest that the model supports. Needs the extra `chess`.
    """
    from headway.domains.chess.config import make_evaluator  # imports the extra `chess`
    from headway.domains.chess.player import ChessPlayer

    return ChessPlayer(make_evaluator(model.module, model.recipe, str(model.directory)), search)


@check_types
def move(
    model: ModelHandle,
    position: str = "",
    moves: str | Iterable[str] = (),
    nodes: int = 100,
    temperature: float = 0.0,
    top: int = 5,
    seed: int | None = None,
) -> ChessMove:
    """Play a move in a game of chess. Returns it in UCI and SAN, with the probabilities of win, draw and loss for the
    side that moves, the most probable moves, and the game after it. Needs the extra `chess`.

    position: the position that the game starts from, as FEN (default: the start of chess).
    moves: the moves played since then, such as e2e4 or Nf3.
    nodes: positions to search; 0 plays without a search.
    temperature: sampling temperature; 0 plays the best move.
    top: number of most probable moves to return.
    seed: random seed of the sampled move.

    Raises UserError for an invalid position, an illegal move, and a finished game.
    """
    from headway.domains.chess.games import choose_move, play_moves  # imports the extra `chess`

    if nodes < 0 or not 0 <= temperature < float("inf") or top < 1:
        raise UserError(
            f"nodes is {nodes}, temperature {temperature:g} and top {top}; choose numbers of at least 0, and top of at "
            "least 1"
        )
    chess_player = player(model)
    if nodes == 0:
        chess_player.set_search("policy" if chess_player.evaluator.has_policy else "value")
    return choose_move(chess_player, play_moves(position, moves), nodes, temperature, top, seed)
