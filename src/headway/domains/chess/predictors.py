"""Inference with chess models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.io.arguments import check_types
from headway.predict.model_handle import ModelHandle

if TYPE_CHECKING:
    from headway.domains.chess.player import ChessPlayer


@check_types
def player(model: ModelHandle, search: str | None = None) -> ChessPlayer:
    """A chess player that chooses moves by the model's "policy", by the "value" of the position after each move, or
    by a tree search ("puct"). None chooses the strongest that the model supports. Needs the extra `chess`.
    """
    from headway.domains.chess.config import make_evaluator  # imports the extra `chess`
    from headway.domains.chess.player import ChessPlayer

    return ChessPlayer(make_evaluator(model.module, model.recipe, str(model.directory)), search)
