"""Models that answer: taught by conversations, and by choices between two answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazily

if TYPE_CHECKING:
    from headway.domains.chat.talk import Talk

__all__ = ["RECIPES", "TASKS", "Talk"]
RECIPES = ("instruct", "preference")
TASKS = {"instruct": "instruct", "preference": "preference"}
lazily(__name__, {".talk": ("Talk",)})
