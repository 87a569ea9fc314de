"""Models that answer: trained on conversations, and on preferences between two answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazy_imports import lazy_exports

if TYPE_CHECKING:
    from headway.domains.chat.predictors import Conversation

__all__ = ["RECIPES", "TASKS", "VERBS", "Conversation"]
RECIPES = ("instruct", "preference")
TASKS = {"instruct": "task", "preference": "preference"}
VERBS = {"chat": "is_causal", "chat_stream": "is_causal", "talk": "is_causal"}
lazy_exports(__name__, {".predictors": ("Conversation",)})
