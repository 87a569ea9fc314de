"""Predictors of chess models."""

from __future__ import annotations

from headway.domains.chess.judge import judge_of
from headway.domains.chess.player import Player
from headway.given import typed
from headway.handle import Handle


@typed
def player(model: Handle, search: str | None = None) -> Player:
    return Player(judge_of(model.module, model.recipe, str(model.directory)), search)
