"""Inference with chess models."""

from __future__ import annotations

from headway.arguments import check_types
from headway.domains.chess.config import make_evaluator
from headway.domains.chess.player import ChessPlayer
from headway.model_handle import ModelHandle


@check_types
def player(model: ModelHandle, search: str | None = None) -> ChessPlayer:
    return ChessPlayer(make_evaluator(model.module, model.recipe, str(model.directory)), search)
